"""Which row is which twin, and which written completion a spoken one is compared with.

A group of `group_size` rows belongs to one question. With both modalities its first half is spoken and its second half
written, so that two ordinary TRL groups lie side by side. Everything here is a pure function of the global row number,
the question's key and the seed: nothing depends on how rows fell on processes.
"""

from collections.abc import Sequence

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
