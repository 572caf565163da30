"""Arms and their comparison: what each arm changes, the table's figures, resuming, and whole runs on a tiny model."""

import copy
import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from compare import main
from peft import LoraConfig, get_peft_model

import tars_trl.comparison.arms as arms
from tars_trl import TARSGRPOConfig
from tars_trl.commands.evaluate import main as evaluate_main
from tars_trl.commands.train import TrainingSettings
from tars_trl.comparison.arms import METHODS, ComparisonSettings, plan_runs
from tars_trl.comparison.study import Study
from tars_trl.comparison.table import BASE, Measured, make_rows, markdown, mean_interval, plot_arms, write_csv
from tars_trl.errors import SettingError
from tars_trl.evaluation.metrics import wilson_interval
from tars_trl.evaluation.results import read_pair, read_samples
from tars_trl.settings import parse, read_settings
from tars_trl.supervised import SpeechDPOConfig, SpeechSFTConfig
from tests.conftest import ROOT, check_header, questions
from tests.supervised import REPLIES, rows, said, stir

ARMS = ROOT / "recipes" / "qwen2_5_omni" / "arms"
NAMES = ["sft", "dpo", "grpo_text", "grpo_speech", "grpo", "grpo_rep", "grpo_beh", "tars"]
CHANGES = {  # of the GRPO arms with respect to TARS
    "grpo_text": {"modalities": "text"},
    "grpo_speech": {"modalities": "speech"},
    "grpo": {"representation_weight": 0, "behavior_weight": 0},
    "grpo_rep": {"behavior_weight": 0},
    "grpo_beh": {"representation_weight": 0},
    "tars": {},
}
FILES = sorted(ARMS.glob("*/*.yaml"))


def short(path: Path) -> str:
    return "/".join(path.parts[-2:])


# ---- Arms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=short)
def test_header(path):
    """What it is, hardware, launch line and override line; the launch line names files that exist."""
    scripts = {name: f"{name}.py" for name in ("compare", "sft", "dpo", "distill")}
    scripts["preferences"] = "build_preferences.py"
    check_header(path, scripts.get(path.stem.partition("_")[0], "tars_qwen_omni.py"))


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in NAMES], ids=short)
def test_arm_parses_strictly(path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    config = {"sft": SpeechSFTConfig, "dpo": SpeechDPOConfig}.get(path.stem, TARSGRPOConfig)
    run, made = parse(TrainingSettings, config, args=["--config", str(path)])
    assert made.output_dir == f"runs/arms/{path.parent.name}/{path.stem}"
    assert (made.lora_r, made.lora_alpha) == (8, 32)
    assert run.model == read_settings(ARMS / path.parent.name / "tars.yaml")["model"]


@pytest.mark.parametrize("size", ["demo", "7b"])
def test_arms_differ_from_tars_in_nothing_else(size):
    tars = read_settings(ARMS / size / "tars.yaml")
    base = read_settings(ARMS.parent / {"demo": "demo.yaml", "7b": "tars_7b.yaml"}[size])
    named = {"output_dir", "run_name"}
    assert {key: tars[key] for key in tars if key not in named} == {key: base[key] for key in base if key not in named}
    for name, changes in CHANGES.items():
        arm = read_settings(ARMS / size / f"{name}.yaml")
        different = {key: arm[key] for key in arm if key not in named and arm[key] != tars.get(key)}
        # The weights' default is 1, so that a file need not name them.
        assert different == {key: value for key, value in changes.items() if tars.get(key) != value}, name


@pytest.mark.parametrize("size", ["demo", "7b"])
def test_comparison_lists_every_arm(size, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["--config", str(ARMS / size / "compare.yaml"), "--dry_run", "true", "--overrides", "--max_steps 3"])
    lines = capsys.readouterr().out.splitlines()
    seeds = read_settings(ARMS / size / "compare.yaml")["seeds"]
    assert len(lines) == len(seeds) * len(NAMES)
    for line, name in zip(lines, NAMES * len(seeds), strict=True):
        assert f"/{size}/{name}.yaml" in line and line.endswith("--max_steps 3")
        assert f"commands.{METHODS[name.partition('_')[0]]} " in line


def test_base_of_a_file(tmp_path):
    """A file's settings go over its base's; strictness and circles name the file."""
    (tmp_path / "below.yaml").write_text("seed: 3\nmodel: some\ndataset: rows\nlearning_rate: 1.0e-3\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\nseed: 4\n")
    assert read_settings(tmp_path / "above.yaml") == {
        "model": "some",
        "dataset": "rows",
        "seed": 4,
        "learning_rate": 1e-3,
    }
    _, config = parse(TrainingSettings, SpeechSFTConfig, args=["--config", str(tmp_path / "above.yaml"), "--seed", "5"])
    assert (config.seed, config.learning_rate) == (5, 1e-3)
    (tmp_path / "below.yaml").write_text("learning_rat: 1.0\n")
    with pytest.raises(ValueError, match=r"above\.yaml: learning_rat is no setting"):
        parse(TrainingSettings, SpeechSFTConfig, args=["--config", str(tmp_path / "above.yaml")])
    (tmp_path / "below.yaml").write_text("base: above.yaml\n")
    with pytest.raises(ValueError, match="leads back to itself"):
        read_settings(tmp_path / "above.yaml")


# ---- Table ---------------------------------------------------------------------------------------------------------

T, F = True, False
RUNS = {
    BASE: [Measured([T, F, F, F], [T, T, T, F])],
    "arm": [Measured([T, T, F, F], [T, T, T, T], 60.0), Measured([T, T, T, T], [T, T, T, F], 180.0)],
}


def test_figures_by_hand():
    base, arm = make_rows(RUNS)
    assert (base.seeds, base.speech, base.text, base.gap, base.minutes, base.speech_sd) == (1, 25, 75, 50, None, None)
    assert base.mrr == pytest.approx(100 / 3)
    assert (arm.seeds, arm.speech, arm.text, arm.gap, arm.minutes) == (2, 75, 87.5, 12.5, 2)
    assert arm.mrr == pytest.approx(100 * 75 / 75)  # over the base's text accuracy, not its own
    assert arm.speech_sd == pytest.approx(50 / 2**0.5)
    assert make_rows({BASE: [Measured([T], [F])]})[0].mrr is None  # a base that reads nothing rightly


def test_intervals_are_over_questions():
    """Two seeds with the same answers are no narrower than one; more questions are."""
    one = Measured([T, F] * 50, [T, T, F, T] * 25)
    alone, twice = make_rows({BASE: [one], "arm": [one, one]})
    assert (alone.speech_low, alone.speech_high) == (twice.speech_low, twice.speech_high)
    assert alone.speech_low < 50 < alone.speech_high and alone.gap_low < alone.gap < alone.gap_high
    large = Measured(one.speech * 9, one.text * 9)
    wide, narrow = alone.gap_high - alone.gap_low, make_rows({BASE: [large]})[0]
    assert (narrow.gap_high - narrow.gap_low) == pytest.approx(wide / 3, rel=0.15)


def test_interval_of_a_mean():
    """One run: by Wilson. Runs that err on the same questions count once, others more; 100 % is not a point."""
    once = [1.0] * 60 + [0.0] * 40
    assert mean_interval(once, 1) == mean_interval(once, 5) == wilson_interval(60, 100)
    generator = random.Random(0)
    answers = [[generator.random() < 0.6 for _ in range(5)] for _ in range(400)]
    low, high = mean_interval([sum(five) / 5 for five in answers], 5)
    expected_low, expected_high = wilson_interval(sum(map(sum, answers)), 2000)
    assert high - low == pytest.approx(expected_high - expected_low, rel=0.1)  # the spread of a variance over 400: 7 %
    assert mean_interval([1.0] * 300, 3) == wilson_interval(300, 300) and mean_interval([1.0] * 300, 3)[0] < 0.99


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 4\] questions"):
        make_rows({**RUNS, "other": [Measured([T], [T])]})


def test_three_forms(tmp_path):
    rows_ = make_rows(RUNS)
    text = markdown(rows_, "notes")
    assert "| arm | 2 | 75.0 ± 35.4 [40.9, 92.9] |" in text and text.endswith("\nnotes\n")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    write_csv(rows_, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        base, arm = csv.DictReader(file)
    assert float(arm["text"]) == 87.5 and base["minutes"] == ""
    for extreme in (Measured([T] * 300, [T] * 300), Measured([F] * 11, [F] * 11)):
        plot_arms(make_rows({BASE: [extreme]}), {BASE: [extreme]})
    drawn = plot_arms(rows_, RUNS)
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == [BASE, "arm"]
    drawn.savefig(tmp_path / "table.png")


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tiny, tmp_path, monkeypatch):
    """A folder with a model, questions, pairs, and three arms of one step; the arguments of a comparison of them."""
    model, processor = tiny
    for weight in model.model.language_model.layers.parameters():
        weight.data.mul_(8)  # as it is, the tied embeddings repeat the last token of any prompt
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pairs = rows(chosen=[said(text) for text in REPLIES], rejected=[said("one two") for _ in REPLIES])
    supervised = rows(completion=[said(text) for text in REPLIES])
    for name, dataset in {"questions": questions(4), "preferences": pairs, "sft": supervised}.items():
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            dataset.to_parquet(tmp_path / name / f"{split}-00000-of-00001.parquet")
    small = {"model": str(tmp_path / "model"), "max_steps": 1, "bf16": False, "report_to": "none"}
    data = {"sft": "sft", "dpo": "preferences", "grpo": "questions"}
    for arm, name in data.items():
        own = {"base": str(ARMS / "demo" / f"{arm}.yaml"), **small, "dataset": str(tmp_path / name)}
        own |= {"per_device_train_batch_size": 8, "max_completion_length": 8} if arm == "grpo" else {}
        (tmp_path / f"{arm}.yaml").write_text(yaml.safe_dump(own))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--arms", *(str(tmp_path / f"{arm}.yaml") for arm in data), "--output_dir", str(tmp_path / "out")]
    arguments += ["--task", str(tmp_path / "questions"), "--max_completion_length", "4", "--seeds", "0"]
    return tmp_path, arguments


@pytest.fixture
def trained(parts, tiny, monkeypatch):
    """Instead of training: an adapter, as a finished run leaves it; dpo's changes the model, the others' do not.

    The list of folders that were trained.
    """
    made = []

    def finish(command):
        if command[3] == "tars_trl.commands.evaluate":
            made.append(f"evaluated {Path(command[-1]).parent.name}")
            return evaluate_main(command[4:])
        folder = Path(command[command.index("--output_dir") + 1])
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(copy.deepcopy(tiny[0]), config)
        if "dpo" in folder.name:
            stir(adapted)
        adapted.save_pretrained(folder)
        state = {"log_history": [{"loss": 1.0}, {"train_runtime": 90.0, "step": 1}]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        made.append(f"trained {folder.name}")

    monkeypatch.setattr(arms, "launch", finish)
    return made


def test_interrupted_comparison_continues(parts, trained):
    """Nothing finished is repeated, nothing unfinished is left out, and other settings are not mixed in."""
    folder, arguments = parts
    out = folder / "out"
    arguments += ["--limit", "2"]
    main(arguments)
    everything = [f"{done} {name}-seed0" for name in ("sft", "dpo", "grpo") for done in ("trained", "evaluated")]
    assert trained == [f"evaluated {BASE}", *everything]
    study = Study.read(out / "results.json")
    assert [(row.arm, row.seed, row.step, row.task) for row in study.answers] == [
        (BASE, 0, 0, "questions"), *((arm, 0, 1, "questions") for arm in ("sft", "dpo", "grpo"))
    ]  # fmt: skip
    assert all(len(row.speech) == len(row.text) == 2 for row in study.answers)
    assert [row.seconds for row in study.training] == [90.0] * 3
    expected = (out / "table.csv").read_text()
    assert len(expected.splitlines()) == 5  # header, base and three arms
    said = [read_samples(out / name / "evaluation")["questions_text"] for name in (BASE, "sft-seed0", "dpo-seed0")]
    base, sft, dpo = ([line["resps"] for line in lines] for lines in said)
    assert sft == base and dpo != base, "a run is measured with its own adapter"

    (out / "dpo-seed0" / "trainer_state.json").unlink()  # killed while it trained
    next((out / "grpo-seed0").rglob("results_*.json")).unlink()  # killed while it was measured
    trained.clear()
    main(arguments)
    assert trained == ["trained dpo-seed0", "evaluated grpo-seed0"]  # the same adapter again
    assert (out / "table.csv").read_text() == expected

    weights = safetensors.torch.load_file(out / "sft-seed0" / "adapter_model.safetensors")
    safetensors.torch.save_file(
        {name: w + 0.1 for name, w in weights.items()}, out / "sft-seed0/adapter_model.safetensors"
    )
    trained.clear()
    main(arguments)
    assert trained == ["evaluated sft-seed0"]  # trained again by hand

    trained.clear()
    main([*arguments, "--max_completion_length", "3"])
    assert trained == [f"evaluated {name}" for name in (BASE, "sft-seed0", "dpo-seed0", "grpo-seed0")]
    trained.clear()
    main(arguments)  # back again: each evaluation reads its own files, whichever are the newest
    assert trained == [] and (out / "table.csv").read_text() == expected
    assert len(list((out / BASE).rglob("results_*.json"))) == 2
    with pytest.raises(ValueError, match="other settings"):
        main([*arguments, "--overrides", "--max_steps 2"])
    (folder / "sft" / "more.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="on other data"):
        main(arguments)


def test_a_folder_of_another_run_is_refused(parts, trained):
    """A run that this command did not make may be of anything."""
    folder, arguments = parts
    (folder / "out" / "sft-seed0").mkdir(parents=True)
    (folder / "out" / "sft-seed0" / "trainer_state.json").write_text('{"log_history": []}')
    with pytest.raises(SettingError, match="sft-seed0 holds a run of another model"):
        main(arguments)


def test_matplotlib_is_looked_for_before_anything_runs(parts, trained, monkeypatch):
    _, arguments = parts
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="matplotlib, which is not installed.*pip install"):
        main(arguments)
    assert trained == []


def test_time_of_a_resumed_training_is_unknown(parts, trained, monkeypatch):
    """What the trainer logs is the time since the checkpoint."""
    folder, arguments = parts
    monkeypatch.setattr(arms, "last_checkpoint", lambda run: f"{run}/checkpoint-1" if "dpo" in run else None)
    main(arguments)
    with (folder / "out" / "table.csv").open() as file:
        minutes = {row["arm"]: row["minutes"] for row in csv.DictReader(file)}
    assert minutes == {"base": "", "sft": "1.5", "dpo": "", "grpo": "1.5"}


def test_what_cannot_be_compared_is_refused(parts):
    folder, _ = parts
    arm = folder / "sft.yaml"
    with pytest.raises(ValueError, match="two have the same name"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(arm), str(arm)]))
    (folder / "tars.yaml").write_text("model: another/one\n")
    with pytest.raises(ValueError, match="different models"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(arm), str(folder / "tars.yaml")]))
    (folder / "best.yaml").write_text("")
    with pytest.raises(ValueError, match=r"'best', is no method.*such as grpo_best\.yaml"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(folder / "best.yaml")]))
    (run,) = plan_runs(ComparisonSettings(task="sd_qa", arms=[str(arm.rename(folder / "dpo_x.yaml"))], seeds=[0]))
    assert run.command[2:4] == ["-m", "tars_trl.commands.dpo"]
    arm.write_text("dataset: runs/not/there\n")
    with pytest.raises(ValueError, match=r"names no model"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(arm)]))
    arm.write_text("model: a/b\ndataset: runs/not/there\n")
    with pytest.raises(ValueError, match=r"Build it with build-preferences"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(arm)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [0, 0]}, "a run would count twice"),
        ({"seeds": []}, "seeds is not given"),
        ({"overrides": "--learning_rat 1"}, "learning_rat: there is no such setting here. Did you mean learning_rate"),
        ({"variants": ["grpo: --lr 1"]}, "--lr: there is no such setting here"),
        ({"overrides": '--x "a'}, "is no command line, No closing quotation"),
        ({"after": ["sft: grpo"]}, "which is no run before it. Runs before it are none"),
        ({"after": ["grpo: grpo"]}, "which is no run before it. Runs before it are sft"),
        ({"after": ["grpo: nowhere"]}, "which is no run before it"),
    ],
)
def test_what_would_fail_after_days_of_training_is_refused_before_it(tmp_path, changes, said):
    for name in ("sft", "grpo"):
        (tmp_path / f"{name}.yaml").write_text("model: a/b\n")
    listed = [str(tmp_path / f"{name}.yaml") for name in ("sft", "grpo")]
    with pytest.raises(SettingError, match=said):
        plan_runs(ComparisonSettings(**{"task": "sd_qa", "arms": listed, **changes}))


def test_a_misspelt_setting_in_any_arm_is_named_before_the_first_trains(tmp_path):
    (tmp_path / "sft.yaml").write_text("model: a/b\n")
    (tmp_path / "grpo.yaml").write_text("model: a/b\nbehaviour_weight: 1\n")
    with pytest.raises(SettingError, match=r"grpo\.yaml: behaviour_weight is no .* Did you mean behavior_weight"):
        plan_runs(ComparisonSettings(task="sd_qa", arms=[str(tmp_path / "sft.yaml"), str(tmp_path / "grpo.yaml")]))


def test_a_damaged_record_of_an_arm_is_named(parts, trained):
    folder, arguments = parts
    (folder / "out" / "sft-seed0").mkdir(parents=True)
    (folder / "out" / "sft-seed0" / "arm.json").write_text('{"settings": {')
    with pytest.raises(SettingError, match=r"arm\.json holds no JSON object"):
        main(arguments)


def test_variants_checkpoints_and_what_carries_over(parts, trained, monkeypatch):
    """Each variant is a run; checkpoints are measured by their own weights, further tasks at the end alone."""
    folder, arguments = parts
    given = ["--arms", str(folder / "sft.yaml"), "--output_dir", str(folder / "out"), *arguments[6:], "--limit", "2"]
    more = ["--variants", "sft: --learning_rate 1e-3", "sft: --learning_rate 1e-4", "--checkpoints", "1", "3"]
    finish = arms.launch

    def with_checkpoint(command):
        finish(command)
        if command[3] != "tars_trl.commands.evaluate":
            run = Path(command[command.index("--output_dir") + 1])
            shutil.copytree(run, run / "checkpoint-1")
            state = {"log_history": [{"step": 3, "train_runtime": 9.0, "speech/advantage_share/accuracy_reward": 0.5}]}
            (run / "trainer_state.json").write_text(json.dumps(state))

    monkeypatch.setattr(arms, "launch", with_checkpoint)
    main([*given, *more, "--carried", f"other={folder / 'questions'}"])
    study = Study.read(folder / "out" / "results.json")
    assert [(row.arm, row.step, row.task) for row in study.answers] == [
        (BASE, 0, "questions"), (BASE, 0, "other"),
        *((arm, *at) for arm in ("sft.1", "sft.2") for at in ((1, "questions"), (3, "questions"), (3, "other"))),
    ]  # fmt: skip
    assert [(row.variant, row.steps) for row in study.training] == [
        ("--learning_rate 1e-3", 3), ("--learning_rate 1e-4", 3)
    ]  # fmt: skip
    assert study.training[0].means == {"speech/advantage_share/accuracy_reward": 0.5}
    with pytest.raises(SettingError, match=r"variants: 'dpo: --x 1' does not name an arm"):
        main([*given, "--variants", "dpo: --x 1"])


def test_an_arm_that_starts_where_another_ended(parts, trained):
    """Its model is the other's, merged; its own adapter is measured on that."""
    folder, arguments = parts
    later = yaml.safe_load((folder / "sft.yaml").read_text())
    (folder / "sft_later.yaml").write_text(yaml.safe_dump(later))
    names = [str(folder / "dpo.yaml"), str(folder / "sft_later.yaml")]
    main(["--arms", *names, "--output_dir", str(folder / "out"), *arguments[6:], "--after", "sft_later: dpo"])
    said = [read_samples(folder / "out" / name / "evaluation")["questions_text"] for name in (BASE, "dpo-seed0")]
    said.append(read_samples(folder / "out" / "sft_later-seed0" / "evaluation")["questions_text"])
    base, dpo, after = ([line["resps"] for line in lines] for lines in said)
    assert after == dpo != base  # an SFT adapter of nothing, on what DPO has left


@pytest.mark.slow
def test_whole_runs(parts, capsys):
    """SFT, DPO and GRPO through their recipes and `accelerate launch`, one step each, then the table."""
    folder, arguments = parts
    main(arguments)
    printed = capsys.readouterr().out
    assert all(f"| {name} | 1 |" in printed for name in ("sft", "dpo", "grpo")) and "| base |" in printed
    assert (folder / "out" / "table.md").read_text() in printed
    for arm in ("sft", "dpo", "grpo"):
        run = folder / "out" / f"{arm}-seed0"
        assert read_pair(run / "evaluation")["questions"] == 4
        assert {name: len(lines) for name, lines in read_samples(run / "evaluation").items()} == {
            "questions_speech": 4,
            "questions_text": 4,
        }
        assert (run / "adapter_config.json").is_file() and (run / "run.json").is_file()
    assert (folder / "out" / "table.png").stat().st_size > 5000
