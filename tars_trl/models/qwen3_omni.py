"""Qwen3-Omni: its thinker, a mixture of experts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import Features, encode_in_groups
from .qwen2_5_omni import Qwen2_5OmniThinker


class Qwen3OmniThinker(Qwen2_5OmniThinker):
    """The thinker alone, from an Omni checkpoint (`Qwen/Qwen3-Omni-30B-A3B-Instruct`) or a thinker's own.

    LoRA goes on attention, and on the experts only where it is asked for; the router stays as it is.
    """

    class_name = "Qwen3OmniMoeThinkerForConditionalGeneration"
    audio_modules = {"audio tower": "model.audio_tower", "vision tower": "model.visual"}  # projectors are inside
    lora_targets = r"(.*\.)?model\.language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    expert_parameters = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    router = "mlp.gate"
    decoder_layer_class = "Qwen3OmniMoeThinkerTextDecoderLayer"
    audio_tokens_per_second = 13.0
    in_vllm = False  # 0.22 to 0.33 load experts one by one, and transformers 5 hands them over stacked: not tried
    whole_config = "Qwen3OmniMoeConfig"
    whole_architecture = "Qwen3OmniMoeForConditionalGeneration"

    def prepare(self, model: Any) -> None:
        """Freeze the router, too: where it sends tokens is not what a few thousand questions should decide."""
        super().prepare(model)
        for layer in model.get_submodule(self.decoder).layers:
            if hasattr(layer.mlp, "gate"):  # not in a dense layer
                layer.mlp.gate.requires_grad_(False)

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio tower over the clips; 13 embeddings a second.

        The tower cuts clips into chunks of 1 s, pads these to the longest there is, and hears a padded one otherwise.
        So a clip that fills no chunk shares a pass with clips of its length alone.
        """
        chunk = 2 * model.get_submodule(self.audio_modules["audio tower"]).config.n_window  # frames
        return encode_in_groups(
            clips,
            lambda clip: min(clip["input_features"].size(-1), chunk),
            lambda alike: Qwen2_5OmniThinker.encode(self, model, alike),
        )
