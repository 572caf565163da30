"""Sampling a model's completions of questions, in either modality, batched and without a trainer."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.prompts import Modality, question_key
from ..models import Prompt, architecture_of
from ..models.hooks import evaluation_mode
from ..models.prefill import generate
from ..models.prompting import base_of, end_tokens_of, prompt_batch, twin_prompt
from ..models.vllm import Engine
from ..settings import DecodingSettings

NOT_IN_VLLM = ("typical_p", "epsilon_cutoff", "eta_cutoff")
"""Ways of narrowing sampling down that vLLM has not; `decoding` turns them off."""


@dataclass(frozen=True)
class Completion:
    key: str
    modality: str
    text: str
    tokens: int
    """Number of tokens, the end token included."""
    truncated: bool
    """Whether it was cut off at `max_completion_length`."""
    ids: tuple[int, ...] = ()
    """Its tokens, the end token included."""


def decoding(settings: DecodingSettings) -> dict[str, Any]:
    """What `complete` is told by a command's settings: length, seed, and greedy or sampled.

    Sampling is neutral but for what the settings say, as the trainer's: each way of narrowing it down is named, since
    what is not named would come from the checkpoint's generation_config.
    """
    options = {"max_completion_length": settings.max_completion_length, "seed": settings.seed, **settings.generation}
    if not options.pop("do_sample"):
        return options
    return options | {"do_sample": True, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


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
    streamer: Any = None,
    **generation: Any,
) -> Iterator[Completion]:
    """Complete every row's prompt under `modality`; greedy unless `generation` says otherwise.

    Args:
        model: a speech LLM, with or without an adapter, or a vLLM engine.
        rows: questions in the schema of `tars_trl.data`, in any order; audio undecoded.
        batch_size: rows in a forward pass, or handed to an engine at a time.
        max_completion_length: most tokens of a completion.
        num_samples: completions of each row; more than one needs `do_sample=True` or beams.
        seed: of sampling, together with the key of a batch's first row (with an engine: of each row). The caller's
            random state is left alone.
        streamer: shows tokens as they come (`transformers.TextStreamer`); for a batch of one row.
        generation: further `GenerationConfig` settings, such as `do_sample=True, temperature=1.0`; see `decoding`.

    Yields:
        `num_samples` completions a row, in the order of `rows`.
    """
    tokenizer = processor.tokenizer
    engine = model if isinstance(model, Engine) else None
    architecture = engine.architecture if engine else architecture_of(base_of(model).config.model_type)
    ends = engine.ends if engine else end_tokens_of(base_of(model), processor)
    for start in range(0, len(rows), batch_size):
        asked = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
        keys = [question_key(row) for row in asked]
        prompts = [twin_prompt(architecture, processor, row, modality) for row in asked]
        if engine:
            told = {name: value for name, value in generation.items() if name not in NOT_IN_VLLM}
            limits: dict[str, Any] = {"num_samples": num_samples, "max_tokens": max_completion_length}
            sampled = engine.sample(prompts, [_draw(seed, key) for key in keys], **limits, **told)
        else:
            config = GenerationConfig(
                # What is not set here would come from the checkpoint's generation_config.
                **{"do_sample": False, "repetition_penalty": 1.0, **generation},
                max_new_tokens=max_completion_length,
                num_return_sequences=num_samples,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
                suppress_tokens=architecture.unsampled_tokens(base_of(model)),
            )
            sampled = _generate(model, prompts, _draw(seed, keys[0]), config, streamer)
        for number, ids in enumerate(sampled):
            end = next((place for place, token in enumerate(ids) if token in ends), None)
            own = ids if end is None else ids[: end + 1]
            text = tokenizer.decode(ids[:end], skip_special_tokens=True)
            yield Completion(keys[number // num_samples], modality, text, len(own), end is None, tuple(own))


def _draw(seed: int, key: str) -> int:
    """Seed of what is sampled for a question, from 0 to 2 ** 56 - 1."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=7).digest())


def _generate(
    model: Any, prompts: Sequence[Prompt], seed: int, config: GenerationConfig, streamer: Any
) -> list[list[int]]:
    """Completions of a batch by transformers, padded on the right."""
    batch = prompt_batch(model, prompts, config.pad_token_id)
    device = batch.input_ids.device
    drawn = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with evaluation_mode(model), drawn:
        torch.manual_seed(seed)
        output = generate(
            model, batch.input_ids, batch.attention_mask, batch.clips, generation_config=config, streamer=streamer
        )
    completions: list[list[int]] = output[:, batch.prompt_width :].tolist()
    return completions
