"""Sampling a model's completions of questions, in either modality, batched and without a trainer."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.audio import load_audio
from ..data.prompts import Modality, question_key, spoken_prompt, written_prompt
from ..models import SpeechLLM, architecture_of
from ..models.hooks import last_logits_only, placed_audio


@dataclass(frozen=True)
class Completion:
    """One completion of one question."""

    key: str
    modality: str
    text: str
    tokens: int
    """Number of tokens, the end token included."""
    truncated: bool
    """Whether it was cut off at `max_completion_length`."""


def complete(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    modality: Modality,
    *,
    batch_size: int = 32,
    max_completion_length: int = 1024,
    num_samples: int = 1,
    seed: int = 0,
    on_batch: Callable[[list[Completion]], None] | None = None,
    **generation: Any,
) -> Iterator[Completion]:
    """Complete every row's prompt under `modality`; greedy unless `generation` says otherwise.

    Args:
        model: a speech LLM, with or without an adapter.
        rows: questions in the schema of `tars_trl.data`, in any order; audio undecoded.
        batch_size: rows in a forward pass.
        num_samples: completions of each row; more than one needs `do_sample=True`.
        seed: of sampling, together with the key of a batch's first row. The caller's random state is left alone.
        on_batch: called with the completions of each finished batch.
        generation: further `GenerationConfig` settings, such as `do_sample=True, temperature=1.0`.

    Yields:
        `num_samples` completions a row, in the order of `rows`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    architecture = architecture_of(base.config.model_type)
    tokenizer = processor.tokenizer
    ends = base.generation_config.eos_token_id
    ends = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends] if ends is not None else [])})
    config = GenerationConfig(
        # What is not set here would come from the checkpoint's generation_config.
        **{"do_sample": False, "repetition_penalty": 1.0, **generation},
        max_new_tokens=max_completion_length,
        num_return_sequences=num_samples,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        suppress_tokens=architecture.unsampled_tokens(base),
    )
    device = base.get_input_embeddings().weight.device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for start in range(0, len(rows), batch_size):
            batch = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(_batch_seed(seed, question_key(batch[0])))
                finished = _batch(model, base, architecture, processor, batch, modality, config)
            if on_batch is not None:
                on_batch(finished)
            yield from finished
    finally:
        for module, training in modes:
            module.training = training


def _batch_seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=7).digest())


@torch.no_grad()
def _batch(
    model: Any,
    base: Any,
    architecture: SpeechLLM,
    processor: Any,
    rows: list[dict[str, Any]],
    modality: Modality,
    config: GenerationConfig,
) -> list[Completion]:
    spoken = modality == "speech"
    prompts = [
        architecture.prompt(
            processor,
            (spoken_prompt if spoken else written_prompt)(row["prompt"]),
            load_audio(row["audio"]) if spoken else None,
        )
        for row in rows
    ]
    device = base.get_input_embeddings().weight.device
    width = max(len(prompt.ids) for prompt in prompts)
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p.ids)) + p.ids for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
    clips: list[Any] = [None] * len(rows)
    if spoken:
        clips = architecture.encode(base, [prompt.features for prompt in prompts if prompt.features is not None])
    clips = [clip for clip in clips for _ in range(config.num_return_sequences)]
    audio = placed_audio(base.get_input_embeddings(), architecture.audio_token(base), clips)
    with audio, last_logits_only(base):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:]
    finished = []
    for number, tokens in enumerate(output.tolist()):
        ended = next((place for place, token in enumerate(tokens) if token in config.eos_token_id), None)
        kept = tokens if ended is None else tokens[:ended]
        finished.append(
            Completion(
                key=question_key(rows[number // config.num_return_sequences]),
                modality=modality,
                text=processor.tokenizer.decode(kept, skip_special_tokens=True),
                tokens=len(tokens) if ended is None else ended + 1,
                truncated=ended is None,
            )
        )
    return finished
