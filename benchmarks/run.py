"""What sharing prompts saves and what a step costs, side by side; a Markdown report with a figure.

    OMP_NUM_THREADS=1 python benchmarks/run.py                                # everything, three quarters of an hour
    OMP_NUM_THREADS=1 python benchmarks/run.py --sections parts startup       # some of it; the report keeps the rest
    OMP_NUM_THREADS=1 python benchmarks/run.py --sections before demo --before fc67fba
    OMP_NUM_THREADS=1 python benchmarks/run.py --quick --json quick.json      # a minute, the main figures

A thinker of 25 million parameters with random weights, LoRA of rank 8, float32, on the CPU. Forms of one comparison
take turns. With one thread the process's own CPU seconds are taken, which other programs lengthen little.
"""

import copy
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import parts
import soundfile
import torch
from datasets import Audio, Dataset
from measuring import Measured, matmul_rate, measured, read_rate, take_turns
from steps import Steps, StepSettings

from tars_trl.data import checking
from tars_trl.grpo.costs import Costs
from tars_trl.settings import Settings, parse, run, setting

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "parts": "Update and sampling: every row behind its own prompt, and prompts shared",
    "steps": "Whole steps: plain, shared, and shared without the alignment rewards",
    "trl": "In writing alone: TRL's GRPOTrainer, and this package without and with sharing",
    "scaling": "A step with shared prompts as it grows, and what it has to compute",
    "rows": "A token more for fewer rows: what completions that have ended would save by leaving the batch",
    "startup": "Checking clips, the first and the second time",
    "before": "Whole steps: an earlier commit, and this one",
    "demo": "The demo's step: an earlier commit, and this one",
}
BASE = {"spoken_seconds": 30.0, "completion": 64, "generations": 8}
GROWTH: dict[str, list[Any]] = {
    "spoken_seconds": [1.0, 5.0, 20.0, 60.0],
    "generations": [4, 8, 16],
    "completion": [16, 64, 256],
}


@dataclass
class BenchmarkSettings(Settings):
    """What is measured, and where it goes."""

    quick: bool = setting(False, "Measure the main figures alone, in about a minute.")
    sections: list[str] = setting(list(SECTIONS), "What to measure; the last two need --before.",
                                  choices=tuple(SECTIONS))  # fmt: skip
    repeats: int = setting(3, "Runs of each form, in turns.", least=1)
    before: str | None = setting(None, "The earlier commit.")
    json: str | None = setting(None, "File for the main figures, with --quick.")
    output_dir: str = setting("runs/benchmarks", "Folder of report.md, its figure, and the measurements.")


Comparison = dict[str, Measured]
"""Seconds and MiB of each form."""


# ---- Sections ------------------------------------------------------------------------------------------------------


def both(logps: Callable, model: Any, rows: parts.Batch) -> Callable[[], tuple[float, float]]:
    """An update, measured."""
    return partial(measured, partial(parts.update, model, rows, logps))


def compare_parts(repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Update and sampling by themselves."""
    model = parts.warm()
    comparisons = {}
    for prompts, length in (
        ([(parts.SPOKEN, 4)], 128),
        ([(parts.SPOKEN_60, 4)], 128),
        ([(parts.SPOKEN, 8)], 128),
        ([(parts.SPOKEN, 4), (parts.WRITTEN, 4)], 128),
    ):
        rows = parts.batch(model, prompts, length)
        name = " and ".join(f"{count} x {length} behind {tokens:,}" for tokens, count in prompts)
        forms = {"plain": both(parts.plain_logps, model, rows), "shared": both(parts.shared_logps, model, rows)}
        comparisons[f"update, {name} tokens"] = take_turns(forms, repeats)
    rows = parts.batch(model, [(parts.SPOKEN, 4), (parts.WRITTEN, 4)], parts.SAMPLED)
    name = f"sampling, 4 x {parts.SAMPLED} behind {parts.SPOKEN} and behind {parts.WRITTEN} tokens"
    for how, sample in (("", parts.sample), (", the twins in two calls", parts.in_two_calls)):
        forms = {
            form: partial(measured, partial(sample, model, rows, form == "shared")) for form in ("plain", "shared")
        }
        comparisons[name + how] = take_turns(forms, repeats)
    return comparisons


def compare_steps(repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Whole steps of the trainer."""
    comparisons = {}
    for spoken_seconds, completion in ((30.0, 128), (60.0, 64)):
        settings = {"spoken_seconds": spoken_seconds, "completion": completion}
        forms = {
            "plain": StepSettings(**settings, shared=False),
            "shared": StepSettings(**settings),
            "shared, not aligned": StepSettings(**settings, aligned=False),
        }
        comparisons[f"{spoken_seconds:g} s of speech, 4 + 4 x {completion} tokens"] = turns_of_steps(forms, repeats)
    return comparisons


def turns_of_steps(forms: dict[str, StepSettings], repeats: int) -> Comparison:
    """Steps of several trainers in turns, the first of each left out."""
    return turns_of({name: Steps(settings) for name, settings in forms.items()}, repeats)


def turns_of(trainers: dict[str, Steps], repeats: int) -> Comparison:
    """The same, of trainers that are there."""
    for steps in trainers.values():
        steps.step()
    return take_turns({name: steps.step for name, steps in trainers.items()}, repeats)


def text_forms(**settings: Any) -> dict[str, StepSettings]:
    """Text-only training by TRL and by this package."""
    common = {"modalities": "text", "spoken_seconds": 1.0, **settings}
    return {
        "TRL": StepSettings(**common, trainer="trl"),
        "plain": StepSettings(**common, shared=False),
        "shared": StepSettings(**common),
    }


def compare_trl(repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Text-only training."""
    return {
        f"8 x 64 behind {tokens} tokens": turns_of_steps(text_forms(written_tokens=tokens, completion=64), repeats)
        for tokens in (38, 400)
    }


def compare_growth(repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Steps that grow in one way at a time, and what the model of costs says of them."""
    matmul, read = matmul_rate(), read_rate()
    comparisons: dict[str, Comparison] = {}
    for name, values in GROWTH.items():
        trainers = {f"{value:g}": Steps(StepSettings(**BASE | {name: value})) for value in values}
        comparison = turns_of(trainers, repeats)
        for form, steps in trainers.items():
            comparison[form] |= counted(steps) | {"matmul_rate": matmul, "read_rate": read}
        comparisons[name] = comparison
    return comparisons


def counted(steps: Steps) -> Measured:
    """Tokens, operations and bytes of a step, as `tars-trl plan` counts them."""
    run = copy.copy(steps.trainer.args)
    vars(run).update(gpus=1, spread="ddp", speech_seconds=steps.settings.spoken_seconds, completion_tokens=None,
                     question_tokens=None)  # fmt: skip
    costs = Costs(steps.trainer.model.config, run, torch.float32)
    step = replace(costs.step, prompts=steps.prompt_tokens())
    return {
        "tokens": costs.tokens(step)[1],
        "operations": sum(map(sum, costs.flops(step).values())),
        "bytes": step.completion * costs.bytes_read(step),
    }


def compare_rows(repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Sampling eight tokens, and 72, of one prompt and fewer and fewer rows."""
    model = parts.warm()
    comparisons = {}
    for tokens in (parts.SPOKEN, parts.WRITTEN):
        forms = {
            f"{count} rows, {length} tokens": partial(
                measured, partial(parts.sample, model, parts.batch(model, [(tokens, count)], 4), True, length)
            )
            for count in (8, 4, 2, 1)
            for length in (8, 72)
        }
        comparisons[f"behind {tokens} tokens"] = take_turns(forms, repeats)
    return comparisons


def compare_startup(_repeats: int, _settings: BenchmarkSettings) -> dict[str, Comparison]:
    """`check_audio` on clips of 73 s that lie in a table."""
    comparisons: dict[str, Comparison] = {}
    noise = 0.1 * np.random.default_rng(0).standard_normal((20, 73 * 16_000)).astype("float32")
    for name, subtype in (("OGG", "OPUS"), ("FLAC", "PCM_16"), ("WAV", "PCM_16")):
        clips = []
        for samples in noise:
            file = io.BytesIO()
            soundfile.write(file, samples, 16_000, format=name, subtype=subtype)
            clips.append({"bytes": file.getvalue(), "path": None})
        rows = Dataset.from_dict({"audio": clips, "key": [str(number) for number in range(len(clips))]})
        rows = rows.cast_column("audio", Audio(decode=False))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "clips.sqlite"
            checking.memory_file = lambda place=place: place
            check = partial(measured, partial(checking.check_audio, rows, max_seconds=120.0))
            first, later = check(), [check() for _ in range(3)]
        comparisons[f"20 clips, {name} {subtype}"] = {
            "first": {"seconds": [first[0]], "mib": [first[1]]},
            "again": {"seconds": [seconds for seconds, _ in later], "mib": [mib for _, mib in later]},
        }
    return comparisons


def compare_commits(repeats: int, settings: BenchmarkSettings) -> dict[str, Comparison]:
    """Steps with an earlier commit's package and with this one, each in a process of its own, in turns."""
    comparisons: dict[str, Comparison] = {}
    with packages(settings.before) as forms:
        for spoken_seconds, completion in ((30, 128), (60, 64)):
            command = ["benchmarks/steps.py", "--steps", 2, "--spoken_seconds", spoken_seconds]
            command += ["--completion", completion]
            taken = {form: partial(steps_elsewhere, package, command) for form, package in forms.items()}
            comparisons[f"{spoken_seconds} s of speech, 4 + 4 x {completion} tokens"] = take_turns(taken, repeats)
    return comparisons


def compare_demos(repeats: int, settings: BenchmarkSettings) -> dict[str, Comparison]:
    """The same, of the demo's training."""
    with packages(settings.before) as forms:
        taken = {form: partial(step_of_the_demo, package) for form, package in forms.items()}
        return {"6 questions, 4 + 4 completions of each, bfloat16": take_turns(taken, repeats)}


@contextmanager
def packages(commit: str | None) -> Iterator[dict[str, Path]]:
    """Folders of the package as it was at a commit, and as it is."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit or "HEAD"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield {"before": Path(folder), "now": ROOT}


def steps_elsewhere(package: Path, command: list[Any]) -> tuple[float, float]:
    """Seconds and MiB of a step, with the package in this folder."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    done.check_returncode()
    taken = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(taken["seconds"]), statistics.median(taken["mib"])


def step_of_the_demo(package: Path) -> tuple[float, float]:
    """CPU seconds of a step of the demo's training: those of a run of five, less those of a run of two."""
    spent = {steps: cpu_of_the_demo(package, steps) for steps in (2, 5)}
    return (spent[5] - spent[2]) / 3, float("nan")


def cpu_of_the_demo(package: Path, steps: int) -> float:
    """CPU seconds of the demo's training, cut short."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["recipes/tars_qwen_omni.py", "--config", "recipes/qwen2_5_omni/demo.yaml", "--output_dir", folder]
        command += ["--max_steps", str(steps), "--report_to", "none", "--overwrite_output_dir", "true"]
        environment = os.environ | {"PYTHONPATH": str(package)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=package, env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


MEASURE = {
    "parts": compare_parts,
    "steps": compare_steps,
    "trl": compare_trl,
    "scaling": compare_growth,
    "rows": compare_rows,
    "startup": compare_startup,
    "before": compare_commits,
    "demo": compare_demos,
}


# ---- Main figures --------------------------------------------------------------------------------------------------


def median(comparison: Comparison, form: str, what: str = "seconds") -> float:
    """Of a form's measurements."""
    return statistics.median(comparison[form][what])


def main_figures() -> dict[str, float]:
    """Within a minute: one run of the large shapes, and short steps for what is a few percent."""
    model = parts.warm()
    rows = parts.batch(model, [(parts.SPOKEN, 4)], 128)
    forms = {"plain": both(parts.plain_logps, model, rows), "shared": both(parts.shared_logps, model, rows)}
    updated = take_turns(forms, 1)
    rows, counted = parts.batch(model, [(parts.SPOKEN, 4), (parts.WRITTEN, 4)], parts.SAMPLED), []
    sampled = take_turns({"plain": partial(measured, partial(parts.sample, model, rows, False))}, 1)
    with parts.decoder_tokens(model, counted):
        sampled |= take_turns({"shared": partial(measured, partial(parts.sample, model, rows, True))}, 1)
        with torch.no_grad():
            parts.shared_logps(model, rows)
    distinct = 2 * (parts.SPOKEN + parts.WRITTEN + 8 * parts.SAMPLED)
    short = {"spoken_seconds": 5.0, "completion": 16}
    aligned = turns_of_steps({"on": StepSettings(**short), "off": StepSettings(**short, aligned=False)}, 2)
    written = {name: s for name, s in text_forms(completion=16).items() if name != "shared"}
    text = turns_of_steps(written, 2)
    figures = {
        "update_speedup_shared_prefix": median(updated, "plain") / median(updated, "shared"),
        "update_memory_ratio": median(updated, "shared", "mib") / median(updated, "plain", "mib"),
        "sampling_speedup_prefill_once": median(sampled, "plain") / median(sampled, "shared"),
        "decoder_tokens_ratio": sum(counted) / distinct,
        "alignment_time_overhead": median(aligned, "on") / median(aligned, "off") - 1,
        "text_only_overhead_trl": median(text, "plain") / median(text, "TRL") - 1,
    }
    return {name: round(value, 3) for name, value in figures.items()}


# ---- Report --------------------------------------------------------------------------------------------------------


def circumstances() -> str:
    """Commit, machine and versions of a measurement."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    threads = f"{torch.get_num_threads()} thread(s) of {os.cpu_count()}, torch {torch.__version__}"
    return f"`{command}` at commit {commit.stdout.strip()}, {cpu.partition(': ')[2]}, {threads}"


def table(comparisons: dict[str, Comparison]) -> list[str]:
    """Medians and spread of every form, and how often the first form's time it takes."""
    lines = [
        "| | form | seconds (fastest to slowest) | times faster | MiB | of the first's |",
        "|---|---|---|---|---|---|",
    ]
    for name, forms in comparisons.items():
        first = next(iter(forms))
        for form, taken in forms.items():
            seconds, mib = taken["seconds"], median(forms, form, "mib")
            spread = f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"
            faster = "" if form == first else f"{median(forms, first) / statistics.median(seconds):.2f}"
            memory = "" if form == first or mib != mib else f"{mib / max(median(forms, first, 'mib'), 1):.2f}"
            size = "" if mib != mib else f"{mib:.0f}"
            lines.append(f"| {name if form == first else ''} | {form} | {spread} | {faster} | {size} | {memory} |")
    return lines


def growth_table(comparisons: dict[str, Comparison]) -> list[str]:
    """Measured and counted, side by side."""
    lines = [
        "| what grows | to | seconds | MiB | tokens through the decoder | TFLOP | GB read while sampling | "
        "seconds by the model | of the matmul rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, forms in comparisons.items():
        for form, taken in forms.items():
            seconds = median(forms, form)
            share = taken["operations"] / taken["matmul_rate"] / seconds
            lines.append(
                f"| {name.replace('_', ' ')} | {form} | {seconds:.2f} | {median(forms, form, 'mib'):.0f} | "
                f"{taken['tokens']:,} | {taken['operations'] / 1e12:.3f} | {taken['bytes'] / 1e9:.1f} | "
                f"{predicted(taken):.2f} | {share:.0%} |"
            )
    any_form = next(iter(next(iter(comparisons.values())).values()))
    rates = (
        f"{any_form['matmul_rate'] / 1e9:.0f} GFLOP/s in products of matrices, {any_form['read_rate'] / 1e9:.1f} GB/s"
    )
    return [*lines, "", f"The machine alone: {rates} read from memory."]


def predicted(taken: Measured) -> float:
    """Seconds of a step that computes at the matmul rate, and while sampling also waits for memory."""
    return taken["operations"] / taken["matmul_rate"] + taken["bytes"] / taken["read_rate"]


def draw(sections: dict[str, Any], path: Path) -> None:
    """Growth of a step, measured and by the model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    comparisons = sections["scaling"]["comparisons"]
    labels = {"spoken_seconds": "seconds of speech", "generations": "completions of a question",
              "completion": "tokens of a completion"}  # fmt: skip
    figure, axes = pyplot.subplots(1, len(comparisons), figsize=(10, 3.2), layout="constrained")
    for axis, (name, forms) in zip(axes, comparisons.items(), strict=True):
        sizes = [float(form) for form in forms]
        axis.plot(sizes, [median(forms, form) for form in forms], "o-", label="measured")
        axis.plot(sizes, [predicted(taken) for taken in forms.values()], "s--", label="operations and bytes")
        axis.set(xlabel=labels[name], ylabel="seconds a step", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_report(folder: Path, sections: dict[str, Any]) -> None:
    """report.md of all that was measured so far, and its figure."""
    lines = ["# Benchmarks", ""]
    for name, title in SECTIONS.items():
        if name not in sections:
            continue
        comparisons = sections[name]["comparisons"]
        lines += [f"## {title}", "", *(growth_table if name == "scaling" else table)(comparisons), ""]
        if name == "scaling":
            draw(sections, folder / "scaling.png")
            lines += ["![A step as it grows](scaling.png)", ""]
        lines += [f"{sections[name]['circumstances']}.", ""]
    (folder / "report.md").write_text("\n".join(lines))


def main(args: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    (settings,) = parse(BenchmarkSettings, args=args, description=__doc__)
    if settings.quick:
        figures = json.dumps(main_figures(), indent=2)
        print(figures)
        if settings.json is not None:
            Path(settings.json).write_text(figures + "\n")
        return
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.json"
    for name in settings.sections:
        if name in ("before", "demo") and settings.before is None:
            print(f"{name}: left out, as --before names no commit.")
            continue
        comparisons = MEASURE[name](settings.repeats, settings)
        sections = json.loads(kept.read_text()) if kept.exists() else {}
        sections[name] = {"comparisons": comparisons, "circumstances": circumstances()}
        kept.write_text(json.dumps(sections, indent=1) + "\n")
        write_report(folder, sections)
        print("\n".join((growth_table if name == "scaling" else table)(comparisons)), flush=True)


if __name__ == "__main__":
    run(main)
