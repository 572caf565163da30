"""A tiny engine and its recogniser: every letter is a tone of 50 ms. No files, no downloads, and what is said is heard.

Voices: `plain`; `soft` is half as loud; `mumble` says vowels as e; `silent`; `loud` clips; `mute` refuses.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tars_trl.errors import RefusedTextError, VoiceError

RATE, FRAME = 16_000, 800
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOICES = ("plain", "soft", "mumble", "silent", "loud", "mute")


@dataclass(frozen=True)
class Tones:
    log: str | None = None
    """File that gets a line `process id, text` for every text that is begun."""
    deadline: int | None = None
    """Kill a process with SIGKILL, this one or its parent, when this many texts are begun."""
    kill: str = "self"

    def check(self, voice):
        if voice not in VOICES:
            raise VoiceError(f"tone:{voice}: there is no such voice. Use one of {VOICES}.")

    def speak(self, text, voice, pace):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\t{' '.join(text.split())}\n")
            if self.deadline is not None and len(Path(self.log).read_text().splitlines()) >= self.deadline:
                os.kill(os.getpid() if self.kill == "self" else os.getppid(), signal.SIGKILL)
        if voice == "mute":
            raise RefusedTextError("mute")
        if voice == "mumble":
            text = "".join("e" if letter in "aiou" else letter for letter in text.lower())
        frames = [tone(letter) for letter in text.lower() if letter in LETTERS or letter.isspace()]
        wave = np.concatenate([*frames, np.zeros(1)]).astype(np.float32)
        if voice == "soft":
            wave /= 2
        if voice == "silent":
            wave *= 0
        if voice == "loud":
            wave = np.clip(8 * wave, -1, 1)
        return wave, RATE


def tone(letter):
    if letter.isspace():
        return np.zeros(FRAME)
    time = np.arange(FRAME) / RATE
    return 0.4 * np.hanning(FRAME) * np.sin(2 * np.pi * (400 + 100 * LETTERS.index(letter)) * time)


@dataclass(frozen=True)
class Ears:
    """Hears `Tones` at a pace of 1, also after levelling and trimming."""

    def transcribe(self, waveform):
        start = int(np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())[0]) - FRAME // 32
        heard = ""
        for begin in range(max(0, start), len(waveform) - FRAME // 2, FRAME):
            frame = waveform[begin : begin + FRAME]
            spectrum = np.abs(np.fft.rfft(frame, RATE))  # a bin is 1 Hz
            loud = np.abs(frame).max() > 0.05 * np.abs(waveform).max()
            heard += LETTERS[round((int(spectrum.argmax()) - 400) / 100) % len(LETTERS)] if loud else " "
        return heard
