"""The written teacher of a run: it reads completions behind their written prompts, and says how much that counts.

One pass without gradient a generation, over the rows that are taught: spoken completions behind the written prompts of
their questions, written ones where `distillation_text_weight` says so. Rows with one prompt share it. The student's own
log-probs cost nothing: they are those of the update, in which the two meet.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad, use_adapter

from ..errors import SettingError
from ..models.prompting import base_of
from ..models.sharding import is_spread
from .distillation import (
    advantage_shares,
    advantage_sums,
    divergence,
    divergence_metrics,
    divergence_sums,
    full_logits_term,
    lesson_weights,
    reward_terms,
    sampled_token_term,
)
from .rollout import Rollout

logger = logging.getLogger(__name__)

MODALITIES = ("speech", "text")


class WrittenTeacher:
    """What the teacher says of a generation (`read`), and what becomes of it in an update (`teach`).

    Args:
        args: settings of the run; `distillation_text_weight` is filled in.
        accelerator: of the run.
        names: of the reward functions.

    Raises:
        SettingError: settings that do not go with this model.
    """

    def __init__(self, args: Any, accelerator: Any, names: list[str]):
        self.args = args
        self.accelerator = accelerator
        self.on = args.distillation_weight > 0
        self.keeps_states = self.on and args.distillation_mode == "full_logits"
        # A full divergence takes the way of the advantages, but is none of them.
        self.names = [*names, *(["distillation"] if self.on and not self.keeps_states else [])]
        if self.keeps_states and is_spread(accelerator):
            raise SettingError(
                "distillation_mode='full_logits' needs the whole output head at once, and here the model's parameters "
                "are spread over processes. Use 'sampled_token'."
            )
        if self.on and args.distillation_text_weight is None:
            alone = "no_reward" in names and args.teacher_model_kind == "base" and args.modalities == "both"
            args.distillation_text_weight = args.distillation_weight if alone else 0.0
        if self.on and args.teacher_model_kind == "live" and accelerator.is_main_process:
            logger.warning(
                "Nothing holds a live teacher: it and the student can drift away together, with rewards or without "
                "(docs/study.md). Use teacher_model_kind='base' unless that is what you want to see."
            )
        self._sums: dict[bool, list[Tensor]] = {}

    def read(
        self, score: Callable[..., tuple], model: Any, rollout: Rollout, output: dict[str, Any], reward_weights: Tensor,
        group_size: int, pad_token: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What an update needs, with a first dimension of this process's rows n.

        `reward_terms` (n, K), `spoken` (n,); and where distillation is on `lesson_weights` (n,) and `teacher_logps`
        (n, T), 0 in rows that are not taught, or `teacher_states` (n, T, H).

        Args:
            score: `PromptSharing.score` but for its first rows.
            model: that is trained, as the accelerator prepared it.
            rollout: with its rewards and its rows' written prompts.
            output: of TRL's `_generate_and_score_completions`.
            reward_weights: (K,).
            group_size: rows of a question, both twins together.
            pad_token: id to pad prompts with.
        """
        mask, device = output["completion_mask"], output["completion_mask"].device
        first = self.accelerator.process_index * len(mask)
        own = slice(first, first + len(mask))
        both = self.args.modalities == "both"
        advantages, rewards = self.accelerator.gather(output["advantages"]), rollout.rewards
        assert rewards is not None
        size = group_size // 2 if both else group_size
        terms = reward_terms(rewards, reward_weights, size, advantages)
        rows = range(len(rewards))
        all_spoken = [self.args.modalities == "speech" or (both and row % group_size < size) for row in rows]
        spoken = torch.tensor(all_spoken[own], device=device)
        lesson = {"reward_terms": terms[own], "spoken": spoken}
        if not self.on:
            return lesson
        right = [False] * len(rows)
        if self.args.distillation_gate == "correct":
            right = (rewards[:, self.names.index(self.args.reference_reward)] >= 1).tolist()
        weights = lesson_weights(
            all_spoken, right, group_size, gate=self.args.distillation_gate,
            weight=self.args.distillation_weight, text_weight=self.args.distillation_text_weight,
        )[own].to(device) * mask.any(1)  # fmt: skip
        taught = weights.nonzero().squeeze(1)
        # Passes are collective where several processes train: all make as many, of rows that count nowhere.
        number = int(self.accelerator.gather(torch.tensor([len(taught)], device=device)).max())
        logps = torch.zeros(mask.shape, device=device)
        lesson |= {"lesson_weights": weights, "teacher_logps": logps}
        if self.keeps_states:
            hidden_size = base_of(self.accelerator.unwrap_model(model)).config.get_text_config().hidden_size
            lesson["teacher_states"] = torch.zeros(*mask.shape, hidden_size, device=device)
        if not number:
            return lesson
        read = torch.cat([taught, taught.new_zeros(number - len(taught))])
        prompts = [torch.tensor(rollout.written[row].ids, device=device) for row in read.tolist()]
        ids = pad(prompts, padding_value=pad_token, padding_side="left")
        prompt_mask = pad([torch.ones_like(row) for row in prompts], padding_value=0, padding_side="left")
        batch_size = getattr(self.args, f"per_device_{'train' if model.training else 'eval'}_batch_size")
        rows_read = (
            torch.cat([ids, output["completion_ids"][read]], 1), torch.cat([prompt_mask, mask[read]], 1),
            mask.size(1), batch_size,
        )  # fmt: skip
        kept: list[Tensor] | None = [] if self.keeps_states else None
        with self._teaching(model), disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            results = score(lambda: [None] * number, None, model, *rows_read, kept=kept)
        logps[taught] = results[0][: len(taught)].to(logps)
        if kept:
            lesson["teacher_states"] = lesson["teacher_states"].to(kept[0].dtype)
            lesson["teacher_states"][taught] = kept[0][: len(taught)]
        return lesson

    def _teaching(self, model: Any) -> Any:
        """The model as its teacher: as it is, or as it was when training started."""
        inner = self.accelerator.unwrap_model(model)
        if self.args.teacher_model_kind == "live" or not is_peft_model(inner):
            return nullcontext()
        return use_adapter(inner, "ref" if "ref" in inner.peft_config else None)

    def teach(self, inputs: dict[str, Any], logps: Tensor, states: list[Tensor], base: Any) -> dict[str, float]:
        """Add the lesson to the advantages of a micro-batch, in place; metrics, when a generation has gone through.

        Args:
            inputs: of an update, with what `read` returned; `advantages` becomes (n, T).
            logps: (n, T) of the policy.
            states: (n, T, H), the states that predict the tokens, where `keeps_states`.
            base: the model without adapter, whose head makes logits of them.
        """
        mask = inputs["completion_mask"].bool()
        by_modality = [rows.unsqueeze(1) & mask for rows in (inputs["spoken"], ~inputs["spoken"])]
        terms = [inputs["reward_terms"].unsqueeze(1).expand(-1, mask.size(1), -1)]
        sums = []
        if self.on:
            weights = inputs["lesson_weights"].unsqueeze(1)
            taught = (weights > 0) & mask
            apart = (logps.detach().float() - inputs["teacher_logps"]) * taught  # estimates the divergence
            if self.keeps_states:
                apart = divergence(states[0], inputs["teacher_states"], taught, **self._head(base))
                term = full_logits_term(apart, self.args.distillation_clip)
            else:
                one_sided = inputs["spoken"] & (self.args.distillation_gate == "one_sided")
                term = sampled_token_term(inputs["teacher_logps"], logps, self.args.distillation_clip, one_sided)
                terms.append((weights * term).unsqueeze(2))
            inputs["advantages"] = inputs["advantages"].unsqueeze(1) + weights * term
            sums = [divergence_sums(apart, taught & rows) for rows in by_modality]
        shares = [advantage_sums(torch.cat(terms, 2), rows) for rows in by_modality]
        return self._add([*sums, *shares], base.training)

    def _head(self, base: Any) -> dict[str, Any]:
        config = base.config.get_text_config()
        scaling = getattr(config, "logits_scaling", None)
        return {
            "head": base.get_output_embeddings(), "alpha": self.args.distillation_alpha,
            "temperature": self.args.temperature, "softcap": getattr(config, "final_logit_softcapping", None),
            "scale": 1 / scaling if scaling else getattr(config, "logit_scale", None) or 1.0,
        }  # fmt: skip

    def _add(self, sums: list[Tensor], training: bool) -> dict[str, float]:
        """Sums of a micro-batch to those before; metrics with the last one of a generation, over all processes."""
        collected = self._sums.setdefault(training, [])
        collected.append(torch.cat([part.flatten() for part in sums]))
        if len(collected) < (self.args.steps_per_generation if training else 1):
            return {}
        total = self.accelerator.reduce(torch.stack(self._sums.pop(training)).sum(0), reduction="sum")
        parts = [part.view_as(like) for part, like in zip(total.split([p.numel() for p in sums]), sums, strict=True)]
        metrics: dict[str, float] = {}
        if self.on:
            for name, part in zip(("distillation/kl", "distillation/text_kl"), parts, strict=False):
                metrics |= divergence_metrics(part, name)
        for modality, part in zip(MODALITIES, parts[-2:], strict=True):
            shares = advantage_shares(part, self.names)
            metrics |= {f"{modality}/advantage_share/{name}": value for name, value in shares.items()}
        return metrics
