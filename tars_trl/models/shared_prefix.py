"""A prompt through the decoder once, its completions behind it: log-probs without repeating what they share.

The completions of one question's twin have one prompt. A plain batch repeats it in every row; here all rows of a pass
lie in one packed row without padding,

    [prompt A, completion A1, …, completion Ak, prompt B, completion B1, …],

in which a prompt sees itself and each completion sees its prompt and itself. That is exact: log-probs, entropies and
gradients are those of the repeated form up to the order of float sums (dropout aside, whose noise a shared prompt
shares). Three things make it so, and none changes a model's code:

1. an attention function, registered with transformers, that makes two ordinary attention calls for each prompt;
2. positions that go on behind the prompt in every completion;
3. a hook that hands the head the states that predict completion tokens, in the layout of the rows. The last state of a
   prompt thus predicts the first token of each of its completions, and the last token of a completion, which predicts
   nothing, never enters the decoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .hooks import StatePooler, last_states
from .prompting import base_of, heard

ATTENTION = "sdpa_shared_prefix"
"""Name of the attention function; without `shared_prefix` among its arguments it is transformers' `sdpa`."""


@dataclass(frozen=True)
class Trunk:
    """One prompt in a packed row and the completions that branch off it."""

    prompt: slice
    """Columns of the prompt."""
    branches: Tensor
    """(k, C) columns of the completions' tokens, padded on the right with a column of the prompt."""
    filled: Tensor
    """(n,) which of the k x C places are tokens, in the order of the packed row."""
    mask: Tensor
    """(1, 1, C, P + C), bool: what a completion's tokens see of [prompt, completion]."""


@dataclass(frozen=True)
class PackedRow:
    """N rows as one, without padding: M tokens instead of N x (P + T)."""

    input_ids: Tensor
    """(1, M)."""
    position_ids: Tensor
    """(1, M): a prompt counts from 0, its completions from its length."""
    trunks: tuple[Trunk, ...]
    predicting: Tensor
    """(N, T) column whose state predicts each completion token; 0 where there is none."""
    labels: Tensor
    """(N, T) the completion tokens; -100 where there is none."""
    owners: Tensor
    """(M,) row of each completion token, -1 for a prompt's."""
    clip: Tensor | None
    """Audio embeddings of the prompts, one behind the other."""
    longest: int
    """Tokens of the longest row, prompt and completion."""


def first_with_same_prompt(
    input_ids: Tensor, attention_mask: Tensor, completion_width: int, clips: Sequence[Tensor | None]
) -> list[int]:
    """For each row the first one with its prompt: the same tokens, and the same clip (the same tensor, not its like).

    Args:
        input_ids: (N, P + T), prompts padded on the left.
        attention_mask: (N, P + T), 0 for padding.
        completion_width: T.
        clips: the N rows' audio embeddings, None for a written row.
    """
    width = input_ids.size(1) - completion_width
    firsts: dict[tuple, int] = {}
    rows = zip(input_ids[:, :width].tolist(), attention_mask[:, :width].sum(1).tolist(), clips, strict=True)
    return [
        firsts.setdefault((tuple(ids[width - length :]), id(clip) if clip is not None and len(clip) else None), number)
        for number, (ids, length, clip) in enumerate(rows)
    ]


def pack(
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_width: int,
    clips: Sequence[Tensor | None],
    prompts: Sequence[int] | None = None,
) -> PackedRow:
    """Lay rows that share prompts behind each other.

    Args:
        input_ids: (N, P + T) token ids, prompts padded on the left and completions on the right.
        attention_mask: (N, P + T), 0 for padding; a completion that does not count may be masked as a whole.
        completion_width: T, columns of the completions.
        clips: the N rows' audio embeddings (audio tokens, H), None for a written row. Rows with one prompt share one
            tensor; it is placed once.
        prompts: N numbers, equal for rows with one prompt, such as `first_with_same_prompt` gives; None to compare.

    Raises:
        ValueError: padding inside of a completion.
    """
    count, width, device = len(input_ids), input_ids.size(1) - completion_width, input_ids.device
    lengths = attention_mask[:, width:].sum(1).tolist()
    if not bool((attention_mask[:, width:].diff(dim=1) <= 0).all()):
        raise ValueError(
            "A completion has padding between its tokens, where those behind it would get other positions than in a "
            "plain batch. Mask completions from their end, or as a whole."
        )
    if prompts is None:
        prompts = first_with_same_prompt(input_ids, attention_mask, completion_width, clips)
    prompt_lengths = attention_mask[:, :width].sum(1).tolist()
    columns: list[Tensor] = []  # of the batch, for each packed token
    rows: list[Tensor] = []
    positions: list[Tensor] = []
    owners: list[Tensor] = []
    trunks, audio, end = [], [], 0
    predicting = torch.zeros(count, completion_width, dtype=torch.long)

    def place(row: int, first: int, number: int, position: int, owner: int) -> None:
        rows.append(torch.full((number,), row))
        columns.append(torch.arange(first, first + number))
        positions.append(torch.arange(position, position + number))
        owners.append(torch.full((number,), owner))

    for same in dict.fromkeys(prompts):
        members = [row for row in range(count) if prompts[row] == same]
        first = members[0]
        length = prompt_lengths[first]
        prompt = slice(end, end + length)
        place(first, width - length, length, 0, -1)
        end += length
        clip = clips[first]
        if clip is not None and len(clip):
            audio.append(clip)
        fed = [max(lengths[row] - 1, 0) for row in members]  # the last token predicts nothing
        branches = torch.full((len(members), max(fed)), prompt.start)
        for number, (row, tokens) in enumerate(zip(members, fed, strict=True)):
            place(row, width, tokens, length, row)
            branches[number, :tokens] = torch.arange(end, end + tokens)
            if lengths[row]:
                predicting[row, 0] = prompt.stop - 1
                predicting[row, 1 : lengths[row]] = branches[number, :tokens]
            end += tokens
        places = torch.arange(max(fed)) < torch.tensor(fed).unsqueeze(1)
        trunks.append(
            Trunk(
                prompt,
                branches.to(device),
                places.flatten().nonzero().squeeze(1).to(device),
                _sees(length, max(fed)).to(device),
            )
        )
    # Of no tokens: where parameters are spread over processes, it ties this one to an encoder that others ran.
    audio += [clip for clip in clips if clip is not None and not len(clip)]
    completion_ids = input_ids[:, width:]
    return PackedRow(
        input_ids=input_ids[torch.cat(rows).to(device), torch.cat(columns).to(device)].unsqueeze(0),
        position_ids=torch.cat(positions).to(device).unsqueeze(0),
        trunks=tuple(trunks),
        predicting=predicting.to(device),
        labels=completion_ids.masked_fill(attention_mask[:, width:] == 0, -100),
        owners=torch.cat(owners).to(device),
        clip=torch.cat(audio) if audio else None,
        longest=max(prompt + completion for prompt, completion in zip(prompt_lengths, lengths, strict=True)),
    )


def _sees(prompt: int, completion: int) -> Tensor:
    """(1, 1, C, P + C): the whole prompt, and of the completion what came before."""
    return torch.ones(completion, prompt + completion, dtype=torch.bool).tril(prompt)[None, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: tuple[Trunk, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The `sdpa` of transformers; over a packed row twice for each prompt: it over itself, its completions over both.

    Args:
        module: the attention layer; its grouping of heads, scaling and dropout hold.
        query: (1, heads, M, D) of a packed row.
        key: (1, key heads, M, D).
        value: (1, key heads, M, D).
        attention_mask: what a plain pass has made; not looked at for a packed row.
        shared_prefix: the trunks of a packed row; None for a plain batch.

    Returns:
        (1, M, heads, D), and no weights.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("position_ids", None)
    outputs = []
    for trunk in shared_prefix:
        prompt = [states[:, :, trunk.prompt] for states in (query, key, value)]
        outputs.append(sdpa_attention_forward(module, *prompt, None, **kwargs)[0][0])
        if not trunk.branches.numel():
            continue
        branches = trunk.branches.size(0)
        queries, keys, values = (states[0][:, trunk.branches].transpose(0, 1) for states in (query, key, value))
        keys = torch.cat([prompt[1].expand(branches, -1, -1, -1), keys], dim=2)
        values = torch.cat([prompt[2].expand(branches, -1, -1, -1), values], dim=2)
        output = sdpa_attention_forward(module, queries, keys, values, trunk.mask, **kwargs)[0]
        outputs.append(output.flatten(0, 1)[trunk.filled])
    return torch.cat(outputs).unsqueeze(0), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # for plain passes


def attach(model: Any) -> None:
    """Let the decoder take packed rows; plain passes stay what they were. For good: backward passes need it, too.

    Raises:
        ValueError: the decoder's attention is another than `sdpa`.
    """
    config = _base(model).config.get_text_config()
    if config._attn_implementation not in ("sdpa", ATTENTION):
        raise ValueError(
            f"The model was loaded with attn_implementation={config._attn_implementation!r}, and prompts can be shared "
            "with 'sdpa' alone. Load it with attn_implementation='sdpa' (the default), or set shared_prefix: never."
        )
    config._attn_implementation = {"": ATTENTION}  # of this config, not of the audio tower's


def longest_row(model: Any) -> int | None:
    """Tokens that prompt and completion may have together when prompts are shared; None: as many as the model takes.

    Within a sliding window every token sees the whole prompt, and up to the length at which Phi-4's class changes its
    rotary frequencies it does not matter which rows share a pass.
    """
    config = _base(model).config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "original_max_position_embeddings")]
    return min((limit for limit in limits if limit), default=None)


class PackedStatePooler(StatePooler):
    """A `StatePooler` of packed rows, for `packed_logps`: the last token of a completion is not among what it pools.

    Args:
        layers: L modules whose outputs are the states to pool, in the order they run.
        num_rows: N.
    """

    def __init__(self, layers: Sequence[nn.Module], num_rows: int):
        super().__init__(layers, num_rows)
        self.owners = torch.zeros(0, dtype=torch.long)
        self.sums = None

    def _watch(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        owners = self.owners[self.owners >= 0]
        self.counts = self.counts.to(owners.device).index_add_(0, owners, torch.ones_like(owners))

    def _pool(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.states.append((output[0] if isinstance(output, tuple) else output).detach()[0])
        if len(self.states) < len(self.layers):
            return
        if self.sums is None:
            size = (len(self.counts), len(self.layers), self.states[0].size(-1))
            self.sums = torch.zeros(size, dtype=torch.float32, device=self.states[0].device)
        owners = self.owners.to(self.sums.device)
        for layer, states in enumerate(self.states):
            own = states.to(self.sums)[owners >= 0]
            self.sums[:, layer].index_add_(0, owners[owners >= 0], own)
        self.states.clear()


def _base(model: Any) -> Any:
    return base_of(extract_model_from_parallel(model))


def packed_logps(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_width: int,
    clips: Sequence[Tensor | None],
    batch_size: int | None = None,
    compute_entropy: bool = False,
    pooler: PackedStatePooler | None = None,
    firsts: Sequence[int] | None = None,
    kept: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of completions as `GRPOTrainer._get_per_token_logps_and_entropies` computes them, prompts shared.

    Args:
        model: attached, with TRL's fused head (`trl.trainer.utils.add_fused_lm_head`, which holds the temperature);
            maybe with an adapter, maybe as an accelerator prepared it.
        input_ids: (N, P + T) token ids, prompts padded on the left and completions on the right.
        attention_mask: (N, P + T), 0 for padding and for completions that do not count.
        completion_width: T, TRL's `logits_to_keep`.
        clips: the N rows' audio embeddings, None for a written row; placed here, so no other hook may place them.
        batch_size: rows of a pass, None for all; rows with one prompt come into one pass where they fit. The number of
            passes is N / `batch_size`, rounded up, whatever rows share.
        compute_entropy: whether to return entropies.
        pooler: attached, of N rows.
        firsts: of `first_with_same_prompt`, where it is known.
        kept: gets the states (N, T, H) that predict completion tokens.

    Returns:
        log-probs (N, T) and entropies (N, T) or None, 0 where `attention_mask` is.

    Raises:
        ValueError: a row is longer than the model can share prompts of (`longest_row`).
    """
    base, limit = _base(model), longest_row(model)
    if firsts is None:
        firsts = first_with_same_prompt(input_ids, attention_mask, completion_width, clips)
    order = sorted(range(len(firsts)), key=firsts.__getitem__)
    size = batch_size or len(order)
    logps, entropies = [], []
    states: list[Tensor] | None = None if kept is None else []
    for chosen in (order[start : start + size] for start in range(0, len(order), size)):
        rows = torch.tensor(chosen, device=input_ids.device)
        packed = pack(
            input_ids[rows],
            attention_mask[rows],
            completion_width,
            [clips[row] for row in chosen],
            [firsts[row] for row in chosen],
        )
        if limit is not None and packed.longest > limit:
            raise ValueError(
                f"A prompt and its completion have {packed.longest} tokens, and this model shares prompts of at most "
                f"{limit}: in longer rows a token's place among the others changes what it sees. Shorten clips or "
                "completions, or set shared_prefix: never."
            )
        if pooler is not None:
            pooler.owners = torch.where(packed.owners < 0, -1, rows[packed.owners])
        with heard(base, [packed.clip]):
            outputs = packed_outputs(model, packed, states)
        logps.append(outputs.log_probs)
        entropies.append(outputs.entropy)
    back = torch.tensor(order, device=input_ids.device).argsort()
    if kept is not None and states:
        kept[:] = [torch.cat(states)[back]]
    return torch.cat(logps)[back], torch.cat(entropies)[back] if compute_entropy else None


def packed_outputs(model: Any, packed: PackedRow, kept: list[Tensor] | None = None) -> Any:
    """What the fused head returns for a packed row: `log_probs` and `entropy`, (N, T). Places no audio.

    `kept` gets the states (N, T, H) that it makes them of.
    """
    with _head_on(_base(model), packed.predicting), last_states(_base(model), kept):
        return model(
            input_ids=packed.input_ids,
            # Prepared, in transformers' eyes: without it, a restart of positions would cut completions from their
            # prompt (`find_packed_sequence_indices`), or a dense mask would be made.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device),
            position_ids=packed.position_ids,
            shift_labels=packed.labels,
            fused_lm_head=True,
            shared_prefix=packed.trunks,
        )


@contextmanager
def _head_on(base: Any, predicting: Tensor) -> Iterator[None]:
    """The head gets (N, T, H), the states that predict completion tokens, in the place of (1, M, H)."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[0][predicting]
        return output

    handle = base.base_model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def saving(input_ids: Tensor, attention_mask: Tensor, completion_width: int, firsts: Sequence[int]) -> float:
    """How many times fewer tokens the decoder takes when prompts are shared; a plain batch is counted with padding.

    Args:
        input_ids: (N, P + T) and what follows, as `pack` takes it.
        firsts: of `first_with_same_prompt`.
    """
    width = input_ids.size(1) - completion_width
    lengths = attention_mask[:, :width].sum(1).tolist()
    tokens = sum(lengths[row] for row in set(firsts)) + int((attention_mask[:, width:].sum(1) - 1).clamp(min=0).sum())
    return input_ids.numel() / max(tokens, 1)
