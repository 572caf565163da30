"""ZeRO-2, ZeRO-3 and FSDP2 on two processes take the step that one process takes, through the recipes' own configs."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from tars_trl.models.sharding import is_spread, loaded_whole
from tests.conftest import ROOT

CONFIGS = {"zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}


def launch(script, config, processes, folder, *arguments):
    """A script of the tests under `recipes/accelerate/CONFIG.yaml`, or DDP by torchrun; `folder` comes first."""
    folder.mkdir()
    # DeepSpeed finds no GPU to count processes by; FSDP2's own launcher is torchrun, too.
    launcher = ["accelerate.commands.launch", "--config_file", ROOT / "recipes" / "accelerate" / f"{config}.yaml",
                "--num_processes", processes, "--main_process_port", 0, "--mixed_precision", "no"]  # fmt: skip
    if config == "torchrun":
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command = [sys.executable, "-m", *launcher, ROOT / "tests" / "models" / script, folder, *arguments]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def run(folder, config, processes, batch, freeze="true", share="auto"):
    """Logs and saved weights of `sharded_run.py`."""
    launch("sharded_run.py", config, processes, folder, batch, freeze, share)
    logs = json.loads((folder / "logs.json").read_text())
    if freeze == "true":
        return logs, load_file(folder / "adapter_model.safetensors")
    return logs, dict(Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).named_parameters())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with all eight rows of a question, each behind its own prompt, audio tower frozen and trained."""
    folder = tmp_path_factory.mktemp("alone")
    return {freeze: run(folder / freeze, "cpu", 1, 8, freeze, "never") for freeze in ("true", "false")}


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
    # Policy and teacher, each: two steps, and a look at the first batch.
    assert found["packed"] == 2 * 3 and expected["packed"] == 0
    for one, two in zip(expected["logs"], found["logs"], strict=True):
        for name in ("loss", "grad_norm", "rewards/representation_alignment/mean",
                     "rewards/behavior_alignment/mean", "speech/completion_length",
                     "alignment/layer_similarity/first_third", "alignment/layer_similarity/last_third"):  # fmt: skip
            # Other padding, other order of sums: 1e-6 was seen.
            assert one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-7), name
    assert expected["logs"][0]["grad_norm"] > 0 and expected["logs"][0] != expected["logs"][1]
    assert weights.keys() == sharded.keys()
    largest = max((weights[name] - sharded[name]).abs().max().item() for name in weights)
    assert largest < 1e-6, largest  # 1e-8 was seen; the adapter reaches 0.09


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_supervised_trainers_encode_clips_under_fsdp2(tmp_path, method):
    """Parameters spread over two processes give the losses of two processes with whole copies."""
    losses = {}
    for config in ("torchrun", "fsdp2"):
        folder = tmp_path / config
        launch("sharded_supervised.py", config, 2, folder, method, 2)
        losses[config] = json.loads((folder / "losses.json").read_text())
    assert len(losses["fsdp2"]) == 2 and losses["fsdp2"][0] != losses["fsdp2"][1]
    assert losses["fsdp2"] == pytest.approx(losses["torchrun"], rel=1e-5)


def test_what_is_spread():
    kinds = {DistributedType.NO: False, DistributedType.MULTI_GPU: False, DistributedType.FSDP: True}
    for kind, spread in kinds.items():
        assert is_spread(SimpleNamespace(distributed_type=kind, is_fsdp2=True)) == spread
    for stage in (0, 1, 2, 3):
        state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
        assert is_spread(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state)) == (stage == 3)
    with pytest.raises(ValueError, match="FSDP 1 flattens.*Use FSDP 2"):
        is_spread(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))


def test_models_beside_the_trained_one_stay_whole():
    """Under ZeRO-3 transformers partitions whatever is loaded; the embedding model of R_beh is used as it is."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    with loaded_whole():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled() and config.is_zero3()
    unset_hf_deepspeed_config()
