"""vLLM and transformers side by side in one run: a step of the demo's, one with half a minute of speech, an evaluation.

    .venv-vllm/bin/python benchmarks/engine.py      # after `make test-vllm`; set VLLM_CPU_KVCACHE_SPACE=1 on a CPU

The demo's recipe on tiny-omni; both forms take turns, each trains a few steps, and medians of a step's seconds (and of
the process's own CPU seconds, which other programs do not lengthen) are printed. The first step of a turn, with what
is compiled and compared in it, does not count. Then both answer held-out questions in float32.
"""

import io
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import soundfile
from datasets import Audio
from transformers import TrainerCallback

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward, load_questions
from tars_trl.data.audio import TARGET_RATE, load_audio
from tars_trl.data.prompts import MODALITIES
from tars_trl.models.loading import load_model, load_processor, load_speech_llm
from tars_trl.models.vllm import Engine
from tars_trl.sampling.complete import complete
from tars_trl.settings import parse, run, setting

MODEL, QUESTIONS = "recipes/demo/tiny-omni", "recipes/demo/questions"


@dataclass
class EngineSettings:
    """What is measured."""

    steps: int = setting(6, "Steps of a turn.", least=2)
    turns: int = setting(2, "Turns of each form.", least=1)
    rows: int = setting(48, "Completions of a step, eight of each question.", least=8)
    answers: int = setting(300, "Held-out questions that are answered.", least=1)
    seconds: float = setting(29.0, "Of speech in the long form; clips are the demo's, one behind the other.", above=0)


class Clock(TrainerCallback):
    """Seconds of each step, on the wall and of this process."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """Start."""
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Stop."""
        now = time.perf_counter(), time.process_time()
        self.steps.append((now[0] - self.start[0], now[1] - self.start[1]))


def lengthen(rows, seconds: float):
    """The questions with clips of this length, made of theirs and of those that follow."""
    clips = [load_audio(row["audio"]) for row in rows]
    samples = int(seconds * TARGET_RATE)

    def long(_row, number: int) -> dict:
        clip = np.concatenate([clips[(number + place) % len(clips)] for place in range(len(clips))])[:samples]
        file = io.BytesIO()
        soundfile.write(file, clip, TARGET_RATE, format="WAV")
        return {"audio": {"bytes": file.getvalue(), "path": None}}

    plain = rows.remove_columns("audio")
    return plain.map(long, with_indices=True).cast_column("audio", Audio(decode=False))


def measure(seconds: float | None, with_engine: bool, settings: EngineSettings) -> list[tuple[float, float]]:
    """Seconds of the steps of one turn, on the demo's questions or with clips of so many seconds."""
    rows = load_questions(QUESTIONS, "train")
    rows = rows if seconds is None else lengthen(rows.select(range(24)), seconds)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TARSGRPOConfig(
            folder, use_vllm=with_engine, vllm_mode="colocate", vllm_max_model_length=1536,
            per_device_train_batch_size=settings.rows, max_completion_length=64, max_steps=settings.steps,
            learning_rate=5e-4, lora_dropout=0.0, behavior_weight=0.0, gradient_checkpointing=False, report_to=[],
            save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, logging_steps=100,
        )  # fmt: skip
        trainer = TARSGRPOTrainer(
            load_model(MODEL, full_precision=True), [accuracy_reward, format_reward], args, rows,
            processing_class=load_processor(MODEL), callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return clock.steps[1:]


def measure_sampling(number: int) -> None:
    """Print the seconds that greedy answers take, after a first batch that does not count."""
    rows = list(load_questions(QUESTIONS, "test"))[:number]
    model, processor = load_speech_llm(MODEL)
    engine = Engine(model, processor, MODEL, max_model_length=512)
    for modality in MODALITIES:
        for form, sampler in (("transformers", model), ("vLLM", engine)):
            for asked in (rows[:20], rows):
                wall, cpu = time.perf_counter(), time.process_time()
                options = {"batch_size": 100 if form == "transformers" else 300, "max_completion_length": 64}
                answers = len(list(complete(sampler, processor, asked, modality, **options)))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"| {answers} answers, {modality} | {form} | {wall:.2f} | {cpu:.2f} |", flush=True)


def main() -> None:
    """Measure in turns and print."""
    (settings,) = parse(EngineSettings, description=__doc__)
    print("| questions | sampled by | seconds | CPU seconds |\n|---|---|---|---|")
    for name, seconds in (("the demo's", None), (f"{settings.seconds:g} s of speech", settings.seconds)):
        steps: dict[str, list] = {"transformers": [], "vLLM": []}
        for _ in range(settings.turns):
            for form, measured in steps.items():
                # Each in a process of its own: a second engine in one process was seen to answer otherwise.
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    measured += pool.apply(measure, (seconds, form == "vLLM", settings))
        for form, measured in steps.items():
            wall, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
            print(f"| {name} | {form} | {wall:.2f} | {cpu:.2f} |", flush=True)
    measure_sampling(settings.answers)


if __name__ == "__main__":
    run(main)
