"""The figures of a study, by hand; and its tables from a file alone."""

import json
import random
import re
import shlex

import numpy as np
import pytest

from tars_trl import TARSGRPOConfig
from tars_trl.commands import compare
from tars_trl.commands import study as study_command
from tars_trl.commands.train import TrainingSettings
from tars_trl.comparison.arms import METHODS
from tars_trl.comparison.study import (
    Answers,
    Study,
    Training,
    area,
    choose,
    curve_table,
    difference_interval,
    matrix,
    outcome_table,
    pair_table,
    share_table,
    steps_to,
)
from tars_trl.comparison.table import BASE
from tars_trl.errors import NotLoggedError, SettingError
from tars_trl.settings import parse, read_settings
from tars_trl.supervised import SpeechSFTConfig
from tests.conftest import ROOT

VOICES = ["old", "old", "new", "new"]


def made() -> Study:
    """Two arms, two seeds, four questions: `better` is right once more than `worse` at every seed in the end."""
    answers = [Answers(BASE, 0, 0, "t", "1000", "1111", VOICES), Answers(BASE, 0, 0, "noise", "0000", "1111")]
    ends = {"worse": ("1100", "1010"), "better": ("1110", "1011")}
    for arm, spoken in ends.items():
        for seed, end in enumerate(spoken):
            answers += [
                Answers(arm, seed, 10, "t", "1000", "1111", VOICES),
                Answers(arm, seed, 30, "t", end, "0111", VOICES),
            ]
            answers.append(Answers(arm, seed, 30, "noise", end, "1111"))
    shares = {"speech/advantage_share/accuracy_reward": 0.25}
    return Study(answers, [Training(arm, seed, "", 30, 60.0, shares) for arm in ends for seed in (0, 1)])


def test_area_by_hand():
    """Trapezoids over steps 0, 10 and 30, from the untrained model on."""
    expected = np.array([[1, 2 / 6, 0, 0], [1, 0, 2 / 6, 0]])  # (10 * 0 + 20 * 1/2) / 30 where the end is right
    np.testing.assert_allclose(area(made(), "worse", "t", 30), expected)


def test_interval_is_over_seeds_and_questions():
    """Where all of the variation lies between seeds, or between questions, it is as wide as those few allow."""
    generator = np.random.default_rng(0)
    by_seed = np.repeat(generator.standard_normal((5, 1)), 400, axis=1)
    by_question = np.repeat(generator.standard_normal((1, 400)), 5, axis=0)
    for values, number in ((by_seed, 5), (by_question, 400)):
        low, high = difference_interval(values)
        spread = values.std() / number**0.5
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
        assert low < values.mean() < high
    assert difference_interval(np.zeros((1, 10))) == (0.0, 0.0)


def test_steps_to_an_accuracy():
    study = made()
    assert steps_to(study, "better", "t", 0.25) == 0
    assert steps_to(study, "better", "t", 0.5) == pytest.approx(20)  # 25 % at 10, 75 % at 30
    assert steps_to(study, "better", "t", 0.9) is None


def test_the_best_variant_is_chosen_on_the_first_task():
    answers = [Answers(BASE, 0, 0, "t", "0000", "1111")]
    for number, end in ((1, "1000"), (2, "1100"), (3, "0011")):
        answers.append(Answers(f"grpo.{number}", 0, 9, "t", end, "1111"))
    answers.append(Answers("tars", 0, 9, "t", "1111", "1111"))
    training = [Training(row.arm, 0, f"--x {row.arm}", 9, None, {}) for row in answers[1:]]
    best = choose(Study(answers, training))
    assert {arm: row.variant for arm, row in best.items()} == {"grpo": "--x grpo.2", "tars": "--x tars"}


def test_tables_from_the_file_alone(tmp_path, capsys):
    made().write(tmp_path / "results.json")
    again = Study.read(tmp_path / "results.json")
    assert again == made()
    assert "| better | 2 |  | 25.0 | 75.0 | 75.0 |" in curve_table(again)
    assert "| base |  | 25.0 |  |  | 100.0 |" in curve_table(again)
    outcome = outcome_table(again, 0.5)
    assert "t: new | t: old | noise |" in outcome.splitlines()[0]
    assert "| better | 41.7 | 20 | 40 | 2.00 | 75.0 | 75.0 | 75.0 |" in outcome
    assert "| worse | 33.3 | 30 | 60 | 2.00 | 25.0 | 75.0 | 50.0 |" in outcome
    (line,) = pair_table(again, [("better", "worse")]).splitlines()[2:]
    assert "| +25.0 [" in line and "| +0.0 [+0.0, +0.0] |" in line and "2 : 0, p = 0.5" in line
    assert "| worse | 25.0 |" in share_table(again)

    study_command.main([str(tmp_path / "results.json"), "--pairs", "better: worse", "--accuracy", "0.5"])
    printed = capsys.readouterr().out
    assert line in printed and outcome in printed
    study_command.main([str(tmp_path / "results.json"), "--figure", str(tmp_path / "new" / "curves.svg")])
    capsys.readouterr()
    assert "better: 75.0 %" in (tmp_path / "new" / "curves.svg").read_text()
    with pytest.raises(SettingError, match="neither .png nor .svg"):
        study_command.main([str(tmp_path / "results.json"), "--figure", str(tmp_path / "curves.txt")])
    study_command.main([str(tmp_path / "results.json"), "--choose", "true"])
    assert capsys.readouterr().out.splitlines() == ['  - "worse: "', '  - "better: "']
    study_command.main([str(tmp_path / "results.json"), "--pairs", "better: worse", "--domain", "new"])
    assert "| +50.0 [" in capsys.readouterr().out  # 75 and 25 % of the answers to new ones
    with pytest.raises(SettingError, match="They are new, old"):
        study_command.main([str(tmp_path / "results.json"), "--domain", "newer"])
    with pytest.raises(SettingError, match="Write FIRST: SECOND"):
        study_command.main([str(tmp_path / "results.json"), "--pairs", "better: best"])
    with pytest.raises(SettingError, match="no such file"):
        study_command.main([str(tmp_path / "none.json")])


def test_missing_seeds_are_left_out_of_pairs():
    study = made()
    study.answers = [row for row in study.answers if not (row.arm == "worse" and row.seed == 1)]
    assert matrix(study.of("worse", "t")).shape == (1, 4)
    assert "1 : 0" in pair_table(study, [("better", "worse")])
    first, second = made(), made()
    first.answers = [row for row in first.answers if row.seed == 1 or row.arm == "base"]
    second.answers = [row for row in second.answers if row.seed == 1 or row.arm != "worse"]
    for row in second.answers:
        row.speech = "0000" if (row.arm, row.seed) == ("better", 0) else row.speech
    pair = [("better", "worse")]
    assert pair_table(first, pair) == pair_table(second, pair)  # the area, too, is of the seed that both have
    random.Random(0).shuffle(study.answers)
    assert [row.seed for row in study.of("better", "t")] == [0, 1]


@pytest.mark.parametrize(("name", "runs"), [("validation", 9 * 6), ("forms", 6), ("test", 9 * 5), ("why", 8 * 3)])
def test_the_studys_runs_are_planned(name, runs, monkeypatch, capsys):
    """As many as its page says; every command is understood by its recipe; arms that go on do so behind their start."""
    monkeypatch.chdir(ROOT)
    compare.main(["--config", f"recipes/qwen2_5_omni/arms/study/compare_{name}.yaml", "--dry_run", "true"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == runs
    for line in lines:
        script, *words = line[line.index("tars_trl.commands.") :].split()
        config = SpeechSFTConfig if script.endswith(".sft") else TARSGRPOConfig
        parsed, made = parse(TrainingSettings, config, args=words)
        assert parsed.dataset.endswith(("demo-babble", "demo-babble/sft")) and made.max_steps == 120
        assert (parsed.model == "recipes/demo/tiny-omni") == ("tars_distill_sft" not in line)
        assert made.save_steps == 15 or name != "test"
    later = [place for place, line in enumerate(lines) if "tars_distill_sft" in line]
    assert all(any("arms/study/sft.yaml" in line for line in lines[:place]) for place in later)


def test_arms_of_the_study_see_the_same(monkeypatch):
    """They differ in what they are about, and share data, steps and batch."""
    folder = ROOT / "recipes" / "qwen2_5_omni" / "arms" / "study"
    arms = {path.stem: read_settings(path) for path in folder.glob("*.yaml") if path.stem.split("_")[0] in METHODS}
    assert len(arms) == 9
    own = {"output_dir", "representation_weight", "behavior_weight", "distillation_weight", "teacher_model_kind"}
    trained = {name: {key: arm[key] for key in arm if key not in own} for name, arm in arms.items() if name != "sft"}
    assert all(arm == trained["tars"] for arm in trained.values())
    assert arms["sft"]["max_steps"] * arms["sft"]["per_device_train_batch_size"] == 120 * 48 // 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("arm", "seed", "step", "task", "speech", "text", "domains")),
        *((name, [1]) for name in ("arm", "seed", "step", "task", "speech", "text", "domains")),
        *((name, "x") for name in ("seed", "step", "task", "speech", "text", "domains")),
        *((name, "") for name in ("speech", "text")),
    ],
)
def test_damaged_answers_are_refused(tmp_path, name, value):
    made().write(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    content["answers"][-1][name] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(NotLoggedError, match=r"results\.json"):
        study_command.main([str(tmp_path / "results.json"), "--pairs", "better: worse"])


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "null", "x", '{"answers": [', '{"answers": [], "training": []}', '{"answers": [5], "training": []}',
     '{"answers": [{"arm": "a"}], "training": []}', '{"answers": [], "training": [{"arm": "a", "more": 1}]}',
     '{"answers": ' + "[" * 960 + "]" * 960 + ', "training": []}'],
)  # fmt: skip
def test_files_that_hold_no_study_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(NotLoggedError, match=r"results\.json"):
        study_command.main([str(tmp_path / "results.json")])


def test_a_study_without_the_untrained_model_or_with_other_questions_is_refused(tmp_path):
    changes = (lambda rows: rows[2:], lambda rows: rows[:2], lambda rows: [*rows[:-1], {**rows[-1], "speech": "1"}])
    for change in changes:
        made().write(tmp_path / "results.json")
        content = json.loads((tmp_path / "results.json").read_text())
        (tmp_path / "results.json").write_text(json.dumps({**content, "answers": change(content["answers"])}))
        with pytest.raises(NotLoggedError, match=r"results\.json"):
            study_command.main([str(tmp_path / "results.json"), "--choose", "true"])


def printed_lines(page, results, monkeypatch, tmp_path, capsys):
    """What the command on the study's page prints of some answers."""
    command = re.search(rf"^python recipes/study\.py (docs/assets/study/{results}\.json (?:.*\\\n)*.*)$", page, re.M)
    words = shlex.split(command[1].replace("\\\n", " "))
    monkeypatch.chdir(ROOT)
    study_command.main([word if not word.endswith(".png") else str(tmp_path / "curves.png") for word in words])
    return capsys.readouterr().out.splitlines()


def test_the_page_has_the_tables_of_its_answers(monkeypatch, tmp_path, capsys):
    """The commands on the study's page, run on the answers beside it, print what stands there."""
    page = (ROOT / "docs/study.md").read_text(encoding="utf-8")
    given = (monkeypatch, tmp_path, capsys)
    lines = [line for line in printed_lines(page, "test", *given) if line.startswith("|")]
    assert len(lines) > 40
    assert [line for line in lines if line not in page] == []

    pairs = [line.split("|") for line in printed_lines(page, "why", *given) if re.match(r"\| \S+\.\d - ", line)]
    assert len(pairs) == 7
    assert [cells for cells in pairs if f"|{cells[2]}|{cells[3]}|" not in page] == []

    chosen = [line.partition('"')[2][:-1] for line in printed_lines(page, "validation", *given)]
    assert chosen == read_settings(ROOT / "recipes/qwen2_5_omni/arms/study/compare_test.yaml")["variants"]
