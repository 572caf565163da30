"""From rows to a forward pass: each twin's prompt, a left-padded batch, and its clips placed. The one way there is."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from ..data.audio import load_audio
from ..data.prompts import Modality, spoken_prompt, written_prompt
from . import Prompt, SpeechLLM, architecture_of


def base_of(model: Any) -> Any:
    """The model inside of an adapter; a model without one is its own."""
    return model.get_base_model() if is_peft_model(model) else model


def end_tokens_of(model: Any, processor: Any) -> list[int]:
    """Ids at which a model's generation stops, sorted."""
    ends = model.generation_config.eos_token_id
    return sorted({processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


def twin_prompt(
    architecture: SpeechLLM, processor: Any, row: Mapping[str, Any], modality: Modality, **template: Any
) -> Prompt:
    """What the model gets of a row, spoken or written; `template` goes to the chat template.

    Raises:
        AudioError: the clip cannot be read.
    """
    if modality == "speech":
        waveform = load_audio(row["audio"])
        return replace(
            architecture.prompt(processor, spoken_prompt(row["prompt"]), waveform, **template), waveform=waveform
        )
    return architecture.prompt(processor, written_prompt(row["prompt"]), None, **template)


@dataclass(frozen=True)
class PromptBatch:
    """N prompts as one batch, maybe followed by completions.

    Rows are padded on the left of their prompt and on the right of their completion, so that all completions start in
    the same column.
    """

    input_ids: Tensor
    """(N, T), int64."""
    attention_mask: Tensor
    """(N, T), int64, 0 for padding."""
    prompt_width: int
    """Columns of the prompts; completions start there."""
    clips: list[Tensor | None]
    """Audio embeddings (audio tokens, H) of each row, None for a written one."""


@torch.no_grad()
def prompt_batch(
    model: Any, prompts: Sequence[Prompt], pad_token: int, completions: Sequence[Sequence[int]] | None = None
) -> PromptBatch:
    """Pad prompts (and the completions behind them), and encode their clips, each distinct one once.

    Args:
        model: a speech LLM, with or without an adapter.
        prompts: N prompts.
        pad_token: id to pad with.
        completions: token ids behind each prompt; None for none.
    """
    base = base_of(model)
    architecture = architecture_of(base.config.model_type)
    device = base.get_input_embeddings().weight.device
    width = max(len(prompt.ids) for prompt in prompts)
    tails = [list(ids) for ids in completions] if completions is not None else [[] for _ in prompts]
    length = max(map(len, tails))
    ids, mask = [], []
    for prompt, tail in zip(prompts, tails, strict=True):
        left, right = width - len(prompt.ids), length - len(tail)
        ids.append([pad_token] * left + prompt.ids + tail + [pad_token] * right)
        mask.append([0] * left + [1] * (len(prompt.ids) + len(tail)) + [0] * right)
    distinct = {id(prompt.features): prompt.features for prompt in prompts if prompt.features is not None}
    encoded = architecture.encode(base, list(distinct.values())) if distinct else []
    embeddings = dict(zip(distinct, encoded, strict=True))
    clips = [embeddings.get(id(prompt.features)) for prompt in prompts]
    return PromptBatch(torch.tensor(ids, device=device), torch.tensor(mask, device=device), width, clips)


def heard(model: Any, clips: Sequence[Tensor | None]) -> AbstractContextManager[None]:
    """Place each row's audio into the passes of the block (see `hooks.placed_audio`)."""
    base = base_of(model)
    return architecture_of(base.config.model_type).placed(base, clips)
