"""Time and memory of one TARS step at the real size: a 7B thinker with random weights, 30 s of speech, G = 8.

    python benchmarks/step_7b.py                      # one GPU of 40 GB or more; downloads nothing
    python benchmarks/step_7b.py --completion 1024    # the paper's limit
    python benchmarks/step_7b.py --tiny               # the same on any machine, at a size that says nothing

The configuration is the released one (transformers' defaults, and what differs), the weights are random in
bfloat16, LoRA of rank 8 is trained, and no completion ends before its limit, so it is a full-length step. The sentence
embeddings of R_beh are left out: they are another, small model. Two steps run; the second is reported.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import numpy as np
import soundfile
import tiny_omni
import torch
from datasets import Audio, Dataset
from transformers import GenerationConfig, Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, format_reward
from tars_trl.data.audio import TARGET_RATE


def build(tiny: bool, device: str) -> tuple:
    """Model and processor. The tokenizer is the tests' small one: which tokens a random model gets does not matter."""
    small, processor = tiny_omni.tiny_random(0, mel_bins=80 if tiny else 128, window_seconds=300)
    if tiny:
        return small, processor
    return random_weights(configuration(small.config), processor, device), processor


def configuration(small: Qwen2_5OmniThinkerConfig) -> Qwen2_5OmniThinkerConfig:
    """Qwen2.5-Omni-7B's thinker, with the special tokens of the small tokenizer."""
    config = Qwen2_5OmniThinkerConfig()
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config.vision_config.hidden_size = 1280
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    for name in ("audio_token_id", "image_token_id", "video_token_id", "audio_start_token_id", "audio_end_token_id",
                 "vision_start_token_id", "vision_end_token_id", "user_token_id"):  # fmt: skip
        setattr(config, name, getattr(small, name))
    return config


def random_weights(config: Qwen2_5OmniThinkerConfig, processor, device: str):
    """The model in bfloat16, made where it is used."""
    with torch.device(device):
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    ends = {name: getattr(processor.tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    return model.eval()


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


def peak_gib() -> float:
    """Peak memory since it was reset last, when all that was launched is done; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


class Timed(TARSGRPOTrainer):
    """Measures seconds and peak memory of each phase; the last step's are left in `phases`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for owner, method, phase in (
            (self._encoder, "encode", "audio tower, one clip"),
            (self, "_generate_single_turn", "sampling and pooling"),
            (self, "_calculate_rewards", "rewards and alignment"),
            (self, "_compute_loss", "update: forward"),
        ):
            setattr(owner, method, self._timed(getattr(owner, method), phase))

    def _timed(self, call, phase: str):
        def timed(*args, **kwargs):
            if peak_gib():
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            result = call(*args, **kwargs)
            peak = peak_gib()
            self.phases[phase] = {"seconds": round(time.perf_counter() - start, 3), "peak_gib": peak}
            return result

        return timed

    def training_step(self, *args, **kwargs):
        self.phases = {}
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        peak = peak_gib()  # since the update's forward pass began, nothing has reset it
        rest = time.perf_counter() - start - sum(phase["seconds"] for phase in self.phases.values())
        self.phases["update: backward, and the rest"] = {"seconds": round(rest, 3), "peak_gib": peak}
        return loss


def main() -> None:
    """Two steps, a table, and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of speech")
    parser.add_argument("--completion", type=int, default=256, help="tokens of every completion")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of recomputing them")
    parser.add_argument("--tiny", action="store_true", help="a model of a million parameters, on the CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/step_7b"))
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/step_7b.py: there is no GPU, and 9 billion parameters would take hours here. Give --tiny to "
            "see that it runs, or run it on a machine with a GPU of 40 GB or more."
        )
    model, processor = build(options.tiny, "cpu" if options.tiny else "cuda")
    args = TARSGRPOConfig(
        str(options.output),
        per_device_train_batch_size=8,
        num_generations=8,
        max_steps=2,
        max_completion_length=options.completion,
        generation_kwargs={"min_new_tokens": options.completion},
        mask_truncated_completions=False,
        reference_reward="accuracy_by_row",
        behavior_weight=0.0,
        max_audio_seconds=options.seconds + 1,
        gradient_checkpointing=not options.no_checkpointing,
        bf16=not options.tiny,
        use_cpu=options.tiny,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=False,
        health_steps=0,
    )
    data = question(options.seconds)
    trainer = Timed(model, [accuracy_by_row, format_reward], args, data, processing_class=processor)
    trainer.train()
    phases = trainer.phases.values()
    report = {
        "device": "CPU" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "speech_seconds": options.seconds,
        "completion_tokens": options.completion,
        "gradient_checkpointing": not options.no_checkpointing,
        "phases": trainer.phases,
        "step_seconds": round(sum(phase["seconds"] for phase in phases), 3),
        "peak_gib": max(phase["peak_gib"] for phase in phases),
    }
    (options.output / "step.json").write_text(json.dumps(report, indent=2) + "\n")
    size = f"{report['parameters'] / 1e9:.2f} billion parameters"
    print(f"{report['device']}, {size}, 8 rows of which 4 have {options.seconds:g} s of speech")
    whole = {"seconds": report["step_seconds"], "peak_gib": report["peak_gib"]}
    for name, phase in {**trainer.phases, "step": whole}.items():
        print(f"{name:<32}{phase['seconds']:>9.2f} s{phase['peak_gib']:>9.1f} GiB")


if __name__ == "__main__":
    main()
