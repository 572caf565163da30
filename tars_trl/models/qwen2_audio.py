"""Qwen2-Audio."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import SpeechLLM


class Qwen2Audio(SpeechLLM):
    """Qwen2-Audio (`Qwen/Qwen2-Audio-7B-Instruct`): 25 audio tokens a second, of half a minute at most."""

    class_name = "Qwen2AudioForConditionalGeneration"
    decoder_layer_class = "Qwen2DecoderLayer"
    audio_tokens_per_second = 25.0
    whole_windows = True
    longest_clip = 30
    in_vllm = True

    def audio_embeddings(self, model: Any, features: Mapping[str, Tensor]) -> Tensor:
        """Tower and projector as the class runs them inside of its forward pass; it has no method of its own for it.

        The tower wants all mel frames of 30 s, and a mask of those, as they are behind its convolutions, that count.
        """
        tower = model.get_submodule(self.audio_modules["audio tower"])
        frames, tokens = tower._get_feat_extract_output_lengths(features["feature_attention_mask"].sum(-1))
        positions = torch.arange(tower.config.max_source_positions, device=frames.device)
        mask = (positions < frames[:, None])[:, None, None].expand(-1, 1, len(positions), -1)
        states = tower(features["input_features"], attention_mask=mask).last_hidden_state
        embeddings = model.get_submodule(self.audio_modules["audio projector"])(states)
        return embeddings[positions[: embeddings.size(1)] < tokens[:, None]]

    def vllm_parameter(self, name: str) -> str:
        """A parameter under its name in the hub's checkpoint."""
        if name.startswith("model.language_model."):
            return name.replace("model.language_model.", "language_model.model.", 1)
        return name.removeprefix("model.") if name.startswith("model.") else f"language_model.{name}"
