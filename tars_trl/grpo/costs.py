"""What a step takes: tokens, memory by phase, computing; from the model's configuration and the run's settings alone.

The passes of a step are rehearsed as they are made (`models.rehearsal`), for the fullest GPU and with completions of
full length; what lies around them (optimizer states, buckets, the room of a cache) is counted.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModel, DynamicCache
from trl.trainer.utils import add_fused_lm_head

from ..models import architecture_of
from ..models.hooks import last_logits_only
from ..models.prefill import RoomyLayer
from ..models.prompting import base_of
from ..models.rehearsal import Rehearsal, Rehearsed
from ..models.released import configuration
from ..models.shared_prefix import attach, first_with_same_prompt, longest_row, pack, packed_outputs, saving
from .behavior import package_folder
from .preparing import prepare_training
from .sharing import LEAST_SAVING

WORDS = 3.5  # written tokens of a second of speech
INSTRUCTIONS = 100  # tokens of the system prompt, the options' form and the turns
# DeepSpeed's defaults (`reduce_bucket_size`, `stage3_max_live_parameters`), which accelerate's files leave as they are.
BUCKET, LIVE = 5e8, 1e9

Twins = tuple[tuple[int, int], ...]
"""Tokens of a prompt, and how many completions it has, of each twin."""


@dataclass(frozen=True)
class Step:
    """What of the settings decides the memory of a step."""

    gpus: int
    spread: str
    rows: int
    """Completions that a GPU samples at a time."""
    micro_batch: int
    group: int
    """Completions of a twin."""
    prompts: tuple[int, ...]
    """Tokens of each twin's prompt, the longer first."""
    completion: int
    checkpointing: bool
    embedder_here: bool = True

    @classmethod
    def of(cls, run: Any, audio_rate: float) -> "Step":
        """The step of a run; `audio_rate` is in embeddings a second of speech."""
        seconds = run.speech_seconds or run.max_audio_seconds
        written = run.question_tokens or math.ceil(WORDS * seconds) + INSTRUCTIONS
        spoken = math.ceil(audio_rate * seconds) + min(INSTRUCTIONS, written)
        twins = {"both": (max(spoken, written), min(spoken, written)), "speech": (spoken,), "text": (written,)}
        prompts = twins[run.modalities]
        return cls(
            run.gpus, run.spread, run.per_device_train_batch_size * run.steps_per_generation,
            run.per_device_train_batch_size, run.num_generations // len(prompts), prompts,
            run.completion_tokens or run.max_completion_length, run.gradient_checkpointing, run.behavior_device is None,
        )  # fmt: skip

    def twins(self, first: int, last: int) -> Twins:
        """(tokens of the prompt, completions) of each twin among a GPU's rows from `first` to `last`."""
        starts = range(first - first % self.group, last, self.group)
        return tuple(
            (self.prompts[start // self.group % len(self.prompts)], min(start + self.group, last) - max(start, first))
            for start in starts
        )

    def micro_batches(self) -> list[Twins]:
        """The twins in each micro-batch of a GPU."""
        starts = range(0, self.rows, self.micro_batch)
        return [self.twins(start, min(start + self.micro_batch, self.rows)) for start in starts]


class Costs:
    """What a run takes.

    Args:
        config: of the model.
        run: the settings (`tars_trl.plan.PlannedRun`).
        dtype: the weights are loaded in.
    """

    def __init__(self, config: Any, run: Any, dtype: torch.dtype):
        self.run = run
        model = architecture_of(config.model_type).empty(config).to(dtype)
        model, self.architecture, peft_config = prepare_training(model, run)
        self.step = Step.of(run, self.architecture.audio_tokens_per_second)
        self.longest = longest_row(model)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        attach(model)
        if peft_config is not None:
            with torch.device("meta"):
                model = get_peft_model(model, peft_config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.trained, self.trained_bytes = sum(parameter.numel() for parameter in trained), bytes_of(trained)
        self.loaded_bytes = bytes_of(model.parameters())
        self.mixed = bool(run.bf16) and run.spread == "ddp"
        if run.bf16 and not self.mixed:  # DeepSpeed keeps this type, where others cast in every pass
            model.to(torch.bfloat16)
        self.model, self.base = model, base_of(model)
        self.decoder = self.base.get_submodule(self.architecture.decoder)
        self.rehearsal = Rehearsal(model)
        self.embedder: Any = None
        if run.aligned and run.behavior_weight:
            with torch.device("meta"):
                self.embedder = AutoModel.from_config(configuration(package_folder(run.behavior_model))).eval()
            self.embedder_rehearsal = Rehearsal(self.embedder.float())

    # ---- Passes ----------------------------------------------------------------------------------------------------

    def shares(self, step: Step, twins: Twins) -> bool:
        """Whether prompts are shared in a micro-batch, as `grpo.sharing` decides."""
        batch = batch_of(twins, step.prompts[0], step.completion)
        longest = max(length for length, _ in twins) + step.completion
        fits = self.longest is None or longest <= self.longest
        return (
            self.run.shared_prefix == "auto"
            and fits
            and saving(*batch[:3], first_with_same_prompt(*batch)) >= LEAST_SAVING
        )

    @functools.cache  # noqa: B019 (a plan is asked a few times, by one command)
    def update(self, step: Step, twins: Twins) -> Rehearsed:
        """Forward and backward pass of a micro-batch."""
        batch = batch_of(twins, step.prompts[0], step.completion)
        switch = "enable" if step.checkpointing else "disable"
        getattr(self.model, f"gradient_checkpointing_{switch}")()
        if step.checkpointing:
            self.model.enable_input_require_grads()
        self.model.train()

        def packed(row: Any) -> None:
            packed_outputs(self.model, row).log_probs.sum().backward()

        def plain(ids: Tensor) -> None:
            seen = torch.ones(len(ids), 1, ids.size(1), ids.size(1), dtype=torch.bool)
            inputs = {"input_ids": ids, "position_ids": ids, "labels": ids, "attention_mask": seen}
            self.model(**inputs, fused_lm_head=True).log_probs.sum().backward()

        if self.shares(step, twins):
            return self.rehearsal.run(packed, pack(*batch), mixed=self.mixed)
        return self.rehearsal.run(plain, batch[0], mixed=self.mixed)

    def updates(self, step: Step) -> list[Rehearsed]:
        """Of every micro-batch of a GPU."""
        return [self.update(step, twins) for twins in step.micro_batches()]

    @functools.cache  # noqa: B019
    def prefill(self, length: int, count: int) -> Rehearsed:
        """The pass of `count` distinct prompts; what is kept is their cache."""

        def cached(ids: Tensor) -> Any:
            cache = DynamicCache()
            seen = torch.ones(count, 1, length, length, dtype=torch.bool)
            with torch.no_grad(), last_logits_only(self.base):
                self.base(input_ids=ids, position_ids=ids, attention_mask=seen, past_key_values=cache)
            return cache

        self.model.eval()
        return self.rehearsal.run(cached, torch.zeros(count, length, dtype=torch.long), mixed=self.mixed)

    def prefills(self, step: Step) -> list[tuple[int, Rehearsed]]:
        """Tokens of the distinct prompts of one length, and their pass; the longest first."""
        lengths = [length for length, _ in step.twins(0, step.rows)]
        return [(n * lengths.count(n), self.prefill(n, lengths.count(n))) for n in sorted({*lengths}, reverse=True)]

    def cache(self, step: Step) -> float:
        """Bytes of one token's keys and values."""
        return sum(made.kept for _, made in self.prefills(step)) / sum(tokens for tokens, _ in self.prefills(step))

    @functools.cache  # noqa: B019
    def embed(self, texts: int, tokens: int) -> Rehearsed:
        """A batch of completions through the embedding model of R_beh."""
        ids = torch.zeros(texts, min(tokens, self.embedder.config.max_position_embeddings), dtype=torch.long)
        with torch.no_grad():
            return self.embedder_rehearsal.run(lambda ids: self.embedder(input_ids=ids), ids)

    # ---- Memory, tokens, time --------------------------------------------------------------------------------------

    def state(self, step: Step) -> dict[str, float]:
        """Bytes on one GPU of what is there from first to last, and of gradients."""
        if step.spread == "ddp":
            gradients = self.trained_bytes * (1 + (step.gpus > 1))  # and DDP's buckets
            return {"weights": self.loaded_bytes, "gradients": gradients, "optimizer": 2 * self.trained_bytes}
        size = 2 if self.run.bf16 else 4
        optimizer = self.trained / step.gpus * (12 if self.run.bf16 else 8)  # bfloat16 has a copy in float32
        gradients = 4 * self.trained / step.gpus + BUCKET * size
        weights = size * sum(parameter.numel() for parameter in self.model.parameters())
        if step.spread == "zero3":
            weights = min(weights / step.gpus + LIVE * size, weights)
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer}

    def sampling(self, step: Step) -> float:
        """Bytes that sampling needs: a cache with room to grow, and what `generate` makes of the last logits."""
        first, *others = (made for _, made in self.prefills(step))
        room = step.prompts[0] - 1
        while room < step.prompts[0] + step.completion:
            room = RoomyLayer.roomy(room)
        cache = step.rows * room * self.cache(step) * (1 + 1 / len(self.decoder.layers))  # one layer's grows at a time
        logits = 5 * 4 * step.rows * self.base.get_output_embeddings().weight.size(0)
        return max(first.peak + sum(made.kept for made in others), cache + logits)

    def phases(self, step: Step) -> dict[str, float]:
        """The most bytes of the fullest GPU in each phase of a step."""
        state = self.state(step)
        resting = state["weights"] + state["optimizer"]
        embedding = self.embedder is not None and step.embedder_here
        resting += bytes_of(self.embedder.parameters()) if embedding else 0
        whole = bytes_of(self.model.parameters()) if step.spread == "zero3" else 0  # gathered to sample
        phases = {"sampling": resting + max(whole - state["weights"], 0) + self.sampling(step)}
        if embedding:
            texts = min(self.run.behavior_batch_size, step.rows)
            phases["rewards"] = resting + self.embed(texts, step.completion).peak
        phases["update"] = resting + state["gradients"] + max(made.peak for made in self.updates(step))
        return phases

    def tokens(self, step: Step) -> tuple[int, int]:
        """Through the decoder of one GPU in sampling and update: each row with its own prompt; and as it is done."""
        rows, completion = step.rows, step.completion
        plain = rows * (step.prompts[0] + completion)
        # The last token of each prompt goes through again, for all of its completions.
        done = sum(tokens for tokens, _ in self.prefills(step)) + rows * completion
        for twins in step.micro_batches():
            number = sum(count for _, count in twins)
            own = sum(length for length, _ in twins) + number * (completion - 1)
            done += own if self.shares(step, twins) else number * (step.prompts[0] + completion)
        return 2 * plain - rows, done


def batch_of(twins: Twins, width: int, completion: int) -> tuple[Tensor, Tensor, int, list[Tensor | None]]:
    """Ids, mask, columns of the completions and clips, as a trainer has them; prompts are padded to `width`."""
    lengths = [(number, length) for number, (length, count) in enumerate(twins) for _ in range(count)]
    ids = torch.tensor([[number] for number, _ in lengths]).repeat(1, width + completion)
    first = width - torch.tensor([[length] for _, length in lengths])
    return ids, (torch.arange(width + completion) >= first).long(), completion, [None] * len(lengths)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """Of all of them."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
