"""Accuracy, the gap and the modality recovery rate, with intervals."""

import math
from collections.abc import Sequence
from typing import TypedDict

Interval = tuple[float, float]


def wilson_interval(correct: int, total: int, z: float = 1.96) -> Interval:
    """Wilson score interval of a proportion (95 % with z = 1.96), both ends in 0 to 1.

    Raises:
        ValueError: `total` is not positive.
    """
    if total <= 0:
        raise ValueError(f"An interval over {total} questions does not exist. Give at least one.")
    share = correct / total
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


class PairedResult(TypedDict):
    """Figures of the same questions in both modalities; accuracies, gap and intervals in 0 to 1, MRR in percent."""

    questions: int
    speech_accuracy: float
    speech_interval: Interval
    text_accuracy: float
    text_interval: Interval
    gap: float
    gap_interval: Interval
    mrr: float | None
    mrr_denominator: str


def paired_result(
    speech: Sequence[bool], text: Sequence[bool], reference_accuracy: float | None = None
) -> PairedResult:
    """Accuracies of both modalities over the same questions, the gap between them and the MRR (paper, section on MRR).

    Args:
        speech: whether each question was answered rightly when spoken.
        text: the same when written, in the same order.
        reference_accuracy: denominator of the MRR in percent, such as 77.70; None for the model's own text accuracy.

    Returns:
        Wilson intervals for the accuracies, the paired normal interval for the gap; `mrr` is None over nothing.
    """
    total = len(speech)
    if len(text) != total:
        raise ValueError(f"{total} spoken and {len(text)} written answers cannot be paired. Give both for each question.")
    heard, read = sum(speech), sum(text)
    differences = [int(t) - int(s) for s, t in zip(speech, text, strict=True)]
    gap = sum(differences) / total
    spread = math.sqrt(sum((d - gap) ** 2 for d in differences) / max(1, total - 1) / total)
    denominator = reference_accuracy / 100 if reference_accuracy is not None else read / total
    return {
        "questions": total,
        "speech_accuracy": heard / total,
        "speech_interval": wilson_interval(heard, total),
        "text_accuracy": read / total,
        "text_interval": wilson_interval(read, total),
        "gap": gap,
        "gap_interval": (gap - 1.96 * spread, gap + 1.96 * spread),
        "mrr": 100 * heard / total / denominator if denominator else None,
        "mrr_denominator": "own text accuracy" if reference_accuracy is None else f"{reference_accuracy:.2f} (given)",
    }
