"""What an evaluation consists of: jobs, each one task in one modality, with its rows and what identifies it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.audio import check_audio
from ..data.journal import rows_digest, sha256
from ..models.loading import identity
from .cascade import read_transcripts
from .settings import EvaluationSettings
from .tasks import LoadOptions, Task, task_named


@dataclass(frozen=True)
class Job:
    """One task in one modality."""

    task: Task
    source: str
    """Where its rows come from: a hub id or a path."""
    modality: str
    rows: Dataset
    numbers: list[int]
    """Place of each row in the whole split."""
    original: int
    """Rows of the whole split."""
    described: dict[str, Any]
    """All that the completions depend on."""

    @property
    def name(self) -> str:
        """Its name among the results."""
        return f"{self.task.name}_{self.modality}"

    @property
    def fingerprint(self) -> str:
        """Digest of all that the completions depend on."""
        return sha256(self.described)[:16]


def make_jobs(name: str, settings: EvaluationSettings, weights: dict[str, Any]) -> list[Job]:
    """The jobs of one task, a job a modality, over the same rows."""
    task, source = task_named(name)
    heard = any(modality != "text" for modality in settings.modalities)
    rows = task.rows(
        LoadOptions(
            source=source,
            splits=tuple(settings.split) or task.splits,
            system_prompt=settings.system_prompt,
            instruction=settings.instruction,
            audio_required=heard,
            revision=None,
        )
    )
    original = len(rows)
    numbers = drawn(original, settings.limit, settings.seed)
    rows = rows.select(numbers)
    keys = rows["key"][:]
    if len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})[:20]
        raise ValueError(f"tasks={name!r}: several rows have the keys {twice}. Give every row a key of its own.")
    if heard:
        place = dict(zip(keys, numbers, strict=True))
        rows = check_audio(rows, max_seconds=settings.max_audio_seconds, on_error=settings.on_bad_audio)
        numbers = [place[key] for key in rows["key"][:]]
    digests = {with_audio: rows_digest(rows, with_audio) for with_audio in {m != "text" for m in settings.modalities}}
    here = Path(source).is_absolute() and Path(source).is_relative_to(Path.cwd())
    shown = str(Path(source).relative_to(Path.cwd())) if here else source
    jobs = []
    for modality in settings.modalities:
        described: dict[str, Any] = {
            "task": task.name,
            "version": task.version,
            "modality": modality,
            "rows": digests[modality != "text"],
            "weights": weights,
            "dtype": settings.dtype,
            "generation": {**settings.generation, "max_new_tokens": settings.max_new_tokens},
            "seed": settings.seed if settings.temperature > 0 else None,
        }
        if modality == "cascade":
            if settings.transcripts is not None:
                described["transcripts"] = sha256(read_transcripts(settings.transcripts, rows["key"][:]))
            else:
                described["transcripts"] = identity(settings.asr_model or "")
        jobs.append(Job(task, shown, modality, rows, numbers, original, described))
    return jobs


def drawn(total: int, limit: float | None, seed: int) -> list[int]:
    """Places of the rows to use, in order: all, or `limit` of them (a share of them if below 1) drawn with `seed`."""
    if limit is None:
        return list(range(total))
    wanted = max(1, round(limit * total)) if limit < 1 else int(limit)
    return sorted(random.Random(seed).sample(range(total), min(wanted, total)))
