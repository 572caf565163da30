"""The figures that notebooks, recipes and reports share: speech and text always in the same two colours.

Every function returns a `matplotlib.figure.Figure` (not one of pyplot's, so nothing has to be closed); save it with
`figure.savefig`. Colours are of Okabe and Ito's palette, which colour-blind readers tell apart. Marks of the twins
differ in shape too, lines of runs and models in style.
matplotlib is imported when the first figure is drawn; a command that draws at its end asks `check_matplotlib` at its
start.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from pandas import DataFrame, Series

from ..errors import NotLoggedError
from ..record import read_run
from .frames import LoggedRun, accuracy_columns, metrics_frame, names_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.drift import LayerStats

P = ParamSpec("P")

COLORS = {"speech": "#D55E00", "text": "#0072B2", "gap": "#333333"}
MARKERS = {"speech": "o", "text": "s", "gap": "D"}
MODEL_COLORS = ("#999999", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BOTH = ("speech", "text")
SHARE = (-0.03, 1.03)
Panel = tuple[str, str, dict[str, str], tuple[float, float] | None]
"""Title, unit, column of each kind (speech, text, gap), vertical range."""
LINES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # names of runs and domains may hold dollar signs
}


def check_matplotlib() -> None:
    """See that figures can be drawn, before anything expensive is done; an ImportError says how to bring matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "Figures are drawn with matplotlib, which is not installed. Bring it with: pip install 'matplotlib>=3.8'"
        )


def _styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Draw in our style, whatever the caller's is, and leave the caller's as it is."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        check_matplotlib()
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def plot_gap(runs: LoggedRun | Sequence[LoggedRun], smooth: int = 10) -> "Figure":
    """Accuracy of the twins over training, and the gap between them, for one run or several.

    Points are the logged steps' sampled completions, lines means over the last `smooth` of them, bands their 95 %
    intervals, from the spread of those steps (points and bands are drawn for a single run). Marks with lines through
    them are held-out accuracies, where the run measured them: filled the greedy ones of `EvaluationCallback`
    (`eval_…_greedy`), hollow those of `trainer.evaluate`.
    """
    runs = [runs] if isinstance(runs, LoggedRun) else list(runs)
    figure, (left, right) = empty_figure(10, 3.8, 2)
    for number, (name, run) in enumerate(zip(names_apart(runs), runs, strict=True)):
        metrics, line = metrics_frame(run), LINES[number % len(LINES)]
        accuracy_columns(metrics)  # there has to be one
        for axes, kind in ((left, "speech"), (left, "text"), (right, "gap")):
            if (column := f"{kind}/accuracy") in metrics:
                label = name if kind == "gap" else kind if number == 0 else None
                _curve(axes, 100 * metrics[column], smooth, kind, line, label, band=len(runs) == 1)
            for ending, filled in (("", "white"), ("_greedy", COLORS[kind])):
                if (column := f"eval_{kind}/accuracy{ending}") in metrics:
                    measured = 100 * metrics[column].dropna()
                    label = f"{kind}, held out{ending.replace('_', ', ')}" if number == 0 else None
                    style = {"color": COLORS[kind], "marker": MARKERS[kind], "markerfacecolor": filled}
                    axes.plot(measured.index, measured, line, linewidth=1.2, label=label, **style)
    left.set(title="Accuracy", ylabel="accuracy (%)", ylim=(0, 102))
    right.set(title="Modality gap (text - speech)", ylabel="gap (percentage points)")
    right.axhline(0, color="#888888", linewidth=1)
    left.legend(loc="lower right")
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="best")
    for axes in (left, right):
        _whole_steps(axes, "training step")
    _state_window(figure, smooth)
    return figure


@_styled
def plot_rewards(run: LoggedRun, smooth: int = 10) -> "Figure":
    """The reward of each modality and the terms it is made of, over training; points and bands as in `plot_gap`.

    A spoken completion can earn R_rep and R_beh, too: so that the two can be compared, rewards are divided by the sum
    of their weights, which is their maximum where every reward is at most 1.
    """
    most = _most_rewards(run)
    reward = ("Reward (share of its maximum)", "reward / weights") if most else ("Reward (weighted sum)", "mean reward")
    scales = {f"{modality}/reward": most[modality] for modality in most}
    return _panels(run, smooth, "TARSGRPOTrainer", scales=scales, panels=[
        (*reward, _both("reward"), None),
        ("R_acc: the answer is right", "mean, 0 to 1", _both("accuracy"), SHARE),
        ("R_fmt: it is well-formed", "mean, 0 to 1", _both("format"), SHARE),
        ("R_rep: thinks like its twin", "mean cosine", {"speech": "rewards/representation_alignment/mean"}, None),
        ("R_beh: says what its twin says", "mean cosine", {"speech": "rewards/behavior_alignment/mean"}, None),
    ])  # fmt: skip


@_styled
def plot_shares(run: LoggedRun, smooth: int = 10) -> "Figure":
    """What each reward contributes to the advantages (shares of their variance), and the distance to the teacher.

    A reward that hardly differs within a group moves nothing, however large it is. Shares of a modality add up to 1.
    """
    columns = [name for name in metrics_frame(run) if "/advantage_share/" in name]
    rewards = dict.fromkeys(name.rpartition("/")[2] for name in columns)
    panels = [
        (f"Share of {name}", "of the variance", _both(f"advantage_share/{name}"), None) for name in rewards
    ]  # fmt: skip
    distance = {"speech": "distillation/kl", "text": "distillation/text_kl"}
    return _panels(
        run, smooth, "TARSGRPOTrainer", [*panels, ("Distance to the teacher", "nats a token", distance, None)]
    )


@_styled
def plot_health(run: LoggedRun, smooth: int = 10) -> "Figure":
    """What tells whether a run can learn: groups without signal or reference, truncation, lengths; per modality."""
    return _panels(run, smooth, "TARSGRPOTrainer", panels=[
        ("Groups with equal rewards", "share, 0 to 1", _both("frac_reward_zero_std"), SHARE),
        ("Questions without a reference", "share, 0 to 1", {"gap": "alignment/no_reference"}, SHARE),
        ("Truncated completions", "share, 0 to 1", _both("clipped_ratio"), SHARE),
        ("Completion length", "tokens", _both("completion_length"), None),
        ("Recovery rate (speech / text)", "percent", {"gap": "gap/recovery_rate"}, None),
    ])  # fmt: skip


@_styled
def plot_loss(run: LoggedRun, smooth: int = 10) -> "Figure":
    """Loss and fit of a supervised run (tars-trl sft, tars-trl dpo) over training; bands as in `plot_gap`."""
    return _panels(run, smooth, "SFTTrainer or DPOTrainer", panels=[
        ("Loss", "mean of the batch", {"gap": "loss"}, None),
        ("Loss, held out", "mean", {"gap": "eval_loss"}, None),
        ("SFT: next token is right", "share, 0 to 1", {"gap": "mean_token_accuracy"}, None),
        ("DPO: chosen over rejected", "share, 0 to 1", {"gap": "rewards/accuracies"}, SHARE),
        ("DPO: margin of the rewards", "mean", {"gap": "rewards/margins"}, None),
    ])  # fmt: skip


@_styled
def plot_before_after(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str] = ("before", "after")
) -> "Figure":
    """Held-out accuracies and the gap before and after training, with 95 % intervals.

    Args:
        before: a `PairedResult` of `tars_trl.evaluation.metrics`, such as `read_pair` gives.
        after: the same, of the trained model.
        names: what the two are called under the axis.
    """
    results, beside = (before, after), ("right", "left")  # where a label ends, seen from its mark
    words = {"textcoords": "offset points", "va": "center", "weight": "bold"}
    figure, (left, right) = empty_figure(9, 3.8, 2, gridspec_kw={"width_ratios": (3, 2)})
    for shift, modality in ((-0.04, "speech"), (0.04, "text")):
        values = _intervals(left, [shift, 1 + shift], results, modality)
        for x, result in enumerate(results):
            above = (result["gap"] >= 0) == (modality == "text")  # so that close labels do not meet
            place, away = (x + shift, values[x]), (32 * x - 16, 6 if above else -6)
            left.annotate(f"{modality} {values[x]:.1f}", place, away, ha=beside[x], color=COLORS[modality], **words)
    left.set(title="Accuracy", ylabel="accuracy (%)", xticks=(0, 1), xticklabels=names, xlim=(-1, 2))
    ends = [100 * end for result in results for name in BOTH for end in result[f"{name}_interval"]]
    left.set_ylim(max(0, min(ends) - 6), min(102, max(ends) + 6))
    gaps = _intervals(right, [0, 1], results, "gap")
    for x, gap in enumerate(gaps):
        right.annotate(f"{gap:.1f}", (x, gap), (20 * x - 10, 0), ha=beside[x], **words)
    right.axhline(0, color="#888888", linewidth=1)
    rates = ["undefined" if (rate := result.get("recovery")) is None else f"{rate:.1f} %" for result in results]
    right.set(title="Gap (text - speech)", ylabel="percentage points", xlim=(-0.7, 1.7))
    right.set_xticks((0, 1), [f"{name}\nrecovery {rate}" for name, rate in zip(names, rates, strict=True)])
    below = f"{after['questions']} questions, 95 % intervals. Recovery: speech accuracy over own text accuracy"
    figure.supxlabel(below, fontsize=9, color="#555555")
    return figure


@_styled
def plot_drift(
    stats: Mapping[str, "LayerStats"],
    pooled: Mapping[str, "LayerStats"] | None = None,
    baseline: Mapping[str, "LayerStats"] | None = None,
    change: "LayerStats | None" = None,
) -> "Figure":
    """Similarity of a completion's states under the spoken and the written prompt, by layer (figure 2), a line a model.

    Args:
        stats: model name to `layer_stats` of the token-by-token similarity (`layers`, `means`, `ci_lower`, `ci_upper`).
        pooled: the same of the pooled similarity, for a second panel.
        baseline: the same of the pooled similarity to another question's completion, for dotted lines in that panel:
            what two completions of the model have in common whatever they answer.
        change: differences of the pooled similarity between two models on the same questions, for a third panel.
    """
    panels = {"Token by token": stats} | ({"Pooled over the completion (R_rep)": pooled} if pooled else {})
    count = len(panels) + (change is not None)
    figure, grid = empty_figure(4.8 * count, 3.8, count, squeeze=False)
    for axes, (title, models) in zip(grid.flat, panels.items(), strict=False):
        for number, (name, layers) in enumerate(models.items()):
            color, line = MODEL_COLORS[number % len(MODEL_COLORS)], LINES[number % len(LINES)]
            _layer_line(axes, layers, line, color=color, marker="osD^vP"[number % 6], label=name)
            if baseline and models is pooled and name in baseline:
                _layer_line(axes, baseline[name], ":", color=color, label=f"{name}, another question's")
        axes.axhline(1, color="#888888", linewidth=1)  # here speech and text are the same
        axes.set(title=title, ylabel="cosine of speech and text")
        axes.legend(loc="best", fontsize=9)
    if change is not None:
        axes = grid.flat[-1]
        _layer_line(axes, change, "-", color=COLORS["gap"], marker="o")
        axes.axhline(0, color="#888888", linewidth=1)
        axes.set(title="Change of the pooled similarity", ylabel="difference, same questions")
    for axes in grid.flat:
        _whole_steps(axes, "decoder layer")
    figure.supxlabel("95 % intervals over questions", fontsize=9, color="#555555")
    return figure


def _layer_line(axes: "Axes", layers: "LayerStats", line: str, color: str, **options: Any) -> None:
    places = [layer + 1 for layer in layers["layers"]]  # counted from 0 in the files
    axes.plot(places, layers["means"], line, color=color, markersize=4, **options)
    axes.fill_between(places, layers["ci_lower"], layers["ci_upper"], color=color, alpha=0.2, linewidth=0)


@_styled
def plot_layer_sets(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracy after training with R_rep on different layers (figure 3), with 95 % intervals.

    Args:
        results: layer set (shallow, middle, deep, last, all, ...) to the `paired_result` of the model trained with it.
    """
    figure, axes = empty_figure(6.5, 3.6, 1)
    for shift, modality in ((-0.08, "speech"), (0.08, "text")):
        places = [place + shift for place in range(len(results))]
        _intervals(axes, places, list(results.values()), modality, linestyle="none", label=modality)
    axes.set(title="Layers that R_rep aligns", ylabel="accuracy (%)", xlabel="rep_layers")
    axes.set_xticks(range(len(results)), list(results))
    axes.margins(x=0.1)
    axes.legend(loc="best")
    return figure


@_styled
def plot_domains(domains: DataFrame, after: DataFrame | None = None) -> "Figure":
    """Accuracy of both modalities in each domain, the largest gap on top; before and after on one axis.

    Args:
        domains: index the domain; columns `speech` and `text` (accuracies, 0 to 1), `questions` (how many), and
            `speech_interval`, `text_interval` (pairs of 0 to 1).
        after: the same of the trained model: its marks are filled, those of `domains` then hollow.
    """
    domains = domains.assign(gap=domains["text"] - domains["speech"]).sort_values("gap")
    rooms = 1 if after is None else 2
    figure, axes = empty_figure(7.5, 1.4 + 0.42 * rooms * len(domains), 1)
    for number, (frame, when) in enumerate([(domains, "before"), (after, "after")][:rooms]):
        frame = frame.reindex(domains.index)
        rows = frame.rename(columns={name: f"{name}_accuracy" for name in BOTH}).to_dict("records")
        middle = [place + (0.22 - 0.44 * number if rooms == 2 else 0) for place in range(len(rows))]
        axes.hlines(middle, 100 * frame["speech"], 100 * frame["text"], color="#CCCCCC", linewidth=4)
        for shift, modality in ((-0.07, "speech"), (0.07, "text")):
            places = [place + shift for place in middle]
            look = {"markerfacecolor": "white" if rooms == 2 and number == 0 else COLORS[modality]}
            label = f"{modality}, {when}" if rooms == 2 else modality
            _intervals(axes, places, rows, modality, across=True, linestyle="none", capsize=0, label=label, **look)
    labels = [f"{domain} ({count})" for domain, count in zip(domains.index, domains["questions"], strict=True)]
    axes.set_yticks(range(len(domains)), labels)
    axes.set(title="Where the gap is", xlabel="accuracy (%), 95 % intervals; number of questions in brackets")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# ---- Parts ---------------------------------------------------------------------------------------------------------


def _both(figure: str) -> dict[str, str]:
    return {modality: f"{modality}/{figure}" for modality in BOTH}


def empty_figure(width: float, height: float, columns: int, rows: int = 1, **options: Any) -> tuple["Figure", Any]:
    """An empty figure and its axes (one, or a row, or a grid)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def _curve(axes: "Axes", values: Series, smooth: int, kind: str, line: str, label: str | None, band: bool) -> None:
    """A rolling mean, with its 95 % interval and the points it is the mean of if there is room for them."""
    values = values.dropna()
    rolling = values.rolling(smooth, min_periods=1)
    mean, steps = rolling.mean(), rolling.count()
    axes.plot(mean.index, mean, line, color=COLORS[kind], label=label)
    if band and smooth > 1:
        # Two steps say nothing of their spread.
        half = (1.96 * rolling.std() / steps**0.5).where(steps >= min(smooth, 3))
        axes.fill_between(mean.index, mean - half, mean + half, color=COLORS[kind], alpha=0.18, linewidth=0)
        axes.scatter(values.index, values, s=7, color=COLORS[kind], alpha=0.3, linewidths=0)


def _state_window(figure: "Figure", smooth: int) -> None:
    says = f"Points: logged steps. Lines: means of the last {smooth} of them, with 95 % intervals."
    figure.supxlabel(says, fontsize=9, color="#555555")


def _most_rewards(run: LoggedRun) -> dict[str, float]:
    """The sum of the reward weights of each modality, from `run.json`; empty if it does not say them."""
    settings = read_run(run.path).get("settings", {})
    weights = settings.get("reward_weights")  # of all columns, those of R_rep and R_beh too
    if not weights or settings.get("modalities", "both") != "both":
        return {}
    aligned = settings.get("representation_weight", 0.0) + settings.get("behavior_weight", 0.0)
    return {"speech": sum(weights), "text": sum(weights) - aligned} if sum(weights) > aligned else {}


def _panels(
    run: LoggedRun, smooth: int, trainer: str, panels: Sequence[Panel], scales: Mapping[str, float] | None = None
) -> "Figure":
    """One small axis for each panel of which the run logged something; a NotLoggedError if that is none.

    Args:
        scales: what the values of a column are divided by.
    """
    metrics = metrics_frame(run)
    for column in set(scales or ()) & set(metrics):
        metrics[column] /= (scales or {})[column]
    logged = [panel for panel in panels if any(column in metrics for column in panel[2].values())]
    if not logged:
        wanted = ", ".join(column for panel in panels for column in panel[2].values())
        raise NotLoggedError(f"The run logged none of {wanted}. Give a run of {trainer} that has logged a step.")
    columns, rows = min(3, len(logged)), math.ceil(len(logged) / 3)
    figure, grid = empty_figure(3.6 * columns, 2.7 * rows, columns, rows, squeeze=False)
    for axes, (title, unit, kinds, limits) in zip(grid.flat, logged, strict=False):
        for kind, column in kinds.items():
            if column in metrics:
                _curve(axes, metrics[column], smooth, kind, "-", kind if kind in BOTH else None, band=True)
        axes.set(title=title, ylabel=unit, ylim=limits)
        _whole_steps(axes, "training step")
    for axes in grid.flat[len(logged) :]:
        axes.remove()
    legends = [axes.get_legend_handles_labels() for axes in grid.flat[: len(logged)]]
    if both := [legend for legend in legends if len(legend[0]) > 1]:
        figure.legend(*both[0], loc="outside upper right", ncols=2)
    _state_window(figure, smooth)
    return figure


def _whole_steps(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _intervals(
    axes: "Axes", places: Sequence[float], results: Sequence[Mapping[str, Any]], kind: str, across: bool = False,
    **options: Any,
) -> list[float]:  # fmt: skip
    """Mark accuracies or gaps (returned, in percent) with bars to both ends of their intervals (0 to 1)."""
    values = [100 * result[kind if kind == "gap" else f"{kind}_accuracy"] for result in results]
    pairs = [(value, *result[f"{kind}_interval"]) for value, result in zip(values, results, strict=True)]
    bars = list(
        zip(*[(max(0, value - 100 * low), max(0, 100 * high - value)) for value, low, high in pairs], strict=True)
    )
    where = (values, places, None, bars) if across else (places, values, bars)  # x, y, their bars
    style: dict[str, Any] = {
        "fmt": MARKERS[kind],
        "linestyle": "-",
        "color": COLORS[kind],
        "capsize": 4,
        "elinewidth": 1.5,
    }
    axes.errorbar(*where, **style | options)
    return values
