"""Each distinct prompt through the decoder once, for all the completions that are sampled of it.

`generate` repeats a prompt for each of its completions before the first pass, and pads all prompts to the longest. Here
distinct prompts of similar length go through together; what they leave in the cache is repeated, but for their last
token, with which `generate` goes on from there. Tokens are those of an ordinary `generate`:
the same greedy ones, and for one seed the same samples, up to ties within the rounding of a float.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from .hooks import StatePooler, attached, last_logits_only
from .prompting import base_of, heard
from .shared_prefix import first_with_same_prompt

PADDING = 0.1
"""Most of a pass that may be padding, when prompts of different length share it."""


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    clips: Sequence[Tensor | None],
    *,
    generation_config: GenerationConfig | None = None,
    pooler: StatePooler | None = None,
    one_pass: bool = False,
    **kwargs: Any,
) -> Tensor:
    """`model.generate` with clips, each distinct prompt forwarded once.

    Beam search, and a cache of the user's choice, have their prompts repeated as ever.

    Args:
        model: a speech LLM, with or without an adapter.
        input_ids: (N, P) prompts, padded on the left.
        attention_mask: (N, P), 0 for padding.
        clips: the N rows' audio embeddings, None for a written row; placed here, so no other hook may place them. Rows
            with the same tokens and the same tensor have one prompt.
        generation_config: as `generate` takes it; `num_return_sequences` repeats rows as there.
        pooler: of as many rows as are sampled, not attached: it is attached here, behind the prompts.
        one_pass: forward all prompts together, whatever their lengths: where parameters are spread over processes, all
            have to make equally many passes.
        kwargs: go to `generate`.

    Returns:
        (N x num_return_sequences, P + T) ids, as `generate` returns them.

    Raises:
        RuntimeError: the model does not cache.
    """
    base = base_of(model)
    embedding = base.get_input_embeddings()
    own = type(model).generate  # not the instance's, which may be this function (`prompts_once`)
    config = copy.deepcopy(generation_config or base.generation_config)
    repeats = kwargs.pop("num_return_sequences", None) or config.num_return_sequences or 1
    beams = kwargs.get("num_beams") or config.num_beams or 1
    if beams > 1 or config.cache_implementation is not None or config.use_cache is False:
        config.num_return_sequences = repeats
        copies = [clip for clip in clips for _ in range(max(repeats, beams))]
        with heard(base, copies), last_logits_only(base), attached(pooler, embedding):
            return own(model, input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **kwargs)
    config.num_return_sequences = 1
    ids, mask = (tensor.repeat_interleave(repeats, dim=0) for tensor in (input_ids, attention_mask))
    clips = [clip for clip in clips for _ in range(repeats)]

    firsts = first_with_same_prompt(ids, mask, 0, clips)
    distinct = list(dict.fromkeys(firsts))
    lengths = mask.sum(1).tolist()
    passes = [distinct] if one_pass else _of_similar_length(distinct, lengths)
    with last_logits_only(base):
        caches = [_prefill(base, ids, mask, clips, rows) for rows in passes]
    order = {row: place for place, row in enumerate(row for rows in passes for row in rows)}
    places = torch.tensor([order[first] for first in firsts], device=ids.device)
    cache = DynamicCache()
    cache.layers += [RoomyLayer(parts, ids.size(1) - 1, places) for parts in zip(*caches, strict=True)]
    del caches
    # The thinker keeps its positions' offsets, and `generate` would take those of an earlier batch for this one's.
    if getattr(base.base_model, "rope_deltas", None) is not None:
        base.base_model.rope_deltas = None
    # Clips are still placed: a model that starts its cache anew (Phi-4 beyond 4,096 tokens) forwards its prompts again.
    with heard(base, clips), attached(pooler, embedding):
        return own(model, input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config, **kwargs)


def _of_similar_length(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Rows in passes, the longest first, none of which is padding by more than `PADDING`."""
    passes: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        candidate = [*passes[-1], row] if passes else [row]
        if passes and sum(lengths[r] for r in candidate) >= (1 - PADDING) * len(candidate) * lengths[candidate[0]]:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def _prefill(
    base: Any, ids: Tensor, mask: Tensor, clips: Sequence[Tensor | None], rows: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values, (rows, heads, longest - 1, D), of all but the last token of these rows' prompts."""
    width = int(mask[rows].sum(1).max())
    ids, mask = ids[rows, -width:], mask[rows, -width:]
    cache = DynamicCache()
    with heard(base, [clips[row] for row in rows]):
        base(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),  # as `generate` counts, from the first token of a row
            past_key_values=cache,
            use_cache=True,
        )
    if cache.get_seq_length() != width:
        raise RuntimeError(
            f"The model cached {cache.get_seq_length()} of {width} tokens, so that completions would not see their "
            "prompts. It may be training with gradient checkpointing, which keeps no cache: switch that off while "
            "sampling."
        )
    return [(layer.keys[:, :, :-1], layer.values[:, :, :-1]) for layer in cache.layers]


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for more: what is added is written there, and nothing is copied.

    transformers' own layer copies all of the cache for every token: of 8 rows of 800 tokens as much as 25 million
    parameters weigh twice over.

    Args:
        parts: what is cached so far, (rows, heads, tokens, D) each, with tokens that may differ.
        width: tokens to start with; shorter parts are padded on the left, with zeros.
        order: for each row of this cache its row among those of the parts.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]], width: int, order: Tensor):
        super().__init__()
        self.lazy_initialization(*parts[0])
        self.width = width
        self.rooms = [self._room(of, order) for of in zip(*parts, strict=True)]
        self._show()

    def _room(self, parts: Sequence[Tensor], order: Tensor) -> Tensor:
        room = parts[0].new_zeros(len(order), parts[0].size(1), self.roomy(self.width), parts[0].size(3))
        start = 0
        for part in parts:
            rows = ((order >= start) & (order < start + len(part))).nonzero().squeeze(1)
            room[rows, :, self.width - part.size(2) : self.width] = part[order[rows] - start]
            start += len(part)
        return room

    @staticmethod
    def roomy(width: int) -> int:
        """Tokens that there is room for when there have to be `width`."""
        return width + max(width // 4, 64)

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self.width] for room in self.rooms)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (rows, heads, tokens, D) of keys and values; all of them so far."""
        end = self.width + key_states.size(2)
        if end > self.rooms[0].size(2):
            more = self.roomy(end) - self.rooms[0].size(2)
            self.rooms = [functional.pad(room, (0, 0, 0, more)) for room in self.rooms]
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, self.width : end] = states
        self.width = end
        self._show()
        return self.keys, self.values


@contextmanager
def prompts_once(
    model: Any, clips: Sequence[Tensor | None], pooler: StatePooler | None = None, one_pass: bool = False
) -> Iterator[None]:
    """While the block runs, `model.generate` is this module's, for whom others call it, as TRL's trainers do.

    Args:
        model: whose method is called, unwrapped.
        clips: as `generate` takes them, for the rows of every call.
        pooler: as `generate` takes it; one call only.
        one_pass: as `generate` takes it.
    """

    def shared(input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        return generate(model, input_ids, attention_mask, clips, pooler=pooler, one_pass=one_pass, **kwargs)

    model.generate = shared
    try:
        yield
    finally:
        del model.generate
