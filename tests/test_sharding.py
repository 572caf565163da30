"""ZeRO-2, ZeRO-3 and FSDP2 on two processes take the step that one process takes, through the recipes' own configs."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from trl.distributed import DistributedBackend

from tests.conftest import ROOT

CONFIGS = {"zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}


def run(folder, config, processes, batch, freeze="true"):
    """Logs and saved weights of `sharded_run.py` under `recipes/accelerate/CONFIG.yaml`."""
    folder.mkdir()
    config = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
    # DeepSpeed finds no GPU to count processes by; FSDP2's own launcher is torchrun, too.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes",
               processes, "--main_process_port", 0, "--mixed_precision", "no",
               ROOT / "tests" / "sharded_run.py", folder, batch, freeze]  # fmt: skip
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = json.loads((folder / "logs.json").read_text())
    if freeze == "true":
        return logs, load_file(folder / "adapter_model.safetensors")
    return logs, dict(Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).named_parameters())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with all eight rows of a question, with the audio tower frozen and trained."""
    folder = tmp_path_factory.mktemp("alone")
    return {freeze: run(folder / freeze, "cpu", 1, 8, freeze) for freeze in ("true", "false")}


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["true", "false"])
@pytest.mark.parametrize("config", CONFIGS)
def test_two_processes_equal_one(alone, tmp_path, config, freeze):
    """The first process has spoken rows only, the second written rows only, which encode no clip of their own."""
    if CONFIGS[config] == "DEEPSPEED" and not (shutil.which("g++") and shutil.which("ninja")):
        pytest.skip("DeepSpeed compiles its communication for CPUs, and g++ or ninja is missing here.")
    expected, weights = alone[freeze]
    found, sharded = run(tmp_path / "out", config, 2, 4, freeze)
    assert found["kind"] == CONFIGS[config] and expected["kind"] == "NO"
    for one, two in zip(expected["logs"], found["logs"], strict=True):
        for name in ("loss", "grad_norm", "rewards/representation_alignment/mean", "speech/completion_length",
                     "alignment/layer_similarity/first_third", "alignment/layer_similarity/last_third"):  # fmt: skip
            # Other padding, other order of sums: 1e-6 was seen.
            assert one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-7), name
    assert expected["logs"][0]["grad_norm"] > 0 and expected["logs"][0] != expected["logs"][1]
    assert weights.keys() == sharded.keys()
    largest = max((weights[name] - sharded[name]).abs().max().item() for name in weights)
    assert largest < 1e-6, largest  # 1e-8 was seen; the adapter reaches 0.09


def test_fsdp_1_is_refused(make_trainer, monkeypatch):
    monkeypatch.setattr(DistributedBackend, "is_fsdp", False)
    original = DistributedBackend.__init__

    def first_version(self, accelerator):
        original(self, accelerator)
        self.fsdp_version = 1

    monkeypatch.setattr(DistributedBackend, "__init__", first_version)
    with pytest.raises(ValueError, match="FSDP 1 flattens.*Use FSDP 2"):
        make_trainer()
    make_trainer(modalities="text")
