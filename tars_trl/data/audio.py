"""Decode, resample and check speech. The only file that touches waveforms.

A waveform here is a float32 array of shape (samples,): one channel, 16 kHz, full scale at 1.0, never truncated.
soundfile decodes (wav, flac, ogg, opus, mp3), torchaudio resamples. torchcodec, which `datasets` and torchaudio ask for
when they decode, is not needed: keep the column as `datasets.Audio(decode=False)`, which also keeps it lazy.

What cannot be used is found before training, by row key, with `checking.check_audio`; afterwards `load_audio` raises
for it.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Mapping
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset
from torchaudio.functional import resample

from ..errors import AudioError

TARGET_RATE = 16_000  # Hz; the feature extractors of speech LLMs expect it
SILENCE_PEAK = 1e-4  # of full scale, -80 dB: three steps of a 16-bit file
UNSCALED_PEAK = 4.0  # lossy codecs overshoot 1.0 by a little; 16-bit samples stored as floats reach thousands
SLOWEST_RATE, FASTEST_RATE = 1_000, 1_000_000  # Hz; outside, the number is no sampling rate of speech
MAX_MEGABYTES = 100.0  # of one clip, as a file: 50 minutes of 16-bit mono at 16 kHz
MOST_MEGABYTES = 1024.0  # of any clip, whatever a run allows
MOST_SAMPLES = 2**28  # of a decoded channel: 1 GiB as float32, four and a half hours at 16 kHz
BLOCK = 2**20  # samples of all channels that are decoded at a time
MIN_SECONDS = 0.1  # of a clip


def load_audio(source: Any, *, sampling_rate: int | None = None) -> np.ndarray:
    """One clip as a mono waveform at 16 kHz. Nothing is trimmed, normalised or truncated.

    Args:
        source: encoded audio (wav, flac, ogg vorbis or opus, mp3) as bytes or as the path of a regular file; an array
            of floats with full scale 1.0, (samples,), (samples, channels) or (channels, samples), the shorter axis
            holding the channels; or what `datasets` has in an undecoded or a plain column: `{"bytes", "path"}`,
            `{"array", "sampling_rate"}`.
        sampling_rate: of an array, in Hz. Encoded audio states its own.

    Returns:
        float32 array of shape (samples,), channels averaged, at least one sample, all finite.

    Raises:
        AudioError: the source is missing, unreadable, too large or empty, has no usable rate, or holds NaN or infinity.
    """
    waveform, rate = _decode(source, sampling_rate, MOST_MEGABYTES)
    if rate == TARGET_RATE:
        return waveform
    # torchaudio's filter bank grows with the reduced fraction: gigabytes for 44,101 Hz. 640 is exact for all usual
    # rates (11,025 -> 16,000 is 441/640) and off by less than 0.1 % for the others.
    ratio = Fraction(rate, TARGET_RATE).limit_denominator(640)
    # Its default filter, 6 zero crossings wide, has lost 22 % at nine tenths of the band (measured); one of 64 loses
    # nothing and takes 2 ms for 5 s of speech.
    wave = torch.from_numpy(waveform)
    return resample(wave, ratio.numerator, ratio.denominator, lowpass_filter_width=64).numpy()


def audio_problem(
    source: Any,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float | None = None,
    max_megabytes: float = MAX_MEGABYTES,
    sampling_rate: int | None = None,
) -> str | None:
    """Why a clip cannot be trained on, or None if it can. Decodes it, unless it is longer than it may be.

    Args:
        source: as in `load_audio`.
        min_seconds: shorter clips are reported; of the whole clip, in seconds.
        max_seconds: longer clips are reported; None for no limit.
        max_megabytes: larger files are reported, and not opened.
        sampling_rate: as in `load_audio`.

    Returns:
        `"reason: detail"`, where reason is one of missing, unreadable, too large, no rate, not finite, unscaled,
        silent, too short, too long.
    """
    try:
        measured = measure(source, max_seconds=max_seconds, max_megabytes=max_megabytes, sampling_rate=sampling_rate)
    except AudioError as error:
        return f"{error.reason}: {error.why}"
    return problem_of(*measured, min_seconds=min_seconds, max_seconds=max_seconds)


def measure(
    source: Any,
    *,
    max_seconds: float | None = None,
    max_megabytes: float = MAX_MEGABYTES,
    sampling_rate: int | None = None,
) -> tuple[float, float]:
    """Length in seconds and largest sample (full scale is 1.0) of a clip, decoded whole; arguments as `audio_problem`.

    Raises:
        AudioError: the clip cannot be decoded, or goes on beyond `max_seconds`.
    """
    waveform, rate = _decode(source, sampling_rate, max_megabytes, max_seconds)
    return len(waveform) / rate, float(np.abs(waveform).max())


def problem_of(
    seconds: float, peak: float, *, min_seconds: float = MIN_SECONDS, max_seconds: float | None = None
) -> str | None:
    """As `audio_problem`, for a clip of which length and largest sample are known."""
    if seconds < min_seconds:
        return f"too short: {seconds:.3f} s, the limit is {min_seconds:g} s"
    if max_seconds is not None and seconds > max_seconds:
        return f"too long: {seconds:.2f} s, the limit is {max_seconds:g} s"
    if peak < SILENCE_PEAK:
        return f"silent: the peak is {peak:.1e} of full scale"
    if peak > UNSCALED_PEAK:
        return f"unscaled: the peak is {peak:.0f}, full scale is 1.0"
    return None


def undecoded(dataset: Dataset, column: str = "audio") -> Dataset:
    """`dataset` with `column` as `datasets.Audio(decode=False)`: paths and encoded bytes, opened when a row is used.

    A column of `{"array", "sampling_rate"}` is left as it is: `load_audio` takes it.
    """
    feature = dataset.features[column]
    if isinstance(feature, dict) and "array" in feature:
        return dataset
    return dataset.cast_column(column, Audio(decode=False))


# ---- Decoding ------------------------------------------------------------------------------------------------------


def _decode(
    source: Any, sampling_rate: int | None, max_megabytes: float, max_seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Any source as (float32 waveform of shape (samples,), its own rate in Hz), within limits."""
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            return _from_array(source["array"], source.get("sampling_rate") or sampling_rate)
        encoded = source.get("bytes")
        if not isinstance(encoded, bytes | None):
            raise _unreadable("audio", f"its bytes are a {type(encoded).__name__}")
        # Of arrays no path is followed: `load_questions` looks where paths lead in an undecoded column alone.
        path = None if "array" in source else source.get("path")
        source = path if encoded is None else encoded
    if source is None:
        raise AudioError("audio=None", "there is no audio", "Give the row a clip, or remove it.", reason="missing")
    if isinstance(source, (str, PathLike)):
        name = f"audio file {str(source)!r}"
        return _from_encoded(_read_file(Path(source), name, max_megabytes), name, max_megabytes, max_seconds)
    if isinstance(source, bytes):
        return _from_encoded(source, f"audio of {len(source)} bytes", max_megabytes, max_seconds)
    return _from_array(source, sampling_rate)


def _read_file(path: Path, name: str, max_megabytes: float) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device may be endless, and a pipe waits for its other end
            raise _unreadable(name, f"{path} is no regular file")
        _check_size(status.st_size, name, max_megabytes)
        if status.st_size == 0:  # also what /proc holds, which may be endless, or wait
            raise _unreadable(name, "0 bytes")
        with path.open("rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError as error:
        remedy = "Check the path; relative ones start at the current folder."
        raise AudioError(name, f"no such file, {path}", remedy, reason="missing") from error
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _unreadable(name, f"{path} cannot be opened, {getattr(error, 'strerror', None) or error}") from error


def _check_size(size: int, name: str, max_megabytes: float) -> None:
    if size > max_megabytes * 1e6:
        why, remedy = f"{size / 1e6:.1f} MB, the limit is {max_megabytes:g} MB", "Compress it, or raise the limit."
        raise AudioError(name, why, remedy, reason="too large")


def _from_encoded(encoded: bytes, name: str, max_megabytes: float, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Decode block by block: what a header says of the length is checked at that place, and nothing allocated by it."""
    _check_size(len(encoded), name, max_megabytes)
    if not encoded:
        raise _unreadable(name, "0 bytes")
    blocks: list[np.ndarray] = []
    length = 0
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            rate, stated = file.samplerate, file.frames
            most = MOST_SAMPLES if max_seconds is None else min(MOST_SAMPLES, int(max_seconds * rate))
            if stated > most and _goes_on(encoded, most):
                length = stated
            while length <= most:
                block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                blocks.append(_mono(block, name))
                length += len(block)
    except AudioError:
        raise
    except Exception as error:  # libsndfile's own, and MemoryError, OverflowError, … of what it was made to believe
        told = getattr(error, "error_string", error)  # libsndfile's without the address of the buffer
        why = f"{len(encoded)} bytes that soundfile cannot decode, {type(error).__name__}: {told}"
        raise _unreadable(name, why) from error
    if length > most:
        why = f"{max(length, stated) / rate:.2f} s by its header, the limit is {most / rate:g} s"
        remedy = "Cut the recording at a pause, or remove the row: audio is never truncated."
        raise AudioError(name, why, remedy, reason="too long")
    if not blocks:
        raise AudioError(name, "it has no samples", "Remove the row, or record it again.", reason="too short")
    return np.concatenate(blocks), _check_rate(rate, name)


def _goes_on(encoded: bytes, place: int) -> bool:
    """Whether there is a sample at `place`, found without decoding what comes before, where the format allows it."""
    with soundfile.SoundFile(io.BytesIO(encoded)) as file:
        try:
            file.seek(place)
            return len(file.read(1)) > 0
        except soundfile.LibsndfileError:
            return False


def _from_array(samples: Any, sampling_rate: int | None) -> tuple[np.ndarray, int]:
    try:
        array = np.asarray(samples)
    except ValueError as error:  # a ragged list
        raise _unreadable(f"audio as {type(samples).__name__}", f"not an array of samples, {error}") from error
    name = f"audio as {type(samples).__name__} of shape {array.shape}"
    if array.ndim not in (1, 2):
        raise _unreadable(name, f"samples of shape {array.shape}", "Give (samples,) or (channels, samples).")
    if not np.issubdtype(array.dtype, np.floating):
        remedy = "Give floats with full scale 1.0."
        raise _unreadable(name, f"samples of type {array.dtype}, whose full scale is unknown", remedy)
    if array.size == 0:
        raise AudioError(name, "it has no samples", "Remove the row, or record it again.", reason="too short")
    if sampling_rate is None:
        remedy = "Pass sampling_rate in Hz with it."
        raise AudioError(name, "samples without a sampling rate", remedy, reason="no rate")
    rows = array[:, None] if array.ndim == 1 else array if array.shape[0] >= array.shape[1] else array.T
    return _mono(rows.astype(np.float32), name), _check_rate(sampling_rate, name)


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    """(samples, channels) -> (samples,), refusing what is no number."""
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        why = f"{bad} of {samples.size} samples are NaN or infinite"
        raise AudioError(name, why, "Remove the row, or write the clip again.", reason="not finite")
    return np.ascontiguousarray(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1))


def _check_rate(rate: Any, name: str) -> int:
    if not isinstance(rate, int | float) or not SLOWEST_RATE <= rate <= FASTEST_RATE or rate != int(rate):
        why = f"{rate!r} is not a sampling rate of speech"
        raise AudioError(name, why, "Pass whole Hz, such as 16000.", reason="no rate")
    return int(rate)


def _unreadable(name: str, why: str, remedy: str = "Give a complete wav, flac, ogg or mp3 file.") -> AudioError:
    return AudioError(name, why, remedy, reason="unreadable")
