"""What can be measured: one small file a family of benchmarks, each with its version and what changed in it.

Adding one is a file with a `Task` and a line in `TASKS`. A task turns what a benchmark publishes into rows that
`tars_trl.evaluation.run` can ask: `key`, `prompt` (the written conversation), `audio`, and what the answer is scored by
(`options` and `answer_index`, or `reference`). Nothing is downloaded before `Task.rows` is called.
"""

from __future__ import annotations

import re
from pathlib import Path

from .base import ALL_MODALITIES, LoadOptions, Task
from .demo import DEMO
from .folder import load_folder, split_of
from .librispeech import LIBRISPEECH, LIBRISPEECH_CLEAN, LIBRISPEECH_OTHER
from .mmsu_paralinguistic import MMSU_PARALINGUISTIC, TARS_MMSU_PARALINGUISTIC
from .sd_qa import SD_QA
from .tars_copies import TARS_MMLU, TARS_MMSU, TARS_OBQA
from .voicebench_mmsu import VOICEBENCH_MMSU
from .voicebench_openbookqa import VOICEBENCH_OPENBOOKQA

__all__ = ["ALL_MODALITIES", "TASKS", "LoadOptions", "Task", "task_named"]

TASKS = {
    task.name: task
    for task in (
        VOICEBENCH_MMSU,
        VOICEBENCH_OPENBOOKQA,
        TARS_MMSU,
        TARS_OBQA,
        TARS_MMLU,
        MMSU_PARALINGUISTIC,
        TARS_MMSU_PARALINGUISTIC,
        LIBRISPEECH,
        LIBRISPEECH_CLEAN,
        LIBRISPEECH_OTHER,
        SD_QA,
        DEMO,
    )
}


def task_named(text: str) -> tuple[Task, str]:
    """The task that a command line means, and where its data comes from.

    Args:
        text: a name in `TASKS`; `name=SOURCE` for the same task from another hub id or from a local copy; or a folder
            or file of questions in the schema of `tars_trl.data`, whose task is named after it.

    Raises:
        ValueError: neither a task nor something that exists.
    """
    name, _, source = text.partition("=")
    if name in TASKS:
        return TASKS[name], source or TASKS[name].source
    path = Path(text).expanduser()
    if path.exists():
        stem = re.sub(r"\W+", "_", path.stem if path.is_file() else path.resolve().name)
        return Task(stem, 1, "1: rows as they are.", text, load_folder, (split_of(path),)), text
    raise ValueError(
        f"tasks={text!r} is no task and no folder of questions. Use one of {', '.join(TASKS)}, NAME=FOLDER for a local "
        "copy of one, or the path of a folder in the schema of tars_trl.data."
    )
