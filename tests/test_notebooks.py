"""The notebooks and the drift recipe, run from end to end on what a tiny run and its evaluations leave."""

import json
import re

import nbformat
import pytest

from tars_trl.evaluation.run import evaluate
from tars_trl.evaluation.settings import EvaluationSettings
from tests.conftest import ROOT, questions
from tests.report.test_frames import save_state

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-9]*.ipynb"))
FIGURES = {"01_reward_curves": 4, "02_modality_gap": 2, "03_drift": 1}


@pytest.fixture
def run(make_trainer, tiny, tmp_path, monkeypatch):
    """A trained run with its evaluations and its drift, before and after, made as a user makes them."""
    from tars_trl.commands import analyze_drift

    model, processor = tiny
    base, data = tmp_path / "base", tmp_path / "data"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    questions(3).to_parquet(data / "train.parquet")
    trainer = make_trainer(log_completions=True, num_completions_to_print=0, max_steps=3, output="run")
    trainer.train()
    trainer.save_state()
    folder = tmp_path / "run"
    # A random model does not answer: take what it says for the answers of a model that reads but does not hear.
    monkeypatch.setattr(
        "tars_trl.evaluation.scoring.extract_strict",
        lambda text, options: None if len(text) % 2 else 0,
    )
    for name in ("before", "after"):
        settings = {"limit": 3, "max_completion_length": 6, "batch_size": 3, "log_samples": True, "use_cpu": True}
        evaluate(
            EvaluationSettings(
                model=str(base), tasks=[str(data)], split=["train"], output_dir=str(folder / "evaluation" / name),
                **settings,
            )
        )  # fmt: skip
    command = f"--models before={base} after={base} --dataset {data} --split train --max_completion_length 6"
    analyze_drift.main([*command.split(), "--output_dir", str(folder / "drift")])
    monkeypatch.setenv("TARS_QUESTIONS", str(data))
    monkeypatch.setenv("TARS_SPLIT", "train")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def test_notebooks_run_on_a_tiny_run(run, tmp_path):
    import execute_notebooks

    stats = json.loads((run / "drift" / "after" / "layer_stats.json").read_text())
    assert stats["layers"] == [0, 1, 2] and stats["questions"] == 3 and (run / "drift" / "drift.png").is_file()

    execute_notebooks.main([str(run), "--output_dir", str(tmp_path)])
    for name in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(tmp_path / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        assert all(cell.execution_count for cell in cells) and {output.output_type for output in outputs} <= {
            "execute_result"
        }
        assert sum("image/png" in output["data"] for output in outputs) == FIGURES[name], name
        assert "text/markdown" in outputs[-1]["data"] and "points" in str(outputs[-1]) or name == "03_drift"
    listen = nbformat.read(tmp_path / "01_reward_curves.ipynb", 4).cells[-3].outputs[0]
    assert "<audio" in listen["data"]["text/html"] and "advantage" in listen["data"]["text/html"]


@pytest.mark.slow
def test_the_first_notebook_trains(tmp_path, monkeypatch):
    """In small: two steps, twenty held-out questions. It measures, trains, measures, draws, and says how it went."""
    import execute_notebooks

    for name, value in {"START": tmp_path / "run", "STEPS": 2, "HELD_OUT": 20}.items():
        monkeypatch.setenv(f"TARS_{name}", str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    execute_notebooks.main(["--notebooks", "00_start", "--output_dir", str(tmp_path)])
    cells = [cell for cell in nbformat.read(tmp_path / "00_start.ipynb", 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "On 20 held-out questions the model now answers" in outputs[-1]["data"]["text/markdown"]
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def speech(step):
    return {"step": step, "speech/accuracy": 0.5, "speech/reward": 1.0, "speech/clipped_ratio": 0.0, "reward": 1.0}


def text(step):
    return {"step": step, "text/accuracy": 0.5, "text/reward": 1.0, "text/clipped_ratio": 0.0, "reward": 1.0}


@pytest.mark.parametrize("entry", [speech, text, lambda step: {**speech(step), **text(step), "gap/accuracy": 0.0}])
@pytest.mark.parametrize("folder", ["run", "run/checkpoint-3"])
def test_reward_curves_of_whatever_a_run_left(tmp_path, monkeypatch, entry, folder):
    """Baselines on one modality, a checkpoint, and no completions: the cells run all the same."""
    save_state(tmp_path / folder, [entry(step) for step in (1, 2, 3)])
    monkeypatch.setenv("TARS_RUN", str(tmp_path / folder))
    monkeypatch.chdir(ROOT / "notebooks")
    names = {}
    for cell in nbformat.read("01_reward_curves.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(cell.source.replace("%matplotlib inline", ""), names)
    assert names["run"].history and names["completions"] is None


@pytest.mark.parametrize("name", ["00_start", *NOTEBOOKS])
def test_committed_notebooks_are_small_and_name_no_machine(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < 1_500_000
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[1].metadata.get("tags") == ["parameters"] and re.search("TARS_RUN|TARS_START", cells[1].source)
    assert all(len(cell.source.splitlines()) <= 32 for cell in code)
    assert "describe()" not in path.read_text() and not re.search(r"\de-\d\d", str([cell.outputs for cell in code]))
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/|site-packages", text)
    assert all(cell.execution_count for cell in code) and "text/markdown" in str(code[-1].outputs), (
        "run it before committing"
    )
