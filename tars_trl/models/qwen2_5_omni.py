"""Qwen2.5-Omni: its thinker, the part that hears and writes text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import Features, Prompt, SpeechLLM


class Qwen2_5OmniThinker(SpeechLLM):
    """The thinker alone, from an Omni checkpoint (`Qwen/Qwen2.5-Omni-7B`) or a thinker's own."""

    class_name = "Qwen2_5OmniThinkerForConditionalGeneration"
    audio_modules = {
        "audio tower": "model.audio_tower",
        "audio projector": "model.audio_tower.proj",
        "vision tower": "model.visual",
    }
    decoder = "model.language_model"
    lora_targets = r"(.*\.)?model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"

    decoder_layer_class = "Qwen2_5OmniDecoderLayer"
    in_vllm = True

    def prompt(
        self, processor: Any, conversation: list[dict[str, Any]], waveform: np.ndarray | None, **kwargs: Any
    ) -> Prompt:
        """Prompt through the real chat template and processor; features without the processor's padding to 300 s."""
        text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True, **kwargs)
        if waveform is None:
            return Prompt(processor(text=text)["input_ids"][0])
        # A processor loaded with `padding_side="left"`, for its tokenizer, would put silence before the clip.
        extractor = processor.feature_extractor
        extractor.padding_side = "right"
        # Silence of one analysis window behind the clip makes its last frame the same as with padding to 300 s.
        padded = -(-(len(waveform) + extractor.n_fft) // extractor.hop_length) * extractor.hop_length
        inputs = processor(text=text, audio=[waveform], max_length=padded, truncation=False, return_tensors="pt")
        length = int(inputs["feature_attention_mask"].sum())
        return Prompt(inputs["input_ids"][0].tolist(), {"input_features": inputs["input_features"][0, :, :length]})

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio tower and projector over the clips, padded to the longest of them; 25 embeddings a second."""
        device = model.get_input_embeddings().weight.device
        frames = [clip["input_features"].size(-1) for clip in clips]
        features = torch.zeros(len(clips), clips[0]["input_features"].size(0), max(frames), device=device)
        mask = torch.zeros(len(clips), max(frames), dtype=torch.long, device=device)
        for row, (clip, length) in enumerate(zip(clips, frames, strict=True)):
            features[row, :, :length] = clip["input_features"].to(device)
            mask[row, :length] = 1
        tower = model.get_submodule(self.audio_modules["audio tower"])
        outputs = model.get_audio_features(features.to(tower.conv1.weight.dtype), feature_attention_mask=mask)
        lengths = tower._get_feat_extract_output_lengths(mask.sum(-1))[1].tolist()
        return list(outputs.last_hidden_state.split(lengths))

    def empty(self, config: Any) -> Any:
        """The thinker of an Omni's config, or of its own."""
        return super().empty(getattr(config, "thinker_config", config))

    def vllm_parameter(self, name: str) -> str:
        """A thinker's parameter under the name of the whole Omni checkpoint."""
        for module, stored in (("language_model.", "model."), ("audio_tower.", "audio_tower."), ("visual.", "visual.")):
            if name.startswith(f"model.{module}"):
                return f"thinker.{stored}{name.removeprefix(f'model.{module}')}"
        return f"thinker.{name}"
