"""A thinker of 25 million parameters and passes through it, with prompts repeated and with prompts shared."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

WRITTEN = 38  # tokens of a written prompt
SPOKEN = 763  # of a spoken one: 30 s
SPOKEN_60 = 1513  # of 60 s
SAMPLED = 64
END = 0  # ends no completion, as it is suppressed


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


def sample(model: Any, rows: Batch, once: bool, tokens: int = SAMPLED) -> Tensor:
    """Greedy tokens of the rows' prompts."""
    ids, mask = rows.input_ids[:, : -rows.width], rows.attention_mask[:, : -rows.width]
    architecture = architecture_of(base_of(model).config.model_type)
    config = GenerationConfig(
        max_new_tokens=tokens,
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


def warm() -> Any:
    """The thinker, once what happens once has happened."""
    model = build()
    small = batch(model, [(60, 2), (WRITTEN, 2)], 4)
    for logps in (plain_logps, shared_logps):
        update(model, small, logps)
    return model


@contextmanager
def decoder_tokens(model: Any, counted: list[int]) -> Iterator[None]:
    """While the block runs, `counted` gets the tokens of each pass through the first decoder layer."""

    def hook(_module: Any, args: tuple, _output: Any) -> None:
        counted.append(args[0].size(0) * args[0].size(1))

    handle = base_of(model).get_decoder().layers[0].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
