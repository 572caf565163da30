"""Noise in clips: its level, what it is made of, and that the seed decides it."""

import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Audio

from tars_trl.data.audio import load_audio
from tars_trl.errors import SettingError
from tars_trl.speaking.noise import babble, mix, with_noise
from tests.conftest import questions


def clips(dataset):
    return {row["key"]: load_audio(row["audio"]) for row in dataset}


@pytest.mark.parametrize("snr_db", [20.0, 0.0, -5.0])
def test_level_is_as_stated(snr_db):
    generator = np.random.default_rng(0)
    clip, noise = (generator.standard_normal(16_000).astype("float32") for _ in range(2))
    mixed = mix(0.01 * clip, noise, snr_db)
    rest = mixed - 0.01 * clip
    assert 10 * np.log10(np.sum((0.01 * clip) ** 2) / np.sum(rest**2)) == pytest.approx(snr_db, abs=0.01)
    loud = mix(0.9 * clip, noise, snr_db)
    assert np.abs(loud).max() == pytest.approx(0.97) and loud.dtype == np.float32


def test_babble_is_of_equally_loud_voices():
    draw = random.Random(0)
    quiet, loud = np.full(50, 1e-3, "float32"), np.tile(np.array([1, -1], "float32"), 40)
    made = babble([quiet, loud], 200, draw)
    assert made.shape == (200,) and set(np.round(made, 3).tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("noise", ["babble", "pink"])
def test_seed_and_key_decide(noise):
    """The same again; another seed is another noise; the rows' order and their other columns do not matter."""
    given = {"noise": noise, "snr_db": 10.0, "voices": 2}
    rows = questions(4)
    once, again, other = (clips(with_noise(rows, **given, seed=seed)) for seed in (0, 0, 1))
    clean, turned = clips(rows), clips(with_noise(rows.select([2, 0, 3, 1]), **given, seed=0))
    for key, clip in once.items():
        assert np.array_equal(clip, again[key]) and np.array_equal(clip, turned[key])
        assert not np.array_equal(clip, other[key])
        rest = clip - clean[key] * (np.dot(clip, clean[key]) / np.dot(clean[key], clean[key]))
        assert len(clip) == len(clean[key]) and np.abs(rest).max() > 1e-3
    noisy = with_noise(rows, **given)
    assert set(noisy.column_names) == {*rows.column_names, "noise"} and set(noisy["noise"]) == {f"{noise} 10 dB"}
    assert isinstance(noisy.features["audio"], Audio) and noisy["prompt"][:] == rows["prompt"][:]
    assert with_noise(noisy, **given).column_names.count("noise") == 1


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(SettingError, match="voices=4 of 4"):
        with_noise(questions(4), noise="babble", snr_db=0.0)
    with pytest.raises(SettingError, match="noise='rain'"):
        with_noise(questions(4), noise="rain", snr_db=0.0)


def test_recipe_sets_validation_apart(tmp_path, questions_folder, capsys):
    import add_noise

    command = ["--dataset", questions_folder, "--splits", "test", "--validation", "2", "--voices", "1"]
    add_noise.main([*command, "--output_dir", str(tmp_path)])
    keys = {path.name.partition("-")[0]: set(pq.read_table(path)["key"].to_pylist()) for path in tmp_path.iterdir()}
    assert {name: len(of) for name, of in keys.items()} == {"test": 4, "validation": 2}
    assert not keys["test"] & keys["validation"] and "4 questions in test, babble 10 dB" in capsys.readouterr().out
    with pytest.raises(SettingError, match="validation=6"):
        add_noise.main([*command, "--validation", "6", "--output_dir", str(tmp_path)])
