"""One generation on one process: its rows, prompts, clips and pooled states, together from first to last."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.prompts import Modalities, Modality, question_key, spoken_prompt, written_prompt
from ..models import Prompt, SpeechLLM
from ..models.hooks import StatePooler
from ..models.prompting import twin_prompt
from .twins import modality_of

Row = dict[str, Any]


@dataclass
class Rollout:
    """N rows of one generation, and what belongs to each."""

    rows: list[Row]
    """As logs and reward functions see them: the data set's columns without audio, `prompt`, `modality` and `key`."""
    prompts: list[Prompt]
    """What the model gets; rows of the same twin share one object."""
    written: list[Prompt] = field(default_factory=list)
    """The written prompt of each row's question, for a teacher who reads it."""
    rewards: Tensor | None = None
    """(N over all processes, functions), once they are known."""
    clips: list[Any] = field(default_factory=list)
    """Audio embeddings of each row (None for a written one), or its features, where the audio side is trained."""
    pooler: StatePooler | None = None
    """Of the completions' hidden states, once they were sampled (or, with vLLM, scored)."""
    lengths: list[int] | None = None
    """Tokens of each completion, where the next pass that scores the rows has to pool their states."""

    @classmethod
    def prepare(
        cls,
        inputs: Sequence[Row],
        first: int,
        group_size: int,
        modalities: Modalities,
        architecture: SpeechLLM,
        processor: Any,
        written: bool = False,
        **template: Any,
    ) -> "Rollout":
        """Prompts of the rows as the sampler lays them out; each twin of a question is prepared once.

        Args:
            inputs: N rows of the data set.
            first: number of the first one among those of all processes.
            group_size: rows of a question, both twins together.
            modalities: which twins there are.
            architecture: of the model.
            processor: of the model.
            written: whether the written prompts of spoken rows are needed, too.
            template: arguments of the chat template.
        """
        rollout = cls([], [])
        twins: dict[tuple[int, str], Prompt] = {}
        for number, row in enumerate(inputs, first):
            modality = modality_of(number, group_size, modalities)
            needed: set[Modality] = {modality, "text"} if written else {modality}
            for twin in needed:
                if (number // group_size, twin) not in twins:
                    twins[number // group_size, twin] = twin_prompt(architecture, processor, row, twin, **template)
            form = partial(spoken_prompt, transcript=True) if modality == "speech" else written_prompt
            columns = {name: value for name, value in row.items() if name != "audio"}
            rollout.rows.append(
                {**columns, "prompt": form(row["prompt"]), "modality": modality, "key": question_key(row)}
            )
            rollout.prompts.append(twins[number // group_size, modality])
            if written:
                rollout.written.append(twins[number // group_size, "text"])
        return rollout

    @property
    def features(self) -> list[Any]:
        """Each row's features, None for a written one."""
        return [prompt.features for prompt in self.prompts]

    def with_truncated(self, attention_mask: Tensor, completion_width: int) -> Tensor:
        """The mask (N, T) with every token of the completions; TRL leaves truncated ones out if they do not count."""
        if self.lengths is None:
            return attention_mask
        lengths = torch.tensor(self.lengths, device=attention_mask.device)
        completion = torch.arange(completion_width, device=attention_mask.device) < lengths.unsqueeze(1)
        return torch.cat([attention_mask[:, :-completion_width], completion.to(attention_mask)], dim=1)

    def pool_scored(self, layers: Sequence[nn.Module], attention_mask: Tensor, completion_width: int) -> StatePooler:
        """A pooler for the pass that scores the completions, given as (N, T) mask of prompts and completions.

        The last token of a completion does not count, as when completions are sampled here: it is the end, or was never
        fed back.
        """
        self.lengths = None
        completion = attention_mask[:, -completion_width:].bool()
        counted = torch.zeros_like(attention_mask, dtype=torch.bool)
        counted[:, -completion_width:] = completion & (completion.cumsum(1) < completion.sum(1, keepdim=True))
        self.pooler = StatePooler(layers, len(attention_mask), teacher_forced=counted)
        return self.pooler
