"""Small real parts for every test: a random thinker, spoken questions as files would hold them, an embedding model."""

import os

# No test needs the network or sends anything, also where pytest is started by hand; libraries read these when imported.
for name, value in {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline"}.items():
    os.environ.setdefault(name, value)

import copy
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "recipes")]  # our own model builders and recipes
sys.path.append(str(ROOT / "benchmarks"))

SYSTEM = "You think, then answer."


def clip(seconds: float, seed: int = 0, rate: int = 16_000) -> bytes:
    """A noisy tone as wav bytes."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.2 * np.sin(2 * np.pi * (200 + 40 * seed) * time) + 0.02 * generator.standard_normal(len(time))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype("float32"), rate, format="WAV")
    return buffer.getvalue()


def question(number: int, seconds: float | None = None) -> dict:
    """One row of the schema; clips and texts of different rows differ in length."""
    text = f"What is one plus {'two ' * (number + 1)}? A. B. C. D."
    return {
        "audio": {"bytes": clip(seconds or 0.4 + 0.13 * number, number), "path": None},
        "prompt": [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ],
        "question": text,
        "options": ["one", "two", "three", "four"],
        "answer_index": number % 4,
        "key": f"q{number}",
    }


def questions(count: int = 4) -> Dataset:
    """A data set of `count` questions, audio undecoded."""
    return Dataset.from_list([question(number) for number in range(count)]).cast_column("audio", Audio(decode=False))


def check_header(path: Path, script: str = "") -> None:
    """A YAML file says what it is, its hardware, launch and override line; the first names it and files that exist."""
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Hardware:", "Launch:", "Override:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    (launch,) = [line for line in header if line.startswith("# Launch:")]
    named = [word for word in launch.split() if word.startswith("recipes/")]
    assert str(path.relative_to(ROOT)) in named and all((ROOT / word).exists() for word in named)
    assert not script or f"recipes/{script}" in named


@pytest.fixture(autouse=True)
def forgetful(tmp_path, monkeypatch):
    """No test finds the clips that another one has decoded."""
    from tars_trl.data import checking

    monkeypatch.setattr(checking, "memory_file", lambda: tmp_path.with_name(f"{tmp_path.name}.memory") / "clips.sqlite")


@pytest.fixture
def tiny():
    """(model, processor): a random thinker of under a million parameters, behind the real classes."""
    from tiny_omni import tiny_random

    return tiny_random(0)


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory) -> str:
    """Folder of a real sentence-transformers model with random static embeddings."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([SYSTEM], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    folder = tmp_path_factory.mktemp("embedder")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture
def make_trainer(tiny, embedder_folder, tmp_path):
    """Build a `TARSGRPOTrainer` on the tiny model; keyword arguments override settings or constructor arguments."""
    from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward

    model, processor = tiny

    def build(reward=None, dataset=None, trainer=TARSGRPOTrainer, output="out", build_model=None, **settings):
        arguments = {
            "output_dir": str(tmp_path / output),
            "per_device_train_batch_size": 8,
            "num_generations": 8,
            "max_completion_length": 8,
            "logging_steps": 1,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "mask_truncated_completions": False,
            "reference_reward": "odd_reward" if reward is None else reward.__name__,
            "behavior_model": embedder_folder,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        arguments.update(settings)
        extra = {
            name: arguments.pop(name) for name in ("peft_config", "callbacks", "eval_dataset") if name in arguments
        } | {"processing_class": arguments.pop("processing_class", processor)}
        reward_funcs = arguments.pop("reward_funcs", [reward or odd_reward, format_reward])
        return trainer(
            build_model or copy.deepcopy(model),
            reward_funcs,
            TARSGRPOConfig(**arguments),
            questions() if dataset is None else dataset,
            **extra,
        )

    return build


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """The random thinker with its processor, saved; its layers enlarged, so that a completion depends on the prompt."""
    from tiny_omni import tiny_random

    model, processor = tiny_random(0)
    for weight in model.model.language_model.layers.parameters():
        weight.data.mul_(8)  # as it is, the tied embeddings repeat the last token of any prompt
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def questions_folder(tmp_path_factory) -> str:
    """Six questions of the schema, with two domains, as a folder of parquet shards."""
    folder = tmp_path_factory.mktemp("asked")
    rows = questions(6).add_column("voice", ["high", "low"] * 3)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def odd_reward(completions, **kwargs):
    """Correct where the completion's length is odd: something that a random model gets right half the time."""
    return [float(len(completion[0]["content"]) % 2) for completion in completions]
