"""R_rep and R_beh: how close a spoken completion's thinking and wording come to a correct written one's.

Pure functions over tensors. N is the number of rows, L of layers, H the hidden size.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

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


def layer_similarity(states: Tensor, reference: Tensor) -> Tensor:
    """Cosine of pooled states, layer by layer: (…, L, H) and (…, L, H) to (…, L), float32, in [-1, 1]."""
    return nn.functional.cosine_similarity(states.float(), reference.float(), dim=-1)


def choose_references(
    candidates: Sequence[Sequence[int]],
    keys: Sequence[str],
    group_size: int,
    *,
    how: Literal["random", "first", "best"],
    seed: int,
    step: int,
    states: Tensor | None = None,
    layers: Sequence[int] = (),
) -> list[int]:
    """One reference for each spoken row: a correct written completion of the same question (paper: drawn at random).

    The draw depends on (seed, step, key, how often the key occurred before in the batch) and on nothing else.

    Args:
        candidates: usable written rows of each question, as `twins.reference_candidates` gives them.
        keys: the key of each question, same length.
        group_size: rows of a question, the spoken ones in the first half.
        how: random; first; or best, the candidate with the highest mean similarity (ties: the first).
        seed: of the run.
        step: optimizer steps behind.
        states: (N, L, H) pooled states of all rows, for `best`.
        layers: those whose similarity counts, for `best`.

    Returns:
        N row numbers: the reference of each spoken row, -1 for written rows and where there is none.
    """
    half = group_size // 2
    references: list[int] = []
    occurrences: Counter[str] = Counter()
    for question, (rows, key) in enumerate(zip(candidates, keys, strict=True)):
        generator = random.Random(f"{seed}/{step}/{key}/{occurrences[key]}")  # a text seeds alike in every run
        occurrences[key] += 1
        for row in range(question * group_size, question * group_size + half):
            if not rows:
                references.append(-1)
            elif how == "best":
                assert states is not None
                similarity = layer_similarity(states[row, layers], states[list(rows)][:, layers]).mean(-1)
                references.append(rows[int(similarity.argmax())])
            else:
                references.append(rows[0] if how == "first" else generator.choice(list(rows)))
        references += [-1] * (group_size - half)
    return references


def similarity_to_reference(vectors: Tensor, references: Sequence[int]) -> Tensor:
    """Cosine of every row with its reference row, along the last dimension; 0 where the reference is -1.

    Args:
        vectors: (N, D) embeddings (R_beh) or (N, L, H) pooled states (R_rep, before the mean over layers).
        references: N row numbers.

    Returns:
        (N,) or (N, L), float32, in [-1, 1].
    """
    index = torch.tensor(references, device=vectors.device)
    similarity = layer_similarity(vectors, vectors[index.clamp(min=0)])
    return similarity.masked_fill((index < 0).view(-1, *[1] * (similarity.dim() - 1)), 0.0)
