"""Granite Speech, whose class replaces placeholders before it looks embeddings up."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from . import Features, SpeechLLM, as_strings, encode_in_groups
from .hooks import audio_before_decoder, evaluation_mode


class GraniteSpeech(SpeechLLM):
    """Granite Speech from 4.0 on (`ibm-granite/granite-4.0-1b-speech`): 10 audio tokens a second.

    Earlier ones bring a LoRA that is on beside audio and off without, which would make two models of twins.
    """

    class_name = "GraniteSpeechForConditionalGeneration"
    audio_modules = {"audio tower": "model.encoder", "audio projector": "model.projector"}
    decoder_layer_class = "GraniteDecoderLayer"
    audio_tokens_per_second = 10.0
    features = ("input_features",)

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The model, its logits scaled (see `prepare`)."""
        model = super().load(model_id, **kwargs)
        self.prepare(model)
        return model

    def prepare(self, model: Any) -> None:
        """Divide logits by `logits_scaling`, as Granite's class for text and TRL's scoring do.

        transformers 5.23 does not, and so would sample from a distribution many times as sharp as the one that is
        trained. This can go once it does.

        Raises:
            SettingError: a model with a LoRA of its own.
        """
        super().prepare(model)
        if model.config.has_lora_adapter:
            raise SettingError(
                "This Granite Speech has a LoRA of its own (has_lora_adapter) for spoken prompts alone, so its written "
                "and spoken answers are two models'. Use one from 4.0 on, such as ibm-granite/granite-4.0-1b-speech."
            )
        model.supports_gradient_checkpointing = True  # which the class does not say, and its decoder's layers can
        head, scaling = model.get_output_embeddings(), model.config.text_config.logits_scaling
        if not hasattr(head, "logits_scaling"):
            head.logits_scaling = scaling
            head.register_forward_hook(lambda module, _args, output: output / module.logits_scaling)

    def chat_text(self, processor: Any, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        """Through the template, which takes strings alone, an audio part as `<|audio|>`."""
        return super().chat_text(processor, as_strings(conversation, processor.audio_token), **kwargs)

    def process(self, processor: Any, text: str, waveform: Any) -> Any:
        """The real processor's output."""
        return processor(text=[text], audio=[waveform], return_tensors="pt")

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Encoder and projector; only clips of equal length share a pass, since convolutions see padding.

        In evaluation mode: batch normalisation would learn from what is sampled.
        """
        with evaluation_mode(model.base_model.encoder), evaluation_mode(model.base_model.projector):
            return encode_in_groups(
                clips, lambda clip: clip["input_features"].size(1), lambda alike: SpeechLLM.encode(self, model, alike)
            )

    def audio_embeddings(self, model: Any, features: Any) -> Tensor:
        """(audio tokens of all clips, H); the class has them by clip."""
        return super().audio_embeddings(model, features).flatten(0, 1)

    def blank_features(self, config: Any, seconds: float) -> Features:
        """Of two frames at a time."""
        return {"input_features": torch.zeros(1, math.ceil(50 * seconds), config.encoder_config.input_dim)}

    def placed(self, model: Any, clips: Sequence[Tensor | None]) -> AbstractContextManager[None]:
        """In front of the decoder."""
        decoder = model.get_submodule(self.decoder)
        return audio_before_decoder(model.base_model, decoder, self.audio_token(model), clips)

    card_audio = '"<|audio|>"'
