"""A Phi-4-multimodal small enough for a CPU: the real model and processor classes, random weights."""

import torch
from tiny_omni import TAGS, TEST_CORPUS, build_tokenizer
from transformers import (
    GenerationConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalImageProcessor,
    Phi4MultimodalProcessor,
    PreTrainedTokenizerFast,
)

MULTIMODAL_TOKENS = {"image_token": "<|image|>", "audio_token": "<|audio|>"}

# Phi-4's turns: a role's token, the content, `<|end|>`; a turn's content is a string or a list of parts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message['role'] }}|>
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}<|audio|>
{%- elif part['type'] == 'image' -%}<|image|>
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def build_processor() -> Phi4MultimodalProcessor:
    """The real processor class around a byte-level BPE tokenizer of a few hundred tokens, padding on the left."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(TEST_CORPUS).backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={**MULTIMODAL_TOKENS, "end_token": "<|end|>"},
        padding_side="left",
    )
    tokenizer.add_tokens([*TAGS, "<|system|>", "<|user|>", "<|assistant|>"], special_tokens=True)
    return Phi4MultimodalProcessor(
        image_processor=Phi4MultimodalImageProcessor(),
        audio_processor=Phi4MultimodalFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_random(seed: int = 0) -> tuple[Phi4MultimodalForCausalLM, Phi4MultimodalProcessor]:
    """A random model of under a million parameters and its processor, the same for the same `seed`."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    config = Phi4MultimodalConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={  # the kind that the released model has
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * 9,
            "long_factor": [2.0] * 9,
            "original_max_position_embeddings": 4096,
        },
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.pad_token_id, end],
        pad_token_id=tokenizer.pad_token_id,
        audio_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 64,
            "depthwise_separable_out_channel": 64,
            "nemo_conv_channels": 32,
            "audio_token_id": tokenizer.audio_token_id,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "image_token_id": tokenizer.image_token_id,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi4MultimodalForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model.eval(), processor
