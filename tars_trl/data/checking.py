"""Every clip of a data set looked at before it is used: shared by processes and threads, and remembered.

What decoding tells of a clip, its length and its largest sample, is kept in `clips.sqlite`, in the folder `tars_trl`
beside the caches of the Hugging Face libraries (`HF_HOME`). A clip is known again by its bytes, or as a file by its
path, size and times, so a changed one is decoded anew, and limits may change without decoding. Nothing depends on the
file: it may be deleted at any time, a damaged one is made anew, and where it cannot be written every start decodes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from huggingface_hub import constants
from tqdm import tqdm

from ..errors import AudioError, SettingError
from .audio import MAX_MEGABYTES, measure, problem_of, undecoded

logger = logging.getLogger(__name__)

KEYS_SHOWN = 20  # of the rows that cannot be used, in one error
TOGETHER = 256  # rows that are looked at, and remembered, at a time
DECODER = f"1 {soundfile.__version__} {soundfile.__libsndfile_version__}"
"""What a measurement depends on beside the clip; the first number changes with `audio.measure`."""


def check_audio(
    dataset: Dataset,
    *,
    max_seconds: float | None,
    max_megabytes: float = MAX_MEGABYTES,
    on_error: str = "refuse",
    together: bool = False,
) -> Dataset:
    """Check every clip of a data set before training. A few are decoded at a time; no waveform is kept.

    Args:
        dataset: with the columns `audio`, encoded or as `{"array", "sampling_rate"}`, and `key`.
        max_seconds: longest clip that fits the run, in seconds; None for no limit.
        max_megabytes: largest clip, as a file.
        on_error: `"refuse"` raises if a row cannot be used; `"skip"` drops such rows and prints how many, by reason.
        together: whether all processes of a run call this at the same time with the same data set; each then looks at a
            part of it, and all come to the same result.

    Returns:
        The rows that can be used, in their order, with `audio` cast to `datasets.Audio(decode=False)`.

    Raises:
        AudioError: with `"refuse"`, some rows cannot be used: counts by reason, and the first 20 keys. With `"skip"`,
            none can.
        SettingError: unknown `on_error`, or a column that is not there.
    """
    if on_error not in ("refuse", "skip"):
        raise SettingError(f"on_error={on_error!r}: it says what to do with unusable rows. Use 'refuse' or 'skip'.")
    for name in ("audio", "key"):
        if name not in dataset.column_names:
            raise SettingError(
                f"The data set has the columns {dataset.column_names}: without {name!r} its audio cannot be checked by "
                f"row. Rename a column, or load it with tars_trl.load_questions(..., column_map=...)."
            )
    dataset = undecoded(dataset)
    state = PartialState() if together and torch.distributed.is_initialized() else None
    part = range(len(dataset)) if state is None else _share(len(dataset), state.process_index, state.num_processes)
    found = list(_problems(dataset, part, max_seconds, max_megabytes, quiet=state is not None and part.start > 0))
    problems = dict(found if state is None else gather_object(found))
    if not problems:
        return dataset
    counts = Counter(problem.split(":")[0] for problem in problems.values())
    summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    if on_error == "refuse" or len(problems) == len(dataset):
        keys, indices = dataset["key"], list(problems)
        lines = "".join(f"\n  {keys[index]}: {problems[index]}" for index in indices[:KEYS_SHOWN])
        more = f"\n  and {len(problems) - KEYS_SHOWN} more" if len(problems) > KEYS_SHOWN else ""
        why = f"their audio cannot be used ({summary}):{lines}{more}\nAudio is never truncated or guessed"
        rest = "or drop them with on_bad_audio: skip" if on_error == "refuse" else "since skipping them leaves no row"
        remedy = f"Mend or remove these rows, change the limits, {rest}."
        raise AudioError(f"{len(problems)} of {len(keys)} rows", why, remedy, reason="unusable rows")
    if state is None or state.is_main_process:
        print(f"check_audio: dropped {len(problems)} of {len(dataset)} rows whose audio cannot be used ({summary}).")
    return dataset.select([index for index in range(len(dataset)) if index not in problems])


def _share(rows: int, process: int, processes: int) -> range:
    """Neighbouring rows, which lie together on the disk."""
    return range(rows * process // processes, rows * (process + 1) // processes)


def _problems(
    dataset: Dataset, part: range, max_seconds: float | None, max_megabytes: float, quiet: bool
) -> Iterable[tuple[int, str]]:
    """Number and problem of the rows among `part` that have one."""
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    look = partial(_look_at, max_seconds=max_seconds, max_megabytes=max_megabytes)
    rows = dataset.select_columns(["audio"]).select(part).with_format("arrow")
    with (
        ThreadPoolExecutor(threads) as pool,  # libsndfile decodes outside of Python's lock
        closing(Memory(memory_file())) as memory,
        tqdm(total=len(part), desc="Checking audio", disable=quiet or None) as bar,
    ):
        for start in range(0, len(rows), TOGETHER):
            clips = clips_of(rows[start : start + TOGETHER]["audio"])
            names = list(pool.map(fingerprint, clips))
            known = memory.recall(name for name in names if name is not None)
            looked_at = list(pool.map(look, clips, [known.get(name or "") for name in names]))
            memory.keep({n: m for n, (m, _) in zip(names, looked_at, strict=True) if n and m and n not in known})
            for place, (_, problem) in enumerate(looked_at, part.start + start):
                if problem is not None:
                    yield place, problem
            bar.update(len(clips))


def _look_at(
    clip: pa.StructArray, measured: tuple[float, float] | None, max_seconds: float | None, max_megabytes: float
) -> tuple[tuple[float, float] | None, str | None]:
    """What a clip measures, if it can be decoded, and its problem; decoded unless it is known, and small enough."""
    try:
        if measured is None or _megabytes(clip) > max_megabytes:
            measured = measure(clip[0].as_py(), max_seconds=max_seconds, max_megabytes=max_megabytes)
    except AudioError as error:
        return None, f"{error.reason}: {error.why}"
    return measured, problem_of(*measured, max_seconds=max_seconds)


def clips_of(column: pa.ChunkedArray) -> list[pa.StructArray]:
    """Each clip as a column of one, which points at its bytes; an Arrow scalar would copy them."""
    return [chunk.slice(place, 1) for chunk in column.chunks for place in range(len(chunk))]


def _encoded(clip: pa.StructArray) -> tuple[pa.Buffer | None, str]:
    """The bytes of a clip as a buffer, None if they are in a file, and the file's path, empty if there is none."""
    if clip.null_count or "bytes" not in clip.type.names:
        return None, ""
    content, path = clip.field("bytes"), clip.field("path")[0].as_py() or ""
    if content.null_count:
        return None, path
    _, offsets, data = content.buffers()
    width = 8 if pa.types.is_large_binary(content.type) else 4
    first, last = np.frombuffer(offsets, f"<i{width}", 2, width * content.offset).tolist()
    return pa.py_buffer(b"") if data is None else data.slice(first, last - first), path


def _megabytes(clip: pa.StructArray) -> float:
    buffer, path = _encoded(clip)
    return (os.stat(path).st_size if buffer is None else buffer.size) / 1e6


def fingerprint(clip: pa.StructArray) -> str | None:
    """What a clip, a column of one, is known again by; None for one that is not encoded, or not there."""
    buffer, path = _encoded(clip)
    if buffer is not None:
        return f"{xxhash.xxh3_128_hexdigest(buffer)} {buffer.size}"
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # The time of change cannot be set back as the time of writing can.
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def clip_digest(clip: pa.StructArray) -> str:
    """What tells a clip, a column of one, from others, wherever its data set lies: its bytes, or its name and size."""
    buffer, path = _encoded(clip)
    if buffer is not None:
        return str(fingerprint(clip))
    size = os.stat(path).st_size if os.path.isfile(path) else None
    return f"{os.path.basename(path)} {size}" if path else repr(clip[0].as_py())


# ---- Memory --------------------------------------------------------------------------------------------------------


def memory_file() -> Path:
    """Where it lies."""
    return Path(constants.HF_HOME) / "tars_trl" / "clips.sqlite"


class Memory:
    """Length and largest sample of clips by fingerprint, in a file that several processes and runs may share.

    Args:
        path: of the file, made where it is missing, and made anew where it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file: sqlite3.Connection | None = None
        self._try(self._open)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = sqlite3.connect(self.path, timeout=60)
        self.file.execute("CREATE TABLE IF NOT EXISTS clips (clip TEXT PRIMARY KEY, measured TEXT, checksum INTEGER)")

    def _try(self, action: Callable[[], None], damaged_before: bool = False) -> None:
        try:
            action()
        except (OSError, sqlite3.Error) as error:
            # An operational one tells of no place to write, or a lock that is held.
            damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            self.close()
            if damaged and not damaged_before:
                logger.warning("%s is damaged (%s), and made anew.", self.path, error)
                self.path.unlink(missing_ok=True)
                self._try(self._open, damaged_before=True)
            else:
                logger.warning("%s cannot be used (%s): the next run will decode clips again.", self.path, error)

    def recall(self, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        """What is known of some clips, by fingerprint."""
        known: dict[str, tuple[float, float]] = {}

        def read() -> None:
            assert self.file is not None
            for name in names:
                clip = f"{name} {DECODER}"
                row = self.file.execute("SELECT measured, checksum FROM clips WHERE clip = ?", (clip,)).fetchone()
                if row is not None and row[1] == zlib.crc32(f"{clip} {row[0]}".encode()):
                    seconds, peak = map(float, row[0].split())
                    known[name] = seconds, peak

        if self.file is not None:
            self._try(read)
        return known

    def keep(self, measured: Mapping[str, tuple[float, float]]) -> None:
        """Remember clips by fingerprint."""

        def write() -> None:
            assert self.file is not None
            with self.file:
                for name, values in measured.items():
                    clip, text = f"{name} {DECODER}", " ".join(map(repr, values))
                    row = clip, text, zlib.crc32(f"{clip} {text}".encode())
                    self.file.execute("INSERT OR REPLACE INTO clips VALUES (?, ?, ?)", row)

        if self.file is not None and measured:
            self._try(write)

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
        self.file = None
