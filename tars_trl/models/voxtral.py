"""Voxtral, whose processor is mistral-common: `pip install "mistral-common[audio]>=1.11.5"`."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch

from ..data.audio import TARGET_RATE
from . import AUDIO_TOKENS, Prompt, SpeechLLM


class Voxtral(SpeechLLM):
    """Voxtral (`mistralai/Voxtral-Mini-3B-2507`): 375 audio tokens for each half minute that a clip has begun.

    mistral-common refuses a system message beside audio. So that twins stay alike, the system prompt stands at the head
    of the user's turn in both.
    """

    class_name = "VoxtralForConditionalGeneration"
    decoder_layer_class = "LlamaDecoderLayer"
    audio_tokens_per_second = 12.5
    whole_windows = True
    features = ("input_features",)
    processor_options = {"tokenizer_type": "voxtral"}
    in_vllm = False  # which reads Mistral's own checkpoint alone, whose names and layout are others

    def prompt(
        self, processor: Any, conversation: list[dict[str, Any]], waveform: np.ndarray | None, **kwargs: Any
    ) -> Prompt:
        """Prompt through mistral-common, which pads the clip with silence to whole half minutes."""
        head = [part for turn in conversation if turn["role"] == "system" for part in turn["content"]]
        turns = [dict(turn) for turn in conversation if turn["role"] != "system"]
        turns[0]["content"] = head + turns[0]["content"]
        if waveform is not None:
            file = io.BytesIO()
            soundfile.write(file, waveform, TARGET_RATE, format="WAV", subtype="FLOAT")
            clip = {"type": "audio", "base64": f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"}
            for turn in turns:
                turn["content"] = [clip if part["type"] == "audio" else part for part in turn["content"]]
        inputs = processor.apply_chat_template(turns, **kwargs)
        ids = inputs["input_ids"][0].tolist()
        if waveform is None:
            return Prompt(ids)
        count = torch.tensor(ids.count(processor.audio_token_id))
        return Prompt(ids, {"input_features": inputs["input_features"], AUDIO_TOKENS: count})

    def end_of_turn(self, processor: Any, end_tokens: Sequence[int]) -> list[int]:
        """`</s>`, which mistral-common puts behind an assistant's text, and never reads from a text."""
        return [processor.tokenizer.eos_token_id]

    # A card asks as `prompt` does.
    card_packages = ('"mistral-common[audio]"',)
    card_inputs = (
        "*system, user = conversation  # beside audio there is no system message: its text goes into the user's turn",
        'user["content"] = [{"type": "text", "text": turn["content"]} for turn in system] + user["content"]',
        "wave = io.BytesIO()",
        'soundfile.write(wave, waveform, 16_000, format="WAV", subtype="FLOAT")',
        'user["content"][-1]["base64"] = "data:audio/wav;base64," + base64.b64encode(wave.getvalue()).decode()',
        "inputs = processor.apply_chat_template([user])",
    )
    card_imports = ("import base64", "import io")
