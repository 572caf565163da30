"""Questions from local folders, files and the hub, converted to the row schema of `tars_trl.data.schema`."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Audio, Dataset, DatasetDict, Features, List, Value, concatenate_datasets

from ..errors import QuestionError
from .audio import undecoded
from .schema import (
    LETTERS,
    SYSTEM_PROMPT,
    build_prompt,
    check_questions,
    one_kind_of_content,
    overridden,
    written_question,
)


def load_questions(
    path_or_id: str | Path,
    split: str = "train",
    *,
    system_prompt: str | None = None,
    instruction: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    column_map: Mapping[str, str] | None = None,
    audio_required: bool = True,
    name: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Questions from a local folder, a file or the hub, in the schema above, checked. Audio stays undecoded.

    Three kinds of rows are told apart by their columns: rows of the schema pass through; multiple-choice rows
    (`question`, `options`, and `answer_index` or `answer`, as in the TARS training sets) and VoiceBench rows (`prompt`
    as a string, `reference` as a letter) are given a `prompt`. Options may be a list of texts or `{text, label}`, as in
    ARC; an answer that is one of the labels, there or in a column `option_labels`, means that option. The text of the
    prompt is `prompt_for_tts` where there is one, else a `prompt` string, else `written_question`: it has to be what
    the audio says.

    Args:
        path_or_id: a folder written by `save_to_disk`; a folder of parquet shards, or any that `datasets.load_dataset`
            reads; a folder with a table (`questions`, `metadata` or the split's name, .jsonl or .csv) whose `audio` or
            `file_name` is a path relative to it; one .parquet, .jsonl or .csv file; or a data set id on the hub.
        split: which one. A table without a split's name is "train"; a single file, or a single saved data set, is taken
            whatever `split` says.
        system_prompt: of the rows that are converted; None for `SYSTEM_PROMPT`, "" for none. If given, it also
            replaces the system turn of rows that come with a prompt.
        instruction: a text that stays written in both twins. If given, it also replaces the one of such rows.
        limit: keep this many rows, the first ones after shuffling.
        seed: shuffle with it; None keeps the order.
        column_map: {their name: our name}, applied first; "choices.text" names a field of a column.
        audio_required: False adds an empty `audio` column where there is none, for text-only runs and for synthesis.
        name: configuration, if the data set has several.
        revision: commit, tag or branch on the hub.

    Raises:
        QuestionError: the rows cannot be read as questions.
        FileNotFoundError: a path that does not exist.
    """
    if limit is not None and limit < 1:
        raise QuestionError(f"limit={limit}: no question would be left. Give at least 1, or None for all.")
    dataset = read_rows(path_or_id, split, name, revision)
    if len(dataset) == 0:
        raise QuestionError(f"{path_or_id}, split {split!r}: it has no rows. Check the folder and the split.")
    dataset = _renamed(dataset, column_map or {})
    dataset = _with_audio(dataset, audio_required)
    dataset = _with_columns(dataset, _converted(dataset, split, system_prompt, instruction))
    check_questions(dataset)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


# Reading


def read_rows(path_or_id: str | Path, split: str, name: str | None, revision: str | None) -> Dataset:
    """Rows as they are in a folder, a file or a data set of the hub, see `load_questions`; columns stay theirs."""
    path = Path(path_or_id).expanduser()
    if path.is_file():
        if path.suffix == ".parquet":
            return datasets.load_dataset("parquet", data_files=str(path), split="train")
        return _read_table(path)
    if path.is_dir():
        return _read_folder(path, split, name)
    looks_local = path.is_absolute() or str(path_or_id).startswith(".") or len(path.parts) > 2
    if looks_local or path.suffix in (".parquet", *_TABLES):
        raise FileNotFoundError(f"{path_or_id}: no such file or folder, and no hub id either. Check the path.")
    return datasets.load_dataset(str(path_or_id), name, split=split, revision=revision)


def _read_folder(folder: Path, split: str, name: str | None) -> Dataset:
    for saved in (folder / split, folder):
        if (saved / "state.json").is_file():
            return datasets.load_from_disk(str(saved))
    if (folder / "dataset_dict.json").is_file():
        saved_splits: DatasetDict = datasets.load_from_disk(str(folder))
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
    return datasets.load_dataset(str(folder), name, split=split, cache_dir=_cache_of(folder))


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
    with table.open(encoding="utf-8", newline="") as lines:
        rows = [_table_row(row, table) for row in _TABLES[table.suffix](lines, table)]
    names = dict.fromkeys(name for row in rows for name in row)  # in order of appearance
    columns: dict[str, list] = {name: [row.get(name) for row in rows] for name in names}
    prompts = columns.get("prompt", [])
    if prompts and all(isinstance(prompt, list) for prompt in prompts):
        parts_used = any(isinstance(message.get("content"), list) for prompt in prompts for message in prompt)
        columns["prompt"] = [one_kind_of_content(prompt, parts_used) for prompt in prompts]
    try:
        return Dataset.from_dict(columns)
    except pa.ArrowException as error:
        raise QuestionError(f"{table}: a column mixes kinds of values, {error}. Write one kind in each.") from error


def _jsonl_rows(lines: Iterable[str], table: Path) -> Iterable[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise QuestionError(f"{table}, line {number}: not JSON, {error}. Write one object a line.") from error
        if not isinstance(row, dict):
            raise QuestionError(f"{table}, line {number}: not a JSON object. Write one object a line.")
        yield row


def _csv_rows(lines: Iterable[str], table: Path) -> Iterable[dict]:
    for number, cells in enumerate(csv.DictReader(lines), start=1):
        row: dict[str, Any] = {name: cell or None for name, cell in cells.items()}
        try:
            row |= {name: json.loads(row[name]) for name in ("options", "answer_index") if row.get(name)}
        except json.JSONDecodeError as error:
            why = "options and answer_index are read as JSON"
            raise QuestionError(f'{table}, row {number}: {why}, {error}. Write ["one", "two"] and 0.') from error
        yield row


def _table_row(row: dict, table: Path) -> dict:
    """With the path of its audio, if any, in `audio`, and absolute."""
    audio = row.pop("file_name", None) if row.get("audio") is None else row["audio"]
    if isinstance(audio, str) and "://" not in audio:
        audio = str((table.parent / audio).absolute())
    return {**row, "audio": audio} if audio is not None else row


_TABLES = {".jsonl": _jsonl_rows, ".csv": _csv_rows}


# Converting

_CONVERTED_FROM = (
    *("prompt", "prompt_for_tts", "question", "options", "option_labels"),
    *("answer_index", "answer", "reference", "key", "question_id", "id"),
)


def _renamed(dataset: Dataset, column_map: Mapping[str, str]) -> Dataset:
    # "choices.text" is a field of the column "choices" (ARC, OpenBookQA): such columns, and no others, are taken apart.
    fields = [name for name in column_map if "." in name and name not in dataset.column_names]
    named = [name for name in {field.partition(".")[0]: None for field in fields} if name in dataset.column_names]
    if named:
        apart = dataset.select_columns(named).flatten(max_depth=1 + max(field.count(".") for field in fields))
        kept = [name for name in dataset.column_names if name not in named]
        dataset = concatenate_datasets([dataset.select_columns(kept), apart], axis=1) if kept else apart
    unknown = [name for name in column_map if name not in dataset.column_names]
    if unknown:
        raise QuestionError(f"column_map names {unknown}: the data set has {dataset.column_names}. Correct the names.")
    # A column of ours that the user replaces with another of theirs has to make room.
    replaced = [ours for ours in column_map.values() if ours in dataset.column_names and ours not in column_map]
    return dataset.remove_columns(replaced).rename_columns(dict(column_map))


def _with_audio(dataset: Dataset, required: bool) -> Dataset:
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):  # also a second recording: reading it would ask for torchcodec
            dataset = undecoded(dataset, name)
    if "audio" in dataset.column_names:
        return undecoded(dataset)
    if required:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: there is no audio. Name its column with "
            "column_map={'theirs': 'audio'}, or pass audio_required=False for a run without speech."
        )
    return undecoded(_with_columns(dataset, {"audio": [None] * len(dataset)}))


def _with_columns(dataset: Dataset, columns: dict[str, list]) -> Dataset:
    """`dataset` with these columns replaced or added. Only they are held in memory; nothing is written to disk."""
    if not columns:
        return dataset
    fixed = {"audio": Audio(decode=False), "options": List(Value("string")), "answer_index": Value("int64")}
    fixed |= {"key": Value("string"), "question": Value("string")}
    added = Dataset.from_dict(columns)
    added = added.cast(Features({name: fixed.get(name, feature) for name, feature in added.features.items()}))
    kept = [name for name in dataset.column_names if name not in columns]
    return concatenate_datasets([dataset.select_columns(kept), added], axis=1)


def _converted(dataset: Dataset, split: str, system_prompt: str | None, instruction: str | None) -> dict[str, list]:
    """The columns that make `dataset` follow the schema."""
    names = set(dataset.column_names)
    text = dataset.select_columns([name for name in _CONVERTED_FROM if name in names]).with_format(None)
    if "prompt" in names and isinstance(text[0]["prompt"], list):
        if system_prompt is None and instruction is None:
            return {}
        return {"prompt": [overridden(row["prompt"], system_prompt, instruction) for row in text]}
    multiple_choice = {"question", "options"} <= names and names & {"answer_index", "answer", "reference"}
    if not multiple_choice and not {"prompt", "reference"} <= names:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: these are no questions. Rename columns with "
            "column_map={'theirs': 'ours'} so that there is a prompt (a list of messages), or question, options and "
            "answer_index, or prompt (a string) and reference (a letter)."
        )
    system_prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
    rows = [_question_row(row, f"{split}-{index:06d}", system_prompt, instruction) for index, row in enumerate(text)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _question_row(row: dict, fallback_key: str, system_prompt: str, instruction: str | None) -> dict:
    key = next((str(row[name]) for name in ("key", "question_id", "id") if row.get(name) is not None), fallback_key)
    question, options, prompt = row.get("question"), row.get("options"), row.get("prompt")
    labels = row.get("option_labels")
    if isinstance(options, dict) and "text" in options:  # {"text": […], "label": […]}, as ARC and OpenBookQA have it
        options, labels = options["text"], options.get("label")
    if options is None:
        question, options = _split_question(prompt, key)
    if isinstance(options, list):  # [7, 9]: as a reader would have them
        options = [str(option) if type(option) in (int, float) else option for option in options]
    if not question or not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise QuestionError(
            f"row {key!r}, question={question!r}, options={options!r}: give a text and a list of texts."
        )
    text = row.get("prompt_for_tts") or prompt or written_question(question, options)
    return {
        "prompt": build_prompt(text, system_prompt, instruction),
        "question": question,
        "options": options,
        "answer_index": _answer_index(row, options, labels or [], key),
        "key": key,
    }


def _split_question(prompt: str | None, key: str) -> tuple[str, list[str]]:
    """A VoiceBench prompt as question and options: the lines `A. …`, `B. …` up to a blank line or the request."""
    lines = (prompt or "").strip().splitlines()
    labelled = [re.match(r"\(?([A-Z])[.):]\s*(.+)", line.strip()) for line in lines]
    starts = [index for index, match in enumerate(labelled) if match and match[1] == "A"]
    if not starts or starts[-1] == 0:
        raise QuestionError(
            f"row {key!r}, prompt: {prompt!r} holds no question with lines 'A. …'. Add an options column."
        )
    options: list[str] = []
    for line, match in zip(lines[starts[-1] :], labelled[starts[-1] :], strict=True):
        if match and match[1] == LETTERS[len(options)]:
            options.append(match[2].strip())
        elif not line.strip() or line.startswith("What is the answer"):
            break
        else:
            options[-1] += "\n" + line.strip()
    return "\n".join(lines[: starts[-1]]).strip(), options


def _answer_index(row: Mapping, options: list[str], labels: list[str], key: str) -> int:
    """The index of the right option: `answer_index`, or what a label, letter, index or text in `answer` means."""
    index, answer = row.get("answer_index"), row.get("answer", row.get("reference"))
    if labels and len(labels) != len(options):
        raise QuestionError(
            f"row {key!r}, option_labels={labels!r}: they are not as many as the options {options}. Correct them, or "
            "leave them out."
        )
    meant = _meant_options(answer, options, labels)
    if index is not None:
        if not isinstance(index, int) and not (isinstance(index, float) and index.is_integer()):
            raise QuestionError(
                f"row {key!r}, answer_index={index!r}: it is no whole number. Give the index from 0, or name the "
                "column `answer` if it holds letters, labels or texts."
            )
        if meant and index not in meant:  # an index that counts from 1, for instance
            raise QuestionError(
                f"row {key!r}, answer_index={index}, answer={answer!r}: they name different options of {options}. "
                "Indices count from 0; correct one, or drop the answer column."
            )
        return int(index)
    if len(meant) != 1:
        raise QuestionError(
            f"row {key!r}, answer={answer!r}: it names {len(meant)} of the options {options}, not one. Give a letter, "
            "an index from 0 as a number, the text of an option, or one of the row's `option_labels` (with "
            "choices.text=options also map choices.label=option_labels)."
        )
    return meant.pop()


def _meant_options(answer: Any, options: list[str], labels: list[str]) -> set[int]:
    if isinstance(answer, int):
        return {answer}
    text = str(answer or "").strip()
    # "3" may stand for the first of 1, 3, 5: a data set that labels its options means labels.
    if text and text in labels:
        return {number for number, label in enumerate(labels) if label == text}
    letter = re.fullmatch(r"\(?([A-Za-z])[.)]?", text)
    meant = {index for index, option in enumerate(options) if option.strip() == text}
    if letter and (index := LETTERS.index(letter[1].upper())) < len(options):
        meant.add(index)
    return meant


def ordered_by(dataset: Dataset, column: str) -> Dataset:
    """`dataset` by the numbers in `column`, ascending; equal ones stay in the order they came.

    Raises:
        ValueError: no such column, or a row without a number there.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"curriculum={column!r} is no column of the training questions ({', '.join(dataset.column_names)}), so "
            "they cannot be ordered by it. Name one that is, or leave it out to shuffle."
        )
    level = dataset[column][:]
    for number, value in enumerate(level):
        if not isinstance(value, int | float) or value != value:
            raise ValueError(
                f"curriculum={column!r}: row {dataset[number].get('key', number)!r} has {value!r} there, which cannot "
                "be ordered. Give every row a number, such as recipes/score_questions.py writes."
            )
    return dataset.select(sorted(range(len(level)), key=level.__getitem__))
