"""Phi-4-multimodal: the native transformers class, with its own speech LoRA merged before anything else is done."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import Features, SpeechLLM, as_strings, encode_in_groups

logger = logging.getLogger(__name__)

MODEL_ID = "microsoft/Phi-4-multimodal-instruct"
# The hub's main revision is remote code (`phi4mm`); this one holds the weights of the native class. transformers' own
# integration tests load it too. It can go once the main revision does.
NATIVE_REVISION = "refs/pr/70"
SPEECH_LORA = "speech-lora"
"""Subfolder of the checkpoint with the adapter that speech needs; a checkpoint without it is taken as merged."""


class Phi4Multimodal(SpeechLLM):
    """Phi-4-multimodal.

    Prompt and completion together stay within `config.original_max_position_embeddings` (4,096) tokens: beyond it the
    class changes its rotary frequencies for a whole batch and starts its cache anew.
    """

    class_name = "Phi4MultimodalForCausalLM"
    audio_modules = {
        "audio tower": "model.embed_tokens_extend.audio_embed.encoder",
        "audio projector": "model.embed_tokens_extend.audio_embed",  # what of it is not the tower
        "vision tower": "model.embed_tokens_extend.image_embed",
    }
    decoder = "model"
    lora_targets = r"(.*\.)?model\.layers\.\d+\.(self_attn\.(qkv|o)|mlp\.(gate_up|down))_proj"

    decoder_layer_class = "Phi4MultimodalDecoderLayer"
    audio_tokens_per_second = 12.5
    features = ("audio_input_features", "audio_embed_sizes")
    native_revisions = {MODEL_ID: NATIVE_REVISION}

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The native model, its speech LoRA merged.

        Raises:
            ValueError: the speech LoRA does not fit the model.
        """
        attention = kwargs.get("attn_implementation")
        if isinstance(attention, str) and "flash" in attention:
            # The audio tower adds a bias for the distance of frames, which flash attention cannot take.
            kwargs["attn_implementation"] = {"": attention, "audio_config": "sdpa", "vision_config": "sdpa"}
        model = super().load(model_id, **kwargs)
        where = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if kwargs.get(name) is not None}
        return self._with_speech_lora(model, model_id, where)

    def _with_speech_lora(self, model: Any, model_id: str, where: dict[str, Any]) -> Any:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from peft.utils import load_peft_weights
        from transformers.utils.hub import cached_file

        # None where there is no such file; other troubles (no network, no access) are errors, and so is Microsoft's
        # own checkpoint without it.
        required = model_id == MODEL_ID
        found = cached_file(
            model_id,
            "adapter_config.json",
            subfolder=SPEECH_LORA,
            _raise_exceptions_for_missing_entries=required,
            **where,
        )
        if found is None:
            logger.warning("%s has no %s folder: taken as merged already.", model_id, SPEECH_LORA)
            return model
        config = LoraConfig.from_pretrained(model_id, subfolder=SPEECH_LORA, **where)
        config.target_modules = (
            self.lora_targets
        )  # of the decoder alone; names in the file may also fit the audio tower
        adapted = get_peft_model(model, config)
        weights = load_peft_weights(model_id, device="cpu", subfolder=SPEECH_LORA, **where)
        loaded = set_peft_model_state_dict(adapted, weights)
        absent = [name for name in loaded.missing_keys if "lora_" in name]
        if loaded.unexpected_keys or absent:
            example = (loaded.unexpected_keys or absent)[0]
            raise ValueError(
                f"The adapter in {model_id}/{SPEECH_LORA} does not fit the model: {len(loaded.unexpected_keys)} "
                f"tensors have no place and {len(absent)} places no tensor (such as {example}). Without it the model "
                f"does not understand speech. Use revision={NATIVE_REVISION!r} of {MODEL_ID}, or a checkpoint in which "
                "it is merged already."
            )
        model = adapted.merge_and_unload(safe_merge=True)
        if hasattr(model, "peft_config"):  # left behind by peft 0.21; the next adapter would warn of a second one
            del model.peft_config
        return model

    def chat_text(self, processor: Any, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        """Through the checkpoint's chat template, an audio part as `<|audio|>`.

        Contents are given as strings: the native checkpoint's template takes these as well as parts, the original
        checkpoint's takes nothing else. A processor of transformers 5.23 has lost its template once it was loaded
        (`Phi4MultimodalProcessor.__init__` does not name that argument); its tokenizer has it.
        """
        template = processor if processor.chat_template else processor.tokenizer
        return super().chat_text(template, as_strings(conversation, processor.audio_token), **kwargs)

    def process(self, processor: Any, text: str, waveform: np.ndarray) -> Mapping[str, Tensor]:
        """The real processor's output."""
        rate = processor.audio_processor.sampling_rate
        return processor(text=[text], audio=[waveform], sampling_rate=rate, return_tensors="pt")

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio tower and speech projector; 12.5 embeddings a second.

        Only clips of equal length share a pass: with `audio_attention_mask` the native encoder gives a padded clip
        other embeddings than the clip alone.
        """
        return encode_in_groups(
            clips,
            lambda clip: clip["audio_input_features"].size(1),
            lambda alike: SpeechLLM.encode(self, model, alike),
        )

    def encode_alike(self, model: Any, clips: Sequence[Features]) -> Tensor:
        """(audio tokens of all clips, H), of clips of one length."""
        audio = model.get_submodule(self.audio_modules["audio projector"])
        # Of the bias: a weight may be partitioned (ZeRO-3) or packed (4 bits).
        device, dtype = audio.up_proj_for_speech.bias.device, audio.up_proj_for_speech.bias.dtype
        features = torch.cat([clip["audio_input_features"] for clip in clips])
        sizes = [int(clip["audio_embed_sizes"]) for clip in clips]
        # The class's own projection and placing, over rows that are nothing but placeholders.
        ids = torch.full((len(clips), sizes[0]), self.audio_token(model), device=device)
        empty = torch.zeros(*ids.shape, model.config.hidden_size, dtype=dtype, device=device)
        # DeepSpeed and FSDP cast parameters and leave the tower's mean and variance as they are, in float32.
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return audio(ids, empty, features, audio_embed_sizes=sizes).to(dtype).flatten(0, 1)

    def blank_features(self, config: Any, seconds: float) -> Features:
        """With the number of embeddings."""
        frames = math.ceil(100 * seconds)
        features = torch.zeros(1, frames, config.audio_config.input_size)
        return {
            "audio_input_features": features,
            "audio_embed_sizes": torch.tensor([-(-frames // config.audio_config.time_reduction)]),
        }

    def audio_token(self, model: Any) -> int:
        """Id of `<|audio|>`."""
        return int(model.config.audio_config.audio_token_id)

    def image_token(self, model: Any) -> int:
        """Id of `<|image|>`."""
        return int(model.config.vision_config.image_token_id)

    # A processor of transformers 5.23 has lost its template once it was loaded, and the original checkpoint's template
    # takes strings alone (see `prompt`).
    card_audio = '"<|audio|>"'
    card_inputs = (SpeechLLM.card_inputs[0].replace("processor.", "processor.tokenizer."), SpeechLLM.card_inputs[1])

    def card_loading(self, model: str, revision: str | None = None) -> list[str]:
        """Of Microsoft's checkpoint its speech LoRA is merged, as `load` does."""
        if model != MODEL_ID:
            return super().card_loading(model, revision)
        where = f"{model!r}, subfolder={SPEECH_LORA!r}, revision={revision or NATIVE_REVISION!r}"
        return [
            *super().card_loading(model, revision or NATIVE_REVISION),
            f"speech = LoraConfig.from_pretrained({where})",
            f"speech.target_modules = {self.lora_targets!r}",
            f"model = PeftModel.from_pretrained(model, {where}, config=speech).merge_and_unload()",
        ]
