"""Encoding clips where a model's parameters are spread over processes (DeepSpeed ZeRO-3, FSDP2), or trained on several.

Every call of a spread module gathers its parameters, which all processes have to do together. But how many clips a
process holds depends on how rows fell: one of two may hold written rows alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.integrations import deepspeed

from . import Features, SpeechLLM

Result = TypeVar("Result")


def is_spread(accelerator: Any) -> bool:
    """Whether the parameters of the model are spread over processes.

    Raises:
        ValueError: with FSDP 1, under which clips cannot be encoded.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP 1 flattens the audio tower's parameters, and clips are encoded outside of the forward pass that "
            "restores them. Use FSDP 2 (recipes/accelerate/fsdp2.yaml) or DeepSpeed."
        )
    return accelerator.distributed_type == DistributedType.FSDP


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Models that are loaded in the block stay whole, where transformers would partition any under ZeRO-3."""
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def encode_together(
    architecture: SpeechLLM, accelerator: Any, model: nn.Module, clips: list[Features], spare: Features
) -> tuple[list[Tensor], Tensor | None]:
    """Audio embeddings of this process's clips, with as many calls of the encoder as on any other process.

    Every call takes one clip, so that it is one pass through the tower for any architecture, and a process with fewer
    clips than another encodes `spare` in their place.

    Args:
        architecture: whose encoder is called.
        accelerator: of the run.
        model: as the accelerator prepared it.
        clips: distinct clips of this process, maybe none.
        spare: any clip.

    Returns:
        an embedding for each clip, and one of no tokens that belongs to no clip, (0, H), or None where all processes
        are without clips. Backward passes, too, then run through the encoder equally often everywhere, provided that
        the latter is placed on a row where there are no clips.
    """
    calls = int(accelerator.gather(torch.tensor([len(clips)], device=accelerator.device)).max())
    if not calls:
        return [], None
    base = accelerator.unwrap_model(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    padded = clips + [spare] * (calls - len(clips))
    embeddings = as_forward(model, lambda: [architecture.encode(base, [clip])[0] for clip in padded])
    own, others = embeddings[: len(clips)], embeddings[len(clips) :]
    if own:
        own[0] = torch.cat([own[0], *(embedding[:0] for embedding in others)])
        return own, own[0][:0]
    return [], torch.cat([embedding[:0] for embedding in others])


def as_forward(model: nn.Module, function: Callable[[], Result]) -> Result:
    """The function's result; under FSDP2 it runs as a forward pass of `model` does, with the outer parameters whole.

    Parameters that belong to no wrapped layer (audio tower, embeddings, norm) are gathered by the forward pass of the
    outermost module only, and the encoder is called outside of it.
    """
    if not isinstance(model, FSDPModule):
        return function()
    if not hasattr(model, "_tars_run"):
        model._tars_run = lambda function: function()
        register_fsdp_forward_method(model, "_tars_run")
    return model._tars_run(function)
