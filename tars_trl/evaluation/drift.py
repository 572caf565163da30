"""Representation drift: how far a model's states move away, layer by layer, when a question is heard instead of read.

One completion (the written one) is fed twice, behind the written and behind the spoken prompt; its states are then
compared token by token (paper, figure 2) and pooled over its tokens, as R_rep does. Both twins of a batch of questions
go through the decoder together, padded on the left so that their completion tokens lie in the same columns, and every
layer is compared while it runs: no layer's states outlive it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..data.prompts import MODALITIES, question_key
from ..errors import NotLoggedError, QuestionError
from ..files import read_json
from ..grpo.alignment import LAYER_SETS, layer_indices
from ..models import architecture_of
from ..models.hooks import evaluation_mode
from ..models.prompting import base_of, heard, prompt_batch, twin_prompt
from .metrics import standard_error


class LayerStats(TypedDict):
    """Keys of the published `layer_stats.json`; all four lists have one entry a layer."""

    layers: list[int]
    """From 0, the first decoder layer (the embedding is no layer)."""
    means: list[float]
    ci_lower: list[float]
    ci_upper: list[float]


@dataclass(frozen=True)
class Drift:
    """Similarities of Q questions over L layers, float32, each in [-1, 1]."""

    keys: list[str]
    """The questions, in order."""
    by_token: Tensor
    """(Q, L): cosine of the same token's states under both prompts, mean over the completion's tokens."""
    pooled: Tensor
    """(Q, L): cosine of the states pooled over the completion's tokens (as R_rep, paper section on rewards)."""
    baseline: Tensor
    """(Q, L): pooled similarity of a spoken state to the written one of the next question, the last one's to the
    first's: what two completions have in common whatever they answer. NaN with a single question."""
    skipped: list[str]
    """Keys of questions without a completion to compare."""


@torch.no_grad()
def measure_drift(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    completions: Mapping[str, str],
    *,
    batch_size: int = 8,
    on_batch: Any = None,
) -> Drift:
    """Compare the states of each question's completion under its written and its spoken prompt.

    Args:
        model: a speech LLM, with or without an adapter.
        rows: questions in the schema of `tars_trl.data`, audio undecoded.
        completions: text by question key, usually the model's own written completion. A missing or empty one skips its
            question.
        batch_size: questions in a forward pass, which holds two rows for each.
        on_batch: called with the number of questions of each finished batch.

    Raises:
        QuestionError: no question has a completion.
    """
    by_key = {question_key(dict(row)): row for row in rows}
    texts = [completions.get(key, "") for key in by_key]
    ids = dict(zip(by_key, processor.tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    keys = [key for key in by_key if ids[key]]
    if not keys:
        raise QuestionError(
            f"None of the {len(rows)} questions has a completion, so there is nothing to compare. Give completions by "
            "the questions' keys, such as those of a samples file of the same data set."
        )
    parts = []
    with evaluation_mode(model):
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            parts.append(compare_twins(model, processor, [by_key[key] for key in batch], [ids[key] for key in batch]))
            if on_batch is not None:
                on_batch(len(batch))
    by_token, speech, text = (torch.cat(kind) for kind in zip(*parts, strict=True))
    pooled, baseline = cosine_similarity(speech, text, dim=-1), cosine_similarity(speech, text.roll(-1, 0), dim=-1)
    if len(keys) == 1:
        baseline = torch.full_like(baseline, torch.nan)
    return Drift(keys, by_token, pooled, baseline, [key for key in by_key if not ids[key]])


def compare_twins(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], completions: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token-wise similarities (B, L) and pooled states, spoken and written, (B, L, H), of B questions in one pass."""
    base = base_of(model)
    architecture = architecture_of(base.config.model_type)
    prompts = [twin_prompt(architecture, processor, row, modality) for modality in MODALITIES for row in rows]
    batch = prompt_batch(model, prompts, processor.tokenizer.pad_token_id, completions * 2)
    padding = batch.attention_mask[: len(rows), batch.prompt_width :, None] == 0  # (B, T, 1)
    lengths = (~padding).sum((1, 2))
    by_token: list[Tensor] = []  # of each layer that has run, (B,)
    pooled: list[Tensor] = []  # (2, B, H); sums, whose cosines are those of means

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output)[:, batch.prompt_width :].float()
        speech, text = (twin.masked_fill(padding, 0.0) for twin in states.chunk(2))  # (B, T, H); padding may hold NaN
        by_token.append(cosine_similarity(speech, text, dim=-1).sum(1) / lengths)  # that of padding is 0
        pooled.append(torch.stack([speech.sum(1), text.sum(1)]))

    with ExitStack() as hooks, heard(model, batch.clips):
        for layer in architecture.state_modules(base):
            hooks.enter_context(layer.register_forward_hook(hook))
        # Without the vocabulary's logits.
        base.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    spoken, written = torch.stack(pooled, dim=2).cpu()
    return torch.stack(by_token, dim=1).cpu(), spoken, written


def pooled_change(first: Drift, second: Drift) -> Tensor:
    """(Q, L): how much more similar the twins are in the second model, on the questions that both answered."""
    keys = [key for key in first.keys if key in second.keys]
    rows = ([drift.keys.index(key) for key in keys] for drift in (first, second))
    before, after = (drift.pooled[numbers] for drift, numbers in zip((first, second), rows, strict=True))
    return after - before


def layer_stats(similarity: Tensor) -> LayerStats:
    """Mean and 95 % normal interval over questions, for each layer of a (Q, L) similarity."""
    means, lower, upper = map(list, zip(*map(_mean_and_interval, similarity.T.tolist()), strict=True))
    return {"layers": list(range(len(means))), "means": means, "ci_lower": lower, "ci_upper": upper}


def layer_set_stats(similarity: Tensor) -> dict[str, dict[str, float]]:
    """The same over the layers of each set that R_rep can be given (`all`, `shallow`, ..., figure 3)."""
    layers = {name: layer_indices(name, similarity.size(1)) for name in LAYER_SETS}
    figures = {name: _mean_and_interval(similarity[:, layers[name]].mean(1).tolist()) for name in LAYER_SETS}
    return {name: dict(zip(("mean", "ci_lower", "ci_upper"), values, strict=True)) for name, values in figures.items()}


def _mean_and_interval(values: list[float]) -> tuple[float, float, float]:
    mean, half = sum(values) / len(values), 1.96 * standard_error(values)
    return mean, mean - half, mean + half


def read_layer_stats(path: str | Path) -> LayerStats:
    """A `layer_stats.json`, ours or the paper's.

    Raises:
        NotLoggedError: it is no such file, a key is missing, or lists differ in length.
    """
    try:
        content = read_json(path)
    except ValueError:  # no JSON, or no text at all
        content = None
    names = tuple(LayerStats.__annotations__)
    lists = [content.get(name) for name in names] if isinstance(content, dict) else []
    lengths = {len(values) if isinstance(values, list) else -1 for values in lists}
    if len(lengths) != 1 or -1 in lengths:
        raise NotLoggedError(
            f"{path} is no layer_stats.json: it needs {', '.join(names)} as lists of one length. Give a file that "
            "tars-trl analyze-drift or the TARS authors' analysis wrote."
        )
    return dict(zip(names, lists, strict=True))  # type: ignore[return-value]
