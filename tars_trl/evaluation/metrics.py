"""Accuracy, the gap and the modality recovery rate, with intervals and tests; word errors.

Everything is a pure function. What is drawn at random is drawn from a given seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 1000
"""Bootstrap resamples; the ends of a 95 % interval then vary by about a tenth of its width from seed to seed."""


def wilson_interval(correct: float, total: float, z: float = 1.96) -> Interval:
    """Wilson score interval of a proportion (95 % with z = 1.96), both ends in 0 to 1; counts may be effective ones.

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


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean: sample standard deviation over the root of N, as lm-evaluation-harness has it."""
    if len(values) < 2:
        return 0.0
    return float(np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values)))


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
        raise ValueError(
            f"{total} spoken and {len(text)} written answers cannot be paired. Give both for each question."
        )
    heard, read = sum(speech), sum(text)
    differences = [int(t) - int(s) for s, t in zip(speech, text, strict=True)]
    gap = sum(differences) / total
    spread = standard_error(differences)
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


def average_result(results: Sequence[Mapping[str, Any]], reference_accuracy: float | None = None) -> dict[str, Any]:
    """The unweighted mean over tasks, as the paper's averages are, of what `paired_result` says of each.

    Args:
        results: what it returned, one a task.
        reference_accuracy: denominator of the average's MRR in percent; None for the tasks' mean text accuracy.

    Returns:
        The keys of `PairedResult`, `questions` being their sum, and `mrr_interval`. An end of an interval is as far
        from the mean as the tasks' own ends are from theirs, squares added, over the number of tasks: the tasks are
        independent. `mrr_interval` is None without a given denominator: the same questions are then in numerator and
        denominator, and how they go together is not in these figures.
    """
    mean: dict[str, Any] = {"questions": sum(result["questions"] for result in results)}
    for name in ("speech_accuracy", "text_accuracy", "gap"):
        ends = f"{name.removesuffix('_accuracy')}_interval"
        values = [(result[name], *result[ends]) for result in results]
        mean[name] = sum(value for value, _, _ in values) / len(values)
        below, above = (math.sqrt(sum((value[0] - value[end]) ** 2 for value in values)) for end in (1, 2))
        mean[ends] = (mean[name] - below / len(values), mean[name] + above / len(values))
    given = reference_accuracy is not None
    denominator = reference_accuracy / 100 if reference_accuracy is not None else mean["text_accuracy"]
    mean["mrr"] = 100 * mean["speech_accuracy"] / denominator if denominator else None
    mean["mrr_interval"] = tuple(100 * end / denominator for end in mean["speech_interval"]) if given else None
    mean["mrr_denominator"] = f"{reference_accuracy:.2f} (given)" if given else "own text accuracy"
    return mean


def bootstrap_interval(
    columns: Sequence[Sequence[float]], statistic: Any = None, *, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % percentile interval over questions, which are drawn with replacement, all columns of a question together.

    Args:
        columns: K columns of N values, one value a question.
        statistic: function of the K means of a resample, arrays of shape (resamples,); None for the first mean.
        seed: of the resamples.

    Returns:
        Both ends, or None where the statistic is undefined (a division by 0) in more than 5 % of the resamples.
    """
    values = np.asarray(columns, dtype=float)  # (K, N)
    generator = np.random.default_rng(seed)
    means = np.empty((len(values), resamples))
    for resample in range(resamples):  # one at a time: (resamples, N) indices of a large benchmark would be 100 MB
        means[:, resample] = values[:, generator.integers(0, values.shape[1], values.shape[1])].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = means[0] if statistic is None else statistic(*means)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 0.95 * resamples:
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


class McNemar(TypedDict):
    """Questions that only one side answers rightly, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (two-sided binomial) on the same questions answered twice.

    Raises:
        ValueError: the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} answers cannot be paired. Give both for each question.")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    p_value = min(1.0, float(2 * tail / 2**discordant))  # Python integers: exact at any size
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


# ---- Words ---------------------------------------------------------------------------------------------------------
