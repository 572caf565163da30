"""Questions from local folders, files and the hub, converted to the row schema of `tars_trl.data.schema`."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Features, List, Value, concatenate_datasets

from ..errors import QuestionError, SettingError
from .audio import undecoded
from .reading import UNFIT, is_missing, read_rows
from .schema import (
    COLUMNS,
    LETTERS,
    PROBLEMS_SHOWN,
    SYSTEM_PROMPT,
    build_prompt,
    check_rows,
    override_prompt,
    written_question,
)


def load_questions(
    path_or_id: str | Path,
    split: str = "train",
    *,
    system_prompt: str | None = None,
    instruction: str | None = None,
    limit: float | None = None,
    seed: int | None = None,
    column_map: Mapping[str, str] | None = None,
    audio_required: bool = True,
    audio_anywhere: bool = False,
    labelled: bool = True,
    strict: bool = True,
    name: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Questions from a local folder, a file or the hub, in the schema of `tars_trl.data.schema`; audio undecoded.

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
        limit: keep this many rows, or this share of them if it is below 1; see `draw_numbers`.
        seed: draws them; None takes the first ones.
        column_map: {their name: our name}, applied first; "choices.text" names a field of a column.
        audio_required: False adds an empty `audio` column where there is none, for text-only runs and for synthesis.
        audio_anywhere: also open clips whose path leads out of the data set's folder, absolutely or by a link. Only
            for data sets that you trust: such a path can name any file of this machine.
        labelled: False for clips and transcripts alone, as distillation learns from: what is said is a conversation
            or a string in `prompt`, or a string in `transcript`, `prompt_for_tts`, `text` or `sentence`, the first of
            them that there is. What could be a label is left out, and without a `system_prompt` there is none.
        strict: also refuse rows with a single option or two equal ones. False for published benchmarks, to measure
            them as they are.
        name: configuration, if the data set has several.
        revision: commit, tag or branch on the hub.

    Raises:
        QuestionError: the rows cannot be read as questions: file, row and field.
        SettingError: a limit that leaves no row.
        FileNotFoundError: a path or a hub id that does not exist.
        ConnectionError: the hub cannot be reached.
    """
    if not isinstance(system_prompt, str | None) or not isinstance(instruction, str | None):
        raise SettingError(f"system_prompt={system_prompt!r}, instruction={instruction!r}: give a text, or None.")
    dataset = read_rows(path_or_id, split, name, revision)
    try:
        if len(dataset) == 0:
            raise QuestionError("it has no rows. Check the folder and the split.")
        dataset = _rename(dataset, column_map or {})
        dataset = _add_audio(dataset, audio_required)
        _check_kinds(dataset)
        if not audio_anywhere:
            _check_paths(dataset, Path(path_or_id).expanduser())
        convert = _convert if labelled else _convert_transcripts
        dataset = dataset if labelled else dataset.remove_columns([n for n in _LABELS if n in dataset.column_names])
        dataset = with_columns(dataset, convert(dataset, split, system_prompt, instruction))
        check_rows(dataset, required=COLUMNS if labelled else ("audio", "prompt", "key"), strict=strict)
    except QuestionError as error:
        raise QuestionError(f"{path_or_id}, split {split!r}: {error}") from error
    return dataset if limit is None else dataset.select(draw_numbers(len(dataset), limit, seed))


def draw_numbers(total: int, limit: float | None, seed: int | None) -> list[int]:
    """Numbers of the rows to use, ascending.

    Args:
        total: rows there are.
        limit: how many to use, or which share of them if below 1 (at least one row); None for all.
        seed: draws them, the first ones of a draw for any limit; None takes the first rows.

    Raises:
        SettingError: no row would be left, or a part of one.
    """
    if limit is None:
        return list(range(total))
    if not _is_number(limit) or not 0 < limit < math.inf or (limit >= 1 and limit != int(limit)):
        raise SettingError(
            f"limit={limit!r}: this many rows cannot be taken. Give a whole number of rows, a share below 1 or None."
        )
    count = min(total, int(limit) if limit >= 1 else max(1, round(limit * total)))
    numbers = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
    return sorted(numbers[:count].tolist())


# ---- Converting ----------------------------------------------------------------------------------------------------

_CONVERTED_FROM = (
    *("prompt", "prompt_for_tts", "question", "options", "option_labels"),
    *("answer_index", "answer", "reference", "key", "question_id", "id"),
)


_LABELS = ("question", "options", "option_labels", "answer_index", "answer", "reference")
_TRANSCRIPTS = ("prompt", "transcript", "prompt_for_tts", "text", "sentence")


def _rename(dataset: Dataset, column_map: Mapping[str, str]) -> Dataset:
    # "choices.text" is a field of the column "choices" (ARC, OpenBookQA): such columns, and no others, are taken apart.
    fields = [name for name in column_map if "." in name and name not in dataset.column_names]
    nested = [name for name in {field.partition(".")[0]: None for field in fields} if name in dataset.column_names]
    if nested:
        apart = dataset.select_columns(nested).flatten(max_depth=1 + max(field.count(".") for field in fields))
        others = [name for name in dataset.column_names if name not in nested]
        dataset = concatenate_datasets([dataset.select_columns(others), apart], axis=1) if others else apart
    unknown = [name for name in column_map if name not in dataset.column_names]
    if unknown:
        raise QuestionError(f"column_map names {unknown}: the data set has {dataset.column_names}. Correct the names.")
    if len(set(column_map.values())) < len(column_map):
        raise QuestionError(f"column_map gives one name to two columns: {dict(column_map)}. Leave one of them out.")
    # A column of ours that the user replaces with another of theirs has to make room.
    replaced = [ours for ours in column_map.values() if ours in dataset.column_names and ours not in column_map]
    return dataset.remove_columns(replaced).rename_columns(dict(column_map))


def _add_audio(dataset: Dataset, required: bool) -> Dataset:
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):  # also a second recording: reading it would ask for torchcodec
            dataset = undecoded(dataset, name)
    if "audio" in dataset.column_names:
        try:
            return undecoded(dataset)
        except UNFIT as error:
            raise QuestionError(
                f"column 'audio': it holds {dataset.features['audio']}, which is no audio. Give paths, encoded bytes, "
                "or {'array', 'sampling_rate'}."
            ) from error
    if required:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: there is no audio. Name its column with "
            "column_map={'theirs': 'audio'}, or pass audio_required=False for a run without speech."
        )
    return undecoded(with_columns(dataset, {"audio": [None] * len(dataset)}))


def _check_paths(dataset: Dataset, source: Path) -> None:
    """Refuse clips that lie elsewhere: a data set from somebody else could name any file of this machine."""
    if not isinstance(dataset.features["audio"], Audio):  # arrays: nothing is opened
        return
    folders = [source if source.is_dir() else source.parent] if source.exists() else []
    cached = [huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE]  # what the hub's links lead to
    roots = [Path(folder).resolve() for folder in (*folders, *cached)]
    problems: list[str] = []
    for start, batch in enumerate(dataset.select_columns(["audio"]).with_format("arrow").iter(1000)):
        audio = batch["audio"].combine_chunks()
        paths = pc.if_else(pc.is_null(pc.struct_field(audio, "bytes")), pc.struct_field(audio, "path"), None)
        for number, path in enumerate(paths.to_pylist(), start=1000 * start):
            try:
                if not path or ("://" in path and not Path(path).exists()):
                    continue
                place = Path(path).resolve()
            except (OSError, ValueError, RuntimeError):  # a loop of links, a zero byte: not opened, so it is reported
                continue
            if not any(place.is_relative_to(root) for root in roots):
                key = dataset[number].get("key", number)
                problems.append(f"row {number if key is None else key!r}, audio: {path!r} leads to {place}")
    if problems:
        listed = "\n  ".join(problems[:PROBLEMS_SHOWN])
        raise QuestionError(
            "clips lie outside of the data set's folder, and following such paths would let a data set read any file "
            f"of this machine:\n  {listed}\nPut them into the folder, or, if you trust it, set audio_anywhere: true."
        )


_TEXT = ("string", "large_string", "string_view", "null")


_KINDS = {
    **{"question": "a text", "prompt_for_tts": "a text", "prompt": "a text or a list of messages"},
    **{"options": "a list of texts or numbers", "option_labels": "a list of texts"},
}


def _check_kinds(dataset: Dataset) -> None:
    """Refuse columns of another kind than their name says; None and NaN are looked at row by row."""
    for name, kind in _KINDS.items():
        feature = dataset.features.get(name)
        if feature is None or (isinstance(feature, Value) and feature.dtype in _TEXT):
            continue
        listed = isinstance(feature, List) or (name == "options" and isinstance(feature, dict) and "text" in feature)
        # A column without any text is one of floats to pandas, all of them NaN.
        empty = isinstance(feature, Value) and all(map(is_missing, dataset.with_format(None)[name]))
        if not empty and not (listed and "list" in kind):
            raise QuestionError(
                f"column {name!r}: it holds {feature}, and {kind} is needed. Write it so, or name another column with "
                f"column_map={{'theirs': {name!r}}}."
            )
    for field in dataset.data.schema:
        if _has_equal_names(field.type):
            raise QuestionError(
                f"column {field.name!r}: it holds objects in which two fields have one name, which no row can be read "
                "with. Rename the fields, or leave the column out."
            )


def _has_equal_names(kind: pa.DataType) -> bool:
    """Whether two fields of a struct have one name, in the type or anywhere inside."""
    inside = [kind.field(number) for number in range(kind.num_fields)]
    twice = pa.types.is_struct(kind) and len({field.name for field in inside}) < len(inside)
    return twice or any(_has_equal_names(field.type) for field in inside)


def with_columns(dataset: Dataset, columns: dict[str, list]) -> Dataset:
    """`dataset` with these columns replaced or added. Only they are held in memory; nothing is written to disk."""
    if not columns:
        return dataset
    text = Value("string")
    fixed = {"audio": Audio(decode=False), "options": List(text), "answer_index": Value("int64")}
    fixed |= {"key": text, "question": text}
    added = Dataset.from_dict(columns)
    added = added.cast(Features({name: fixed.get(name, feature) for name, feature in added.features.items()}))
    others = [name for name in dataset.column_names if name not in columns]
    return concatenate_datasets([dataset.select_columns(others), added], axis=1)


def _convert(dataset: Dataset, split: str, system_prompt: str | None, instruction: str | None) -> dict[str, list]:
    """The columns that make `dataset` follow the schema."""
    names = set(dataset.column_names)
    text = dataset.select_columns([name for name in _CONVERTED_FROM if name in names]).with_format(None)
    if "prompt" in names and isinstance(dataset.features["prompt"], List):
        if system_prompt is None and instruction is None:
            return {}
        check_rows(dataset, strict=False)
        return {"prompt": [override_prompt(row["prompt"], system_prompt, instruction) for row in text]}
    multiple_choice = {"question", "options"} <= names and names & {"answer_index", "answer", "reference"}
    if not multiple_choice and not {"prompt", "reference"} <= names:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}: these are no questions. Rename columns with "
            "column_map={'theirs': 'ours'} so that there is a prompt (a list of messages), or question, options and "
            "answer_index, or prompt (a string) and reference (a letter)."
        )
    system_prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
    rows = []
    for index, row in enumerate(text):
        values = {name: None if is_missing(value) else value for name, value in row.items()}
        key = next((str(values[name]) for name in ("key", "question_id", "id") if values.get(name) is not None), None)
        rows.append(_question_row(values, key or f"{split}-{index:06d}", system_prompt, instruction))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _convert_transcripts(
    dataset: Dataset, split: str, system_prompt: str | None, instruction: str | None
) -> dict[str, list]:
    """`prompt` and `key` of rows that are clips and what is said in them."""
    column = next((name for name in _TRANSCRIPTS if name in dataset.column_names), None)
    if column is None:
        raise QuestionError(
            f"The data set has the columns {dataset.column_names}, beside those of labels: none holds what is said. "
            "Rename one with column_map={'theirs': 'transcript'}."
        )
    keys = next((dataset[name] for name in ("key", "question_id", "id") if name in dataset.column_names), None)
    columns: dict[str, list] = {"key": [str(key) for key in keys or (f"{split}-{n:06d}" for n in range(len(dataset)))]}
    if isinstance(dataset.features[column], List):
        prompts = dataset[column][:]
        if system_prompt is not None or instruction is not None:
            prompts = [override_prompt(prompt, system_prompt, instruction) for prompt in prompts]
        return columns | {"prompt": prompts}
    for key, text in zip(columns["key"], dataset[column], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise QuestionError(
                f"row {key!r}, {column}: {text!r:.100} says nothing. Write what the clip says, or remove it."
            )
    return columns | {"prompt": [build_prompt(text, system_prompt, instruction) for text in dataset[column]]}


def _question_row(row: dict, key: str, system_prompt: str, instruction: str | None) -> dict:
    question, options, prompt, labels = map(row.get, ("question", "options", "prompt", "option_labels"))
    if isinstance(options, dict):  # {"text": […], "label": […]}, as ARC and OpenBookQA have it
        options, labels = options["text"], options.get("label")
    if options is None:
        question, options = _split_prompt(prompt, key)
    if isinstance(options, list):  # [7, 9]: as a reader would have them
        options = [str(option) if _is_number(option) else option for option in options]
    if not question or not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise QuestionError(
            f"row {key!r}, question={question!r:.200}, options={options!r:.200}: give a text and a list of texts."
        )
    if not 1 <= len(options) <= len(LETTERS):
        raise QuestionError(f"row {key!r}, options: there are {len(options)}, and letters run from A to Z.")
    text = row.get("prompt_for_tts") or prompt or written_question(question, options)
    return {
        "prompt": build_prompt(text, system_prompt, instruction),
        "question": question,
        "options": options,
        "answer_index": _answer_index(row, options, labels if isinstance(labels, list) else [], key),
        "key": key,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _split_prompt(prompt: str | None, key: str) -> tuple[str, list[str]]:
    """A VoiceBench prompt as question and options: the lines `A. …`, `B. …` up to a blank line or the request."""
    lines = (prompt or "").strip().splitlines()
    labelled = [re.match(r"\(?([A-Z])[.):]\s*(.+)", line.strip()) for line in lines]
    starts = [index for index, match in enumerate(labelled) if match and match[1] == "A"]
    if not starts or starts[-1] == 0:
        raise QuestionError(f"row {key!r}, prompt: {prompt!r} holds no lines 'A. …'. Add an options column.")
    options: list[str] = []
    for line, match in zip(lines[starts[-1] :], labelled[starts[-1] :], strict=True):
        if match and match[1] == LETTERS[len(options) : len(options) + 1]:
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
            f"row {key!r}, option_labels={labels!r}: they are not as many as the options {options}. Correct them."
        )
    meant = _options_meant(answer, options, labels)
    if index is not None:
        if not _is_number(index) or index not in range(len(options)):
            raise QuestionError(
                f"row {key!r}, answer_index={index!r}: it is no index of the {len(options)} options {options!r:.200}. "
                "Give a whole number from 0, or name the column `answer` if it holds letters, labels or texts."
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


def _options_meant(answer: Any, options: list[str], labels: list[str]) -> set[int]:
    if _is_number(answer):
        return {int(answer)} if answer in range(len(options)) else set()
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
        SettingError: no such column, or a row without a number there.
    """
    if column not in dataset.column_names:
        raise SettingError(
            f"curriculum={column!r} is no column of the training questions ({', '.join(dataset.column_names)}): they "
            "cannot be ordered by it. Name one that is, or leave it out to shuffle."
        )
    level = dataset[column][:]
    for number, value in enumerate(level):
        if not isinstance(value, int | float) or value != value:
            raise SettingError(
                f"curriculum={column!r}: row {dataset[number].get('key', number)!r} has {value!r} there, which cannot "
                "be ordered. Give every row a number, such as tars-trl score-questions writes."
            )
    return dataset.select(sorted(range(len(level)), key=level.__getitem__))
