"""Six TARS steps with checkpoints, in which something may go wrong; the adapter and the losses are left at the end.

Not a test by itself: `test_interruptions.py` launches it.
    torchrun … tests/interrupted_run.py OUT {nothing,kill,term,full,SECONDS}
What goes wrong, in the second save or in step 5: the last process is killed, SIGTERM comes while the second file of a
checkpoint is being written, or the disk is full (files above a size cannot be written). Or, given a number: the process
is killed so many seconds after its training has begun, wherever it is then.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from tiny_omni import tiny_random
from transformers import TrainerCallback

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tests.conftest import odd_reward, questions


class Kill(TrainerCallback):
    """The last process dies between the backward pass of step 5 and its update."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 4 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Interrupted(TARSGRPOTrainer):
    """Its second save goes wrong."""

    fault = "nothing"

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.state.global_step == 4 and self.fault == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if self.state.global_step == 4 and self.fault == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        super()._save_optimizer_and_scheduler(output_dir)


def main() -> None:
    out, fault = sys.argv[1:3]
    model, processor = tiny_random(0)
    args = TARSGRPOConfig(
        out,
        per_device_train_batch_size=8,
        num_generations=8,
        max_steps=6,
        max_completion_length=8,
        learning_rate=1e-3,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        mask_truncated_completions=False,
        reference_reward="odd_reward",
        behavior_weight=0.0,
        distillation_weight=0.5,
        report_to=[],
        save_steps=2,
        save_total_limit=1,
        dataloader_pin_memory=False,
    )
    trainer = Interrupted(
        model, [odd_reward, format_reward], args, questions(6), processing_class=processor,
        callbacks=[Kill()] if fault == "kill" else None,
    )  # fmt: skip
    trainer.fault = fault
    if fault.replace(".", "").isdigit():
        timer = threading.Timer(float(fault), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True  # one that comes too late is not waited for
        timer.start()
    start = time.monotonic()
    trainer.train(resume_from_checkpoint="last")
    Path(out, "seconds").write_text(str(time.monotonic() - start))
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        Path(out, "losses.json").write_text(json.dumps([log.get("loss") for log in trainer.state.log_history]))


if __name__ == "__main__":
    main()
