"""Qwen2.5-Omni thinkers small enough for a CPU: the real model and processor classes, with small sizes.

`build_tokenizer`, `build_processor` and `build_model` make the parts; `tiny_random` joins them for tests.
Nothing here is trained and nothing is downloaded: `tools/build_tiny_omni.py` fills in weights.
"""

import json
import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

# Roles as the Qwen2.5-Omni tokenizer names them: the processor looks its tokens up by these attribute names.
MULTIMODAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}
# Ordinary (not special) tokens, so that they survive `skip_special_tokens=True` and rewards can see them.
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]

# ChatML turns; a turn's content is a string or a list of parts. No default system prompt is added.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif part['type'] == 'image' -%}<|vision_bos|><|IMAGE|><|vision_eos|>
{%- elif part['type'] == 'video' -%}<|vision_bos|><|VIDEO|><|vision_eos|>
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

TEST_CORPUS = ["system user assistant You think, then answer. What is one plus two? A. B. C. D. The answer is A."]


def build_tokenizer(corpus: Iterable[str]) -> Qwen2TokenizerFast:
    """Train a byte-level BPE tokenizer on `corpus` and give it Qwen2.5-Omni's special tokens.

    Every word of a small corpus becomes one token: merging goes on until nothing is left to merge or 4,096 entries are
    reached. Ends of turns are `<|im_end|>`, padding is `<|endoftext|>`, on the left.
    """
    bpe = Tokenizer(models.BPE())
    # The same splitting as the class around it does, so that training and use see the same words.
    bpe.pre_tokenizer = Qwen2TokenizerFast().backend_tokenizer.pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"min_frequency": 1, "initial_alphabet": alphabet, "show_progress": False}
    texts = [piece for text in corpus for piece in re.split("|".join(TAGS), text)]
    # Twice: the trainer leaves pairs seen once unmerged.
    bpe.train_from_iterator(texts * 2, trainers.BpeTrainer(vocab_size=4096, **options))
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"im_start_token": "<|im_start|>", **MULTIMODAL_TOKENS},
        padding_side="left",
    )
    tokenizer.add_tokens(TAGS)
    return tokenizer


def build_processor(
    tokenizer: Qwen2TokenizerFast, mel_bins: int = 80, window_seconds: int = 30
) -> Qwen2_5OmniProcessor:
    """Put the real processor class around `tokenizer`.

    The feature extractor pads every clip to `window_seconds` (the released model: 300) of `mel_bins` log-mel bins.
    """
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=mel_bins, chunk_length=window_seconds, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: Qwen2TokenizerFast,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    intermediate: int = 384,
    mel_bins: int = 80,
    audio_width: int = 64,
    audio_layers: int = 2,
    audio_heads: int = 4,
    audio_intermediate: int = 128,
    audio_window: int = 100,
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A thinker with random weights (torch's global generator), float32, embeddings tied.

    `audio_window` is the tower's attention window in units of 20 ms (released model: 100 = 2 s; Whisper's 15 s: 750).
    The vision tower is as small as it can be: it is never used, but the class has one.
    """
    half = hidden // heads // 2  # rotary frequencies of one head, shared out over time, height and width
    section = [half - 2 * (half // 3), half // 3, half // 3]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in MULTIMODAL_TOKENS.items()}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section},
            "tie_word_embeddings": True,
            **ends,
        },
        audio_config={
            "num_mel_bins": mel_bins,
            "d_model": audio_width,
            "encoder_layers": audio_layers,
            "encoder_attention_heads": audio_heads,
            "encoder_ffn_dim": audio_intermediate,
            "n_window": audio_window,
            "output_dim": hidden,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 1,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [0],
        },
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        user_token_id=tokenizer.encode("user")[0],
        tie_word_embeddings=True,
        **ends,
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    return model.eval()


def tiny_random(
    seed: int = 0, mel_bins: int = 80, window_seconds: int = 30, **sizes: int
) -> tuple[Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniProcessor]:
    """A random thinker of under one million parameters and its processor, the same for the same `seed`."""
    tokenizer = build_tokenizer(TEST_CORPUS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(tokenizer, mel_bins=mel_bins, **{"layers": 3, "intermediate": 256, **sizes})
    return model, build_processor(tokenizer, mel_bins, window_seconds)
