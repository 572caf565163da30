"""One TARS step with given completions, on however many processes it is launched; what came out goes to files.

Not a test by itself: `test_processes.py` launches it on one and on two processes and compares.
    torchrun --standalone --nproc_per_node N tests/one_step.py OUT BATCH ACCUMULATION EMBEDDER REFERENCE SHARE MODEL
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import TrainerCallback

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tars_trl.grpo import sharing
from tars_trl.models.hooks import StatePooler
from tars_trl.models.prompting import heard
from tests.conftest import odd_reward, questions
from tests.models.tiny import ARCHITECTURES


class OneStep(TARSGRPOTrainer):
    """Completions are given by question and row in the group, not sampled; their states are pooled from a real pass."""

    def _generate_single_turn(self, prompt_ids, images, fields, num_generations, has_tool_images=False):
        first = self.accelerator.process_index * len(prompt_ids)
        chosen = []
        for number, row in enumerate(self._rollout.rows):
            generator = torch.Generator().manual_seed(1000 * int(row["key"][1:]) + (first + number) % 8)
            length = int(torch.randint(2, 9, (1,), generator=generator))
            ids = torch.randint(40, 200, (length,), generator=generator).tolist()
            chosen.append([*ids, self.eos_token_ids[0]])
        width, length = max(map(len, prompt_ids)), max(map(len, chosen))
        pad = self._tokenizer.pad_token_id
        rows = [
            [pad] * (width - len(prompt)) + prompt + ids + [pad] * (length - len(ids))
            for prompt, ids in zip(prompt_ids, chosen, strict=True)
        ]
        mask = torch.tensor(
            [
                [0] * (width - len(prompt)) + [1] * (len(prompt) + len(ids)) + [0] * (length - len(ids))
                for prompt, ids in zip(prompt_ids, chosen, strict=True)
            ]
        )
        counted = mask.clone().bool()
        counted[:, :width] = False
        for number, ids in enumerate(chosen):
            counted[number, width + len(ids) - 1] = False
        self._rollout.pooler = StatePooler(self._layers, len(chosen), teacher_forced=counted)
        pooling = self._rollout.pooler.attached(self._base.get_input_embeddings())
        with torch.no_grad(), heard(self._base, self._rollout.clips), pooling:
            self._base(input_ids=torch.tensor(rows), attention_mask=mask)
        return chosen, None


class Keep(TrainerCallback):
    """Writes the gradients that the optimizer is about to use."""

    def __init__(self, folder):
        self.folder = folder

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            torch.save(
                {name.removeprefix("module."): g for name, g in gradients.items()}, f"{self.folder}/gradients.pt"
            )


def count_packed_passes() -> list:
    """Filled with an entry for each pass in which rows share prompts."""
    passes, packed_logps = [], sharing.packed_logps
    sharing.packed_logps = lambda *args: passes.append(1) or packed_logps(*args)
    return passes


def main() -> None:
    out, batch, accumulation, embedder, reference, share, architecture = sys.argv[1:8]
    model, processor = ARCHITECTURES[architecture](0)
    args = TARSGRPOConfig(
        out,
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=int(accumulation),
        num_generations=8,
        max_steps=1,
        max_completion_length=8,
        logging_steps=1,
        bf16=False,
        lora_dropout=0.0,
        distillation_weight=0.5,
        warmup_steps=0,
        gradient_checkpointing=False,
        reference=reference,
        shared_prefix=share,
        reference_reward="odd_reward",
        behavior_model=embedder,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = OneStep(
        copy.deepcopy(model), [odd_reward, format_reward], args, questions(6), processing_class=processor,
        callbacks=[Keep(out)],
    )  # fmt: skip
    packed = count_packed_passes()
    trainer.train()
    if trainer.accelerator.is_main_process:
        rewards = {name: list(values) for name, values in trainer._logs["rewards"].items()}
        log = trainer.state.log_history[0]
        kept = {"rewards": rewards, "advantages": list(trainer._logs["advantages"]), "log": log, "packed": len(packed)}
        torch.save(kept | {"keys": list(trainer._logs["extra"]["key"])}, f"{out}/step.pt")


if __name__ == "__main__":
    main()
