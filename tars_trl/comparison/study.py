"""What a study of several arms measured, in one JSON file, and the figures and tests that are made of it. No running.

Answers are kept one character a question, in the order of its keys, so that everything is paired: arms of a seed saw
the same questions in the same order, and all are asked the same held-out ones.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from ..errors import NotLoggedError
from ..evaluation.metrics import Interval, mcnemar, middle_95
from ..evaluation.results import read_results, read_twins
from ..files import json_object, read_json, write_whole
from ..settings import fits
from .table import BASE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 10_000
LOGGED = re.compile(r"(speech|text)/advantage_share/|distillation/(text_)?kl$|step_time$|alignment/no_reference$")
"""Metrics of a training whose mean over its steps is kept."""


@dataclass
class Answers:
    """One trained model's answers to the held-out questions of one task."""

    arm: str
    seed: int
    step: int
    task: str
    speech: str
    """For each question 1 if the spoken one is answered rightly, else 0; in the order of the keys."""
    text: str
    domains: list[str] = field(default_factory=list)
    """What each question's `domain` column holds; empty where that was not asked for."""
    commit: str | None = None


@dataclass
class Training:
    """What one training took, and what its advantages were made of."""

    arm: str
    seed: int
    variant: str
    steps: int
    seconds: float | None
    means: dict[str, float]
    """Of the metrics in `LOGGED`, over the logged steps."""


RECORDS: dict[str, Any] = {"answers": Answers, "training": Training}


@dataclass
class Study:
    """Everything that was measured."""

    answers: list[Answers] = field(default_factory=list)
    training: list[Training] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON, one record a line."""
        lines = {name: ",\n".join(json.dumps(asdict(row)) for row in rows) for name, rows in vars(self).items()}
        write_whole(path, "{" + ",\n".join(f'"{name}": [\n{rows}\n]' for name, rows in lines.items()) + "}\n")

    @classmethod
    def read(cls, path: Path) -> "Study":
        """What `write` has written.

        Raises:
            NotLoggedError: it is something else, damaged, or without the untrained model's or a trained one's answers.
        """
        try:
            content = read_json(path)
            study = cls(*([kind(**row) for row in content[name]] for name, kind in RECORDS.items()))
        except (ValueError, TypeError, LookupError) as error:
            raise NotLoggedError(f"{path} is no results.json of a comparison ({error}). Give one.") from error
        for row in (*study.answers, *study.training):
            kinds = get_type_hints(type(row))
            wrong = next((name for name, kind in kinds.items() if not fits(getattr(row, name), kind)), None)
            if wrong is not None:
                raise NotLoggedError(f"{path}: {wrong}={getattr(row, wrong)!r:.100} is not what a comparison writes.")
        for row in study.answers:
            others = [len(other.speech) for other in study.answers if other.task == row.task]
            if len({*others, len(row.text)}) > 1 or {*row.speech, *row.text} - {"0", "1"} or not row.speech:
                raise NotLoggedError(f"{path}: the answers of {row.arm}, seed {row.seed}, to {row.task} are damaged.")
        asked = {row.task for row in study.answers if row.arm == BASE}
        if not study.arms or not asked or not asked.issuperset(study.tasks):
            raise NotLoggedError(
                f"{path} lacks answers of the untrained model or of all others. Let compare end first."
            )
        return study

    def of(self, arm: str, task: str, step: int | None = None) -> list[Answers]:
        """An arm's answers on a task, by seed, at a step (None: the last one measured)."""
        rows = [row for row in self.answers if row.arm == arm and row.task == task]
        wanted = max((row.step for row in rows), default=0) if step is None else step
        return sorted((row for row in rows if row.step == wanted), key=lambda row: row.seed)

    def steps(self, arm: str, task: str) -> list[int]:
        """At which an arm was measured on a task."""
        return sorted({row.step for row in self.answers if row.arm == arm and row.task == task})

    @property
    def arms(self) -> list[str]:
        """In the order they were run, without the untrained model."""
        return [arm for arm in dict.fromkeys(row.arm for row in self.answers) if arm != BASE]

    @property
    def tasks(self) -> list[str]:
        """The first is the one with curves."""
        return list(dict.fromkeys(row.task for row in self.answers))


def read_answers(results: Path, arm: str, seed: int, step: int) -> Answers:
    """A model's answers, from its results file and the samples beside it."""
    task, twins = read_twins(results)
    speech, text = ("".join("01"[line["acc"] == 1] for line in side) for side in zip(*twins, strict=True))
    named = [str(written["domain"]) for _, written in twins if written.get("domain") is not None]
    return Answers(arm, seed, step, task, speech, text, named, read_results(results).get("git_hash"))


def read_training(folder: Path, arm: str, seed: int, variant: str, seconds: float | None) -> Training:
    """What the log of a run says of it."""
    history = json_object((folder / "trainer_state.json").read_bytes(), f"{folder}/trainer_state.json")["log_history"]
    values: dict[str, list[float]] = {}
    for entry in history:
        for name, value in entry.items():
            if LOGGED.match(name) and value is not None:
                values.setdefault(name, []).append(value)
    steps = max(entry.get("step", 0) for entry in history)
    return Training(arm, seed, variant, steps, seconds, {name: fmean(given) for name, given in values.items()})


# ---- Figures -------------------------------------------------------------------------------------------------------


def matrix(rows: Sequence[Answers], modality: str = "speech", domain: str | None = None) -> np.ndarray:
    """(seeds, questions) of 0 and 1; of the questions in a domain, if one is named."""
    answers = np.array([[int(mark) for mark in getattr(row, modality)] for row in rows], dtype=float)
    return answers if domain is None else answers[:, [name == domain for name in rows[0].domains]]


def area(study: Study, arm: str, task: str, end: int, seeds: Sequence[int] | None = None) -> np.ndarray:
    """Area under each question's curve, (seeds, questions), as a mean over steps 0 to `end`: trapezoids, spoken.

    Of all seeds, or of some.
    """
    steps = [step for step in study.steps(arm, task) if step <= end]
    measured = [study.of(arm, task, step) for step in steps]
    curve = [matrix([row for row in rows if seeds is None or row.seed in seeds]) for rows in measured]
    start = matrix(study.of(BASE, task))  # the untrained model, the same for every seed
    points = np.stack([np.broadcast_to(start, curve[0].shape), *curve])
    return np.trapezoid(points, [0, *steps], axis=0) / steps[-1]


def difference_interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """95 % interval of the mean of (seeds, questions) paired differences, over other seeds and other questions.

    Both are drawn with replacement, independently of each other (a pigeonhole bootstrap). With one seed it is over
    questions alone.
    """
    generator = np.random.default_rng(seed)
    seeds, questions = differences.shape
    means = [
        differences[np.ix_(generator.integers(seeds, size=seeds), generator.integers(questions, size=questions))].mean()
        for _ in range(RESAMPLES)
    ]
    return middle_95(means)


def steps_to(study: Study, arm: str, task: str, accuracy: float) -> float | None:
    """Steps after which the mean spoken accuracy over seeds has reached `accuracy`, between measurements in a line."""
    steps = study.steps(arm, task)
    points = [(0, float(matrix(study.of(BASE, task)).mean()))]
    points += [(step, float(matrix(study.of(arm, task, step)).mean())) for step in steps]
    if points[0][1] >= accuracy:
        return 0.0
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if high >= accuracy:
            return before + (accuracy - low) / (high - low) * (after - before)
    return None


def choose(study: Study) -> dict[str, Training]:
    """The variant of each arm with the highest spoken accuracy at its end on the first task; of equal ones the first.

    Variants are called ARM.1, ARM.2, …; accuracies are means over seeds.
    """
    best: dict[str, tuple[float, Training]] = {}
    for row in study.training:
        reached = float(matrix(study.of(row.arm, study.tasks[0])).mean())
        arm = row.arm.partition(".")[0]
        if arm not in best or reached > best[arm][0]:
            best[arm] = reached, row
    return {arm: row for arm, (_, row) in best.items()}


# ---- Tables --------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(difference: np.ndarray) -> str:
    low, high = difference_interval(difference)
    return f"{100 * difference.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def curve_table(study: Study) -> str:
    """Spoken accuracy by step, and the written one at the end."""
    task = study.tasks[0]
    steps = sorted({row.step for row in study.answers if row.task == task and row.arm != BASE})
    base = study.of(BASE, task)
    rows = [[BASE, "", _percent(matrix(base).mean()), *[""] * len(steps), _percent(matrix(base, "text").mean())]]
    for arm in study.arms:
        measured = [study.of(arm, task, step) for step in steps]
        cells = [_percent(matrix(rows_).mean()) if rows_ else "" for rows_ in measured]
        end = study.of(arm, task)
        rows.append([arm, str(len(end)), "", *cells, _percent(matrix(end, "text").mean())])
    return _table(["arm", "seeds", "0", *map(str, steps), "written, end"], rows)


def outcome_table(study: Study, accuracy: float) -> str:
    """Area under the curve, steps and seconds to an accuracy, what carries over, and seconds a step, by arm."""
    task, *carried = study.tasks
    domains = sorted({domain for row in study.of(BASE, task) for domain in row.domains})
    header = ["arm", "area, %", f"steps to {_percent(accuracy)} %", "seconds to it", "seconds a step"]
    header += [f"{task}: {domain}" for domain in domains] + carried
    rows = []
    for arm in study.arms:
        end = study.of(arm, task)
        steps = steps_to(study, arm, task, accuracy)
        pace = [row.seconds / row.steps for row in study.training if row.arm == arm and row.seconds and row.steps]
        second = fmean(pace) if pace else None
        cells = [_percent(area(study, arm, task, end[0].step).mean()), "never" if steps is None else f"{steps:.0f}"]
        cells += ["" if steps is None or second is None else f"{steps * second:.0f}", f"{second:.2f}" if second else ""]
        cells += [_percent(matrix(end, domain=domain).mean()) for domain in domains]
        cells += [_percent(matrix(study.of(arm, other)).mean()) if study.of(arm, other) else "" for other in carried]
        rows.append([arm, *cells])
    return _table(header, rows)


def pair_table(study: Study, pairs: Sequence[tuple[str, str]], domain: str | None = None) -> str:
    """Arm against arm: paired differences in points with intervals over seeds and questions, and McNemar's test.

    With a domain also those on its questions alone, spoken, at the end.

    McNemar's takes every (seed, question) as a pair of its own, which answers of several seeds to one question are not
    quite: where it and the interval disagree, the interval counts.
    """
    task, *carried = study.tasks
    header = ["first - second", "area", "end, spoken", "end, written", *([domain] if domain else []), *carried]
    header.append("McNemar at the end")
    rows = []
    for first, second in pairs:
        one, other = study.of(first, task), study.of(second, task)
        shared = [row.seed for row in one if row.seed in {row.seed for row in other}]
        one, other = ([row for row in rows_ if row.seed in shared] for rows_ in (one, other))
        if not shared:
            continue
        end = min(one[0].step, other[0].step)
        areas = [area(study, arm, task, end, shared) for arm in (first, second)]
        cells = [_points(areas[0] - areas[1])]
        cells += [_points(matrix(one, modality) - matrix(other, modality)) for modality in ("speech", "text")]
        cells += [_points(matrix(one, domain=domain) - matrix(other, domain=domain))] if domain else []
        for name in carried:
            pair = [[row for row in study.of(arm, name) if row.seed in shared] for arm in (first, second)]
            cells.append(_points(matrix(pair[0]) - matrix(pair[1])) if all(pair) else "")
        test = mcnemar(matrix(one).flatten().astype(bool).tolist(), matrix(other).flatten().astype(bool).tolist())
        cells.append(f"{test['only_first']} : {test['only_second']}, p = {test['p_value']:.2g}")
        rows.append([f"{first} - {second}", *cells])
    return _table(header, rows)


def share_table(study: Study) -> str:
    """What the advantages of spoken tokens were made of, over the whole training."""
    names = sorted({name for row in study.training for name in row.means if name.startswith("speech/advantage_share/")})
    rows = []
    for arm in study.arms:
        means = [row.means for row in study.training if row.arm == arm]
        given: list[list[Any]] = [[of[name] for of in means if name in of] for name in names]
        rows.append([arm, *(_percent(fmean(values)) if values else "" for values in given)])
    return _table(["arm", *(name.rpartition("/")[2] for name in names)], rows)


def plot_curves(study: Study) -> "Figure":
    """Spoken accuracy by step: a panel an arm, mean and single seeds, with the other arms' means in grey behind it."""
    from ..report.plots import COLORS, empty_figure

    task = study.tasks[0]
    start = float(matrix(study.of(BASE, task)).mean())
    curves: dict[str, np.ndarray] = {}
    for arm in study.arms:
        seeds = np.array([matrix(study.of(arm, task, step)).mean(axis=1) for step in study.steps(arm, task)])
        curves[arm] = 100 * np.vstack([[start] * seeds.shape[1], seeds])
    places = {arm: [0, *study.steps(arm, task)] for arm in curves}
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    grid: dict[str, Any] = {"sharex": True, "sharey": True, "squeeze": False}
    figure, panels = empty_figure(3.2 * columns, 2.2 * lines + 0.4, columns, lines, **grid)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (arm, seeds) in zip(panels.flat, curves.items(), strict=False):
        for other in curves:
            axes.plot(places[other], curves[other].mean(axis=1), color="#C8C8C8", linewidth=0.8)
        axes.plot(places[arm], seeds, color=COLORS["speech"], linewidth=0.8, alpha=0.35)
        axes.plot(places[arm], seeds.mean(axis=1), color=COLORS["speech"], marker="o", markersize=3)
        axes.set_xticks(places[arm])
        axes.tick_params(labelsize=8)
        axes.set_title(f"{arm}: {seeds[-1].mean():.1f} %", loc="left", fontsize=9, weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E4E4E4")
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("spoken accuracy, %", fontsize=9)
    return figure
