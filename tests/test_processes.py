"""A step on two processes gives what it gives on one: rewards, references, advantages, loss and gradients."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.tiny import ARCHITECTURES

SCRIPT = Path(__file__).with_name("one_step.py")


def step(
    folder, processes, batch, accumulation, embedder, reference="random", share="auto", model="qwen2_5_omni_thinker"
):
    folder.mkdir()
    # `accelerate launch --cpu` starts one process unless mpirun is there; torchrun starts several on any machine.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes,
               SCRIPT, folder, batch, accumulation, embedder, reference, share, model]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "step.pt"), torch.load(folder / "gradients.pt")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "qwen2_5_omni_thinker"])
def test_every_architecture_on_two_processes(tmp_path, embedder_folder, architecture):
    """The first process has the spoken rows of a question, the second the written ones."""
    one, gradients = step(tmp_path / "one", 1, 8, 1, embedder_folder, model=architecture)
    two, gradients_of_two = step(tmp_path / "two", 2, 4, 1, embedder_folder, model=architecture)
    assert one["keys"] == two["keys"] and one["log"]["loss"] == pytest.approx(two["log"]["loss"], abs=1e-5)
    for name, values in one["rewards"].items():
        assert two["rewards"][name] == pytest.approx(values, abs=1e-5, nan_ok=True), name
    scale = max(gradient.abs().max() for gradient in gradients.values())
    assert gradients.keys() == gradients_of_two.keys() and scale > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient / scale, gradients_of_two[name] / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "accumulation"),
    [
        (4, 1),  # one question: all its spoken rows on the first process, all its written ones on the second
        (6, 2),  # three questions, the second of which straddles the processes
    ],
)
def test_two_processes_equal_one(tmp_path, embedder_folder, batch, accumulation):
    """Two that share prompts, in DDP, and one that repeats them."""
    one, gradients = step(tmp_path / "one", 1, 2 * batch, accumulation, embedder_folder, share="never")
    two, gradients_of_two = step(tmp_path / "two", 2, batch, accumulation, embedder_folder)
    # Of policy and teacher the first batch is scored both ways.
    assert one["packed"] == 0 and two["packed"] == 3 + accumulation
    assert one["keys"] == two["keys"]
    for name, values in one["rewards"].items():
        for value, other in zip(values, two["rewards"][name], strict=True):
            # Other padding, so other float32 sums: 2e-7 was seen.
            assert math.isnan(value) == math.isnan(other) and (math.isnan(value) or abs(value - other) < 2e-6), name
    torch.testing.assert_close(torch.tensor(one["advantages"]), torch.tensor(two["advantages"]), rtol=0, atol=2e-6)
    assert one["log"]["loss"] == pytest.approx(two["log"]["loss"], abs=1e-6)
    for metric in ("speech/accuracy", "text/accuracy", "gap/accuracy", "alignment/no_reference", "speech/reward_std",
                   "distillation/kl", "distillation/kl/last_third", "speech/advantage_share/distillation",
                   "speech/advantage_share/odd_reward"):  # fmt: skip
        assert one["log"][metric] == pytest.approx(two["log"][metric], abs=1e-6), metric
    scale = max(gradient.abs().max() for gradient in gradients.values())
    assert gradients.keys() == gradients_of_two.keys() and scale > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient / scale, gradients_of_two[name] / scale, rtol=0, atol=1e-5)

    if batch == 4:
        return
    # Negative control: another reference would be seen.
    other, _ = step(tmp_path / "other", 1, 2 * batch, accumulation, embedder_folder, "best")
    name = "representation_alignment"
    spoken = [pair for pair in zip(one["rewards"][name], other["rewards"][name], strict=True) if pair[0] == pair[0]]
    assert any(abs(value - best) > 1e-3 for value, best in spoken)
