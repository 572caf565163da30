"""Sampling a model's completions of questions, in either modality, batched and without a trainer."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.prompts import Modality, question_key
from ..models import architecture_of
from ..models.prefill import generate
from ..models.prompting import base_of, end_tokens_of, prompt_batch, twin_prompt
from ..settings import DecodingSettings


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
        model: a speech LLM, with or without an adapter.
        rows: questions in the schema of `tars_trl.data`, in any order; audio undecoded.
        batch_size: rows in a forward pass.
        max_completion_length: most tokens of a completion.
        num_samples: completions of each row; more than one needs `do_sample=True` or beams.
        seed: of sampling, together with the key of a batch's first row. The caller's random state is left alone.
        streamer: shows tokens as they come (`transformers.TextStreamer`); for a batch of one row.
        generation: further `GenerationConfig` settings, such as `do_sample=True, temperature=1.0`; see `decoding`.

    Yields:
        `num_samples` completions a row, in the order of `rows`.
    """
    base, tokenizer = base_of(model), processor.tokenizer
    architecture = architecture_of(base.config.model_type)
    ends = end_tokens_of(base, processor)
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
    for start in range(0, len(rows), batch_size):
        batch_rows = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
        keys = [question_key(row) for row in batch_rows]
        prompts = [twin_prompt(architecture, processor, row, modality) for row in batch_rows]
        batch = prompt_batch(model, prompts, tokenizer.pad_token_id)
        own_random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with evaluation_mode(model), own_random_state:
            digest = hashlib.blake2b(f"{seed}/{keys[0]}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(digest))
            output = generate(
                model,
                batch.input_ids,
                batch.attention_mask,
                batch.clips,
                generation_config=config,
                streamer=streamer,
            )
        for number, ids in enumerate(output[:, batch.prompt_width :].tolist()):
            end = next((place for place, token in enumerate(ids) if token in ends), None)
            own = ids if end is None else ids[: end + 1]
            text = tokenizer.decode(ids[:end], skip_special_tokens=True)
            yield Completion(keys[number // num_samples], modality, text, len(own), end is None, tuple(own))


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put every module in evaluation mode, and back afterwards into the mode that each of them was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
