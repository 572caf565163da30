"""SD-QA as VoiceBench has it: 553 real questions spoken by people of 11 regions, with a short reference answer.

`hlt-lab/voicebench`, configuration `sd-qa`, one split a region (usa, aus, gbr, ind_n, …). Columns: audio, prompt,
reference. VoiceBench scores it with a judge (GPT) and a trained matcher (PEDANT); here an answer is right where it
names the reference, word for word after Whisper's normaliser. That is stricter: compare it only with itself.
"""

from __future__ import annotations

from datasets import Dataset, concatenate_datasets

from ...data import build_prompt
from ...errors import QuestionError
from .base import LoadOptions, Task, raw_rows, with_columns


def load_sd_qa(options: LoadOptions) -> Dataset:
    """The questions of each region, `reference` being the answer."""
    return concatenate_datasets(
        [_converted(dataset, split, options) for split, dataset in raw_rows(options, subset="sd-qa")]
    )


def _converted(dataset: Dataset, split: str, options: LoadOptions) -> Dataset:
    if not {"prompt", "reference"} <= set(dataset.column_names):
        raise QuestionError(
            f"{options.source}, split {split!r}: SD-QA has the columns audio, prompt and reference, this has "
            f"{dataset.column_names}. Rename them."
        )
    rows = list(dataset.select_columns(["prompt", "reference"]).with_format(None))
    return with_columns(
        dataset,
        {
            "key": [f"{split}-{number:06d}" for number in range(len(rows))],
            "question": [row["prompt"] for row in rows],
            "prompt": [build_prompt(row["prompt"], options.system_prompt, options.instruction) for row in rows],
            "region": [split] * len(rows),
        },
    )


SD_QA = Task(
    "sd_qa",
    1,
    "1: no system prompt; right where the answer names the reference.",
    "hlt-lab/voicebench",
    load_sd_qa,
    ("usa",),
    kind="open",
    domain="region",
)
