"""VoiceBench's `mmsu`: 3,074 spoken MMLU-Pro questions in 12 domains, the benchmark of the paper's main table.

`hlt-lab/voicebench`, configuration `mmsu`, one split a domain. Columns: audio, prompt (question, options, and the
request to select one of them, all of it spoken), reference (a letter), question_id, cot_content, category, src.
Not to be confused with `mmsu_paralinguistic`.
"""

from __future__ import annotations

from datasets import Dataset

from .base import LoadOptions, Task, with_columns
from .folder import load_folder

DOMAINS = (
    *("biology", "business", "chemistry", "economics", "engineering", "health"),
    *("history", "law", "other", "philosophy", "physics", "psychology"),
)


def load_mmsu(options: LoadOptions) -> Dataset:
    """The questions, keyed as in the TARS authors' copy: `<src>_<question_id>`."""
    dataset = load_folder(options, subset="mmsu")
    if {"src", "question_id"} <= set(dataset.column_names):
        ids = dataset.select_columns(["src", "question_id"]).with_format(None)
        dataset = with_columns(dataset, {"key": [f"{row['src']}_{row['question_id']}" for row in ids]})
    return dataset


VOICEBENCH_MMSU = Task(
    name="voicebench_mmsu",
    version=1,
    changes="1: all 12 domains; our system prompt, the question as VoiceBench speaks it.",
    source="hlt-lab/voicebench",
    rows=load_mmsu,
    splits=DOMAINS,
    domain="category",
)
