"""Gemma 4, whose class replaces placeholders before it looks embeddings up."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from . import Features, SpeechLLM, encode_in_groups
from .hooks import audio_before_decoder

AUDIO_OPTIONS = {"truncation": False, "pad_to_multiple_of": 128}


class Gemma4(SpeechLLM):
    """Gemma 4 with an audio tower (`google/gemma-4-E2B-it`): 25 audio tokens a second, of half a minute at most."""

    class_name = "Gemma4ForConditionalGeneration"
    audio_modules = {
        "audio tower": "model.audio_tower",
        "audio projector": "model.embed_audio",
        "vision tower": "model.vision_tower",
        "vision projector": "model.embed_vision",
    }
    lora_targets = (
        r"(.*\.)?model\.language_model\.(layers\.\d+\.((self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj|"
        r"per_layer_input_gate|per_layer_projection)|per_layer_model_projection)"
    )
    decoder_layer_class = "Gemma4TextDecoderLayer"
    audio_tokens_per_second = 25.0
    features = ("input_features", "input_features_mask")
    longest_clip = 30

    def prepare(self, model: Any) -> None:
        """Refuse, in training, the checkpointing that PEFT under ZeRO-3 is given: see `refuse_reentrant`."""
        super().prepare(model)
        model.get_submodule(self.decoder).register_forward_pre_hook(refuse_reentrant)

    def process(self, processor: Any, text: str, waveform: np.ndarray) -> Mapping[str, Tensor]:
        """The real processor's output.

        Its options are named: a tokenizer that was saved after it had padded brings its own `max_length`, None, which
        transformers 5.23 hands to the feature extractor, too.
        """
        processor.feature_extractor.padding_side = "right"  # as in `SpeechLLM.process`
        return processor(text=[text], audio=[waveform], audio_kwargs=AUDIO_OPTIONS, return_tensors="pt")

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio tower and projector, over clips of equal length together."""
        return encode_in_groups(
            clips, lambda clip: clip["input_features"].size(1), lambda alike: SpeechLLM.encode(self, model, alike)
        )

    def audio_embeddings(self, model: Any, features: Mapping[str, Tensor]) -> Tensor:
        """(audio tokens of all clips, H), without those of padding."""
        output = model.base_model.get_audio_features(**features)
        return output.pooler_output[output.attention_mask]

    def blank_features(self, config: Any, seconds: float) -> Features:
        """Of 128 mel bins, which no configuration names."""
        frames = math.ceil(100 * seconds)
        mask = torch.ones(1, frames, dtype=torch.bool)
        return {"input_features": torch.zeros(1, frames, 128), "input_features_mask": mask}

    def placed(self, model: Any, clips: Sequence[Tensor | None]) -> AbstractContextManager[None]:
        """In front of the decoder."""
        decoder = model.get_submodule(self.decoder)
        return audio_before_decoder(model.base_model, decoder, self.audio_token(model), clips)

    card_inputs = (
        SpeechLLM.card_inputs[0],
        f'inputs = processor(text=text, audio=[waveform], audio_kwargs={AUDIO_OPTIONS}, return_tensors="pt")',
    )


def refuse_reentrant(decoder: Any, _args: Any) -> None:
    """Layers hand keys and values on beside their outputs, which reentrant checkpoints cut off from the gradient.

    Raises:
        SettingError: layers are checkpointed so; a tiny model's gradient was wrong by a quarter.
    """
    checkpointing = decoder.training and decoder.gradient_checkpointing
    if checkpointing and decoder._gradient_checkpointing_func.keywords.get("use_reentrant"):
        raise SettingError(
            "gradient_checkpointing with use_reentrant=True: layers of Gemma 4 share keys and values, whose gradient "
            "would be lost without a word. Leave use_reentrant out; under ZeRO-3, where TRL sets it for LoRA, take "
            "recipes/accelerate/zero2.yaml, or set gradient_checkpointing: false."
        )
