"""VoiceBench's `openbookqa`: 455 spoken OpenBookQA questions.

`hlt-lab/voicebench`, configuration `openbookqa`, split `test`. Columns: audio, prompt, reference (a letter).
"""

from __future__ import annotations

from datasets import Dataset

from .base import LoadOptions, Task, with_columns
from .folder import load_folder


def load_openbookqa(options: LoadOptions) -> Dataset:
    """The questions, keyed as in the TARS authors' copy: `obqa_<number>`."""
    dataset = load_folder(options, subset="openbookqa")
    return with_columns(dataset, {"key": [f"obqa_{number}" for number in range(len(dataset))]})


VOICEBENCH_OPENBOOKQA = Task(
    name="voicebench_openbookqa",
    version=1,
    changes="1: our system prompt, the question as VoiceBench speaks it.",
    source="hlt-lab/voicebench",
    rows=load_openbookqa,
)
