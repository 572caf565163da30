"""The table of several trained arms, over questions and seeds. Pure functions; `arms` runs what is compared.

Every arm is measured the same way: greedy completions of the same held-out questions, spoken and written. An arm's
figure is the mean over its seeds, with an interval about other questions of the same kind: the answers of all seeds to
a question are taken together. The spread over seeds is its own column.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..data.prompts import MODALITIES
from ..evaluation.metrics import Interval, bootstrap_interval, wilson_interval
from ..evaluation.results import read_results, read_twins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "base"
"""Name of the untrained model in the table."""


@dataclass(frozen=True)
class Measured:
    """One trained model's answers to the held-out questions: whether each is right, in the order of the questions."""

    speech: list[bool]
    text: list[bool]
    train_seconds: float | None = None
    """Duration of its training as the trainer logged it; None where that is unknown, and for the untrained model."""
    commit: str | None = None
    """Of this package when it was measured."""


@dataclass(frozen=True)
class TableRow:
    """One arm over its seeds. Accuracies, MRR, gap and intervals in percent (points), time in minutes of a run."""

    arm: str
    seeds: int
    speech: float
    speech_low: float
    speech_high: float
    speech_sd: float | None
    text: float
    text_low: float
    text_high: float
    text_sd: float | None
    gap: float
    gap_low: float
    gap_high: float
    mrr: float | None
    minutes: float | None


def read_measured(results: Path, train_seconds: float | None = None) -> Measured:
    """A model's answers, from its results file and the samples beside it."""
    _, twins = read_twins(results)
    speech, text = ([line["acc"] == 1 for line in side] for side in zip(*twins, strict=True))
    return Measured(speech, text, train_seconds, read_results(results).get("git_hash"))


def make_rows(measured: Mapping[str, Sequence[Measured]], seed: int = 0) -> list[TableRow]:
    """A row for each arm, in the order given.

    Args:
        measured: arm to its trained models, one a seed, and `BASE` to the untrained one, whose text accuracy is the
            MRR's denominator.
        seed: of the bootstrap.

    Raises:
        ValueError: arms were asked different numbers of questions.
    """
    sizes = {len(model.speech) for models in measured.values() for model in models}
    if len(sizes) != 1:
        raise ValueError(f"Arms were asked {sorted(sizes)} questions. Measure all of them on the same ones.")
    reference = mean(measured[BASE][0].text)
    return [_row(arm, models, reference, seed) for arm, models in measured.items()]


def _row(arm: str, models: Sequence[Measured], reference: float, seed: int) -> TableRow:
    figures: dict[str, Any] = {}
    by_question = {}  # means over seeds
    for modality in MODALITIES:
        answers = [getattr(model, modality) for model in models]
        by_question[modality] = [mean(question) for question in zip(*answers, strict=True)]
        figures[modality] = mean(by_question[modality])
        figures[f"{modality}_low"], figures[f"{modality}_high"] = mean_interval(by_question[modality], len(models))
        figures[f"{modality}_sd"] = statistics.stdev(map(mean, answers)) if len(models) > 1 else None
    differences = [text - speech for speech, text in zip(by_question["speech"], by_question["text"], strict=True)]
    ends = bootstrap_interval([differences], seed=seed)
    assert ends is not None  # a mean is defined for every resample
    figures |= {"gap": figures["text"] - figures["speech"], "gap_low": ends[0], "gap_high": ends[1]}
    figures["mrr"] = figures["speech"] / reference if reference else None
    times = [model.train_seconds for model in models if model.train_seconds is not None]
    percent: dict[str, Any] = {name: value if value is None else 100 * value for name, value in figures.items()}
    return TableRow(arm, len(models), minutes=mean(times) / 60 if times else None, **percent)


def mean_interval(shares: Sequence[float], runs: int) -> Interval:
    """Wilson's 95 % interval for a mean over questions, of which each was answered by several trained models.

    Answers to one question are alike, so N questions with `runs` answers each count for less than N * runs answers: for
    as many as would have the variance that is seen between questions, at least N. With one run it is Wilson's interval.

    Args:
        shares: of the right answers to each question, 0 to 1.
        runs: answers to a question.
    """
    total, share = len(shares), mean(shares)
    variance = statistics.variance(shares) / total if total > 1 else 0.0
    answers = share * (1 - share) / variance if variance else total
    answers = min(max(answers, total), total * runs)
    return wilson_interval(share * answers, answers)


def markdown(rows: Sequence[TableRow], notes: str) -> str:
    """The table as Markdown, with 95 % intervals in brackets, and `notes` below."""
    lines = [
        "| arm | seeds | speech, % | text, % | gap, points | MRR, % | training, min |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.arm, str(row.seeds) if row.arm != BASE else ""]
        cells += [_with_interval(row, name) for name in (*MODALITIES, "gap")]
        cells += ["undefined" if row.mrr is None else f"{row.mrr:.1f}"]
        cells += ["" if row.minutes is None else f"{row.minutes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", notes, ""])


def _with_interval(row: TableRow, name: str) -> str:
    value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
    spread = getattr(row, f"{name}_sd", None)
    mean = f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"
    return f"{mean} [{low:.1f}, {high:.1f}]"


def write_csv(rows: Sequence[TableRow], path: Path) -> None:
    """The table as CSV, unrounded; an empty cell where a figure does not exist."""
    pd.DataFrame(rows).to_csv(path, index=False)


def plot_arms(rows: Sequence[TableRow], measured: Mapping[str, Sequence[Measured]]) -> "Figure":
    """Accuracies of the arms, the first on top: means with 95 % intervals, and a faint mark for every seed."""
    from ..report.plots import COLORS, MARKERS, empty_figure

    figure, axes = empty_figure(7.5, 1.2 + 0.45 * len(rows), 1)
    for place, row in enumerate(rows):
        for modality, shift in (("speech", 0.13), ("text", -0.13)):
            value, low, high = (getattr(row, modality + end) for end in ("", "_low", "_high"))
            look: dict[str, Any] = {"color": COLORS[modality], "marker": MARKERS[modality]}
            label = modality if place == 0 else None
            ends = [[max(0.0, value - low)], [max(0.0, high - value)]]  # at 0 or 100 % floats leave a -1e-14
            axes.errorbar(value, place + shift, xerr=ends, linestyle="none", elinewidth=1.2, label=label, **look)
            seeds = [100 * mean(getattr(run, modality)) for run in measured[row.arm]]
            if len(seeds) > 1:
                axes.plot(seeds, [place + shift] * len(seeds), linestyle="none", alpha=0.35, markersize=4, **look)
    axes.set_yticks(range(len(rows)), [row.arm for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy (%), 95 % intervals; faint: single seeds")
    axes.set_title("Held-out questions, spoken and written", loc="left", weight="bold", fontsize=11)
    axes.grid(axis="x", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
