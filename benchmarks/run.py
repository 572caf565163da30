"""What sharing prompts saves, side by side in one run: update, memory, sampling, and tokens through the decoder.

    OMP_NUM_THREADS=1 python benchmarks/run.py                            # ten minutes, a Markdown report
    OMP_NUM_THREADS=1 python benchmarks/run.py --quick --json quick.json  # about a minute, the main figures

A thinker of 25 million parameters with random weights, LoRA of rank 8, float32, on the CPU. A spoken prompt has 763
tokens (30 s of speech) or 1,513 (60 s), a written one 38. Plain and shared form take turns, and each ratio is one of
medians. With one thread the process's own CPU seconds are taken, which other programs do not lengthen.
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import tiny_omni
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from tars_trl.models import architecture_of, prefill, shared_prefix
from tars_trl.models.hooks import last_logits_only
from tars_trl.models.prompting import base_of, heard
from tars_trl.settings import parse, run, setting

WRITTEN = 38  # tokens of a written prompt
SPOKEN = 763
SHAPES = [(SPOKEN, 4, 128), (1513, 4, 128), (SPOKEN, 8, 128)]  # prompt tokens, completions, tokens of each
SAMPLED = 64
PLAIN_FIRST = ("plain", "shared")
END = 0  # ends no completion, as it is suppressed


@dataclass
class BenchmarkSettings:
    """What is measured, and where it goes."""

    quick: bool = setting(False, "Measure the main figures alone, in about a minute.")
    repeats: int = setting(5, "Runs of each form, in turns; two with --quick.", least=1)
    json: str | None = setting(None, "File for the figures.")
    output: str = setting("runs/benchmarks/report.md", "The Markdown report; none with --quick.")

    def __post_init__(self) -> None:
        if self.quick:
            self.repeats = 2


@dataclass
class Batch:
    """Rows as a trainer has them."""

    input_ids: Tensor
    attention_mask: Tensor
    width: int
    """Columns of the completions."""
    clips: list[Tensor | None]


def build() -> Any:
    """The thinker with its LoRA and TRL's fused head."""
    torch.manual_seed(0)
    tokenizer = tiny_omni.build_tokenizer(tiny_omni.TEST_CORPUS)
    model = tiny_omni.build_model(tokenizer, hidden=512, layers=8, heads=8, intermediate=1376)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    shared_prefix.attach(model)
    return get_peft_model(model, architecture_of(model.config.model_type).lora(r=8))


def batch(model: Any, prompts: list[tuple[int, int]], length: int) -> Batch:
    """Random rows; `prompts` has the tokens of each prompt and how many completions it has, of `length` tokens."""
    base, widest = base_of(model), max(tokens for tokens, _ in prompts)
    token = architecture_of(base.config.model_type).audio_token(base)
    generator = torch.Generator().manual_seed(0)
    ids, mask, clips = [], [], []
    for tokens, count in prompts:
        prompt = torch.randint(3, 200, (tokens,), generator=generator)
        clip = None
        if tokens > WRITTEN:
            prompt[5:-8] = token
            clip = torch.randn(tokens - 13, 512, generator=generator)
        for _ in range(count):
            completion = torch.randint(3, 200, (length,), generator=generator)
            ids.append(torch.cat([torch.zeros(widest - tokens, dtype=torch.long), prompt, completion]))
            mask.append(torch.arange(widest + length) >= widest - tokens)
            clips.append(clip)
    return Batch(torch.stack(ids), torch.stack(mask).long(), length, clips)


def plain_logps(model: Any, rows: Batch) -> Tensor:
    """As `GRPOTrainer` computes them, each row with its prompt."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    labels[:, : -rows.width] = -100
    with heard(model, rows.clips):
        outputs = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels, fused_lm_head=True)
    return outputs.log_probs[:, -rows.width :]


def shared_logps(model: Any, rows: Batch) -> Tensor:
    """With prompts shared."""
    return shared_prefix.packed_logps(model, rows.input_ids, rows.attention_mask, rows.width, rows.clips)[0]


def update(model: Any, rows: Batch, logps: Callable) -> None:
    """Forward and backward pass."""
    model.train()
    logps(model, rows).sum().backward()
    model.zero_grad()
    model.eval()


def sample(model: Any, rows: Batch, once: bool) -> Tensor:
    """Greedy tokens of the rows' prompts."""
    ids, mask = rows.input_ids[:, : -rows.width], rows.attention_mask[:, : -rows.width]
    architecture = architecture_of(base_of(model).config.model_type)
    config = GenerationConfig(
        max_new_tokens=SAMPLED,
        do_sample=False,
        pad_token_id=END,
        eos_token_id=END,
        suppress_tokens=[END, *architecture.unsampled_tokens(base_of(model))],
    )
    if once:
        return prefill.generate(model, ids, mask, rows.clips, generation_config=config)
    with heard(model, rows.clips), last_logits_only(base_of(model)):
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)


def in_two_calls(model: Any, rows: Batch, once: bool) -> None:
    """Spoken and written rows apart, so that no written prompt is padded to a spoken one's length."""
    for spoken in (True, False):
        chosen = [number for number, clip in enumerate(rows.clips) if (clip is not None) == spoken]
        width = int(rows.attention_mask[chosen].sum(1).max())
        ids, mask = rows.input_ids[chosen, -width:], rows.attention_mask[chosen, -width:]
        sample(model, Batch(ids, mask, rows.width, [rows.clips[number] for number in chosen]), once)


# ---- Measuring -----------------------------------------------------------------------------------------------------


def seconds() -> float:
    """Now; the process's own time where it has one thread."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def status(field: str) -> float:
    """MiB of `VmRSS` (in use now) or `VmHWM` (the most since it was last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(forms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each form and the most MiB that it needed beside the model; the forms take turns."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    peaks: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # or what the last one has freed would hide what this one needs
            Path("/proc/self/clear_refs").write_text("5")
            before, start = status("VmRSS"), seconds()
            form()
            times[name].append(seconds() - start)
            peaks[name].append(status("VmHWM") - before)
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "fastest": min(times[name]),
            "slowest": max(times[name]),
            "mib": statistics.median(peaks[name]),
        }
        for name in forms
    }


def decoder_tokens(model: Any, *parts: Callable[[], Any]) -> int:
    """Tokens that go through the first decoder layer."""
    counted = 0

    def hook(_module: Any, args: tuple, _output: Any) -> None:
        nonlocal counted
        counted += args[0].size(0) * args[0].size(1)

    handle = base_of(model).get_decoder().layers[0].register_forward_hook(hook)
    try:
        with torch.no_grad():
            for part in parts:
                part()
    finally:
        handle.remove()
    return counted


def tokens_of_a_step(model: Any) -> dict[str, float]:
    """Tokens through the decoder in sampling and update of one question, by those that differ in each of the two."""
    prompts, length = [(SPOKEN, 4), (WRITTEN, 4)], SAMPLED
    rows = batch(model, prompts, length)
    distinct = 2 * sum(tokens + count * length for tokens, count in prompts)
    plain = decoder_tokens(model, lambda: sample(model, rows, False), lambda: plain_logps(model, rows))
    shared = decoder_tokens(model, lambda: sample(model, rows, True), lambda: shared_logps(model, rows))
    return {"plain": plain / distinct, "shared": shared / distinct}


def main(args: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    (settings,) = parse(BenchmarkSettings, args=args, description=__doc__)
    model = build()
    small = batch(model, [(60, 2), (WRITTEN, 2)], 4)
    for logps in (plain_logps, shared_logps):  # what happens once, happens here
        update(model, small, logps)
    lines = [
        "# Prompts once",
        "",
        f"Thinker of {sum(p.numel() for p in base_of(model).get_decoder().parameters()) / 1e6:.0f} M parameters, LoRA, "
        f"float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}; medians of {settings.repeats} runs "
        "of each form in turns (fastest to slowest).",
        "",
        "| | plain, s | shared, s | times faster | plain, MiB | shared, MiB | memory |",
        "|---|---|---|---|---|---|---|",
    ]

    def compare(name: str, plain: Callable[[], Any], shared: Callable[[], Any]) -> tuple[float, float]:
        result = measure({"shared": shared, "plain": plain}, settings.repeats)
        speedup = result["plain"]["seconds"] / result["shared"]["seconds"]
        memory = result["shared"]["mib"] / result["plain"]["mib"]
        times = [f"{r['seconds']:.2f} ({r['fastest']:.2f} to {r['slowest']:.2f})" for r in map(result.get, PLAIN_FIRST)]
        mib = [f"{result[form]['mib']:.0f}" for form in PLAIN_FIRST]
        lines.append(f"| {name} | {' | '.join(times)} | {speedup:.2f} | {' | '.join(mib)} | {memory:.2f} |")
        print(lines[-1], flush=True)
        return speedup, memory

    figures = {}
    for prompt, completions, length in SHAPES[:1] if settings.quick else SHAPES:
        rows = batch(model, [(prompt, completions)], length)
        speedup, memory = compare(
            f"update, {prompt:,} + {completions} x {length} tokens",
            lambda rows=rows: update(model, rows, plain_logps),
            lambda rows=rows: update(model, rows, shared_logps),
        )
        figures.setdefault("update_speedup_shared_prefix", round(speedup, 3))
        figures.setdefault("update_memory_ratio", round(memory, 3))
    rows = batch(model, [(SPOKEN, 4), (WRITTEN, 4)], SAMPLED)
    speedup, _ = compare(
        f"sampling, 4 x ({SPOKEN} + {SAMPLED}) and 4 x ({WRITTEN} + {SAMPLED})",
        lambda: sample(model, rows, False),
        lambda: sample(model, rows, True),
    )
    figures["sampling_speedup_prefill_once"] = round(speedup, 3)
    if not settings.quick:
        compare(
            "the same in two calls, spoken and written",
            lambda: in_two_calls(model, rows, False),
            lambda: in_two_calls(model, rows, True),
        )
        update_rows = batch(model, [(SPOKEN, 4), (WRITTEN, 4)], 128)
        compare(
            f"update of both twins, 4 x ({SPOKEN} + 128) and 4 x ({WRITTEN} + 128)",
            lambda: update(model, update_rows, plain_logps),
            lambda: update(model, update_rows, shared_logps),
        )
    tokens = tokens_of_a_step(model)
    figures["decoder_tokens_ratio"] = round(tokens["shared"], 3)
    lines += ["", f"Tokens through the decoder, by distinct ones: {tokens['plain']:.2f} plain, {tokens['shared']:.2f}."]
    print(json.dumps(figures, indent=2))
    if settings.json is not None:
        Path(settings.json).write_text(json.dumps(figures, indent=2) + "\n")
    if not settings.quick:
        Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.output).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run(main)
