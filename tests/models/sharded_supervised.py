"""Two steps of SFT or DPO on speech under whatever the launcher set up; the losses go to a file.

Not a test by itself: `test_sharding.py` launches it.
    accelerate launch --config_file … tests/sharded_supervised.py OUT sft|dpo PER_DEVICE_BATCH
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from tiny_omni import tiny_random

from tars_trl.supervised import SpeechDPOConfig, SpeechDPOTrainer, SpeechSFTConfig, SpeechSFTTrainer
from tests.models.sharded_run import allow_fsdp_on_cpu
from tests.supervised import REPLIES, rows, said


def main() -> None:
    out, method, batch = sys.argv[1:4]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        allow_fsdp_on_cpu()
    model, processor = tiny_random(0)
    said_well = [said(text) for text in REPLIES]
    if method == "sft":
        settings, trainer, data = SpeechSFTConfig, SpeechSFTTrainer, rows(completion=said_well)
    else:
        settings, trainer = SpeechDPOConfig, SpeechDPOTrainer
        data = rows(chosen=said_well, rejected=[said("one two") for _ in REPLIES])
    args = settings(
        out,
        per_device_train_batch_size=int(batch),
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        bf16=False,
        lora_dropout=0.0,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    made = trainer(model, args, data, processing_class=processor)
    made.train()
    if made.accelerator.is_main_process:
        losses = [log["loss"] for log in made.state.log_history if "loss" in log]
        Path(out, "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
