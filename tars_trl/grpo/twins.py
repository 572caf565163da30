"""Which row is which twin, and which written completion a spoken one is compared with.

A group of `group_size` rows belongs to one question. With both modalities its first half is spoken and its second half
written, so that two ordinary TRL groups lie side by side. Everything here is a pure function of the global row number,
the question's key and the seed: nothing depends on how rows fell on processes.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from ..data.prompts import Modalities, Modality


def modality_of(row: int, group_size: int, modalities: Modalities = "both") -> Modality:
    """Modality of global row number `row` (position in the generation batch over all processes)."""
    if modalities != "both":
        return modalities
    return "speech" if row % group_size < group_size // 2 else "text"


def reference_candidates(usable: Sequence[bool], group_size: int) -> list[list[int]]:
    """Rows that may serve as reference, for each question of a batch.

    Args:
        usable: for each of N rows, whether its completion is right and complete. N is a multiple of `group_size`.
        group_size: rows of a question, the written ones in the second half.

    Returns:
        for each of N / group_size questions, the numbers of its usable written rows, in order; empty where there is
        no reference (then R_rep = R_beh = 0, paper section on training).
    """
    half = group_size // 2
    return [
        [row for row in range(start + half, start + group_size) if usable[row]]
        for start in range(0, len(usable), group_size)
    ]


def draw_references(
    candidates: Sequence[Sequence[int]],
    keys: Sequence[str],
    group_size: int,
    *,
    seed: int,
    step: int,
    how: Literal["random", "first"] = "random",
) -> list[int]:
    """One reference for each spoken row: a correct written completion of the same question, drawn at random.

    The draw depends on (seed, step, key, how often the key occurred before in the batch) and on nothing else.

    Args:
        candidates: as `reference_candidates` returns them, one list a question.
        keys: the key of each question, same length.
        group_size: rows of a question, the spoken ones in the first half.

    Returns:
        N row numbers: the reference of each spoken row, -1 for written rows and where there is none.
    """
    half = group_size // 2
    references: list[int] = []
    seen: Counter[str] = Counter()
    for rows, key in zip(candidates, keys, strict=True):
        generator = random.Random(f"{seed}/{step}/{key}/{seen[key]}")  # seeding with a string is stable across runs
        seen[key] += 1
        for _ in range(half):
            if not rows:
                references.append(-1)
            else:
                references.append(rows[0] if how == "first" else generator.choice(rows))
        references += [-1] * (group_size - half)
    return references
