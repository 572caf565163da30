"""Decoding, resampling and checking speech, on clips made on the spot."""

import io
import os
import resource
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tars_trl.data.audio import BLOCK, audio_problem, load_audio
from tars_trl.data.checking import check_audio
from tars_trl.errors import AudioError

CODECS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}


def tone(seconds=0.5, rate=16_000, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples, rate=16_000, codec="wav", **kwargs):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **(CODECS[codec] | kwargs))
    return buffer.getvalue()


def loudest_frequency(waveform, rate=16_000):
    windowed = waveform * np.hanning(len(waveform))
    return np.argmax(np.abs(np.fft.rfft(windowed, 16 * len(waveform)))) * rate / (16 * len(waveform))


class TestLoad:
    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])  # all that opus knows, besides 12 kHz
    def test_every_codec_from_bytes(self, codec, rate):
        waveform = load_audio(encoded(tone(rate=rate), rate, codec))
        assert waveform.dtype == np.float32 and waveform.ndim == 1
        # mp3 and opus pad to whole frames: up to 72 ms at 8 kHz here
        assert 0.5 <= len(waveform) / 16_000 <= 0.58
        assert loudest_frequency(waveform) == pytest.approx(440, abs=2)
        assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.1)

    @pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 44_101, 48_000, 96_000])
    @pytest.mark.parametrize("hertz", [150, 1_234.5, 3_300])
    def test_resampling_keeps_length_pitch_and_level(self, rate, hertz):
        waveform = load_audio(tone(1.0, rate, hertz), sampling_rate=rate)
        assert abs(len(waveform) - 16_000) <= 1
        assert loudest_frequency(waveform) == pytest.approx(hertz, abs=0.1)  # bins of 1/16 Hz
        middle = slice(2_000, -2_000)
        expected = tone(1.0, 16_000, hertz)[: len(waveform)]
        # Worst of the usual rates: 2.4e-5. 44,101 Hz is approximated to 2 parts in a million: 0.017 after 1 s.
        atol = 0.03 if rate == 44_101 else 1e-4
        np.testing.assert_allclose(waveform[middle], expected[middle], atol=atol)

    def test_resampling_removes_what_would_alias(self):
        waveform = load_audio(tone(1.0, 48_000, 11_000), sampling_rate=48_000)  # would fold to 5 kHz
        assert np.abs(waveform[2_000:-2_000]).max() < 0.01

    def test_same_rate_changes_no_sample(self):
        np.testing.assert_array_equal(load_audio(tone(), sampling_rate=16_000), tone())

    def test_every_kind_of_source_gives_the_same(self, tmp_path):
        data = encoded(tone())
        path = tmp_path / "clip.bin"  # soundfile would guess from the name; the content decides
        path.write_bytes(data)
        sources = [
            *(path, str(path)),
            {"bytes": data, "path": None},
            {"bytes": data, "path": "not/there.wav"},
            {"bytes": None, "path": str(path)},
            {"array": load_audio(data), "sampling_rate": 16_000},
            {"array": load_audio(data).tolist(), "sampling_rate": 16_000},
        ]
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), load_audio(data))

    def test_paths_are_followed_in_undecoded_columns_alone(self, tmp_path):
        """`load_questions` looks where those lead."""
        path = tmp_path / "clip.wav"
        path.write_bytes(encoded(tone()))
        nothing = {"array": None, "sampling_rate": 16_000}
        for source in ({"path": str(path), **nothing}, {"bytes": str(path), "path": None}, {"array": str(path)}):
            with pytest.raises(AudioError):
                load_audio(source)

    def test_what_has_no_size_is_not_read(self):
        """/proc/kmsg, for one, waits for ever."""
        with pytest.raises(AudioError, match="0 bytes"):
            load_audio("/proc/self/environ")

    @pytest.mark.parametrize("codec", ["wav", "flac", "vorbis", "mp3"])
    def test_channels_are_averaged(self, codec):
        left, right = tone(hertz=300), tone(hertz=300, peak=0.1)
        waveform = load_audio(encoded(np.stack([left, right], axis=1), codec=codec))
        assert np.abs(waveform[1_000:7_000]).max() == pytest.approx(0.3, abs=0.02)  # lossy codecs: 0.01

    def test_either_order_of_channels(self):
        stereo = np.stack([tone(), 0 * tone()])
        for samples in (stereo, stereo.T):
            np.testing.assert_allclose(load_audio(samples, sampling_rate=16_000), tone() / 2)

    def test_a_long_clip_is_not_truncated(self):
        assert len(load_audio(tone(40, 8_000), sampling_rate=8_000)) == 40 * 16_000

    @settings(max_examples=60, deadline=None)
    @given(
        samples=hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=400),
            elements=st.floats(-1, 1, width=32),
        ),
        rate=st.integers(4_000, 50_000),
    )
    def test_any_array_gives_a_finite_mono_clip_of_its_duration(self, samples, rate):
        waveform = load_audio(samples, sampling_rate=rate)
        frames = max(samples.shape)
        exact = Fraction(frames * 16_000, rate)
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and np.isfinite(waveform).all()
        assert abs(len(waveform) - exact) <= 1 + exact / 1000  # uncommon rates are rounded, see `load_audio`
        assert np.abs(waveform).max(initial=0) <= 2  # the filter rings by less than full scale

    @settings(max_examples=60, deadline=None)
    @given(st.binary(min_size=1, max_size=300))
    def test_no_bytes_get_another_error(self, data):
        for garbage in (data, b"RIFF" + data, b"OggS" + data, b"ID3" + data, b"fLaC" + data):
            try:
                assert load_audio(garbage).dtype == np.float32
            except AudioError as error:
                assert error.reason in ("unreadable", "too short", "not finite", "no rate")


NOT_AUDIO = {
    "nothing": (None, "missing"),
    "empty row": ({"bytes": None, "path": None}, "missing"),
    "no file": ("nowhere/clip.wav", "missing"),
    "no bytes": (b"", "unreadable"),
    "garbage": (b"this is no audio" * 50, "unreadable"),
    "cut flac": (encoded(tone(), codec="flac")[:60], "unreadable"),
    "no samples": (encoded(tone(0)), "too short"),
    "empty array": ({"array": np.zeros(0), "sampling_rate": 16_000}, "too short"),
    "one number": ({"array": np.float32(1), "sampling_rate": 16_000}, "unreadable"),
    "ragged": ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": 16_000}, "unreadable"),
    "int64": ({"array": np.arange(9_000), "sampling_rate": 16_000}, "unreadable"),
    "words": ({"array": ["a", "b"], "sampling_rate": 16_000}, "unreadable"),
    "nan": ({"array": np.where(np.arange(9_000) == 7, np.nan, 0.1), "sampling_rate": 16_000}, "not finite"),
    "nan in a file": (encoded(np.full(9_000, np.nan), subtype="FLOAT"), "not finite"),
    "infinite": ({"array": np.full(9_000, np.inf), "sampling_rate": 16_000}, "not finite"),
    "no rate": (tone(), "no rate"),
    "rate 0": ({"array": tone(), "sampling_rate": -1}, "no rate"),
    "rate in kHz": ({"array": tone(), "sampling_rate": 16}, "no rate"),
}


class TestProblems:
    @pytest.mark.parametrize("name", NOT_AUDIO)
    def test_what_is_no_audio_is_refused_and_reported_alike(self, name):
        source, reason = NOT_AUDIO[name]
        with pytest.raises(AudioError) as refused:
            load_audio(source)
        assert refused.value.reason == reason
        assert len(str(refused.value)) < 400  # says what was given, does not dump it
        assert audio_problem(source).startswith(f"{reason}: ")

    def test_a_folder(self, tmp_path):
        with pytest.raises(AudioError, match="no regular file"):
            load_audio(tmp_path)

    def test_message_has_what_was_given_why_and_what_to_do(self):
        with pytest.raises(AudioError, match=r"ndarray of shape \(8000,\): .*without a sampling rate\. Pass"):
            load_audio(tone())

    @pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
    def test_limits_are_seconds_and_inclusive(self, rate):
        source = encoded(tone(0.5, rate), rate)
        assert audio_problem(source, min_seconds=0.5, max_seconds=0.5) is None
        assert audio_problem(source, min_seconds=0.51).startswith("too short: 0.500 s")
        assert audio_problem(source, max_seconds=0.49).startswith("too long: 0.50 s by its header, the limit is 0.49 s")

    def test_default_shortest(self):
        assert audio_problem(encoded(tone(0.1))) is None
        assert audio_problem(encoded(tone(0.099))).startswith("too short")

    def test_silence(self):
        for peak, silent in ((0, True), (0.9e-4, True), (1.1e-4, False)):
            problem = audio_problem(tone(peak=peak), sampling_rate=16_000)
            assert (problem or "").startswith("silent") == silent

    def test_channels_that_cancel_are_silent(self):
        assert audio_problem(np.stack([tone(), -tone()]), sampling_rate=16_000).startswith("silent")

    def test_int16_samples_stored_as_floats(self):
        assert audio_problem(tone(peak=20_000), sampling_rate=16_000).startswith("unscaled")
        assert audio_problem(tone(peak=1.2), sampling_rate=16_000) is None  # a lossy codec overshoots


def lying_flac(samples: int = 2**36 - 1) -> bytes:
    """Half a second of FLAC whose header states another length: the last 36 bits before the checksum."""
    data = bytearray(encoded(tone(), codec="flac"))
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def lying_mp3(frames: int = 0x7FFFFFFF) -> bytes:
    """Half a second of MP3 whose Xing header states another number of frames."""
    data = bytearray(encoded(tone(), codec="mp3"))
    place = max(data.find(b"Xing"), data.find(b"Info"))
    assert place > 0 and data[place + 7] & 1
    data[place + 8 : place + 12] = frames.to_bytes(4, "big")
    return bytes(data)


class TestHostile:
    """Files that would fill the memory, hang, or raise what names no row."""

    def test_what_is_no_regular_file_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("/dev/zero")
        for path in ("/dev/zero", tmp_path / "link", tmp_path / "pipe"):
            with pytest.raises(AudioError, match="is no regular file") as refused:
                load_audio(path)
            assert refused.value.reason == "unreadable"

    def test_a_file_above_the_limit_is_not_opened(self, tmp_path, monkeypatch):
        path = tmp_path / "large.wav"
        with path.open("wb") as file:
            file.truncate(2 * 10**9)  # takes no space on the disk
        monkeypatch.setattr("pathlib.Path.read_bytes", None)
        assert audio_problem(path) == "too large: 2000.0 MB, the limit is 100 MB"
        with pytest.raises(AudioError, match="the limit is 1024 MB"):
            load_audio(path)

    def test_bytes_above_the_limit(self):
        assert audio_problem(encoded(tone()), max_megabytes=0.01).startswith("too large: 0.0 MB")

    @pytest.mark.parametrize("max_seconds", [None, 1.0])
    def test_the_length_in_a_header_is_not_believed(self, max_seconds):
        with limited_memory(2 * 2**30):
            assert audio_problem(lying_flac(), max_seconds=max_seconds).startswith("unreadable")  # it cannot seek there
            assert audio_problem(lying_mp3(), max_seconds=max_seconds) is None
            assert 0.5 <= len(load_audio(lying_mp3())) / 16_000 <= 0.58

    def test_a_clip_that_unpacks_to_hours_is_decoded_no_further_than_it_may_be_long(self, monkeypatch):
        clip = encoded(np.full(16_000 * 600, 0.25, dtype=np.float32), codec="flac")
        assert len(clip) < 30_000
        read = []
        monkeypatch.setattr("tars_trl.data.audio._mono", lambda block, name: read.append(len(block)) or block[:, 0])
        assert audio_problem(clip, max_seconds=30).startswith("too long: 600.00 s by its header, the limit is 30 s")
        assert sum(read) <= 30 * 16_000 + BLOCK

    @pytest.mark.parametrize("error", [MemoryError(), OverflowError("no"), RuntimeError("x"), AssertionError()])
    def test_whatever_a_decoder_raises_names_the_row(self, monkeypatch, error):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr("soundfile.SoundFile.read", fail)
        rows = Dataset.from_dict({"audio": [{"bytes": encoded(tone()), "path": None}], "key": ["q7"]})
        with pytest.raises(AudioError, match=rf"\n  q7: unreadable: .*{type(error).__name__}"):
            check_audio(rows, max_seconds=1.0)

    def test_a_path_with_a_zero_byte(self):
        assert audio_problem("a\0b.wav").startswith("unreadable")


@contextmanager
def limited_memory(bytes_more: int):
    """A MemoryError for whoever asks for more than this."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + bytes_more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


class TestCheck:
    @pytest.fixture
    def rows(self, tmp_path):
        (tmp_path / "ok.flac").write_bytes(encoded(tone(), codec="flac"))
        clips = {
            "good": encoded(tone()),
            "gone": None,
            "quiet": encoded(0 * tone()),
            "broken": b"broken",
            "long": encoded(tone(1.5)),
            "file": str(tmp_path / "ok.flac"),
            "lost": str(tmp_path / "lost.wav"),
        }
        audio = [
            {"bytes": clip, "path": None} if not isinstance(clip, str) else {"bytes": None, "path": clip}
            for clip in clips.values()
        ]
        return Dataset.from_dict({"audio": audio, "key": list(clips)}).cast_column("audio", Audio())

    def test_refuses_by_key_with_counts(self, rows):
        with pytest.raises(AudioError) as refused:
            check_audio(rows, max_seconds=1.0)
        message = str(refused.value)
        assert "5 of 7 rows" in message and "2 missing" in message and "1 too long" in message
        for key in ("gone: missing", "quiet: silent", "broken: unreadable", "long: too long", "lost: missing"):
            assert f"\n  {key}" in message
        assert "good" not in message and "\n  file" not in message

    def test_skips_and_counts(self, rows, capsys):
        kept = check_audio(rows, max_seconds=1.0, on_error="skip")
        assert kept["key"][:] == ["good", "file"]
        assert kept.features["audio"] == Audio(decode=False)
        assert len(load_audio(kept[1]["audio"])) == 8_000
        assert "dropped 5 of 7 rows" in capsys.readouterr().out

    def test_no_limit_keeps_the_long_one(self, rows):
        assert "long" in check_audio(rows, max_seconds=None, on_error="skip")["key"][:]

    def test_good_rows_pass_unchanged(self, rows, capsys):
        good = rows.select([0, 5])
        assert check_audio(good, max_seconds=1.0)["key"][:] == ["good", "file"]
        assert "dropped" not in capsys.readouterr().out

    def test_skipping_everything_is_refused(self, rows):
        with pytest.raises(AudioError, match="leaves no row"):
            check_audio(rows.select([1, 2]), max_seconds=1.0, on_error="skip")

    def test_at_most_twenty_keys(self):
        rows = Dataset.from_dict({"audio": ["lost.wav"] * 25, "key": [f"k{index:02d}" for index in range(25)]})
        with pytest.raises(AudioError, match="and 5 more") as refused:
            check_audio(rows, max_seconds=1.0)
        assert "k19:" in str(refused.value) and "k20:" not in str(refused.value)

    def test_columns_of_arrays(self):
        audio = [{"array": tone().tolist(), "sampling_rate": 16_000}, {"array": [0.0] * 9_000, "sampling_rate": 16_000}]
        rows = Dataset.from_dict({"audio": audio, "key": ["tone", "zeros"]})
        assert check_audio(rows, max_seconds=1.0, on_error="skip")["key"][:] == ["tone"]

    @pytest.mark.parametrize("kind", ["torch", "numpy", "pandas"])
    def test_a_format_of_the_data_set_does_not_matter(self, rows, kind):
        assert len(check_audio(rows.select([0]).with_format(kind), max_seconds=1.0)) == 1

    def test_nothing_is_written_beside_the_data(self, rows, tmp_path):
        rows.select([0, 2, 3, 4, 5]).cast_column("audio", Audio(decode=False)).save_to_disk(tmp_path / "saved")
        before = sorted((tmp_path / "saved").iterdir())
        check_audio(Dataset.load_from_disk(tmp_path / "saved"), max_seconds=1.0, on_error="skip")
        assert sorted((tmp_path / "saved").iterdir()) == before

    def test_settings_that_cannot_work(self, rows):
        with pytest.raises(ValueError, match="on_error"):
            check_audio(rows, max_seconds=1.0, on_error="ignore")
        with pytest.raises(ValueError, match="without 'audio'"):
            check_audio(rows.rename_column("audio", "speech"), max_seconds=1.0)
