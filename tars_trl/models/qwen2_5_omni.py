"""Qwen2.5-Omni: its thinker, the part that hears and writes text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import Features, Prompt


class Qwen2_5OmniThinker:
    """The thinker behind `tars_trl.models.SpeechLLM`; stateless."""

    audio_modules = {
        "audio tower": "model.audio_tower",
        "audio projector": "model.audio_tower.proj",
        "vision tower": "model.visual",
    }
    lora_targets = r"(.*\.)?model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The thinker alone, from an Omni checkpoint (`Qwen/Qwen2.5-Omni-7B`) or a thinker's own."""
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration

        return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(model_id, **kwargs)

    def prepare(self, model: Any) -> None:
        """Nothing is missing."""

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

    def audio_token(self, model: Any) -> int:
        """Id of `<|AUDIO|>`."""
        return int(model.config.audio_token_id)

    def unsampled_tokens(self, model: Any) -> list[int]:
        """The audio, image and video placeholders."""
        config = model.config
        return sorted({config.audio_token_id, config.image_token_id, config.video_token_id})

    def state_modules(self, model: Any) -> list[nn.Module]:
        """All decoder layers but the last, and the final norm in place of the last."""
        decoder = model.model.language_model
        return [*decoder.layers[:-1], decoder.norm]
