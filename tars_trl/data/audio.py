"""Decode, resample and check speech. The only file that touches waveforms.

A waveform here is a float32 array of shape (samples,): one channel, 16 kHz, full scale at 1.0, never truncated.
soundfile decodes (wav, flac, ogg, opus, mp3), torchaudio resamples. torchcodec, which `datasets` and torchaudio ask for
when they decode, is not needed: keep the column as `datasets.Audio(decode=False)`, which also keeps it lazy.

What cannot be used is found before training, by row key, with `check_audio`; afterwards `load_audio` raises for it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from torchaudio.functional import resample

from ..errors import AudioError

TARGET_RATE = 16_000  # Hz; the feature extractors of Qwen2.5-Omni and Phi-4-multimodal both expect it
SILENCE_PEAK = 1e-4  # of full scale, -80 dB: three steps of a 16-bit file
UNSCALED_PEAK = 4.0  # lossy codecs overshoot 1.0 by a little; 16-bit samples stored as floats reach thousands
SLOWEST_RATE, FASTEST_RATE = 1_000, 1_000_000  # Hz; outside, the number is no sampling rate of speech
KEYS_SHOWN = 20  # of the rows that cannot be used, in one error


def load_audio(source: Any, *, sampling_rate: int | None = None, target_rate: int = TARGET_RATE) -> np.ndarray:
    """One clip as a mono waveform at `target_rate`. Nothing is trimmed, normalised or truncated.

    Args:
        source: encoded audio (wav, flac, ogg vorbis or opus, mp3) as bytes, a path or a binary file object, which is
            read to its end; or samples as an array, a tensor or a list; or a `datasets` value: `{"bytes", "path"}`,
            `{"array", "sampling_rate"}`, or a decoder with `get_all_samples()`.
            Samples are floats with full scale 1.0, or integers of 8, 16 or 32 bits (unsigned only with 8), with shape
            (samples,), (samples, channels) or (channels, samples): the shorter axis holds the channels.
        sampling_rate: of `source` in Hz, for samples that come without one. Encoded audio states its own.
        target_rate: of the result in Hz.

    Returns:
        float32 array of shape (samples,), channels averaged, at least one sample, all finite.

    Raises:
        AudioError: the source is missing, unreadable or empty, has no usable rate, or holds NaN or infinity.
    """
    waveform, rate = _decode(source, sampling_rate)
    _check_rate(target_rate, source)
    if rate == target_rate:
        return waveform
    # torchaudio's filter bank grows with the reduced fraction: gigabytes for 44,101 Hz. 640 is exact for all usual
    # rates (11,025 -> 16,000 is 441/640) and off by less than 0.1 % for the others.
    ratio = Fraction(rate, target_rate).limit_denominator(640)
    # Its default filter, 6 zero crossings wide, has lost 22 % at nine tenths of the band (measured); one of 64 loses
    # nothing and takes 2 ms for 5 s of speech.
    wave = torch.from_numpy(waveform)
    return resample(wave, ratio.numerator, ratio.denominator, lowpass_filter_width=64).numpy()


def audio_problem(
    source: Any,
    *,
    min_seconds: float = 0.1,
    max_seconds: float | None = None,
    sampling_rate: int | None = None,
) -> str | None:
    """Why a clip cannot be trained on, or None if it can. Decodes it, without resampling.

    Args:
        source: as in `load_audio`.
        min_seconds: shorter clips are reported; of the whole clip, in seconds.
        max_seconds: longer clips are reported; None for no limit.
        sampling_rate: as in `load_audio`.

    Returns:
        `"reason: detail"`, where reason is one of missing, unreadable, no rate, not finite, unscaled, silent,
        too short, too long.
    """
    try:
        waveform, rate = _decode(source, sampling_rate)
    except AudioError as error:
        return f"{error.reason}: {error.why}"
    seconds = len(waveform) / rate
    peak = float(np.abs(waveform).max())
    if seconds < min_seconds:
        return f"too short: {seconds:.3f} s, the limit is {min_seconds:g} s"
    if max_seconds is not None and seconds > max_seconds:
        return f"too long: {seconds:.2f} s, the limit is {max_seconds:g} s"
    if peak < SILENCE_PEAK:
        return f"silent: the peak is {peak:.1e} of full scale"
    if peak > UNSCALED_PEAK:
        return f"unscaled: the peak is {peak:.0f}, full scale is 1.0"
    return None


def check_audio(
    dataset: Dataset,
    *,
    max_seconds: float | None,
    min_seconds: float = 0.1,
    column: str = "audio",
    on_error: str = "refuse",
    num_proc: int | None = None,
) -> Dataset:
    """Check every clip of a data set before training. Rows are decoded one at a time; no waveform is kept.

    Args:
        dataset: with the columns `column` and `key`.
        max_seconds: longest clip that fits the run, in seconds; None for no limit.
        min_seconds: shortest clip, in seconds.
        column: holds the audio, encoded or as `{"array", "sampling_rate"}`.
        on_error: `"refuse"` raises if a row cannot be used; `"skip"` drops such rows and prints how many, by reason.
        num_proc: number of processes; None checks in this one.

    Returns:
        The rows that can be used, in their order, with `column` cast to `datasets.Audio(decode=False)`.

    Raises:
        AudioError: with `"refuse"`, some rows cannot be used: counts by reason, and the first 20 keys. With `"skip"`,
            none can.
        ValueError: unknown `on_error`, limits that exclude each other, or a column that is not there.
    """
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error={on_error!r}: it says what to do with unusable rows. Use 'refuse' or 'skip'.")
    if max_seconds is not None and not 0 <= min_seconds <= max_seconds:
        raise ValueError(
            f"min_seconds={min_seconds}, max_seconds={max_seconds}: no clip can satisfy both. Raise max_seconds."
        )
    for name in (column, "key"):
        if name not in dataset.column_names:
            raise ValueError(
                f"The data set has the columns {dataset.column_names}: without {name!r} its audio cannot be checked by "
                f"row. Rename a column, or load it with tars_trl.data.load_questions(..., column_map=...)."
            )
    dataset = undecoded(dataset, column)
    rows = dataset.select_columns([column]).with_format(None)
    problems = rows.map(
        _row_problem,
        fn_kwargs={"column": column, "min_seconds": min_seconds, "max_seconds": max_seconds},
        remove_columns=[column],
        features=Features({"problem": Value("string")}),
        num_proc=num_proc,
        keep_in_memory=True,  # a short string a row, and no cache file beside the user's data
        load_from_cache_file=False,
        desc="Checking audio",
    )["problem"][:]
    bad = [index for index, problem in enumerate(problems) if problem is not None]
    if not bad:
        return dataset
    counts = Counter(problems[index].split(":")[0] for index in bad)
    summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    if on_error == "refuse" or len(bad) == len(dataset):
        raise _unusable_rows(dataset.select_columns(["key"]), problems, bad, summary, on_error)
    print(f"check_audio: dropped {len(bad)} of {len(dataset)} rows whose audio cannot be used ({summary}).")
    return dataset.select([index for index, problem in enumerate(problems) if problem is None])


def undecoded(dataset: Dataset, column: str = "audio") -> Dataset:
    """`dataset` with `column` as `datasets.Audio(decode=False)`: paths and encoded bytes, opened when a row is used.

    A column of `{"array", "sampling_rate"}` is left as it is: `load_audio` takes it.
    """
    feature = dataset.features[column]
    if isinstance(feature, dict) and "array" in feature:
        return dataset
    return dataset.cast_column(column, Audio(decode=False))


def _unusable_rows(
    keys: Dataset, problems: list[str | None], bad: list[int], summary: str, on_error: str
) -> AudioError:
    shown = "".join(f"\n  {keys[index]['key']}: {problems[index]}" for index in bad[:KEYS_SHOWN])
    more = f"\n  and {len(bad) - KEYS_SHOWN} more" if len(bad) > KEYS_SHOWN else ""
    rest = "or drop them with on_error='skip'" if on_error == "refuse" else "since on_error='skip' leaves no row"
    remedy = f"Mend or remove these rows, change the limits in seconds, {rest}."
    why = f"their audio cannot be used ({summary}):{shown}{more}\nAudio is never truncated or guessed"
    return AudioError(f"{len(bad)} of {len(keys)} rows", why, remedy, reason="unusable rows")


def _row_problem(row: dict, column: str, min_seconds: float, max_seconds: float | None) -> dict[str, str | None]:
    return {"problem": audio_problem(row[column], min_seconds=min_seconds, max_seconds=max_seconds)}


def _decode(source: Any, sampling_rate: int | None) -> tuple[np.ndarray, int]:
    """Any source as (float32 waveform of shape (samples,), its own rate in Hz)."""
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            return _from_samples(source["array"], source.get("sampling_rate") or sampling_rate, source)
        encoded = source.get("bytes")
        return _decode(source.get("path") if encoded is None else encoded, sampling_rate)
    if source is None:
        remedy = "Give the row a clip, or remove it."
        raise AudioError("audio=None", "there is no audio", remedy, reason="missing")
    if isinstance(source, (str, PathLike)):
        return _from_encoded(_read_path(Path(source)), source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_encoded(bytes(source), source)
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, from a datasets.Audio() that decodes
        samples = source.get_all_samples()
        return _from_samples(samples.data, samples.sample_rate, source)
    if hasattr(source, "read"):
        encoded = source.read()
        if not isinstance(encoded, bytes):
            raise _unreadable(source, "the file object returns text", "Open it with mode 'rb'.")
        return _from_encoded(encoded, source)
    return _from_samples(source, sampling_rate, source)


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        remedy = "Check the path; relative ones start at the current folder."
        raise AudioError(_describe(path), f"no such file, {path}", remedy, reason="missing") from error
    except OSError as error:
        raise _unreadable(path, f"{path} cannot be opened, {error.strerror}") from error


def _from_encoded(encoded: bytes, source: Any) -> tuple[np.ndarray, int]:
    if not encoded:
        raise _unreadable(source, "0 bytes")
    try:
        samples, rate = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)  # (samples, channels)
    except soundfile.SoundFileError as error:
        raise _unreadable(source, f"{len(encoded)} bytes that soundfile cannot decode, {error}") from error
    return _finite_mono(samples, source), _check_rate(rate, source)


def _from_samples(samples: Any, sampling_rate: int | None, source: Any) -> tuple[np.ndarray, int]:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = samples.float() if samples.dtype == torch.bfloat16 else samples  # numpy has no bfloat16
    try:
        array = np.asarray(samples)
    except ValueError as error:  # a ragged list
        raise _unreadable(source, f"not an array of samples, {error}") from error
    if array.ndim not in (1, 2):
        raise _unreadable(source, f"samples of shape {array.shape}", "Give (samples,) or (channels, samples).")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    scaled = _full_scale_one(array, source)
    if sampling_rate is None:
        remedy = "Pass sampling_rate in Hz with it."
        raise AudioError(_describe(source), "samples without a sampling rate", remedy, reason="no rate")
    return _finite_mono(scaled[:, None] if scaled.ndim == 1 else scaled, source), _check_rate(sampling_rate, source)


def _full_scale_one(array: np.ndarray, source: Any) -> np.ndarray:
    """Samples as float32 in which full scale is 1.0."""
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype in (np.int8, np.int16, np.int32):
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    remedy = "Give floats with full scale 1.0, or 8-, 16- or 32-bit integers."
    raise _unreadable(source, f"samples of type {array.dtype}, whose full scale is unknown", remedy)


def _finite_mono(samples: np.ndarray, source: Any) -> np.ndarray:
    """(samples, channels) -> (samples,), refusing what has no samples or no value."""
    if samples.size == 0:
        remedy = "Remove the row, or record it again."
        raise AudioError(_describe(source), "it has no samples", remedy, reason="too short")
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        why = f"{bad} of {samples.size} samples are NaN or infinite"
        raise AudioError(_describe(source), why, "Remove the row, or write the clip again.", reason="not finite")
    return np.ascontiguousarray(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1))


def _check_rate(rate: int, source: Any) -> int:
    if not SLOWEST_RATE <= rate <= FASTEST_RATE or rate != int(rate):
        why = f"{rate} is not a sampling rate of speech"
        raise AudioError(_describe(source), why, "Pass whole Hz, such as 16000.", reason="no rate")
    return int(rate)


def _unreadable(source: Any, why: str, remedy: str = "Give a complete wav, flac, ogg or mp3 file.") -> AudioError:
    return AudioError(_describe(source), why, remedy, reason="unreadable")


def _describe(source: Any) -> str:
    """The source in a few words: no samples and no bytes in an error message."""
    if isinstance(source, (str, PathLike)):
        return f"audio file {str(source)!r}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio of {len(source)} bytes"
    shape = getattr(source, "shape", None)
    return f"audio as {type(source).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
