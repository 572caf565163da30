"""Configurations of released models, by hub id: what a plan or a test needs of one when the hub cannot be reached."""

import logging
from typing import Any

from transformers import AutoConfig

from ..errors import SettingError

logger = logging.getLogger(__name__)

RELEASED: dict[str, dict[str, Any]] = {
    # Sizes that are not named are the defaults of transformers' classes, which are these models'.
    "Qwen/Qwen2.5-Omni-7B": {
        "model_type": "qwen2_5_omni_thinker",
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": False,
        },
        "audio_config": {"output_dim": 3584},
        "vision_config": {"hidden_size": 1280},
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "tie_word_embeddings": False,
    },
    "microsoft/Phi-4-multimodal-instruct": {
        "model_type": "phi4_multimodal",
        "num_attention_heads": 24,
        "sliding_window": 262_144,
        "tie_word_embeddings": True,
        "eos_token_id": [199_999, 200_020],
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 32.0,
            "partial_rotary_factor": 0.75,
            # Their number is a size; their values are left out, as they change no other.
            "short_factor": [1.0] * 48,
            "long_factor": [1.0] * 48,
        },
    },
    "Qwen/Qwen2-Audio-7B-Instruct": {
        "model_type": "qwen2_audio",
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 156_032,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    },
    "mistralai/Voxtral-Mini-3B-2507": {
        "model_type": "voxtral",
        "audio_token_id": 24,
        "text_config": {"model_type": "llama", "num_attention_heads": 32},
    },
    "nvidia/audio-flamingo-3-hf": {
        "model_type": "audioflamingo3",
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 151_672,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    },
    "ibm-granite/granite-4.0-1b-speech": {
        "model_type": "granite_speech",
        "text_config": {
            "model_type": "granite",
            "vocab_size": 100_353,
            "hidden_size": 2048,
            "intermediate_size": 4096,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        },
        "encoder_config": {"num_layers": 16, "output_dim": 348},
        "projector_config": {
            "model_type": "blip_2_qformer",
            "hidden_size": 1024,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "encoder_hidden_size": 1024,
            "cross_attention_frequency": 1,
        },
        "audio_token_index": 100_352,
        "has_lora_adapter": False,
        "tie_word_embeddings": False,
    },
    "google/gemma-4-E2B-it": {
        "model_type": "gemma4",
        "text_config": {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_key_value_heads": 1,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
        "audio_config": {},
        "vision_config": {},
    },
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": {
        "model_type": "qwen3_omni_moe_thinker",
        "text_config": {
            "vocab_size": 152_064,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]},
        },
        "audio_config": {"output_dim": 2048},
        "vision_config": {"out_hidden_size": 2048},
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
    },
    "Qwen/Qwen3-Embedding-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151_669,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}


def configuration(model_id: str, **options: Any) -> Any:
    """A model's configuration, from its folder or the hub; of a released one also without.

    Args:
        model_id: folder or hub id.
        options: of `AutoConfig.from_pretrained`.

    Raises:
        SettingError: the model is not among those that are known here, and cannot be reached.
    """
    try:
        return AutoConfig.from_pretrained(model_id, **options)
    except (OSError, ValueError) as error:  # ValueError: of a folder without config.json
        if model_id not in RELEASED:
            raise SettingError(
                f"{model_id!r}: its configuration is neither at hand nor written down here ({', '.join(RELEASED)} "
                "are). Give a folder that holds its config.json, or go where the hub can be reached."
            ) from error
    logger.warning("%s: the hub cannot be reached; the sizes are those written in %s.", model_id, __name__)
    return AutoConfig.for_model(**RELEASED[model_id])
