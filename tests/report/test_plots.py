"""Figures: what is drawn is the data, in the two colours, with intervals."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tars_trl.evaluation.metrics import paired_result
from tars_trl.report import plots
from tars_trl.report.frames import LoggedRun


def run(tmp_path, name="run", steps=30, gap=0.3, **more):
    history = [
        {
            "step": step,
            "speech/accuracy": 0.9 - gap + 0.05 * (step % 2),
            "text/accuracy": 0.9,
            "gap/accuracy": gap - 0.05 * (step % 2),
            "speech/reward": 1.5,
            "text/reward": 1.0,
            "rewards/representation_alignment/mean": 0.9,
            "alignment/no_reference": 0.1,
            **more,
        }
        for step in range(1, steps + 1)
    ]
    return LoggedRun(tmp_path, name, history)


def lines(axes, color):
    return [
        line for line in axes.lines if to_hex(line.get_color()).lower() == color.lower() and len(line.get_xdata()) > 2
    ]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_gap_shows_both_accuracies_and_their_difference(tmp_path):
    before = dict(rcParams)
    figure = plots.plot_gap(run(tmp_path), smooth=10)
    assert isinstance(figure, Figure) and dict(rcParams) == before
    left, right = figure.axes
    for modality, expected in (("speech", 62.5), ("text", 90.0)):
        (line,) = lines(left, plots.COLORS[modality])
        assert line.get_ydata()[-1] == pytest.approx(expected)
        assert line.get_label() == modality
    assert lines(right, plots.COLORS["gap"])[0].get_ydata()[-1] == pytest.approx(27.5)
    assert "(%)" in left.get_ylabel() and left.get_xlabel() == "training step"
    # The band is the mean's 95 % interval: alternating values 60 and 65 have a standard deviation of 2.64.
    band = left.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 30][:, 1]
    assert last.max() - last.min() == pytest.approx(2 * 1.96 * np.std([60, 65] * 5, ddof=1) / 10**0.5)


def test_gap_of_several_runs_and_held_out_accuracies(tmp_path):
    runs = [run(tmp_path, "a"), run(tmp_path, "b", gap=0.1, **{"eval_speech/accuracy": 0.7})]
    left, right = plots.plot_gap(runs).axes
    assert [line.get_linestyle() for line in lines(left, plots.COLORS["speech"])] == ["-", "--", "--"]
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"a", "b"}
    assert lines(left, plots.COLORS["speech"])[-1].get_ydata()[0] == pytest.approx(70)


def test_measured_gap_is_drawn(tmp_path):
    """`EvaluationCallback` measures before the first step and every few; both modalities even of a written-only run."""
    training = run(tmp_path).history
    greedy = [
        {"step": step, "eval_speech/accuracy_greedy": 0.5 + step / 100, "eval_text/accuracy_greedy": 0.9,
         "eval_gap/accuracy_greedy": 0.4 - step / 100}
        for step in (0, 10, 20, 30)
    ]  # fmt: skip
    left, right = plots.plot_gap(LoggedRun(tmp_path, "run", training + greedy)).axes
    for axes, kind, last in ((left, "speech", 80), (left, "text", 90), (right, "gap", 10)):
        _, measured = lines(axes, plots.COLORS[kind])
        assert measured.get_xdata().tolist() == [0, 10, 20, 30] and measured.get_ydata()[-1] == pytest.approx(last)
        assert measured.get_label() == f"{kind}, held out, greedy" and measured.get_marker() == plots.MARKERS[kind]
    written = [{"step": line["step"], "text/accuracy": 0.5} for line in training]
    left, right = plots.plot_gap(LoggedRun(tmp_path, "text", written + greedy)).axes
    assert len(lines(left, plots.COLORS["speech"])) == 1 and len(lines(right, plots.COLORS["gap"])) == 1


def test_a_baseline_on_one_modality_is_drawn(tmp_path):
    history = [{"step": step, "text/accuracy": 0.5, "text/reward": 1.0} for step in (1, 2, 3)]
    left, right = plots.plot_gap(LoggedRun(tmp_path, "text", history)).axes
    assert len(lines(left, plots.COLORS["text"])) == 1 and not lines(left, plots.COLORS["speech"])
    assert titles(plots.plot_rewards(LoggedRun(tmp_path, "text", history))) == [
        "Reward (weighted sum)", "R_acc: the answer is right",
    ]  # fmt: skip


def test_shares_have_a_panel_for_each_reward(tmp_path):
    shares = {"speech/advantage_share/accuracy_reward": 0.75, "speech/advantage_share/distillation": 0.25}
    logged = run(tmp_path, **shares, **{"text/advantage_share/accuracy_reward": 1.0, "distillation/kl": 0.4})
    figure = plots.plot_shares(logged)
    names = ["Share of accuracy_reward", "Share of distillation", "Distance to the teacher"]
    assert titles(figure) == names
    for axes, modality, expected in zip(figure.axes, ("text", "speech", "speech"), (1.0, 0.25, 0.4), strict=True):
        (line,) = lines(axes, plots.COLORS[modality])
        assert line.get_ydata()[-1] == pytest.approx(expected)
    with pytest.raises(plots.NotLoggedError):
        plots.plot_shares(run(tmp_path))


def test_rewards_and_health_have_a_panel_for_each_logged_term(tmp_path):
    figure = plots.plot_rewards(run(tmp_path))
    assert [title.split(":")[0] for title in titles(figure)] == ["Reward (weighted sum)", "R_acc", "R_rep"]
    assert len(figure.axes[0].lines) == 2 and len(figure.axes[2].lines) == 1
    assert titles(plots.plot_health(run(tmp_path))) == ["Questions without a reference"]
    with pytest.raises(ValueError, match="logged none of speech/reward"):
        plots.plot_rewards(LoggedRun(tmp_path, "other", [{"step": 1, "loss": 1.0}]))


def test_rewards_are_shares_of_what_each_modality_can_earn(tmp_path):
    """1.5 of accuracy, format and both alignments (3.5), and 1.0 of the first two (1.5)."""
    settings = {"reward_weights": [1.0, 0.5, 1.0, 1.0], "representation_weight": 1.0, "behavior_weight": 1.0}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    figure = plots.plot_rewards(run(tmp_path), smooth=5)
    assert titles(figure)[0] == "Reward (share of its maximum)"
    for modality, share in (("speech", 1.5 / 3.5), ("text", 1 / 1.5)):
        (line,) = lines(figure.axes[0], plots.COLORS[modality])
        assert line.get_ydata() == pytest.approx(share)
    assert "means of the last 5" in figure.get_supxlabel()


def test_before_and_after_with_their_intervals():
    before = paired_result([True] * 5 + [False] * 5, [True] * 9 + [False])
    after = paired_result([True] * 8 + [False] * 2, [True] * 9 + [False])
    figure = plots.plot_before_after(before, after)
    left, right = figure.axes
    assert {text.get_text() for text in left.texts} == {"speech 50.0", "speech 80.0", "text 90.0"}
    assert [text.get_text() for text in right.texts] == ["40.0", "10.0"]
    bars = [segment for bars in left.containers[0].lines[2] for segment in bars.get_segments()]
    assert bars[0][:, 1] == pytest.approx([100 * end for end in before["speech_interval"]])
    right = plots.plot_before_after({**before, "recovery": 55.55}, after).axes[1]
    assert right.get_xticklabels()[0].get_text() == "before\nrecovery 55.5 %"
    undefined = {**paired_result([False], [False]), "recovery": None}
    assert "undefined" in plots.plot_before_after(undefined, undefined).axes[1].get_xticklabels()[0].get_text()


def test_drift_counts_layers_from_one_and_draws_every_model():
    stats = {"layers": [0, 1, 2], "means": [0.9, 0.8, 0.7], "ci_lower": [0.8, 0.7, 0.6], "ci_upper": [1.0, 0.9, 0.8]}
    figure = plots.plot_drift({"base": stats, "TARS": stats}, {"base": stats})
    first, second = figure.axes
    assert first.lines[0].get_xdata().tolist() == [1, 2, 3] and first.lines[0].get_ydata().tolist() == stats["means"]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["base", "TARS"]
    assert len(first.collections) == 2 and len(second.collections) == 1
    assert {line.get_color() for line in first.lines[:2]} == set(plots.MODEL_COLORS[:2])
    assert len(plots.plot_drift({"base": stats}).axes) == 1
    figure = plots.plot_drift({"base": stats}, {"base": stats}, {"base": stats | {"means": [0.1] * 3}}, stats)
    assert figure.axes[1].lines[1].get_ydata().tolist() == [0.1] * 3 and len(figure.axes[0].lines) == 2
    assert figure.axes[2].get_title(loc="left") == "Change of the pooled similarity"


def test_layer_sets_and_domains():
    result = paired_result([True, False], [True, True])
    axes = plots.plot_layer_sets({"shallow": result, "all": result}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["shallow", "all"]
    interval = {"speech_interval": (0.1, 0.9), "text_interval": (0.2, 1.0), "questions": 4}
    domains = pd.DataFrame(
        [{"speech": 0.5, "text": 0.5, **interval}, {"speech": 0.25, "text": 0.75, **interval}], index=["even", "wide"]
    )
    axes = plots.plot_domains(domains).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["even (4)", "wide (4)"]  # from below
    both = plots.plot_domains(domains, domains.assign(speech=0.75)[::-1]).axes[0]  # in the order of before
    said = [text.get_text() for text in both.get_legend().get_texts()]
    assert said == ["speech, before", "text, before", "speech, after", "text, after"]
    assert [bars.lines[0].get_xdata().tolist() for bars in both.containers[::2]] == [[50, 25], [75, 75]]


def test_figures_are_made_of_results_read_back_from_json(tmp_path):
    """Intervals are lists there."""
    result = json.loads(json.dumps(paired_result([True, False, True], [True, True, True])))
    plots.plot_before_after(result, result).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_names_with_dollar_signs_are_no_mathematics(tmp_path):
    """Matplotlib would otherwise refuse to draw what it cannot parse."""
    plots.plot_gap([run(tmp_path, r"a$\frac$"), run(tmp_path, "b$^$")]).savefig(tmp_path / "figure.png")


def test_without_matplotlib_the_command_that_brings_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed. Bring it with: pip install"):
        plots.plot_gap(run(tmp_path))
