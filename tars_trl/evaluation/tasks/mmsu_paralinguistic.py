"""MMSU (`ddwang2000/MMSU`): 5,000 questions about recordings, 47 tasks of perception and reasoning.

The recording is what is asked about, and the question is written; so there is no written twin. Columns: id, audio,
question, choice_a to choice_d (some questions have two), answer_gt (the text of the right one), task_name, category,
sub-category, … The TARS authors' copy has key, question, options, answer_index instead.
Not to be confused with `voicebench_mmsu`.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets

from ...data import SYSTEM_PROMPT, written_question
from ...errors import QuestionError
from .base import LoadOptions, Task, raw_rows, recording_prompt, with_columns

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def load_paralinguistic(options: LoadOptions) -> Dataset:
    """The questions as rows: the recording first, then question and options in writing."""
    return concatenate_datasets([_converted(dataset, options) for _, dataset in raw_rows(options)])


def _converted(dataset: Dataset, options: LoadOptions) -> Dataset:
    published = {"question", "choice_a", "choice_b", "answer_gt"} <= set(dataset.column_names)
    if not published and not {"question", "options", "answer_index", "key"} <= set(dataset.column_names):
        raise QuestionError(
            f"{options.source} has the columns {dataset.column_names}: MMSU has question, choice_a to choice_d and "
            "answer_gt (the TARS copy key, question, options, answer_index). Load it together with its metadata table."
        )
    text = dataset.select_columns([name for name in dataset.column_names if name != "audio"]).with_format(None)
    rows = [_row(row, published, number) for number, row in enumerate(text)]
    columns = {name: [row[name] for row in rows] for name in ("key", "question", "options", "answer_index")}
    columns["prompt"] = [
        recording_prompt(options, SYSTEM_PROMPT, written_question(row["question"], row["options"])) for row in rows
    ]
    return with_columns(dataset, columns)


def _row(row: dict[str, Any], published: bool, number: int) -> dict[str, Any]:
    if not published:
        return {name: row[name] for name in ("key", "question", "options", "answer_index")}
    key = str(row.get("id") or f"mmsu-{number:04d}")
    texts = [str(row[name]) for name in CHOICES if row.get(name)]
    if texts.count(str(row["answer_gt"])) != 1:
        raise QuestionError(
            f"row {key!r}, answer_gt={row['answer_gt']!r}: it is not one of the options {texts}. Correct the row."
        )
    return {
        "key": key,
        "question": row["question"],
        "options": texts,
        "answer_index": texts.index(str(row["answer_gt"])),
    }


_CHANGES = "1: question and options written after the recording, with our system prompt."

MMSU_PARALINGUISTIC = Task(
    "mmsu_paralinguistic",
    1,
    _CHANGES,
    "ddwang2000/MMSU",
    load_paralinguistic,
    ("train",),
    modalities=("speech",),
    domain="sub-category",
)
TARS_MMSU_PARALINGUISTIC = Task(
    "tars_mmsu_paralinguistic",
    1,
    _CHANGES,
    "yuantuo666/MMSU-full_5k_hf_format.v0",
    load_paralinguistic,
    ("train",),
    modalities=("speech",),
    domain="category",
)
