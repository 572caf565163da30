"""Questions in the row schema of `tars_trl.data`, or anything its loader converts.

Version 1: rows as they are.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path

from datasets import Dataset, concatenate_datasets, get_dataset_split_names

from ...data import load_questions
from .base import LoadOptions, subset_in

logger = logging.getLogger(__name__)


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


@cache  # says it once
def split_of(path: Path) -> str:
    """The split that is measured if none is named: "test", or the only one of a folder that has no other."""
    if not path.is_dir():
        return "test"
    saved = path / "dataset_dict.json"
    try:
        splits = json.loads(saved.read_text())["splits"] if saved.is_file() else get_dataset_split_names(str(path))
    except FileNotFoundError:  # no data in it: reading it says what is missing
        return "test"
    if len(splits) == 1 and splits != ["test"]:
        logger.warning("%s has no split but %r: its questions are measured.", path, splits[0])
        return str(splits[0])
    return "test"
