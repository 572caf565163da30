"""A real vLLM on the CPU, for every test of this folder: each engine is started once, by TRL itself, and shared."""

import importlib.util
from pathlib import Path

import pytest
import torch
from trl.generation import vllm_generation

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward, load_questions
from tars_trl.models.loading import load_model, load_processor, load_speech_llm
from tars_trl.share.export import write_export
from tests.conftest import ROOT

TINY, QUESTIONS = str(ROOT / "recipes/demo/tiny-omni"), str(ROOT / "recipes/demo/questions")
LENGTH = 64  # tiny-omni's completions take 40 to 50 tokens


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if importlib.util.find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: `make test-vllm` brings one for CPUs"))


@pytest.fixture(scope="session")
def asked():
    """The demo's held-out questions."""
    return load_questions(QUESTIONS, "test")


@pytest.fixture(scope="session")
def omni(tmp_path_factory):
    """The whole Omni folder that is made of tiny-omni, a thinker alone."""
    folder = tmp_path_factory.mktemp("omni") / "omni"
    write_export(*load_speech_llm(TINY), folder, "omni", original=TINY)
    return str(folder)


@pytest.fixture(scope="session")
def engines():
    """`vllm.LLM`, but for a second engine of the same type of weights the first one comes back."""
    started = {}

    def start(**options):
        if options["dtype"] not in started:
            started[options["dtype"]] = vllm_generation_llm(**options)
        llm = started[options["dtype"]]
        llm.__dict__.pop("generate", None)  # what an earlier trainer put around it
        return llm

    vllm_generation_llm = vllm_generation.LLM
    return start


@pytest.fixture
def make(engines, tmp_path, monkeypatch, embedder_folder):
    """Build a trainer on tiny-omni and the demo's questions that samples with an engine; or, told so, without one."""
    # TRL sets them for the engine; set here, they are restored.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_generation, "LLM", engines)

    def build(rows=None, output="out", dtype="float32", **settings):
        arguments = {
            "output_dir": str(tmp_path / output),
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": 512,
            "per_device_train_batch_size": 8,
            "max_completion_length": LENGTH,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "lora_dropout": 0.0,
            "warmup_steps": 0,
            "logging_steps": 1,
            "behavior_model": embedder_folder,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return TARSGRPOTrainer(
            load_model(TINY, full_precision=False, dtype=dtype),
            [accuracy_reward, format_reward],
            TARSGRPOConfig(**(arguments | settings)),
            load_questions(QUESTIONS, "train") if rows is None else rows,
            processing_class=load_processor(TINY),
        )

    torch.manual_seed(0)
    return build
