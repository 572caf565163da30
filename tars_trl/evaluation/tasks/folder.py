"""Questions in the row schema of `tars_trl.data`, or anything its loader converts.

Version 1: rows as they are.
"""

from __future__ import annotations

from datasets import Dataset, concatenate_datasets

from ...data import load_questions
from .base import LoadOptions, subset_in


def load_folder(options: LoadOptions, subset: str | None = None) -> Dataset:
    """All splits of a folder, file or hub id, in the schema."""
    return concatenate_datasets(
        [
            load_questions(
                options.source,
                split,
                system_prompt=options.system_prompt,
                instruction=options.instruction,
                audio_required=options.audio_required,
                name=subset_in(options.source, subset),
                revision=options.revision,
            )
            for split in options.splits
        ]
    )
