"""A run that is cut short ends in bounded time, keeps its last checkpoint, and goes on from it to the same result."""

import copy
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trl.trainer.utils import RepeatSampler

from tars_trl.grpo.resuming import ResumableSampler, last_checkpoint
from tests.conftest import questions

SCRIPT = Path(__file__).with_name("interrupted_run.py")
SECONDS = 120  # from start to end of a run that fails; ten were seen on two busy cores


def launch(folder, fault, processes=1):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes,
               SCRIPT, folder, fault]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.monotonic()
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=SECONDS)
    return done, time.monotonic() - start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of uninterrupted runs, by number of processes; each is made when first asked for."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("whole")
            done, _ = launch(folder, "nothing", processes)
            assert done.returncode == 0, done.stderr[-3000:]
            made[processes] = folder
        return made[processes]

    return run


def check_same(folder, whole):
    """The adapter bit for bit, and the losses."""
    weights, resumed = (load_file(place / "adapter_model.safetensors") for place in (whole, folder))
    assert weights.keys() == resumed.keys() and all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert (whole / "losses.json").read_text() == (folder / "losses.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "processes", "kept"), [("kill", 2, 4), ("term", 1, 2), ("full", 1, 2)])
def test_interrupted_runs_go_on(tmp_path, whole, tiny, fault, processes, kept):
    done, _ = launch(tmp_path, fault, processes)
    assert done.returncode != 0 and not (tmp_path / "losses.json").exists()
    named = {"kill": "Signal 9 (SIGKILL)", "term": "Signal 15 (SIGTERM)", "full": "Error"}[fault]
    assert named in done.stderr
    checkpoint = tmp_path / f"checkpoint-{kept}"
    assert last_checkpoint(tmp_path) == str(checkpoint)
    if fault != "kill":
        assert (tmp_path / "checkpoint-4").exists()  # the save did begin
    assert PeftModel.from_pretrained(tiny[0], checkpoint).peft_config["default"].r == 8
    torch.load(checkpoint / "optimizer.pt")

    done, _ = launch(tmp_path, "nothing", processes)
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path, whole(processes))


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_the_same(tmp_path, whole):
    """Five times, wherever it is then: sampling, in an update, or while it writes a checkpoint."""
    seed = int(os.environ.get("TARS_TEST_SEED") or time.time())
    print(f"TARS_TEST_SEED={seed}")
    random = Random(seed)
    seconds = float((whole(1) / "seconds").read_text())
    killed = 0
    for _ in range(5):
        done, _ = launch(tmp_path, f"{random.uniform(0, seconds):.3f}")
        killed += "Signal 9 (SIGKILL)" in done.stderr
        assert done.returncode == 0 or "Signal 9 (SIGKILL)" in done.stderr, done.stderr[-3000:]
    assert killed, f"no kill came in time: seed {seed}"
    done, _ = launch(tmp_path, "nothing")
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path, whole(1))


def test_resume_in_a_later_epoch_is_exact(make_trainer, tiny):
    """Five epochs of two steps; from the middle of the third on, the same questions in the same order."""
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10, "warmup_steps": 0}
    settings |= {"dataset": questions(4), "per_device_train_batch_size": 16, "distillation_weight": 0.5}
    whole = make_trainer(output="whole", build_model=copy.deepcopy(tiny[0]), **settings)
    whole.train()
    half = make_trainer(output="half", build_model=copy.deepcopy(tiny[0]), **settings)
    half.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-5")
    for (name, one), other in zip(half.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_order_of_epochs_is_trls():
    """Epoch by epoch the order is that of TRL's sampler over an uninterrupted run, and epochs differ."""
    arguments = {"data_source": range(7), "mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2, "seed": 3}
    theirs, state = RepeatSampler(**arguments), SimpleNamespace(epoch=0)
    orders = []
    for epoch in range(4):
        state.epoch = epoch + 0.25
        orders.append(list(ResumableSampler(lambda: state.epoch, **arguments)))
        assert orders[-1] == list(theirs)
    assert orders[0] != orders[1] != orders[2]
