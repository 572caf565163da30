"""Clips that are hard to hear: a data set's own speech mixed in as babble, or noise without speech, at a stated level.

What is mixed into a clip depends on the seed and the row's key alone, and on which rows there are to draw from.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from datasets import Audio, Dataset
from torchaudio.functional import add_noise
from tqdm import tqdm

from ..data.audio import load_audio
from ..errors import SettingError
from .clips import PEAK, encode, pink_noise

NOISES = ("babble", "pink")
CLIPS_KEPT = 500  # decoded; two of 73 s take 10 MB


def mix(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """A clip with noise at a level: the ratio of their energies, in decibels; quieter where its peak would clip.

    Args:
        waveform: (samples,), float32.
        noise: (samples,), of any level.
        snr_db: energy of the clip over that of the noise as it is mixed in; 10 is a tenth.
    """
    mixed = add_noise(torch.from_numpy(waveform), torch.from_numpy(noise), torch.tensor(float(snr_db))).numpy()
    return (mixed * min(1.0, PEAK / float(np.abs(mixed).max()))).astype(np.float32)


def babble(clips: Sequence[np.ndarray], length: int, draw: random.Random) -> np.ndarray:
    """Voices at once, (length,): each clip as loud as the others, from a place drawn in it on, over and over."""
    voices: list[np.ndarray] = [np.resize(np.roll(clip, -draw.randrange(len(clip))), length) for clip in clips]
    return np.sum([voice / np.sqrt(np.mean(voice**2)) for voice in voices], axis=0, dtype=np.float32)


def with_noise(
    dataset: Dataset, *, noise: str, snr_db: float, seed: int = 0, voices: int = 4, codec: str = "flac"
) -> Dataset:
    """A data set whose clips have noise in them; every other column is as it was, and `noise` says which.

    Args:
        dataset: with `audio`, undecoded, and `key`.
        noise: babble, of so many other clips of the data set; or pink, noise without speech.
        snr_db: see `mix`.
        seed: of the draws, together with a row's key.
        voices: of the babble.
        codec: of the clips (`clips.CODECS`).

    Raises:
        SettingError: an unknown noise, or fewer other clips than voices.
        AudioError: a clip that cannot be read.
    """
    if noise not in NOISES or (noise == "babble" and not 0 < voices < len(dataset)):
        raise SettingError(
            f"noise={noise!r} with voices={voices} of {len(dataset)} clips cannot be made. Use one of "
            f"{', '.join(NOISES)}, and for babble fewer voices than there are other clips."
        )
    rows = dataset.select_columns(["audio", "key"]).with_format(None)
    by_key = sorted(range(len(rows)), key=rows["key"].__getitem__)  # whichever rows come first

    @lru_cache(CLIPS_KEPT)
    def clip(number: int) -> np.ndarray:
        return load_audio(rows[number]["audio"])

    mixed = []
    for number, key in enumerate(tqdm(rows["key"], f"Mixing in {noise}", disable=None)):
        draw = random.Random(f"{seed}/{key}")  # a text seeds alike in every run
        waveform = clip(number)
        if noise == "babble":
            others = draw.sample([other for other in by_key if other != number], voices)
            sound = babble([clip(other) for other in others], len(waveform), draw)
        else:
            sound = pink_noise(len(waveform), torch.Generator().manual_seed(draw.getrandbits(63))).numpy()
        mixed.append({"bytes": encode(mix(waveform, sound, snr_db), codec), "path": None})
    kept = dataset.remove_columns([name for name in ("audio", "noise") if name in dataset.column_names])
    named = kept.add_column("noise", [f"{noise} {snr_db:g} dB"] * len(dataset))
    return named.add_column("audio", mixed).cast_column("audio", Audio(decode=False))
