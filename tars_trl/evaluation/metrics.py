"""Accuracy, the gap between the two forms of a question and what speech recovers of it, with intervals and tests.

Two figures have speech accuracy in their numerator, both in percent:

    recovery   over the same model's text accuracy on the same questions: how much of what it reads it also hears
    MRR        the paper's modality recovery rate: over the text accuracy of the untrained base model, a fixed figure
               (77.70 on average over MMSU and OpenBookQA for its 7B model), so that models can be compared

Everything is a pure function. What is drawn at random is drawn from a given seed.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

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


def bootstrap_interval(
    columns: Sequence[Sequence[float]], statistic: Callable[..., Any] | None = None, *, seed: int
) -> Interval | None:
    """95 % percentile interval over questions, which are drawn with replacement, all columns of a question together.

    Args:
        columns: K columns of N values, one value a question.
        statistic: function of the K means of a resample, arrays of shape (resamples,); None for the first mean.
        seed: of the resamples.

    Returns:
        Both ends, or None where the statistic is undefined (a division by 0) in more than 5 % of the resamples.
    """
    values = [np.asarray(column, dtype=float) for column in columns]
    if len(values[0]) == 1:  # of one question every resample is the same; scipy asks for two
        values = [np.repeat(column, 2) for column in values]

    def of_means(*samples: Any, axis: int = -1) -> Any:
        means = [sample.mean(axis=axis) for sample in samples]
        return means[0] if statistic is None else statistic(*means)

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # scipy's for a NaN among the resamples; see below
        resampled = bootstrap(
            values,
            of_means,
            n_resamples=RESAMPLES,
            batch=100,  # the indices of a large benchmark would be 100 MB at once
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 0.95 * RESAMPLES:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


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
    total = len(speech)
    heard, read = sum(map(bool, speech)), sum(map(bool, text))
    columns = [list(map(float, speech)), list(map(float, text))]
    speech_interval = wilson_interval(heard, total)
    mrr, mrr_interval = _mrr(heard / total, speech_interval, reference_accuracy)
    return {
        "questions": total,
        "speech_accuracy": heard / total,
        "speech_interval": speech_interval,
        "text_accuracy": read / total,
        "text_interval": wilson_interval(read, total),
        "gap": (read - heard) / total,
        "gap_interval": _defined(bootstrap_interval(columns, lambda h, r: r - h, seed=seed)),
        "recovery": 100 * heard / read if read else None,
        "recovery_interval": bootstrap_interval(columns, lambda h, r: 100 * h / r, seed=seed),
        "mrr": mrr,
        "mrr_interval": mrr_interval,
        "reference_accuracy": reference_accuracy,
    }


def _defined(interval: Interval | None) -> Interval:
    assert interval is not None  # a statistic without a division is defined for every resample
    return interval


def _mrr(
    speech_accuracy: float, interval: Interval, reference_accuracy: float | None
) -> tuple[float | None, Interval | None]:
    if reference_accuracy is None:
        return None, None
    mrr, low, high = (100 * share / (reference_accuracy / 100) for share in (speech_accuracy, *interval))
    return mrr, (low, high)


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

    (speech, speech_interval), (text, text_interval) = average("speech_accuracy"), average("text_accuracy")
    gap, gap_interval = average("gap")
    mrr, mrr_interval = _mrr(speech, speech_interval, reference_accuracy)
    return {
        "questions": sum(result["questions"] for result in results),
        "speech_accuracy": speech,
        "speech_interval": speech_interval,
        "text_accuracy": text,
        "text_interval": text_interval,
        "gap": gap,
        "gap_interval": gap_interval,
        "recovery": 100 * speech / text if text else None,
        "recovery_interval": None,
        "mrr": mrr,
        "mrr_interval": mrr_interval,
        "reference_accuracy": reference_accuracy,
    }


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
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def _check_pairs(first: Sequence[bool], second: Sequence[bool]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} and {len(second)} answers cannot be paired. Give both of each question, and at least one."
        )
