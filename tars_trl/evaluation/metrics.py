"""Accuracy, the gap between the two forms of a question and what speech recovers of it, with intervals and tests.

Two figures have speech accuracy in their numerator, both in percent:

    recovery   over the same model's text accuracy on the same questions: how much of what it reads it also hears
    MRR        the paper's modality recovery rate: over the text accuracy of the untrained base model, a fixed figure
               (77.70 on average over MMSU and OpenBookQA for its 7B model), so that models can be compared

Everything is a pure function. What is drawn at random is drawn from a given seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy.stats import binomtest, sem

Interval = tuple[float, float]

RESAMPLES = 1000
"""Bootstrap resamples; the ends of a 95 % interval then vary by about a tenth of its width from seed to seed."""


def wilson_interval(correct: float, total: float) -> Interval:
    """Wilson score interval of a proportion (95 %), both ends in 0 to 1; counts may be effective ones.

    Raises:
        ValueError: `total` is not positive.
    """
    if total <= 0:
        raise ValueError(f"An interval over {total} questions does not exist. Give at least one.")
    z, share = 1.96, correct / total
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def with_interval(share: float, ends: Sequence[float], unit: str = "") -> str:
    """A share and both ends of its interval as text, in percent: `72.7 [67.4, 77.4]`."""
    return f"{100 * share:.1f}{unit} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean: sample standard deviation over the root of N, as lm-evaluation-harness has it."""
    return float(sem(values)) if len(values) > 1 else 0.0


def bootstrap_interval(
    columns: Sequence[Sequence[float]], statistic: Callable[..., Any] = lambda mean: mean, *, seed: int
) -> Interval | None:
    """95 % percentile interval over questions, which are drawn with replacement, all columns of a question together.

    Args:
        columns: K columns of N values, one value a question.
        statistic: function of the K means of the resamples, arrays of shape (resamples,).
        seed: of the resamples.

    Returns:
        Both ends, or None where the statistic is undefined (a division by 0) in more than 5 % of the resamples.
    """
    values, generator = np.array(columns, dtype=float), np.random.default_rng(seed)
    size = values.shape[1]
    means = [values[:, generator.integers(size, size=size)].mean(1) for _ in range(RESAMPLES)]
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = statistic(*np.transpose(means))
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 0.95 * RESAMPLES:
        return None
    return middle_95(defined)


def middle_95(values: Any) -> Interval:
    """Between which 95 % of some resampled figures lie."""
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


class PairedResult(TypedDict):
    """Figures of the same questions in both modalities; accuracies, gap and intervals in 0 to 1, rates in percent."""

    questions: int
    speech_accuracy: float
    speech_interval: Interval
    text_accuracy: float
    text_interval: Interval
    gap: float
    gap_interval: Interval
    recovery: float | None
    recovery_interval: Interval | None
    mrr: float | None
    mrr_interval: Interval | None
    reference_accuracy: float | None


def paired_result(
    speech: Sequence[bool], text: Sequence[bool], reference_accuracy: float | None = None, seed: int = 0
) -> PairedResult:
    """Accuracies of both modalities over the same questions, the gap between them, recovery and MRR.

    Args:
        speech: whether each question was answered rightly when spoken.
        text: the same when written, in the same order.
        reference_accuracy: text accuracy of the base model in percent, such as 77.70: the MRR's denominator.
        seed: of the bootstrap intervals.

    Returns:
        Wilson intervals of the accuracies and of the MRR, which is speech accuracy in another unit; bootstrap intervals
        over questions of the gap and of the recovery. `recovery` is None for a model that reads nothing rightly, `mrr`
        without a reference accuracy.

    Raises:
        ValueError: the two differ in length, or there are none.
    """
    _check_pairs(speech, text)
    total, heard, read = len(speech), sum(map(bool, speech)), sum(map(bool, text))
    columns = [list(map(float, speech)), list(map(float, text))]
    gap_interval = bootstrap_interval(columns, lambda h, r: r - h, seed=seed)
    assert gap_interval is not None  # a statistic without a division is defined for every resample
    return _figures(
        total,
        (heard / total, wilson_interval(heard, total)),
        (read / total, wilson_interval(read, total)),
        ((read - heard) / total, gap_interval),
        bootstrap_interval(columns, lambda h, r: 100 * h / r, seed=seed),
        reference_accuracy,
    )


def _figures(
    questions: int,
    speech: tuple[float, Interval],
    text: tuple[float, Interval],
    gap: tuple[float, Interval],
    recovery_interval: Interval | None,
    reference: float | None,
) -> PairedResult:
    """Recovery and MRR beside accuracies and gap, each of which comes with its interval."""
    mrr, low, high = (100 * share / ((reference or math.nan) / 100) for share in (speech[0], *speech[1]))
    return {
        "questions": questions,
        "speech_accuracy": speech[0],
        "speech_interval": speech[1],
        "text_accuracy": text[0],
        "text_interval": text[1],
        "gap": gap[0],
        "gap_interval": gap[1],
        "recovery": 100 * speech[0] / text[0] if text[0] else None,
        "recovery_interval": recovery_interval,
        "mrr": None if reference is None else mrr,
        "mrr_interval": None if reference is None else (low, high),
        "reference_accuracy": reference,
    }


def average_result(results: Sequence[Mapping[str, Any]], reference_accuracy: float | None = None) -> PairedResult:
    """The mean over tasks of what `paired_result` says of each; every task counts the same, as in the paper's averages.

    Args:
        results: what it returned, one a task.
        reference_accuracy: average text accuracy of the base model in percent, the denominator of the average's MRR.

    Returns:
        The keys of `PairedResult`; `questions` is the sum. Intervals: the tasks are independent, so the squares of
        their errors add up. With e_1 to e_K the distances from the tasks' figures to the lower ends of their intervals,
        the average's lower end is the root of e_1² + … + e_K², divided by K, below the average; upper ends likewise.
        `recovery` is the mean speech accuracy over the mean text accuracy, and has no interval: the answers to one
        question stand in its numerator and its denominator, and the tasks' figures do not say how they go together.
    """

    def average(name: str) -> tuple[float, Interval]:
        ends = f"{name.removesuffix('_accuracy')}_interval"
        figure = sum(result[name] for result in results) / len(results)
        below, above = (math.hypot(*(result[name] - result[ends][end] for result in results)) for end in (0, 1))
        return figure, (figure - below / len(results), figure + above / len(results))

    questions = sum(result["questions"] for result in results)
    speech, text, gap = (average(name) for name in ("speech_accuracy", "text_accuracy", "gap"))
    return _figures(questions, speech, text, gap, None, reference_accuracy)


class McNemar(TypedDict):
    """Questions that only one side answers rightly, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (two-sided binomial) on the same questions answered twice.

    Raises:
        ValueError: the two differ in length, or there are none.
    """
    _check_pairs(first, second)
    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def _check_pairs(first: Sequence[bool], second: Sequence[bool]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} and {len(second)} answers cannot be paired. Give both of each question, and at least one."
        )
