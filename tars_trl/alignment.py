"""R_rep and R_beh: how close a spoken completion's thinking and wording come to a correct written one's.

Pure functions over tensors, and `StatePooler`, which averages hidden states while the decoder layers run so that the
(layers, rows, tokens, hidden) stack never exists. N is the number of rows, L of layers, H the hidden size.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LAYER_SETS = ("all", "shallow", "middle", "deep", "last")


def layer_indices(layers: str | Sequence[int], num_layers: int) -> list[int]:
    """Indices (0-based) of the decoder layers that R_rep averages over.

    `last` is the last two layers; `shallow`, `middle` and `deep` are the thirds of those before them, which for the
    paper's 32 layers gives 1-10, 11-20, 21-30 and 31-32 (figure 3). Under five layers the thirds are of all layers.

    Raises:
        ValueError: an unknown name, an empty list, or an index outside [-num_layers, num_layers).
    """
    if isinstance(layers, str):
        if layers == "all":
            return list(range(num_layers))
        if layers == "last":
            return list(range(max(0, num_layers - 2), num_layers))
        if layers in LAYER_SETS:
            below = num_layers - 2 if num_layers >= 5 else num_layers
            third = ("shallow", "middle", "deep").index(layers)
            start = min(round(below * third / 3), below - 1)
            return list(range(start, max(round(below * (third + 1) / 3), start + 1)))
        raise ValueError(f"rep_layers={layers!r} is not a layer set. Use one of {LAYER_SETS} or a list of indices.")
    bad = [index for index in layers if not -num_layers <= index < num_layers]
    if bad or not layers:
        raise ValueError(
            f"rep_layers={list(layers)} does not fit a decoder of {num_layers} layers"
            f"{f' (out of range: {bad})' if bad else ' (empty)'}. Give indices from 0 to {num_layers - 1}."
        )
    return sorted({index % num_layers for index in layers})


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


def layer_similarity(states: Tensor, reference: Tensor) -> Tensor:
    """Cosine of pooled states, layer by layer: (…, L, H) and (…, L, H) to (…, L), float32, in [-1, 1]."""
    return nn.functional.cosine_similarity(states.float(), reference.float(), dim=-1)


def best_references(
    states: Tensor, candidates: Sequence[Sequence[int]], group_size: int, layers: list[int]
) -> list[int]:
    """For each spoken row the candidate of its question with the highest mean similarity (ties: the first).

    Args:
        states: (N, L, H) pooled states of all rows.
        candidates: usable written rows of each question, see `twins.reference_candidates`.

    Returns:
        N row numbers, -1 for written rows and where there is no candidate.
    """
    references = [-1] * states.size(0)
    for question, rows in enumerate(candidates):
        for row in range(question * group_size, question * group_size + group_size // 2) if rows else ():
            similarity = layer_similarity(states[row, layers].unsqueeze(0), states[list(rows)][:, layers]).mean(-1)
            references[row] = rows[int(similarity.argmax())]
    return references


def compare(vectors: Tensor, references: Sequence[int]) -> Tensor:
    """Cosine of every row with its reference row, along the last dimension; 0 where the reference is -1.

    `vectors` is (N, H) for embeddings (R_beh) or (N, L, H) for pooled states (R_rep, before the mean over layers).
    """
    index = torch.tensor(references, device=vectors.device)
    similarity = layer_similarity(vectors, vectors[index.clamp(min=0)])
    return similarity.masked_fill((index < 0).view(-1, *[1] * (similarity.dim() - 1)), 0.0)


class BehaviorEncoder:
    """Sentence embeddings of completions for R_beh: E in cos(E(spoken), E(reference)).

    Args:
        model: a sentence-transformers model, its hub id, its folder, or `package:NAME/FOLDER` for one that an installed
            Python package carries (paper: `Qwen/Qwen3-Embedding-0.6B`).
        device: where it runs.
        batch_size: texts per forward pass.
    """

    def __init__(self, model: "str | SentenceTransformer", device: str | torch.device, batch_size: int = 32):
        if isinstance(model, str):
            from sentence_transformers import SentenceTransformer  # seconds to import, and not every run needs it

            # In float32, so that an embedding does not depend on which texts it shares a batch with.
            options = {"dtype": torch.float32}
            model = SentenceTransformer(_package_folder(model), device=str(device), model_kwargs=options)
        self.model = model.eval()
        self.device = device
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (len(texts), D) in float32; every distinct text goes through the model once, without gradient."""
        distinct = list(dict.fromkeys(texts))
        embeddings = self.model.encode(
            distinct,
            batch_size=self.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
            device=str(self.device),
        ).float()
        number = {text: index for index, text in enumerate(distinct)}
        return embeddings[[number[text] for text in texts]].clone()

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return int(self.model.get_embedding_dimension() or 0)


def _package_folder(model: str) -> str:
    """`package:NAME/FOLDER` as a path; anything else as it is."""
    if not model.startswith("package:"):
        return model
    package, _, folder = model.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"behavior_model={model!r}: no package {package} is installed. Install it (the demo's comes with "
            "`pip install tars-trl[demo]`), or name a hub id or a folder."
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)
