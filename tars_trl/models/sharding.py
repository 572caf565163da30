"""Encoding clips where a model's parameters are spread over processes (DeepSpeed ZeRO-3, FSDP2), or trained on several.

Every call of a spread module gathers its parameters, which all processes have to do together. But how many clips a
process holds depends on how rows fell: one of two may hold written rows alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.integrations import deepspeed

from . import Features, SpeechLLM
from .prompting import base_of

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


class ClipEncoder:
    """Audio embeddings of this process's rows, each distinct clip encoded once, wherever the parameters lie.

    Where parameters are spread, or the audio side is trained on several processes, all processes have to call the
    encoder equally often. Each call then takes one clip, and a process with fewer clips than another encodes a spare
    one in their place (`spare`), whose embeddings are used nowhere.

    Args:
        architecture: whose encoder is called.
        accelerator: of the run.
        frozen: whether the audio side stays as it is.
        modalities: of the run; with `text` alone there are no clips.

    Raises:
        ValueError: with FSDP 1 (see `is_spread`).
    """

    def __init__(self, architecture: SpeechLLM, accelerator: Any, frozen: bool, modalities: str = "speech"):
        self.architecture = architecture
        self.accelerator = accelerator
        heard = modalities != "text"
        self.together = heard and (is_spread(accelerator) or (accelerator.num_processes > 1 and not frozen))
        self.spare: Features | None = None

    def encode(self, model: nn.Module, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Audio embeddings (audio tokens, H) of N rows, None for written ones; rows that share a clip share them.

        Args:
            model: as the accelerator prepared it.
            features: N rows' features; the same object for the same clip.
        """
        distinct = {id(clip): clip for clip in features if clip is not None}
        if self.together:
            embeddings, none = self._encode_together(model, list(distinct.values()))
            if not distinct:  # backward passes, too, run through the encoder equally often everywhere
                return [none, *[None] * (len(features) - 1)]
        elif distinct:
            base = base_of(self.accelerator.unwrap_model(model))
            embeddings = self.architecture.encode(base, list(distinct.values()))
        else:
            return [None] * len(features)
        by_clip = dict(zip(distinct, embeddings, strict=True))
        return [by_clip.get(id(clip)) for clip in features]

    def _encode_together(self, model: nn.Module, clips: list[Features]) -> tuple[list[Tensor], Tensor | None]:
        """An embedding of each clip, and one of no tokens, (0, H); the latter is None where no process has a clip."""
        calls = int(self.accelerator.gather(torch.tensor([len(clips)], device=self.accelerator.device)).max())
        if not calls:
            return [], None
        base = base_of(self.accelerator.unwrap_model(model))
        spare = self.spare if self.spare is not None else clips[0]
        padded = clips + [spare] * (calls - len(clips))
        embeddings = as_forward(model, lambda: [self.architecture.encode(base, [clip])[0] for clip in padded])
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
