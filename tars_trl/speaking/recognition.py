"""Speech recognition as a check on synthesised speech: is what was said what should have been said?

The method keeps a clip where whisper-medium's word error rate is at most 10 %. A recogniser is named `kind:model`:

    transformers:openai/whisper-medium    any speech recognition model of transformers, hub id or folder
    faster-whisper:FOLDER                 a Whisper model in CTranslate2's format (pip install faster-whisper)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from ..data.audio import TARGET_RATE, load_audio
from ..data.hub import check_place
from ..data.word_errors import word_errors

Transcriber = Callable[[Sequence[dict[str, Any]]], list[str]]


def from_asr(model_id: str, device: Any = "cpu", batch_size: int = 8) -> Transcriber:
    """Transcribes with a transformers speech recognition pipeline; long clips in pieces of 30 s."""
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model=model_id, device=device, chunk_length_s=30)

    def transcribe(rows: Sequence[dict[str, Any]]) -> list[str]:
        # The pipeline empties the dict that it is given, hence a new one for each clip.
        clips = [{"raw": load_audio(row["audio"]), "sampling_rate": TARGET_RATE} for row in rows]
        return [result["text"].strip() for result in recognise(clips, batch_size=batch_size)]

    return transcribe


@cache
def _pipeline(model: str, device: str) -> Transcriber:
    return from_asr(model, device)


class Recognizer(Protocol):
    """What the builder needs of speech recognition. It is pickled to every process and loads its model there."""

    def transcribe(self, waveform: np.ndarray) -> str:
        """What is said in a waveform (samples,) at 16 kHz."""


@dataclass(frozen=True)
class TransformersRecognizer:
    """A transformers pipeline; clips of any length, in pieces of 30 s."""

    model: str
    device: str = "cpu"

    def transcribe(self, waveform: np.ndarray) -> str:
        (text,) = _pipeline(self.model, self.device)([{"audio": {"array": waveform, "sampling_rate": TARGET_RATE}}])
        return text


@dataclass(frozen=True)
class FasterWhisper:
    """faster-whisper, greedily, without the temperature fall-back, which draws at random."""

    model: str
    device: str = "cpu"

    def transcribe(self, waveform: np.ndarray) -> str:
        whisper = _faster_whisper(self.model, self.device)
        segments, _ = whisper.transcribe(waveform, language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)


KINDS: dict[str, Any] = {"transformers": TransformersRecognizer, "faster-whisper": FasterWhisper}


def recognizer(name: str, device: str = "cpu") -> Recognizer:
    """The recogniser called `kind:model`; its model is loaded when something is transcribed.

    Raises:
        ValueError: no such kind, or no such folder.
        FileNotFoundError, ConnectionError: the hub has no such model, or cannot be reached.
    """
    kind, colon, model = name.partition(":")
    if kind not in KINDS or not model:
        raise ValueError(
            f"asr={name!r} does not say kind and model. Write transformers:HUB_ID_OR_FOLDER or faster-whisper:FOLDER."
        )
    if "/" in model:  # a bare name is one of faster-whisper's own sizes
        check_place("asr", model)
    return KINDS[kind](model, device)


def word_error_rate(reference: str, transcript: str) -> float:
    """Word edits over the words of the reference, both as Whisper's English normaliser leaves them (3 for three).

    A reference without words is right only if nothing was heard.
    """
    edits, words = word_errors(reference, transcript)
    return edits / words if words else float(edits > 0)


@cache
def _faster_whisper(model: str, device: str) -> Any:
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise ImportError(
            f"asr='faster-whisper:{model}': it cannot be imported, {error}. Install it: pip install faster-whisper."
        ) from error
    kind = "int8" if device == "cpu" else "float16"
    return WhisperModel(model, device=device, compute_type=kind, cpu_threads=1, local_files_only=True)
