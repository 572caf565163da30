"""Representation drift: how far a model's states move away, layer by layer, when a question is heard instead of read.

One completion (the written one) is fed twice, behind the written and behind the spoken prompt; its states are then
compared token by token (paper, figure 2) and pooled over its tokens, as R_rep does. Both twins of a batch of questions
go through the decoder together, padded on the left so that their completion tokens lie in the same columns, and every
layer is compared while it runs: no layer's states outlive it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..data.audio import load_audio
from ..data.prompts import question_key, spoken_prompt, written_prompt
from ..grpo.alignment import LAYER_SETS, layer_indices
from ..models import architecture_of
from ..models.hooks import placed_audio
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
        ValueError: no question has a completion.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokenizer = processor.tokenizer
    chosen, skipped = [], []
    for row in rows:
        key = question_key(dict(row))
        ids = tokenizer(completions.get(key, ""), add_special_tokens=False)["input_ids"]
        if ids:
            chosen.append((key, row, ids))
        else:
            skipped.append(key)
    if not chosen:
        raise ValueError(
            f"None of the {len(rows)} questions has a completion, so there is nothing to compare. Give completions by "
            "the questions' keys, such as those of a samples file of the same data set."
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts = []
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            parts.append(_compare(base, processor, [row for _, row, _ in batch], [ids for _, _, ids in batch]))
            if on_batch is not None:
                on_batch(len(batch))
    finally:
        for module, training in modes:
            module.training = training
    by_token, pooled = (torch.cat(similarities) for similarities in zip(*parts, strict=True))
    return Drift([key for key, _, _ in chosen], by_token, pooled, skipped)


def _compare(
    base: Any, processor: Any, rows: list[Mapping[str, Any]], completions: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Token-wise and pooled similarities, (B, L) each, of B questions in one forward pass of 2 B rows."""
    architecture = architecture_of(base.config.model_type)
    prompts = [architecture.prompt(processor, written_prompt(row["prompt"]), None) for row in rows]
    prompts += [architecture.prompt(processor, spoken_prompt(row["prompt"]), load_audio(row["audio"])) for row in rows]
    sequences = [prompt.ids + ids for prompt, ids in zip(prompts, completions * 2, strict=True)]
    width, pad = max(map(len, sequences)), processor.tokenizer.pad_token_id
    embedding = base.get_input_embeddings()
    device = embedding.weight.device
    ids = torch.tensor([[pad] * (width - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    clips = architecture.encode(base, [prompt.features for prompt in prompts if prompt.features is not None])

    lengths = torch.tensor([len(c) for c in completions], device=device)
    columns = torch.arange(-int(lengths.max()), 0, device=device)
    counted = columns >= -lengths.unsqueeze(1)  # (B, T): completions end in the last column
    layers = architecture.state_modules(base)
    similarities: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            states = (output[0] if isinstance(output, tuple) else output)[:, -counted.size(1) :]
            states = states.float().masked_fill(~counted.repeat(2, 1).unsqueeze(-1), 0.0)  # padding may hold NaN
            text, speech = states.chunk(2)  # (B, T, H) each
            similarity = cosine_similarity(text, speech, dim=-1).sum(1) / lengths  # uncounted tokens are 0
            similarities[index] = similarity, cosine_similarity(text.sum(1), speech.sum(1), dim=-1)

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        with placed_audio(embedding, architecture.audio_token(base), [None] * len(rows) + clips):
            base.base_model(input_ids=ids, attention_mask=mask, use_cache=False)  # without the vocabulary's logits
    finally:
        for handle in handles:
            handle.remove()
    ordered = [similarities[index] for index in range(len(layers))]
    by_token, pooled = (torch.stack(kind, dim=1).cpu() for kind in zip(*ordered, strict=True))
    return by_token, pooled


def layer_stats(similarity: Tensor) -> LayerStats:
    """Mean and 95 % normal interval over questions, for each layer of a (Q, L) similarity."""
    by_layer = [_mean_and_interval(values) for values in similarity.T.tolist()]
    means, lower, upper = (list(values) for values in zip(*by_layer, strict=True))
    return {"layers": list(range(len(means))), "means": means, "ci_lower": lower, "ci_upper": upper}


def layer_set_stats(similarity: Tensor) -> dict[str, dict[str, float]]:
    """The same over the layers of each set that R_rep can be given (`all`, `shallow`, ..., figure 3)."""
    stats = {}
    for name in LAYER_SETS:
        values = similarity[:, layer_indices(name, similarity.size(1))].mean(1)
        mean, lower, upper = _mean_and_interval(values.tolist())
        stats[name] = {"mean": mean, "ci_lower": lower, "ci_upper": upper}
    return stats


def _mean_and_interval(values: list[float]) -> tuple[float, float, float]:
    mean = sum(values) / len(values)
    half = 1.96 * standard_error(values)
    return mean, mean - half, mean + half


def read_layer_stats(path: str | Path) -> LayerStats:
    """A `layer_stats.json`, ours or the paper's.

    Raises:
        ValueError: a key is missing, or lists differ in length.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    lists = {name: content.get(name) for name in LayerStats.__annotations__}
    if None in lists.values() or len({len(values) for values in lists.values()}) != 1:
        raise ValueError(
            f"{path} is no layer_stats.json: it needs {', '.join(lists)} as lists of one length. Give a file that "
            "recipes/analyze_drift.py or the TARS authors' analysis wrote."
        )
    return {name: lists[name] for name in LayerStats.__annotations__}  # type: ignore[return-value]
