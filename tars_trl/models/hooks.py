"""All that attaches to a model: audio in, states out, last logits."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def placed_audio(embedding: nn.Module, audio_token: int, rows: Sequence[Tensor | None]) -> Iterator[None]:
    """While the block runs, the token embedding gives audio embeddings where the ids hold audio placeholders.

    Everything else of a forward pass (position ids, masks, caches, wrappers, fused heads) stays the model's own, and a
    row without placeholders is untouched. This is how clips are encoded once and reach every pass.

    Args:
        embedding: the model's token embedding, called with (rows, tokens) ids.
        audio_token: id of the placeholder.
        rows: for each row the audio embeddings (audio tokens, H), or None for a written row. Passes go through the
            rows in order, in chunks of any size, or through all of them again and again (decoding).

    Raises:
        ValueError: from the pass itself, if a row's placeholders and embeddings differ in number.
    """
    position = 0

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal position
        ids: Tensor = args[0]
        chunk = [rows[(position + offset) % len(rows)] for offset in range(ids.size(0))]
        position = (position + ids.size(0)) % len(rows)
        if ids.size(1) == 1:  # decoding, where placeholders are suppressed; to look would wait for the GPU
            return output
        mask = ids == audio_token
        if all(clip is None for clip in chunk) and not bool(mask.any()):
            return output
        for number, (clip, found) in enumerate(zip(chunk, mask.sum(1).tolist(), strict=True)):
            wanted = 0 if clip is None else clip.size(0)
            if found != wanted:
                raise ValueError(
                    f"Row {number} of a forward pass holds {found} audio placeholders for {wanted} audio embeddings. "
                    "Audio tokens were cut, repeated or sampled; do not truncate prompts, and keep the placeholders "
                    "among the tokens that generation suppresses."
                )
        audio = torch.cat([clip for clip in chunk if clip is not None]).to(output.device, output.dtype)
        return output.masked_scatter(mask.unsqueeze(-1), audio)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_logits_only(model: Any) -> Iterator[None]:
    """While completions are sampled in the block, logits are computed for the last token of each row alone.

    Qwen2.5-Omni's thinker otherwise makes those of the whole prompt, of which sampling uses the last: for 64 rows with
    two minutes of speech 60 GB in bfloat16. Prompts must be padded on the left.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


class StatePooler:
    """Mean of the hidden states over a completion's tokens, for each decoder layer, taken while the layers run.

    Attach it around forward passes with `attached`. Which tokens count is read off the token ids that reach the
    embedding, in one of two ways:

    - sampling (`teacher_forced=None`): the first pass is the prompt and does not count; then every row counts one token
      a pass until its end token comes. The states of a completion are thus pooled by the very passes that sample it,
      and no token goes through the model twice. (The last token of a truncated completion is never fed back; all
      others are pooled.)
    - teacher forcing: `teacher_forced` is an (N, T) mask of the positions that count; passes go through the rows in
      order, in chunks of any size.

    Args:
        layers: L modules whose outputs are the states to pool, in the order they run; each returns a (rows, tokens, H)
            tensor or a tuple that starts with one.
        num_rows: N.
        end_tokens: ids that end a completion.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        num_rows: int,
        end_tokens: Collection[int] = (),
        teacher_forced: Tensor | None = None,
    ):
        self.layers = layers
        self.num_rows = num_rows
        self.end_tokens = torch.tensor(sorted(end_tokens), dtype=torch.long)
        self.mask = teacher_forced
        self.ended: Tensor | None = None
        self.weights: Tensor | None = None  # (rows of this pass, tokens of this pass), which positions count
        self.rows = slice(0, 0)
        self.states: list[Tensor] = []  # of this pass, one (rows, 1, H) for each layer that has run
        self.sums: Tensor | None = None  # (N, L, H), float32
        self.counts = torch.zeros(num_rows, dtype=torch.long)

    @contextmanager
    def attached(self, embedding: nn.Module) -> Iterator["StatePooler"]:
        """Watch `embedding` (the token embedding) and the layers until the block ends."""
        handles = [embedding.register_forward_pre_hook(self._watch)]
        handles += [layer.register_forward_hook(self._pool) for layer in self.layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        ids: Tensor = args[0]
        if self.mask is not None:
            start = self.rows.stop % self.num_rows
            self.rows = slice(start, start + ids.size(0))
            self.weights = self.mask[self.rows]
        else:
            self.rows = slice(0, self.num_rows)
            if self.ended is None:  # the prompt
                self.ended = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
                self.end_tokens = self.end_tokens.to(ids.device)
                self.weights = None
                return
            if ids.size(1) != 1:
                raise RuntimeError(
                    f"{ids.size(1)} tokens a row went through the model in one step of sampling, so that prompt and "
                    "completion can no longer be told apart. Sample with a cache (use_cache: true), and keep both in "
                    "the length that the model caches (Phi-4-multimodal: 4,096 tokens)."
                )
            self.ended = self.ended | torch.isin(ids[:, -1], self.end_tokens)
            self.weights = (~self.ended).unsqueeze(1)
        self.counts = self.counts.to(ids.device)
        self.counts[self.rows] += self.weights.sum(1)

    def _pool(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.weights is None:
            return
        states = (output[0] if isinstance(output, tuple) else output).detach()
        if self.mask is not None:
            keep = self.weights.to(states.device).bool().unsqueeze(-1)
            states = states.float().masked_fill(~keep, 0.0).sum(1, keepdim=True)  # padding may hold NaN
        self.states.append(states)
        if len(self.states) < len(self.layers):
            return
        # One addition for all layers: a pass of sampling is short, and what it launches on a GPU counts.
        rows = torch.cat([states.to(self.states[0].device) for states in self.states], dim=1)  # (rows, L, H)
        if self.mask is None:
            rows = rows.masked_fill(~self.weights.to(rows.device).unsqueeze(-1), 0.0)
        if self.sums is None:
            size = (self.num_rows, *rows.shape[1:])
            self.sums = torch.zeros(size, dtype=torch.float32, device=rows.device)
        self.sums[self.rows].add_(rows)
        self.states.clear()

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Means (N, L, H) in float32 and the number of tokens (N,) they are over; a mean over none is zero."""
        if self.sums is None:
            raise RuntimeError("No completion token went through the model while the pooler was attached.")
        counts = self.counts.to(self.sums.device)
        return self.sums / counts.clamp(min=1).view(-1, 1, 1), counts
