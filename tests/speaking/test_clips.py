"""Clips: level, ends, checks, augmentation, and a codec whose samples repeat."""

import random

import numpy as np
import pytest
import torch
from torchaudio.functional import loudness

from tars_trl.data.audio import load_audio
from tars_trl.speaking import clips
from tars_trl.speaking.clips import Augmentation, augment, clip_problem, encode, finish
from tests.speaking.tones import RATE, Tones

WORDS = "the quick brown fox jumps over the lazy dog and runs away"


def speech(voice="plain", text=WORDS):
    return Tones().speak(text, voice, 1.0)[0]


def lufs(wave):
    return float(loudness(torch.from_numpy(wave)[None], RATE))


def test_finished_clips_are_equally_loud_and_trimmed():
    padded = np.concatenate([np.zeros(RATE), speech(), np.zeros(RATE)]).astype(np.float32)
    quiet, loud = finish(0.01 * padded, RATE), finish(padded, RATE)
    assert lufs(quiet) == pytest.approx(clips.LOUDNESS, abs=0.1)  # LU
    np.testing.assert_allclose(quiet, loud, atol=1e-5)
    assert len(loud) / RATE == pytest.approx(len(speech()) / RATE + 0.2, abs=0.05)  # 0.1 s left at both ends
    doubled = finish(np.repeat(padded, 2), 2 * RATE)
    assert len(doubled) == pytest.approx(len(loud), abs=200)  # another rate, the same length


def test_level_gives_way_to_the_peak():
    click = np.zeros(RATE, dtype=np.float32)
    click[::4000] = 0.1
    assert np.abs(finish(click, RATE)).max() <= clips.PEAK + 1e-6


@pytest.mark.parametrize(
    ("wave", "words", "reason"),
    [
        (speech(), WORDS, None),
        (speech("loud"), WORDS, "clipped"),
        (speech("silent"), WORDS, "silent"),
        (speech(text="the fox"), WORDS * 3, "too short"),
        (np.concatenate([speech()] * 12), WORDS * 12, "too long"),
        (np.concatenate([speech(), np.zeros(4 * RATE), speech()]), WORDS * 2, "pause"),
        (speech(), WORDS * 4, "pace"),
        (speech(), "the fox", "pace"),
        (np.full(RATE, np.nan), WORDS, "not finite"),
    ],
)
def test_clip_problem(wave, words, reason):
    problem = clip_problem(np.asarray(wave, dtype=np.float32), RATE, words)
    assert (problem and problem.split(":")[0]) == reason


def test_augmentation_is_drawn_by_its_seed_and_does_what_it_says():
    wave = finish(speech(), RATE)
    assert augment(wave, Augmentation(), random.Random(0))[1] == ""
    kinds = set()
    for seed in range(8):
        changed, done = augment(wave, Augmentation(share=1.0), random.Random(seed))
        again, _ = augment(wave, Augmentation(share=1.0), random.Random(seed))
        np.testing.assert_array_equal(changed, again)
        assert done and np.isfinite(changed).all() and np.abs(changed).max() <= clips.PEAK + 1e-6
        kinds |= {part.split()[0] for part in done.split(", ")}
        if done.startswith("speed"):
            factor = float(done.split(",")[0].split()[1])
            assert len(changed) >= len(wave) / factor - 2
    assert kinds == {"speed", "room", "noise"}


def test_noise_has_the_ratio_that_it_names(monkeypatch):
    monkeypatch.setattr(clips, "level", lambda wave: wave)  # keeps the signal's level
    wave = finish(speech(), RATE)
    for seed in range(20):
        changed, done = augment(wave, Augmentation(share=1.0, snr_db=(10.0, 10.0)), random.Random(seed))
        if done == "noise 10 dB":
            ratio = 10 * np.log10((wave**2).sum() / ((changed - wave) ** 2).sum())
            assert ratio == pytest.approx(10, abs=0.01)
            return
    raise AssertionError("no draw had noise alone")


@pytest.mark.parametrize("codec", ["opus", "flac"])
def test_encoded_repeats_and_decodes(codec):
    wave = finish(speech(), RATE)
    first = encode(wave, codec)
    back = load_audio(first)
    np.testing.assert_array_equal(back, load_audio(encode(wave, codec)))
    assert len(back) == len(wave)
    # Opus loses what is not heard.
    assert np.corrcoef(back, wave)[0, 1] > (0.9 if codec == "opus" else 0.9999)
    assert len(first) < (0.25 if codec == "opus" else 0.9) * 2 * len(wave)
