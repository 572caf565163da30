"""A synthesised clip made ready for training: level, ends, checks, augmentation, and the codec it is kept in.

A waveform is a float32 array (samples,) at 16 kHz with full scale 1.0, as in `tars_trl.data.audio`.
"""

import io
import random
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torchaudio.functional import add_noise, fftconvolve, loudness, resample

from ..data.audio import TARGET_RATE, audio_problem, load_audio

LOUDNESS = -23.0  # LUFS, EBU R 128
PEAK = 0.97  # of full scale, after levelling
CLIPPED_SHARE = 1e-3  # of samples that lie flat, within 0.1 % of the loudest one; speech touches its peak once or twice
LONGEST_PAUSE = 3.0  # seconds below -50 dB of the peak; a voice that hangs
SPEAKING_RATES = (4.0, 32.0)  # characters per second; usual speech has 12 to 18


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a clip, each on its own draw (pairs: evenly between). Nothing is by default."""

    share: float = 0.0  # of clips that are changed at all
    snr_db: tuple[float, float] = (10.0, 30.0)  # signal-to-noise ratio of pink noise
    speed: tuple[float, float] = (0.95, 1.05)  # factor of speed and pitch together
    reverberation: tuple[float, float] = (0.1, 0.4)  # seconds in which an artificial room falls by 60 dB


def finish(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) at `rate` Hz as a clip: 16 kHz, -23 LUFS or quieter where its peak would clip, 0.1 s at its ends."""
    return level(trim(load_audio(samples, sampling_rate=rate)))


def trim(waveform: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """Without what is quieter than 1 % of the peak at both ends, but for `margin` seconds."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    if len(loud) == 0:
        return waveform
    keep = int(margin * TARGET_RATE)
    return waveform[max(0, loud[0] - keep) : loud[-1] + 1 + keep]


def level(waveform: np.ndarray) -> np.ndarray:
    """At -23 LUFS (ITU-R BS.1770), or as near as the peak allows. A clip that has no loudness is left as it is."""
    wave = torch.from_numpy(np.ascontiguousarray(waveform))[None]
    # Loudness is measured over blocks of 0.4 s: a shorter clip is repeated.
    repeats = -(-int(0.4 * TARGET_RATE) // wave.shape[1])
    measured = float(loudness(wave.repeat(1, repeats), TARGET_RATE))
    if not np.isfinite(measured):
        return waveform
    gain = 10 ** ((LOUDNESS - measured) / 20)
    return (waveform * min(gain, PEAK / float(np.abs(waveform).max()))).astype(np.float32)


def clip_problem(
    samples: np.ndarray, rate: int, words: str, *, min_seconds: float = 0.5, max_seconds: float | None = 30.0
) -> str | None:
    """What is wrong with a clip as the engine made it, or None.

    Args:
        samples: (samples,), before levelling, at `rate` in Hz.
        words: what it should say.

    Returns:
        `"reason: detail"`, where reason is one of `tars_trl.data.audio.audio_problem`, or clipped, pause, pace.
    """
    problem = audio_problem(samples, sampling_rate=rate, min_seconds=min_seconds, max_seconds=max_seconds)
    if problem is not None:
        return problem
    magnitude = np.abs(samples)
    peak = float(magnitude.max())
    top = magnitude >= 0.999 * peak
    clipped = float((top[1:] & top[:-1]).mean())
    if clipped > CLIPPED_SHARE:
        return f"clipped: {100 * clipped:.2f} % of the samples lie side by side at the peak"
    loud = np.flatnonzero(magnitude > 10 ** (-50 / 20) * peak)
    pause = float(np.diff(loud).max()) / rate if len(loud) > 1 else 0.0
    if pause > LONGEST_PAUSE:
        return f"pause: {pause:.1f} s of silence inside"
    pace = len(words) / (len(samples) / rate)
    if not SPEAKING_RATES[0] <= pace <= SPEAKING_RATES[1]:
        return f"pace: {pace:.1f} characters per second"
    return None


def augment(waveform: np.ndarray, settings: Augmentation, draw: random.Random) -> tuple[np.ndarray, str]:
    """A clip with noise, another speed or a room, as `draw` decides, and which ("speed 1.03, noise 17 dB", or "")."""
    if draw.random() >= settings.share:
        return waveform, ""
    wave, changes = torch.from_numpy(waveform), []
    kinds = [kind for kind in ("speed", "room", "noise") if draw.random() < 0.5] or ["noise"]
    generator = torch.Generator().manual_seed(draw.getrandbits(63))
    if "speed" in kinds:
        factor = round(draw.uniform(*settings.speed), 2)
        wave = resample(wave, round(100 * factor), 100)
        changes.append(f"speed {factor:g}")
    if "room" in kinds:
        seconds = round(draw.uniform(*settings.reverberation), 2)
        wave = fftconvolve(wave, _room(seconds, generator))
        changes.append(f"room {seconds:g} s")
    if "noise" in kinds:
        snr = round(draw.uniform(*settings.snr_db))
        wave = add_noise(wave, pink_noise(len(wave), generator), torch.tensor(float(snr)))
        changes.append(f"noise {snr} dB")
    return level(wave.numpy()), ", ".join(changes)


def _room(seconds: float, generator: torch.Generator) -> torch.Tensor:
    """Direct sound, then noise that falls by 60 dB in `seconds`; (samples,)."""
    time = torch.arange(int(seconds * TARGET_RATE)) / TARGET_RATE
    tail = 0.02 * torch.randn(len(time), generator=generator) * 10 ** (-3 * time / seconds)
    tail[0] = 1.0
    return tail


def pink_noise(length: int, generator: torch.Generator) -> torch.Tensor:
    """Noise whose power falls with the frequency; (length,)."""
    spectrum = torch.fft.rfft(torch.randn(length, generator=generator))
    return torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1).sqrt(), n=length)


# ---- Codec ---------------------------------------------------------------------------------------------------------

CODECS = {"opus": ("OGG", "OPUS", "ogg"), "flac": ("FLAC", "PCM_16", "flac")}
"""Name: container, subtype and file ending. Opus takes about 25 kbit/s, FLAC about 130."""


def encode(waveform: np.ndarray, codec: str = "opus") -> bytes:
    """A clip as a file. The same waveform gives the same samples; an Ogg file's bytes hold a number drawn anew."""
    container, subtype, _ = CODECS[codec]
    buffer = io.BytesIO()
    options = {"compression_level": 0.92} if codec == "opus" else {}
    soundfile.write(buffer, waveform, TARGET_RATE, format=container, subtype=subtype, **options)
    return buffer.getvalue()
