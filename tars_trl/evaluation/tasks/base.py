"""What a task is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets

from ...data import build_prompt
from ...data.audio import undecoded
from ...data.questions import read_rows

Modality = Literal["speech", "text", "cascade", "self_cascade"]
ALL_MODALITIES: tuple[Modality, ...] = ("speech", "text", "cascade", "self_cascade")

# Stands in the written prompt where a recording without a written form is placed; a model never sees it.
CLIP = "(recording)"


@dataclass(frozen=True)
class LoadOptions:
    """How a task's rows are read and prompted."""

    source: str
    """Hub id, folder or file."""
    splits: tuple[str, ...]
    """Read one after the other."""
    system_prompt: str | None = None
    """None: the task's own; "": none."""
    instruction: str | None = None
    """Stays written in both twins; None: the task's own; "": none."""
    audio_required: bool = True
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    version: int
    """Goes up when figures are no longer comparable with earlier ones."""
    changes: str
    """What each version changed."""
    source: str
    """Hub id or folder."""
    rows: Callable[[LoadOptions], Dataset]
    """Reads the rows; raises `tars_trl.data.schema.QuestionError` for rows that are no questions."""
    splits: tuple[str, ...] = ("test",)
    kind: Literal["choice", "transcript", "open"] = "choice"
    """Scored by the chosen option, by word error rate, or by whether the answer names the reference."""
    modalities: tuple[Modality, ...] = ALL_MODALITIES
    domain: str | None = None
    """Column for the table by domain."""


def subset_in(source: str, subset: str | None) -> str | None:
    """The configuration to ask for: a hub repository (or its clone, with its README) has it, a local copy has not."""
    folder = Path(source).expanduser()
    return None if folder.exists() and not (folder / "README.md").is_file() else subset


def raw_rows(options: LoadOptions, subset: str | None = None) -> list[tuple[str, Dataset]]:
    """The rows of each split as they are published, audio undecoded."""
    parts = []
    for split in options.splits:
        dataset = read_rows(options.source, split, subset_in(options.source, subset), options.revision)
        parts.append((split, undecoded(dataset) if "audio" in dataset.column_names else dataset))
    return parts


def with_columns(dataset: Dataset, columns: dict[str, list[Any]]) -> Dataset:
    """`dataset` with these columns added, or put in the place of its own."""
    kept = [name for name in dataset.column_names if name not in columns]
    return concatenate_datasets([dataset.select_columns(kept), Dataset.from_dict(columns)], axis=1)


def recording_prompt(options: LoadOptions, system_prompt: str, instruction: str) -> list[dict]:
    """The conversation that asks something about a recording: the clip, then the instruction in writing."""
    system = system_prompt if options.system_prompt is None else options.system_prompt
    extra = f"{instruction}\n\n{options.instruction}" if options.instruction else instruction
    return build_prompt(CLIP, system, extra)
