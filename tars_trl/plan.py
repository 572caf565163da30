"""Which GPU a run needs: parameters, tokens, memory by phase and time of a step, from the configuration alone.

    tars-trl plan --config FILE.yaml
    tars-trl plan --config FILE.yaml --gpus 4 --memory 80 --speech_seconds 30 --completion_tokens 300

The file is the one that a TARS run is started with, and any of its settings can be overridden. No weights are loaded:
the step is rehearsed on tensors without content (`tars_trl.models.rehearsal`). Memory is that of the fullest GPU, if
every clip lasts `speech_seconds` and every completion has `completion_tokens`; without the two they are the longest
that the run allows.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from .config import TARSGRPOConfig
from .grpo.costs import INSTRUCTIONS, WORDS, Costs, Step, bytes_of
from .models import native_revision
from .models.released import configuration
from .record import trainable_table
from .settings import TrainingSettings, parse, run, setting

GIB = 2**30
PHASES = ("audio tower", "sampling", "scoring", "rewards", "update")
SPREADS = ("ddp", "zero2", "zero3")


class GPU(NamedTuple):
    """Of a data sheet: memory (GiB), dense bfloat16 and float32 rates (TFLOP/s), bandwidth (TB/s)."""

    memory: float
    bfloat16: float
    float32: float
    bandwidth: float


GPUS = {
    "RTX 4090": GPU(24, 165, 82.6, 1.01),
    "A100 40 GB": GPU(40, 312, 19.5, 1.56),
    "L40S": GPU(48, 362, 91.6, 0.86),
    "A100 80 GB": GPU(80, 312, 19.5, 2.04),
    "H100 80 GB": GPU(80, 989, 67, 3.35),
    "H200": GPU(141, 989, 67, 4.8),
}
# Assumptions, printed with every plan.
RATE = 0.4  # of the data sheet, in matrix products
BANDWIDTH = 0.6  # of the data sheet, in decoding
LAUNCH = 1e-3  # seconds to start the kernels of one decoder layer, less than which none takes
CONTEXT = 1.5 * GIB  # CUDA, its libraries and NCCL
FRAGMENTED = 0.05  # of what is in use: lost between blocks
ASSUMED = f"""
Estimated, not measured: {RATE:.0%} of a data sheet's rate in matrix products, {BANDWIDTH:.0%} of its bandwidth in
decoding, {1e3 * LAUNCH:g} ms or more a decoder layer but in vLLM; nothing for communication, reading clips and rewards
in Python. A server of vLLM's is taken to have GPUs like these."""


@dataclass
class PlannedModel(TrainingSettings):
    """As a recipe has it; the questions are not read."""

    dataset: str | None = setting(None, "Not read.")


@dataclass
class PlannedRun(TARSGRPOConfig):
    """The settings of a run, and what it is to run on."""

    output_dir: str | None = setting(None, "Nothing is written.")
    gpus: int = setting(8, "GPUs of the run.", least=1)
    memory: float | None = setting(None, "GiB of one GPU, which the plan then has to fit into.", above=0)
    spread: str = setting(
        "zero2",
        "What is spread over the GPUs, as the files in recipes/accelerate: nothing (ddp), gradients and optimizer "
        "states (zero2), parameters too (zero3; FSDP2 takes about as much).",
        choices=SPREADS,
    )
    speech_seconds: float | None = setting(None, "Length of the clips. None: `max_audio_seconds`.", above=0)
    completion_tokens: int | None = setting(None, "Of each completion. None: `max_completion_length`.", least=1)
    question_tokens: int | None = setting(
        None, f"Of a written prompt. None: {WORDS} a second of speech, and {INSTRUCTIONS}.", least=1
    )

    @property
    def world_size(self) -> int:
        """Of the run that is planned, not of this process."""
        return self.gpus


class Plan(Costs):
    """What a run takes, which GPU has it, and how long a step may last."""

    def needed(self, step: Step) -> float:
        """GiB of a GPU: the fullest phase, what is lost between blocks, CUDA's own, and a colocated vLLM's share."""
        sizes = {phase: (1 + FRAGMENTED) * size + CONTEXT for phase, size in self.phases(step).items()}
        if step.engine:
            free = max(1 - step.engine, 1e-9)
            awake = {"sampling"} if step.engine_sleeps else set(sizes)
            sizes |= {phase: sizes[phase] / free for phase in awake} | {"vLLM": sum(self.engine(step)) / step.engine}
        return max(sizes.values()) / GIB

    def seconds(self, step: Step, gpu: GPU) -> dict[str, float]:
        """Of each phase of a step, by the assumptions above."""
        made, start = self.flops(step), LAUNCH * len(self.decoder.layers)
        rate = RATE * 1e12 * (gpu.bfloat16 if self.run.bf16 else gpu.float32)
        wait = max(self.bytes_read(step) / (BANDWIDTH * gpu.bandwidth * 1e12), 0 if self.run.use_vllm else start)
        times = {"rewards": sum(made.pop("rewards", [])) / (RATE * gpu.float32 * 1e12)}
        sampled = sum(max(flops / rate, wait) for flops in made.pop("tokens"))
        for phase, passes in made.items():
            least = {"update": 3 * start, "scoring": start}.get(phase, 0)
            times[phase] = sum(max(flops / rate, least) for flops in passes)
        times["sampling"] += sampled
        generations = self.run.gradient_accumulation_steps / self.run.steps_per_generation
        of_samples = generations / self.run.num_iterations
        return {n: times[n] * (generations if n == "update" else of_samples) for n in PHASES if times[n]}

    def changes(self) -> list[tuple[str, Step]]:
        """What may be changed to take less memory: the settings, and the step that they make."""
        step = self.step
        ways: list[tuple[str, dict[str, Any]]] = []
        if not step.checkpointing:
            ways.append(("--gradient_checkpointing true", {"checkpointing": True}))
        if self.embedder is not None and step.embedder_here:
            ways.append(("--behavior_device cpu", {"embedder_here": False}))
        if step.micro_batch > 1:
            rows, more = step.micro_batch // 2, 2 * self.run.gradient_accumulation_steps
            words = f"--per_device_train_batch_size {rows} --gradient_accumulation_steps {more}"
            ways.append((words, {"micro_batch": rows}))
        if step.gpus > 1 and step.spread != "zero3":
            ways.append(("--config_file recipes/accelerate/zero3.yaml", {"spread": "zero3"}))
        if step.engine and not step.engine_sleeps:
            ways.append(("--vllm_enable_sleep_mode true", {"engine_sleeps": True}))
        together = {name: value for _, change in ways for name, value in change.items()}
        ways += [("all of these", together)] if len(ways) > 1 else []
        if step.engine:
            ways.append(("--vllm_mode server, on GPUs of its own", {"engine": 0.0}))
        shorter = step.completion // 2
        ways.append((f"--max_completion_length {shorter}, too", {**together, "completion": shorter}))
        return [(words, replace(step, **change)) for words, change in ways]

    def report(self) -> str:
        """The plan as a text."""
        run, step = self.run, self.step
        parts, trained = self.parts(), self.trained
        plain, shared = (step.gpus * number for number in self.tokens(step))
        rows = step.gpus * step.micro_batch * run.gradient_accumulation_steps
        lines = [
            f"{sum(parts.values()):,} parameters, of which {trained:,} are trained",
            *(f"  {part:<22}{number:>16,}" for part, number in parts.items()),
            f"{rows} completions a step of GRPO (SFT and DPO are not planned); on each of {step.gpus} GPUs "
            f"{step.rows} are sampled at a time, {step.micro_batch} updated",
            f"  prompts of {' and '.join(f'{n:,}' for n in step.prompts)} tokens, completions of {step.completion:,}",
            f"  {plain:,} tokens through the decoder if every row had its own prompt, {shared:,} as it is done",
            "", "GiB of one GPU",
        ]  # fmt: skip
        for spread in SPREADS:
            sizes = ", ".join(
                f"{kind} {in_gib(size)}" for kind, size in self.state(replace(step, spread=spread)).items()
            )
            lines.append(f"  {spread + '*' * (spread == step.spread):<8}{sizes}")
        if self.embedder is not None:
            lines.append(f"  embedding model of R_beh {in_gib(bytes_of(self.embedder.parameters()))}")
        for words, checkpointing in (("with", True), ("without", False)):
            most = max(made.peak for made in self.updates(replace(step, checkpointing=checkpointing)))
            lines.append(f"  activations of an update, {words} checkpointing {in_gib(most)}")
        if run.use_vllm:
            weights, cache = map(in_gib, self.engine(step))
            where = f"{step.engine:.0%} of the GPU" if step.engine else "GPUs of its own, which are not planned"
            lines.append(f"  vLLM: {where}, with its weights {weights} and a cache of {cache} or more")
        else:
            lines.append(f"  cache and logits while sampling {in_gib(self.sampling(step))}")
        lines.append("  peaks: " + ", ".join(f"{phase} {in_gib(size)}" for phase, size in self.phases(step).items()))
        names = list(self.seconds(step, next(iter(GPUS.values()))))
        lines += [*self.verdict(), "", "Seconds of a step   " + "".join(f"{name:>12}" for name in (*names, "all"))]
        for name, gpu in GPUS.items():
            times = self.seconds(step, gpu)
            row = "".join(f"{seconds:>12.1f}" for seconds in (*times.values(), sum(times.values())))
            lines.append(f"  {name:<18}{row}{'' if self.needed(step) <= gpu.memory else '   does not fit'}")
        return "\n".join([*lines, ASSUMED])

    def parts(self) -> dict[str, int]:
        """Parameters by part of the model, the adapter apart."""
        table = trainable_table(self.base, self.architecture.audio_modules)
        return {row["component"]: row["parameters"] for row in table if row["component"] != "total"}

    def verdict(self) -> list[str]:
        """Whether it fits, and if not, what would."""
        memory = self.run.memory or max(gpu.memory for gpu in GPUS.values())
        needed = self.needed(self.step)
        lines = [
            f"  needed: {needed:.1f}, with {CONTEXT / GIB:g} of CUDA's own and {FRAGMENTED:.0%} lost between blocks"
        ]
        if needed <= memory:
            fitting = [name for name, gpu in GPUS.items() if needed <= gpu.memory]
            return [*lines, f"It fits {f'{memory:g} GiB' if self.run.memory else ', '.join(fitting)}."]
        lines.append(f"It does not fit {memory:g} GiB. What would be needed with")
        for words, step in self.changes():
            changed = self.needed(step)
            lines.append(f"  {words}: {changed:.1f}{', which fits' if changed <= memory else ''}")
        return lines


def in_gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}"


def plan(model: PlannedModel, run: PlannedRun) -> Plan:
    """The plan of a model and a run.

    Raises:
        SettingError: no such model, or one that cannot be trained so.
    """
    name = str(model.model)
    revision = model.model_revision or native_revision(name)
    config = configuration(name, revision=revision, trust_remote_code=run.trust_remote_code)
    dtype = getattr(torch, model.dtype, None) or config.dtype or torch.bfloat16
    if model.dtype == "auto" and run.lora_r == 0:  # as `grpo.preparing` has it loaded
        dtype = torch.float32
    if model.attn_implementation not in (None, "sdpa"):
        run.shared_prefix = "never"
    return Plan(config, run, dtype)


def main(args: list[str] | None = None) -> None:
    """Plan and print."""
    model, settings = parse(PlannedModel, PlannedRun, args=args, description=__doc__)
    print(plan(model, settings).report())


if __name__ == "__main__":
    run(main)
