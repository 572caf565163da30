"""Recipes as a user meets them: every YAML parses strictly, and the launch line trains on files alone."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from run_demo import LAUNCH
from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from tars_trl import TARSGRPOConfig, write_report
from tars_trl.commands.train import TrainingSettings
from tars_trl.errors import SettingError
from tars_trl.grpo.behavior import BehaviorEncoder
from tars_trl.settings import parse
from tests.conftest import ROOT, check_header, questions

DEMO = ROOT / "recipes" / "demo"
TARS_YAMLS = sorted((ROOT / "recipes").glob("*_*/*.yaml"))


@pytest.mark.parametrize("path", TARS_YAMLS, ids=lambda path: "/".join(path.parts[-2:]))
def test_yaml_parses(path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)  # bf16 on any machine
    # The paper's 64 completions a step come from 8 processes; here is one.
    text = yaml.safe_load(path.read_text())
    batch = text.get("per_device_train_batch_size", 8) * text.get("gradient_accumulation_steps", 1)
    whole = [] if batch % text.get("num_generations", 8) == 0 else ["--gradient_accumulation_steps", "32"]
    run, config = parse(TrainingSettings, TARSGRPOConfig, args=["--config", str(path), *whole])
    assert run.model and config.output_dir.startswith("runs/")


@pytest.mark.parametrize("path", TARS_YAMLS, ids=lambda path: "/".join(path.parts[-2:]))
def test_yaml_header(path):
    """What it is, hardware, launch line and override line; the launch line names files that exist."""
    check_header(path)


def test_accelerate_configs_are_known_to_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"):
        assert load_config_from_file(str(path)).num_processes >= 1, path


def test_launch_line_trains_and_saves(tiny, tmp_path, embedder_folder):
    """`accelerate launch` of the recipe, on a folder model and a folder of questions; what it leaves opens again."""
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    questions(4).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    command = [sys.executable, "-m", *LAUNCH,
               "recipes/tars_qwen_omni.py", "--config=recipes/qwen2_5_omni/demo.yaml",
               "--model", tmp_path / "model", "--dataset", tmp_path / "data", "--output_dir", tmp_path / "out",
               "--behavior_model", embedder_folder, "--max_steps", "2", "--per_device_train_batch_size", "8",
               "--max_completion_length", "8", "--bf16", "false", "--save_strategy", "steps", "--save_steps", "1",
               "--logging_steps", "1", "--report_to", "none"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def launch(*more):
        done = subprocess.run([*map(str, command), *more], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    done = launch()
    assert "language model, LoRA" in done.stdout
    for noise in ("FutureWarning", "[WARNING]", "were not passed"):
        assert noise not in done.stdout + done.stderr, "nothing that a user cannot act on"
    loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert PeftModel.from_pretrained(loaded, tmp_path / "out").peft_config["default"].r == 8
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.padding_side == "left"
    for name in ("trainer_state.json", "run.json", "completions/completions_00002.parquet"):
        assert (tmp_path / "out" / name).exists(), name
    resumed = launch("--resume_from_checkpoint", "last", "--max_steps", "3")
    assert "3/3" in resumed.stderr


@pytest.mark.parametrize(
    "command",
    [
        "evaluate {tasks} --model some/model",
        "evaluate {tasks} --model {model} --adapter some/model",
        "evaluate {tasks} --model {model} --extractors xfinder --xfinder_model some/model",
        "chat --text Hello --model some/model",
        "analyze_drift {asked} --models base=some/model",
        "score_questions {asked} --model some/model",
        "build_preferences {asked} --model some/model",
        "export some/model {asked}",
        "export {model} {asked} --format omni --whole some/model",
        "sft {asked} --model some/model",
        "tars_qwen_omni {asked} --model some/model",
    ],
)
def test_a_hub_id_is_looked_up_before_anything_waits_for_it(monkeypatch, tmp_path, command):
    """In the seconds that `check_on_hub` gives it; the libraries themselves try again for a minute."""

    def refuse(repo_id, *args, **options):
        raise ConnectionError(f"{repo_id}: looked up")

    for room in ("data.hub", "data.reading", "models.loading"):
        monkeypatch.setattr(f"tars_trl.{room}.check_on_hub", refuse)
    asked, out = DEMO / "questions", f"--output_dir {tmp_path / 'out'}"
    words = {"model": DEMO / "tiny-omni", "asked": f"--dataset {asked} {out}", "tasks": f"--tasks demo={asked} {out}"}
    name, *args = command.format_map(words).split()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
    with pytest.raises(ConnectionError, match="some/model: looked up"):
        runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))["main"]()


def test_an_embedding_model_is_looked_up_first(monkeypatch):
    """Under the name that sentence-transformers gives a bare one."""
    asked = []
    monkeypatch.setattr("tars_trl.data.hub.check_on_hub", lambda repo_id, **options: asked.append(repo_id))
    for name in ("some/model", "all-MiniLM-L6-v2"):
        with pytest.raises(OSError):
            BehaviorEncoder(name, "cpu")
    assert asked == ["some/model", "sentence-transformers/all-MiniLM-L6-v2"]


def test_distillation_needs_clips_and_transcripts_alone(tiny, tmp_path, monkeypatch):
    """The recipe, in this process, on a folder of clips and texts under names of their own."""
    import distill

    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = questions(4).select_columns(["audio"]).add_column("said", [f"Say {'so ' * n}it." for n in range(4)])
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    command = ["distill.py", "--config", str(ROOT / "recipes/qwen2_5_omni/arms/demo/distill.yaml"),
               "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"),
               "--column_map", "said=transcript",
               "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--per_device_train_batch_size", "8",
               "--max_completion_length", "8", "--bf16", "false", "--logging_steps", "1", "--report_to", "none",
               "--mask_truncated_completions", "false", "--use_cpu", "true"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    distill.main()
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["log_history"][0]["distillation/kl"] != 0 and (tmp_path / "out" / "adapter_config.json").is_file()
    assert "the distance to the written teacher" in write_report(tmp_path / "out").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--column_map", "said"])
    with pytest.raises(SettingError, match="theirs=ours"):
        distill.main()


def test_import_is_light():
    """`import tars_trl` loads neither torch nor TRL, and everything public can be imported by name."""
    code = (
        "import sys, tars_trl; assert not {'torch', 'trl', 'transformers'} & set(sys.modules); print(tars_trl.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    import tars_trl

    assert all(getattr(tars_trl, name) for name in tars_trl.__all__)
