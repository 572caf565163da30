"""Rows as they are written in folders, files and on the hub; whatever cannot be read is told by file, row and field."""

import csv
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..errors import QuestionError
from ..files import parse_json
from .hub import check_on_hub, nearest
from .schema import unify_content

UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError, AttributeError, KeyError, RecursionError)
"""What Arrow raises for values that make no column."""


def read_rows(path_or_id: str | Path, split: str, name: str | None, revision: str | None) -> Dataset:
    """Rows as they are in a folder, a file or a data set of the hub, see `load_questions`; columns stay theirs."""
    path = Path(path_or_id).expanduser()
    if path.is_file():
        if path.suffix == ".parquet":
            return _open(path, datasets.load_dataset, "parquet", data_files=str(path), split="train")
        return _read_table(path)
    if path.is_dir():
        return _read_folder(path, split, name)
    below_a_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    looks_local = path.is_absolute() or str(path_or_id).startswith(".") or len(path.parts) > 2 or below_a_folder
    if looks_local or path.suffix in (".parquet", *_TABLES):
        raise FileNotFoundError(f"{path_or_id}: there is no such file or folder, and no hub id either. {nearest(path)}")
    check_on_hub(str(path_or_id), "dataset", revision)
    return _open(path_or_id, datasets.load_dataset, str(path_or_id), name, split=split, revision=revision)


def _open(source: Any, read: Callable[..., Dataset], *args: Any, **kwargs: Any) -> Dataset:
    """Let `datasets` read, whose errors are of any type, and often name neither the file nor what is wrong."""
    try:
        return read(*args, **kwargs)
    except ConnectionError as error:
        raise ConnectionError(
            f"{source}: there is no such folder here, it is not cached, and HF_HUB_OFFLINE keeps it from being "
            "fetched. Correct the name, or unset HF_HUB_OFFLINE."
        ) from error
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
        raise QuestionError(
            f"{source}: it cannot be read as a data set, {why}. Give a folder with parquet files, a table, or one "
            "written by save_to_disk, and a split that it has."
        ) from error


def _read_folder(folder: Path, split: str, name: str | None) -> Dataset:
    for saved in (folder / split, folder):
        if (saved / "state.json").is_file():
            return _open(saved, datasets.load_from_disk, str(saved))
    if (folder / "dataset_dict.json").is_file():
        saved_splits: DatasetDict = _open(folder, datasets.load_from_disk, str(folder))
        if split not in saved_splits:
            raise QuestionError(f"{folder}: there is no split {split!r}. It has {list(saved_splits)}: choose one.")
        return saved_splits[split]
    unnamed = ("questions", "metadata")
    places = [folder / split / stem for stem in unnamed] + [folder / split]
    places += [folder / stem for stem in unnamed] if split == "train" else []
    for place in places:
        for suffix in (".jsonl", ".csv"):
            table = place.with_name(place.name + suffix)
            if table.is_file():
                return _read_table(table)
    return _open(folder, datasets.load_dataset, str(folder), name, split=split, cache_dir=_cache_of(folder))


def _cache_of(folder: Path) -> str | None:
    """Where `datasets` may cache what is in a folder now; None for the usual place.

    datasets 5.2 names its cache of a folder with a card after the folder's own name and the card: new files in it, or
    another folder of that name, would be read as what was there before. Without a card it looks at the files.
    """
    if not (folder / "README.md").is_file():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    digest = hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"tars-{digest}")


def _read_table(table: Path) -> Dataset:
    """A .jsonl or .csv file as a data set; its text is held in memory, its audio files are not opened."""
    if table.suffix not in _TABLES:
        raise QuestionError(f"{table}: a {table.suffix!r} file is no table of questions. Use one of {list(_TABLES)}.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:  # spreadsheets begin with a byte order mark
            rows = [_table_row(row, table) for row in _TABLES[table.suffix](lines, table)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise QuestionError(f"{table}: it cannot be read as a table, {error}. Write it again, as UTF-8.") from error
    names = dict.fromkeys(name for row in rows for name in row)  # in order of appearance
    columns: dict[str, list] = {name: [row.get(name) for row in rows] for name in names}
    if any(isinstance(prompt, list) for prompt in columns.get("prompt", ())):
        columns["prompt"] = _unify_prompts(columns["prompt"])
    try:
        return Dataset.from_dict(columns)
    except UNFIT as error:
        for name, values in columns.items():
            if not _fit(values):
                number = next(number for number in range(len(values)) if not _fit(values[: number + 1]))
                raise QuestionError(
                    f"{table}, row {number + 1}, {name}: {values[number]!r:.200} has no place in a column with what is "
                    f"above it, {str(error)[:200]}. Write one kind of value in each column."
                ) from error
        raise


def _unify_prompts(prompts: list) -> list:
    """Conversations with one kind of content, those that are none as they are."""
    whole = [isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt) for prompt in prompts]
    turns = [turn for prompt, fine in zip(prompts, whole, strict=True) if fine for turn in prompt]
    parts_used = any(isinstance(turn.get("content"), list) for turn in turns)
    return [unify_content(prompt, parts_used) if fine else prompt for prompt, fine in zip(prompts, whole, strict=True)]


def _fit(values: list) -> bool:
    try:
        Dataset.from_dict({"values": values})
    except UNFIT:
        return False
    return True


def _jsonl_rows(lines: Iterable[str], table: Path) -> Iterable[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise QuestionError(f"{table}, line {number}: not JSON, {error}. Write one object a line.") from error
        if not isinstance(row, dict):
            raise QuestionError(f"{table}, line {number}: not a JSON object. Write one object a line.")
        yield row


def _csv_rows(lines: Iterable[str], table: Path) -> Iterable[dict]:
    for number, cells in enumerate(csv.DictReader(lines), start=1):
        if None in cells:
            raise QuestionError(f"{table}, row {number}: it has more cells than the first line. Quote commas in texts.")
        row: dict[str, Any] = {name: cell or None for name, cell in cells.items()}
        for name in ("options", "answer_index"):
            if row.get(name):
                try:
                    row[name] = parse_json(row[name])
                except ValueError as error:
                    raise QuestionError(
                        f'{table}, row {number}, {name}: it is read as JSON, {error}. Write ["one", "two"] and 0.'
                    ) from error
        yield row


def _table_row(row: dict, table: Path) -> dict:
    """Without NaN, which pandas writes for what is missing; the path of its audio, if any, in `audio`, and absolute."""
    row = {name: None if is_missing(value) else value for name, value in row.items()}
    audio = row.pop("file_name", None) if row.get("audio") is None else row["audio"]
    if isinstance(audio, str) and "://" not in audio:
        audio = str((table.parent / audio).absolute())
    return {**row, "audio": audio} if audio is not None else row


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


_TABLES = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
