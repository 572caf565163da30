"""Speech LLMs small enough for a CPU: real model and processor classes, random weights. One function an architecture.

`ARCHITECTURES` is what the shared tests run over; a new speech LLM adds its function and one line.
"""

import base64
import json
import tempfile
from pathlib import Path

import soundfile
import torch
from tiny_omni import CHAT_TEMPLATE, MULTIMODAL_TOKENS, TEST_CORPUS, build_tokenizer
from tiny_omni import tiny_random as qwen2_5_omni
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GenerationConfig,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)
from transformers.tokenization_mistral_common import MistralCommonBackend

from tars_trl.data.prompts import spoken_prompt
from tars_trl.models import as_strings
from tars_trl.models.gemma4 import Gemma4
from tars_trl.models.granite_speech import GraniteSpeech
from tests.models.tiny_phi4 import tiny_random as phi4_multimodal

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
WHISPER = {"num_mel_bins": 80, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}


def seeded(model_class, config, tokenizer, seed: int):
    """A random model of a config, the same for the same seed, that ends a completion as its tokenizer does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model.eval()


def qwen2_audio(seed: int = 0, seconds: int = 4, **text):
    """Qwen2-Audio, whose tower hears 4 s instead of 30."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    processor = Qwen2AudioProcessor(
        WhisperFeatureExtractor(80, chunk_length=seconds, return_attention_mask=True), tokenizer
    )
    config = Qwen2AudioConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT, **text},
        audio_config={"model_type": "qwen2_audio_encoder", "max_source_positions": 50 * seconds, **WHISPER},
        audio_token_index=tokenizer.audio_token_id,
    )
    return seeded(Qwen2AudioForConditionalGeneration, config, tokenizer, seed), processor


def qwen3_omni(seed: int = 0):
    """Qwen3-Omni's thinker: sixteen experts in each layer, of which a token takes eight, as the released model's."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    processor = Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=WhisperFeatureExtractor(80, chunk_length=30, return_attention_mask=True),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in MULTIMODAL_TOKENS.items()}
    config = Qwen3OmniMoeThinkerConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "num_experts": 16,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 16,
            "head_dim": 16,
            "initializer_range": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        audio_config={**WHISPER, "downsample_hidden_size": 16, "output_dim": 64, "initializer_range": 0.1},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 1,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [],
        },
        audio_token_id=ids["audio_token"],
        vision_start_token_id=ids["vision_bos_token"],  # not in the class's list, but in the hub's file
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        initializer_range=0.1,  # with so few channels less would be heard as nothing
    )
    return seeded(Qwen3OmniMoeThinkerForConditionalGeneration, config, tokenizer, seed), processor


# mistral-common's, by their place in the released tokenizer, which the processor relies on.
TEKKEN = {
    **dict(enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"))),
    **dict(enumerate(("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"), 7)),
    **dict(enumerate(("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), 13)),
    **{19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"},
}


def tekken(folder: Path) -> Path:
    """A tokenizer file of mistral-common's, for all single bytes."""
    audio = {"sampling_rate": 16_000, "frame_rate": 12.5, "chunk_length_s": 30.0}
    audio["audio_encoding_config"] = {"num_mel_bins": 80, "hop_length": 160, "window_size": 400}
    content = {
        "config": {
            "pattern": r"\w+|\W",
            "num_vocab_tokens": 256,
            "default_vocab_size": 296,
            "default_num_special_tokens": 40,
            "version": "v7",
        },
        "vocab": [
            {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
            for byte in range(256)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": TEKKEN.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(40)
        ],
        "audio": audio,
        "version": 1,
        "type": "tekken",
    }
    path = folder / "tekken.json"
    path.write_text(json.dumps(content))
    return path


def voxtral(seed: int = 0):
    """Voxtral, with mistral-common's real tokenizer around single bytes."""
    folder = tempfile.TemporaryDirectory()  # the tokenizer copies its file from there when it is saved
    tokenizer = MistralCommonBackend(tekken(Path(folder.name)))
    processor = VoxtralProcessor(WhisperFeatureExtractor(80), tokenizer)
    processor.folder_of_tokenizer = folder  # stays while the processor does
    config = VoxtralConfig(
        text_config={"model_type": "llama", "vocab_size": 296, "head_dim": 16, **TEXT},
        audio_config={"model_type": "voxtral_encoder", **WHISPER, "encoder_ffn_dim": 128},  # four positions a token
        audio_token_id=processor.audio_token_id,
    )
    return seeded(VoxtralForConditionalGeneration, config, tokenizer, seed), processor


def audio_flamingo_3(seed: int = 0):
    """Audio Flamingo 3, whose windows are 4 s instead of 30."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(80, chunk_length=4, return_attention_mask=True),
        tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<|AUDIO|>"),
        audio_token="<|AUDIO|>",
    )
    config = AudioFlamingo3Config(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT},
        audio_config={"model_type": "audioflamingo3_encoder", "max_source_positions": 200, **WHISPER},
        audio_token_id=processor.audio_token_id,
    )
    return seeded(AudioFlamingo3ForConditionalGeneration, config, tokenizer, seed), processor


# Granite's turns; contents are strings.
GRANITE_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}:{{ message['content'] }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant:{%- endif -%}"""


def granite_speech(seed: int = 0, prepared: bool = True):
    """Granite Speech without a LoRA of its own, its logits scaled as training has them."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    tokenizer.audio_token = "<|audio|>"
    processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer, chat_template=GRANITE_TEMPLATE)
    config = GraniteSpeechConfig(
        text_config={"model_type": "granite", "vocab_size": len(tokenizer), "logits_scaling": 8.0, **TEXT},
        encoder_config={"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "context_size": 20, "max_pos_emb": 32},
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
    )
    model = seeded(GraniteSpeechForConditionalGeneration, config, tokenizer, seed)
    for weight in [*model.model.projector.qformer.parameters(), *model.model.encoder.parameters()]:
        if weight.dim() > 1:
            weight.data.mul_(3)  # with so few channels less would be heard as nothing
    if prepared:
        GraniteSpeech().prepare(model)
    return model, processor


def gemma4(seed: int = 0, window: int = 512):
    """Gemma 4: every other layer sees a window, and the last two of four have the keys and values of the first two."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    roles = {f"{edge}{kind}_token": MULTIMODAL_TOKENS[name] for edge, kind, name in (
        ("bo", "a", "audio_bos_token"), ("eo", "a", "audio_eos_token"),
        ("bo", "i", "vision_bos_token"), ("eo", "i", "vision_eos_token"),
    )}  # fmt: skip
    tokenizer._set_model_specific_special_tokens(special_tokens={**MULTIMODAL_TOKENS, **roles})
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(),
        tokenizer,
        Gemma4VideoProcessor(),
        chat_template=CHAT_TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<|AUDIO|>"),
    )
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "initializer_range": 0.1}
    config = Gemma4Config(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "hidden_size_per_layer_input": 8,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": window,
            "final_logit_softcapping": 30.0,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        audio_config={**small, "subsampling_conv_channels": [128, 4], "output_proj_dims": 48},
        vision_config={**small, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 16},
        audio_token_id=processor.audio_token_id,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    model = seeded(Gemma4ForConditionalGeneration, config, tokenizer, seed)
    for layer in model.model.language_model.layers:  # as they are, attention is sharp, and sums are inexact
        layer.self_attn.q_norm.weight.data.fill_(1 / layer.self_attn.head_dim)
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm, layer.post_per_layer_input_norm):
            norm.weight.data.fill_(0.3)
    Gemma4().prepare(model)
    return model, processor


ARCHITECTURES = {
    "qwen2_5_omni_thinker": qwen2_5_omni,
    "qwen3_omni_moe_thinker": qwen3_omni,
    "qwen2_audio": qwen2_audio,
    "voxtral": voxtral,
    "audioflamingo3": audio_flamingo_3,
    "granite_speech": granite_speech,
    "gemma4": gemma4,
    "phi4_multimodal": phi4_multimodal,
}


def own_inputs(processor, prompt, waveform):
    """What a processor makes of a spoken prompt by itself, as its model's page on the hub shows it."""
    conversation = spoken_prompt(prompt)
    if isinstance(processor, GraniteSpeechProcessor):
        conversation = as_strings(conversation, processor.audio_token)
    if not isinstance(processor, VoxtralProcessor):
        text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
        return processor(text=text, audio=[waveform], return_tensors="pt")  # with the processor's own padding
    system, user = (turn["content"] for turn in conversation)
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(f"{folder}/clip.wav", waveform, 16_000, subtype="FLOAT")
        encoded = base64.b64encode(Path(folder, "clip.wav").read_bytes()).decode()
    assert [part["type"] for part in user] == ["audio"]
    return processor.apply_chat_template([{"role": "user", "content": [*system, {"type": "audio", "base64": encoded}]}])
