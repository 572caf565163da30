"""Whether prompts are shared in a pass that scores completions: where it can, where it pays, once it was checked."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.hooks import attached, last_states, without_dropout
from ..models.prompting import base_of, heard
from ..models.shared_prefix import PackedStatePooler, attach, first_with_same_prompt, longest_row, packed_logps, saving
from .rollout import Rollout

logger = logging.getLogger(__name__)

LEAST_SAVING = 1.3
"""Times fewer tokens from which a packed row is faster than a plain batch."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Mean difference of log-probs, in nats, that two ways of adding the same numbers may have."""
HALF_TOLERANCE = 0.02  # two plain passes, padded differently, are as far apart as 0.005 in bfloat16


class PromptSharing:
    """Scores completions, in packed rows or plain batches; all processes decide alike where that matters.

    Args:
        model: as the accelerator prepared it.
        accelerator: of the run.
        layers: whose outputs R_rep's states are.
        wanted: `auto`, or `never`.
    """

    def __init__(self, model: Any, accelerator: Any, layers: Sequence[nn.Module], wanted: str = "auto"):
        self.model = model
        self.accelerator = accelerator
        self.layers = layers
        self.checked: set[str] = set()  # whose rows were compared both ways: the rollout's, the teacher's
        self.on = wanted == "auto"
        if self.on:
            try:
                attach(accelerator.unwrap_model(model))
            except ValueError as error:
                self._give_up(str(error))

    def score(
        self,
        plain: Callable[..., tuple],
        embeddings: Callable[[], Sequence[Tensor | None]],
        rollout: Rollout | None,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        *args: Any,
        kept: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple:
        """Log-probs, entropies (or None) and None, as TRL's `_get_per_token_logps_and_entropies` returns them.

        All processes have to call it equally often; each may share prompts or not.

        Args:
            plain: that method of TRL's.
            embeddings: makes the audio embeddings of the rows, None for a written one.
            rollout: which takes the pooled states, where it waits for them; None for the rows of a teacher.
            model: the model to pass through, which need not be the one that is trained.
            input_ids: (N, P + T) and what follows, as the method takes it.
            kept: gets the states (N, T, H) that predict the tokens.
        """
        base = base_of(self.accelerator.unwrap_model(model))
        if rollout is not None:
            attention_mask = rollout.with_truncated(attention_mask, logits_to_keep)
        rows = input_ids, attention_mask, logits_to_keep

        def repeated(clips: Sequence[Tensor | None], pooler: Any = None, at_once: int | None = batch_size) -> tuple:
            states: list[Tensor] | None = None if kept is None else []
            with heard(base, clips), attached(pooler, base.get_input_embeddings()), last_states(base, states):
                result = plain(model, *rows, at_once, compute_entropy, *args, **kwargs)
            if kept is not None and states:
                kept[:] = [torch.cat([part[:, -logits_to_keep - 1 : -1] for part in states])]
            return result

        def shared(clips: Sequence[Tensor | None], pooler: Any = None, firsts: Sequence[int] | None = None) -> tuple:
            with self.accelerator.autocast(), attached(pooler, base.get_input_embeddings()):
                return *packed_logps(model, *rows, clips, batch_size, compute_entropy, pooler, firsts, kept), None

        limit = longest_row(base)
        possible = self.on and (limit is None or int(attention_mask.sum(1).max()) <= limit)
        reader = "policy" if rollout is not None else "teacher"
        if self.on and reader not in self.checked:
            self.checked.add(reader)
            with torch.no_grad(), without_dropout(self.model):
                clips = embeddings()
                # Row by row, or the check would need more memory than all that follows it.
                results = repeated(clips, at_once=1)[0], (shared if possible else repeated)(clips)[0]
            self._check(*results, attention_mask[:, -logits_to_keep:].bool())
        clips, pooler, score = embeddings(), None, repeated
        if self.on and possible:
            firsts = first_with_same_prompt(*rows, clips)
            if saving(*rows, firsts) >= LEAST_SAVING:
                score = partial(shared, firsts=firsts)
        if rollout is not None and rollout.lengths is not None:
            pooler = rollout.pool_scored(self.layers, attention_mask, logits_to_keep)
            if score is not repeated:
                pooler = rollout.pooler = PackedStatePooler(self.layers, len(input_ids))
        return score(clips, pooler)

    def _check(self, plain: Tensor, shared: Tensor, counted: Tensor) -> None:
        """Switch off, on all processes, unless both forms give one result."""
        apart = (plain.float() - shared.float()).abs().nan_to_num(nan=torch.inf)[counted]
        worst = apart.mean() if len(apart) else torch.zeros((), device=counted.device)
        worst = self.accelerator.gather(worst.reshape(1)).max().item()
        tolerance = TOLERANCE.get(_computed_in(self.model, self.accelerator), HALF_TOLERANCE)
        if worst > tolerance:
            self._give_up(
                f"Log-probs with shared prompts are {worst:.2g} nats apart from those without, in the mean over a "
                f"batch, where rounding explains {tolerance:g}. Report it with the model's class."
            )

    def _give_up(self, reason: str) -> None:
        self.on = False
        if self.accelerator.is_main_process:
            logger.warning("Prompts are not shared: every row has its own, which takes longer. %s", reason)


def _computed_in(model: nn.Module, accelerator: Any) -> torch.dtype:
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    return mixed or next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
