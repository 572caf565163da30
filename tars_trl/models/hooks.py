"""All that attaches to a model: audio in (`placed_audio`), states out (`StatePooler`), last logits alone.

A hook cannot see which rows a pass holds. Each of these therefore takes the rows in order, in chunks of any size, and
refuses what does not fit: a pass that runs past the last row, leaving in the middle of them, tokens that were not
counted. Nothing is paid or placed by guess.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class RowCounter:
    """Which of N rows a pass holds: passes go through them in order, in chunks of any size, or over and over again."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.position = 0

    def advance(self, size: int) -> slice:
        """The rows of a pass of `size` rows.

        Raises:
            RuntimeError: the pass runs past the last row, so that rows and what belongs to them are out of step.
        """
        rows = slice(self.position, self.position + size)
        if rows.stop > self.num_rows:
            raise RuntimeError(
                f"A forward pass holds {size} rows where {self.num_rows - self.position} of {self.num_rows} are left. "
                "Rows that are expanded (beams, several sequences a prompt) need their audio repeated likewise; a pass "
                "must not run past the last row."
            )
        self.position = rows.stop % self.num_rows
        return rows

    def check_done(self) -> None:
        """Refuse to leave in the middle of the rows.

        Raises:
            RuntimeError: fewer than all rows went through since the first one did.
        """
        if self.position:
            raise RuntimeError(
                f"Only {self.position} of {self.num_rows} rows went through the model before their audio was taken "
                "away, so a later pass would get the wrong clips. Pass all rows, or place the audio of those alone."
            )


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
        RuntimeError: from a pass that runs past the last row, and at the end, if the block leaves in the middle.
    """
    counter = RowCounter(len(rows))

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return _with_audio(output, args[0], audio_token, rows[counter.advance(args[0].size(0))])

    handle = embedding.register_forward_hook(hook)
    try:
        yield
        counter.check_done()
    finally:
        handle.remove()


@contextmanager
def audio_before_decoder(
    model: nn.Module, decoder: nn.Module, audio_token: int, rows: Sequence[Tensor | None]
) -> Iterator[None]:
    """As `placed_audio`, for classes that rewrite ids before the look-up, or embeddings behind it.

    Audio goes into the `inputs_embeds` with which the class calls its decoder, where `input_ids` hold placeholders.

    Args:
        model: the part of the model that is called with `input_ids` and calls the decoder (its `base_model`).
        decoder: the language model.
        audio_token: as in `placed_audio`.
        rows: as in `placed_audio`.

    Raises:
        ValueError: as `placed_audio`.
        RuntimeError: as `placed_audio`.
    """
    counter = RowCounter(len(rows))
    ids: list[Tensor] = []  # of the pass that is under way

    def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids[:] = [kwargs["input_ids"] if "input_ids" in kwargs else args[0]]

    def place(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeddings, chunk = kwargs["inputs_embeds"], rows[counter.advance(ids[0].size(0))]
        return args, {**kwargs, "inputs_embeds": _with_audio(embeddings, ids[0], audio_token, chunk)}

    handles = [
        model.register_forward_pre_hook(see, with_kwargs=True),
        decoder.register_forward_pre_hook(place, with_kwargs=True),
    ]
    try:
        yield
        counter.check_done()
    finally:
        for handle in handles:
            handle.remove()


def _with_audio(embeddings: Tensor, ids: Tensor, audio_token: int, clips: Sequence[Tensor | None]) -> Tensor:
    """(rows, tokens, H) embeddings with each row's audio embeddings in the places of its (rows, tokens) placeholders.

    Raises:
        ValueError: as `placed_audio`.
    """
    if ids.size(1) == 1:  # decoding, where placeholders are suppressed; to look would wait for the GPU
        return embeddings
    mask = ids == audio_token
    if all(clip is None for clip in clips) and not bool(mask.any()):
        return embeddings
    for number, (clip, placeholders) in enumerate(zip(clips, mask.sum(1).tolist(), strict=True)):
        wanted = 0 if clip is None else clip.size(0)
        if placeholders != wanted:
            raise ValueError(
                f"Row {number} of a forward pass holds {placeholders} audio placeholders for {wanted} audio "
                "embeddings. Audio tokens were cut, repeated or sampled; do not truncate prompts, and keep the "
                "placeholders among the tokens that generation suppresses."
            )
    audio = torch.cat([clip for clip in clips if clip is not None]).to(embeddings.device, embeddings.dtype)
    return embeddings.masked_scatter(mask.unsqueeze(-1), audio)


@contextmanager
def last_logits_only(model: Any) -> Iterator[None]:
    """While completions are sampled in the block, logits are computed for the last token of each row alone.

    Qwen2.5-Omni's thinker otherwise makes those of the whole prompt, of which sampling uses the last: for 64 rows with
    two minutes of speech 60 GB in bfloat16. Prompts must be padded on the left.
    """
    head = model.get_output_embeddings()

    def keep_last(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # A copy: on a CPU torch multiplies a slice as a batch, and copies the head's weights once for each row.
        return args[0][:, -1:].clone(memory_format=torch.contiguous_format), *args[1:]

    handle = head.register_forward_pre_hook(keep_last)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_states(model: Any, kept: list[Tensor] | None) -> Iterator[None]:
    """While the block runs, the states that a model's body hands to its head are added to `kept`, pass by pass.

    Args:
        model: with a head.
        kept: gets (rows, tokens, H) of each pass, with their gradient; None: nothing is kept.
    """
    if kept is None:
        yield
        return
    handle = model.base_model.register_forward_hook(
        lambda _module, _args, output: kept.append(output.last_hidden_state)
    )
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
        teacher_forced: see above.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        num_rows: int,
        end_tokens: Collection[int] = (),
        teacher_forced: Tensor | None = None,
    ):
        self.layers = layers
        self.end_tokens = torch.tensor(sorted(end_tokens), dtype=torch.long)
        self.mask = teacher_forced
        self.counter = RowCounter(num_rows)
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
        self.rows = self.counter.advance(ids.size(0))
        if self.mask is not None:
            self.weights = self.mask[self.rows]
        else:
            if self.ended is None:  # the prompt
                self.ended = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
                self.end_tokens = self.end_tokens.to(ids.device)
                self.weights = None
                return
            if ids.size(1) != 1:
                raise RuntimeError(
                    f"{ids.size(1)} tokens a row went through the model in one step of sampling, so that prompt and "
                    "completion can no longer be told apart. Sample with a cache (use_cache: true), and keep both in "
                    "the length that the model caches (original_max_position_embeddings, where its config has one)."
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
            size = (self.counter.num_rows, *rows.shape[1:])
            self.sums = torch.zeros(size, dtype=torch.float32, device=rows.device)
        self.sums[self.rows].add_(rows)
        self.states.clear()

    def pooled(self, expected: Sequence[int], hidden_size: int) -> Tensor:
        """Means (N, L, H) in float32; a mean over no token is zero.

        Args:
            expected: N numbers of tokens that the means have to be over, counted from the completions.
            hidden_size: H.

        Raises:
            RuntimeError: other tokens than these went through the model while the pooler was attached.
        """
        counts = self.counts.tolist()
        if counts != list(expected) or (self.sums is None and any(counts)):
            raise RuntimeError(
                f"States of {counts} tokens a row were pooled where the completions have {list(expected)}, so R_rep "
                "would compare something else. The layers of this model are not run as expected: report it with the "
                "model's class, and set representation_weight=0 meanwhile."
            )
        if self.sums is None:  # every completion is empty
            return torch.zeros(len(counts), len(self.layers), hidden_size, device=self.counts.device)
        return self.sums / self.counts.to(self.sums.device).clamp(min=1).view(-1, 1, 1)


def attached(pooler: StatePooler | None, embedding: nn.Module) -> AbstractContextManager:
    """A pooler at work while the block runs; nothing where there is none."""
    return pooler.attached(embedding) if pooler is not None else nullcontext()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off while completions are sampled and scored: the policy that is rewarded is the one without noise."""
    active = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back afterwards into the mode that each of them was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
