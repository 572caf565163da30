"""What a step takes: tokens, memory by phase, computing; from the model's configuration and the run's settings alone.

The passes of a step are rehearsed as they are made (`models.rehearsal`), for the fullest GPU and with completions of
full length; what lies around them (optimizer states, buckets, the room of a cache) is counted.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModel, DynamicCache
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import add_fused_lm_head

from ..errors import SettingError
from ..models import architecture_of
from ..models.hooks import last_logits_only, last_states
from ..models.prefill import RoomyLayer
from ..models.prompting import base_of
from ..models.rehearsal import Rehearsal, Rehearsed
from ..models.released import configuration
from ..models.shared_prefix import attach, first_with_same_prompt, longest_row, pack, packed_outputs, saving
from ..models.vllm import check_supported
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
    spoken: tuple[bool, ...]
    """Whether it is, of each."""
    written: int
    """Tokens of a written prompt, also where only a teacher reads it."""
    completion: int
    checkpointing: bool
    embedder_here: bool = True
    engine: float = 0.0
    """Share of a GPU that vLLM takes beside the trainer."""
    engine_sleeps: bool = False

    @classmethod
    def of(cls, run: Any, audio_rate: float) -> "Step":
        """The step of a run; `audio_rate` is in embeddings a second of speech."""
        seconds = run.speech_seconds or run.max_audio_seconds
        written = run.question_tokens or math.ceil(WORDS * seconds) + INSTRUCTIONS
        spoken = math.ceil(audio_rate * seconds) + min(INSTRUCTIONS, written)
        twins = {"both": [(spoken, True), (written, False)], "speech": [(spoken, True)], "text": [(written, False)]}
        prompts, heard = zip(*sorted(twins[run.modalities], reverse=True), strict=True)
        colocated = run.use_vllm and run.vllm_mode == "colocate"
        return cls(
            run.gpus, run.spread, run.per_device_train_batch_size * run.steps_per_generation,
            run.per_device_train_batch_size, run.num_generations // len(prompts), prompts, heard, written,
            run.completion_tokens or run.max_completion_length, run.gradient_checkpointing, run.behavior_device is None,
            colocated * run.vllm_gpu_memory_utilization, run.vllm_enable_sleep_mode,
        )  # fmt: skip

    def twins(self, first: int, last: int) -> Twins:
        """(tokens of the prompt, completions) of each twin among a GPU's rows from `first` to `last`."""
        starts = range(first - first % self.group, last, self.group)
        return tuple(
            (self.prompts[start // self.group % len(self.prompts)], min(start + self.group, last) - max(start, first))
            for start in starts
        )

    def clips(self, first: int, last: int) -> int:
        """Spoken twins among a GPU's rows from `first` to `last`."""
        return sum(self.spoken[twin % len(self.spoken)] for twin in range(first // self.group, -(-last // self.group)))

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
        architecture = architecture_of(config.model_type)
        if run.use_vllm:
            check_supported(architecture, config.model_type, "use_vllm=True")
        model = architecture.empty(config).to(dtype)
        model, self.architecture, peft_config = prepare_training(model, run)
        self.step = Step.of(run, self.architecture.audio_tokens_per_second)
        text, tokens = base_of(model).config.get_text_config(), self.step.prompts[0] + self.step.completion
        if tokens > text.max_position_embeddings:
            raise SettingError(
                f"A prompt of {self.step.prompts[0]:,} tokens and a completion of {self.step.completion:,} are more "
                f"than the {text.max_position_embeddings:,} that the model has positions for. Lower max_audio_seconds "
                "(or speech_seconds, question_tokens) or max_completion_length (completion_tokens)."
            )
        seconds = run.speech_seconds or run.max_audio_seconds
        self.clip = self.architecture.blank_features(base_of(model).config, seconds)
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
        self.teaches_text = run.distillation_text_weight
        if self.teaches_text is None:  # written rows are taught, too, where there are no rewards, which alignment needs
            self.teaches_text = run.modalities == "both" and run.teacher_model_kind == "base" and not run.aligned
        self.keeps_states = run.distillation_weight > 0 and run.distillation_mode == "full_logits"
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
    def encode(self, clips: int, trained: bool = False) -> Rehearsed:
        """Clips through the audio side; embeddings are kept, and where it is `trained` what its backward pass needs."""

        def encode(clip: Any) -> Tensor:
            with torch.set_grad_enabled(trained):
                return self.architecture.encode_alike(self.base, [clip] * clips)

        self.model.train(trained)
        return self.rehearsal.run(encode, self.clip, known=True)

    @functools.cache  # noqa: B019
    def score(self, step: Step, twins: Twins, trained: bool = False) -> Rehearsed:
        """A micro-batch scored; `trained`: updated, so with its backward pass."""
        batch = batch_of(twins, step.prompts[0], step.completion)
        checkpointing = step.checkpointing and trained
        getattr(self.model, f"gradient_checkpointing_{'enable' if checkpointing else 'disable'}")()
        if checkpointing:
            self.model.enable_input_require_grads()
        self.model.train(trained)
        kept: list[Tensor] | None = [] if self.keeps_states else None
        heard = dict(zip(step.prompts, step.spoken, strict=True))
        taught = sum(count for length, count in twins if heard[length] or self.teaches_text)

        def learn(outputs: Any) -> None:
            loss = outputs.log_probs.sum()
            if kept and trained:
                loss = loss + self.divergence(kept.pop()[:taught, -step.completion :])
            if trained:
                loss.backward()

        def packed(row: Any) -> None:
            with torch.set_grad_enabled(trained):
                learn(packed_outputs(self.model, row, kept))

        def plain(ids: Tensor) -> None:
            seen = torch.ones(len(ids), 1, ids.size(1), ids.size(1), dtype=torch.bool)
            inputs = {"input_ids": ids, "position_ids": ids, "labels": ids, "attention_mask": seen}
            with torch.set_grad_enabled(trained), last_states(self.base, kept):
                learn(self.model(**inputs, fused_lm_head=True))

        if self.shares(step, twins):
            return self.rehearsal.run(packed, pack(*batch), mixed=self.mixed)
        return self.rehearsal.run(plain, batch[0], mixed=self.mixed)

    def divergence(self, states: Tensor) -> Tensor:
        """Of states (N, T, H) from a teacher's, over the whole vocabulary."""
        states, head = states.flatten(0, 1).clone(), self.base.get_output_embeddings()
        teacher = states.detach().clone(), head.weight.detach(), None if head.bias is None else head.bias.detach()
        how = self.run.distillation_alpha, self.run.temperature, 1.0, None, 1.0, None
        return ChunkedDivergenceFunction.apply(states, head.weight, head.bias, *teacher, *how)[0].sum()

    def updates(self, step: Step) -> list[Rehearsed]:
        """Of every micro-batch of a GPU; an audio side that is trained runs in each."""
        made = []
        for number, twins in enumerate(step.micro_batches()):
            first = number * step.micro_batch
            update, clips = self.score(step, twins, True), step.clips(first, min(first + step.micro_batch, step.rows))
            if clips and not self.run.freeze_audio:
                heard = self.encode(clips, True)
                update = Rehearsed(update.peak + heard.kept, 0, update.flops + 3 * heard.flops)
            made.append(update)
        return made

    def scored(self, step: Step) -> list[tuple[Step, Twins]]:
        """Passes without gradient over what was sampled: for old log-probs, those of a reference, and a teacher's."""
        run = self.run
        by_engine = run.use_vllm and (run.vllm_importance_sampling_correction or run.pools_states)
        stale = run.gradient_accumulation_steps % (run.steps_per_generation * run.num_iterations) != 0
        passes = [(step, twins) for twins in step.micro_batches()] * (bool(by_engine or stale) + bool(run.beta))
        if run.distillation_weight:
            group = step.group * (2 if self.teaches_text else 1)
            rows = min(step.clips(0, step.rows) * group, step.rows)
            lesson = replace(step, rows=rows, group=group, prompts=(step.written,), spoken=(False,))
            passes += [(lesson, twins) for twins in lesson.micro_batches()]
        return passes

    def fill(self, ids: Tensor, cache: DynamicCache | None = None) -> DynamicCache:
        """The cache behind a pass of some tokens, (rows, tokens)."""
        cache = DynamicCache() if cache is None else cache
        seen = torch.ones(len(ids), 1, ids.size(1), cache.get_seq_length() + ids.size(1), dtype=torch.bool)
        with torch.no_grad(), last_logits_only(self.base):
            self.base(input_ids=ids, position_ids=ids, attention_mask=seen, past_key_values=cache)
        return cache

    @functools.cache  # noqa: B019
    def prefill(self, length: int, count: int) -> Rehearsed:
        """The pass of `count` distinct prompts; what is kept is their cache."""
        self.model.eval()
        return self.rehearsal.run(self.fill, torch.zeros(count, length, dtype=torch.long), mixed=self.mixed)

    @functools.cache  # noqa: B019
    def decode(self, rows: int, length: int) -> int:
        """Operations of a token more of some rows, `length` tokens long."""

        def longer(ids: Tensor) -> DynamicCache:
            cache = self.fill(ids)
            for layer in cache.layers:
                size = rows, layer.keys.size(1), length, layer.keys.size(3)
                layer.keys, layer.values = layer.keys.new_empty(size), layer.values.new_empty(size)
            return self.fill(ids, cache)

        self.model.eval()
        both = self.rehearsal.run(longer, torch.zeros(rows, 1, dtype=torch.long), mixed=self.mixed)
        return both.flops - self.prefill(1, rows).flops

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
        if self.run.use_vllm:  # it has a share of its own, or GPUs
            return 0
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
        phases = {}
        clips = step.clips(0, step.rows)
        if clips:  # where parameters are spread, clips go one by one
            heard = self.encode(1 if step.spread == "zero3" else clips)
            kept = heard.kept * (clips if step.spread == "zero3" else 1)
            phases["audio tower"] = resting + heard.peak + kept - heard.kept
            resting += kept if self.run.freeze_audio else 0
        whole = bytes_of(self.model.parameters()) if step.spread == "zero3" else 0  # gathered to sample
        phases["sampling"] = resting + max(whole - state["weights"], 0) + self.sampling(step)
        if self.scored(step):
            phases["scoring"] = resting + max(self.score(*batch).peak for batch in self.scored(step))
        if embedding:
            texts = min(self.run.behavior_batch_size, step.rows)
            phases["rewards"] = resting + self.embed(texts, step.completion).peak
        if self.keeps_states:
            width = self.base.config.get_text_config().hidden_size
            resting += step.rows * step.completion * width * (2 if self.run.bf16 else self.base.dtype.itemsize)
        phases["update"] = resting + state["gradients"] + max(made.peak for made in self.updates(step))
        return phases

    def engine(self, step: Step) -> tuple[float, float]:
        """Bytes of vLLM's weights on a GPU, and of the cache of the longest request that it takes."""
        run, longest = self.run, self.base.config.get_text_config().max_position_embeddings
        number = sum(p.numel() for name, p in self.base.named_parameters() if "lora_" not in name)
        sizes = number * (2 if run.bf16 else 4), (run.vllm_max_model_length or longest) * self.cache(step)
        return sizes[0] / run.vllm_tensor_parallel_size, sizes[1] / run.vllm_tensor_parallel_size

    def flops(self, step: Step) -> dict[str, list[int]]:
        """Operations of the passes of a generation on one GPU, by phase; of sampled tokens, of each as of the mean."""
        clips, middle = step.clips(0, step.rows), step.prompts[0] + step.completion // 2
        made = {
            "audio tower": [self.encode(clips).flops] if clips else [],
            "sampling": [made.flops for _, made in self.prefills(step)],
            "tokens": [self.decode(step.rows, middle)] * step.completion,
            "scoring": [self.score(*batch).flops for batch in self.scored(step)],
            "update": [made.flops for made in self.updates(step)],
        }
        if self.embedder is not None:
            texts = min(self.run.behavior_batch_size, step.rows)
            made["rewards"] = [self.embed(texts, step.completion).flops] * -(-step.rows // texts)
        return made

    def bytes_read(self, step: Step) -> float:
        """Of weights and caches, for a token more of every row of a GPU, half-way through."""
        middle = step.rows * (step.prompts[0] + step.completion / 2)
        weights = bytes_of(self.decoder.parameters())
        return weights / (self.run.vllm_tensor_parallel_size if step.engine else 1) + middle * self.cache(step)

    def tokens(self, step: Step) -> tuple[int, int]:
        """Through the decoder of one GPU in a generation: each row with its own prompt; and as it is done."""
        sampled = step.rows * (step.completion - 1)
        # The last token of each prompt goes through again, for all of its completions.
        plain, done = sampled + step.rows * step.prompts[0], sampled + step.rows
        done += sum(tokens for tokens, _ in self.prefills(step))
        for of, twins in [*self.scored(step), *((step, twins) for twins in step.micro_batches())]:
            number = sum(count for _, count in twins)
            own = sum(length for length, _ in twins) + number * (step.completion - 1)
            repeated = number * (of.prompts[0] + step.completion)
            plain, done = plain + repeated, done + (own if self.shares(of, twins) else repeated)
        return plain, done


def batch_of(twins: Twins, width: int, completion: int) -> tuple[Tensor, Tensor, int, list[Tensor | None]]:
    """Ids, mask, columns of the completions and clips, as a trainer has them; prompts are padded to `width`."""
    lengths = [(number, length) for number, (length, count) in enumerate(twins) for _ in range(count)]
    ids = torch.tensor([[number] for number, _ in lengths]).repeat(1, width + completion)
    first = width - torch.tensor([[length] for _, length in lengths])
    return ids, (torch.arange(width + completion) >= first).long(), completion, [None] * len(lengths)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """Of all of them."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
