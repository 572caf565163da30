"""An evaluation with given completions, on however many processes it is launched; rows and metrics go to a file.

Not a test by itself: `test_processes_evaluation.py` launches it on one and on two processes.
    torchrun --standalone --nproc_per_node N tests/evaluation_run.py OUT PER_DEVICE_BATCH
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from accelerate.utils import gather_object
from tiny_omni import tiny_random

from tars_trl import TARSGRPOConfig, format_reward
from tests.conftest import odd_reward, questions
from tests.one_step import OneStep


class Kept(OneStep):
    """Keeps every row that was rewarded: key, modality, and whether it was correct."""

    def _calculate_rewards(self, *args):
        rewards = super()._calculate_rewards(*args)
        names = gather_object([(row["key"], row["modality"]) for row in self._rollout.rows])
        self.kept = [*getattr(self, "kept", []), *zip(names, rewards[:, 0].tolist(), strict=True)]
        return rewards


def main() -> None:
    out, batch = sys.argv[1:3]
    model, processor = tiny_random(0)
    args = TARSGRPOConfig(
        out,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=int(batch),
        num_generations=8,
        num_generations_eval=4,
        max_completion_length=8,
        bf16=False,
        mask_truncated_completions=False,
        reference_reward="odd_reward",
        behavior_weight=0.0,
        report_to=[],
        dataloader_pin_memory=False,
    )
    data = questions(3)
    trainer = Kept(model, [odd_reward, format_reward], args, data, eval_dataset=data, processing_class=processor)
    metrics = trainer.evaluate()
    if trainer.accelerator.is_main_process:
        rows = [(*names, correct) for names, correct in trainer.kept]
        Path(out, "evaluation.json").write_text(json.dumps({"metrics": metrics, "rows": rows}))


if __name__ == "__main__":
    main()
