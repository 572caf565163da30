"""What an evaluation consists of: jobs, each one task in one modality, with its rows and what identifies it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.checking import check_audio
from ..data.journal import rows_digest, sha256
from ..data.questions import draw_numbers
from ..models.loading import identity
from ..sampling.shared import engine_facts
from .cascade import read_transcripts
from .settings import EvaluationSettings
from .tasks import Prompting, Task, read_task, split_of


@dataclass(frozen=True)
class Job:
    task: Task
    modality: str
    rows: Dataset
    numbers: list[int]
    """Place of each row among those of the task's splits."""
    original: int
    """Rows of the whole splits."""
    described: dict[str, Any]
    """All that the completions depend on."""
    source: dict[str, Any]
    """Where the rows come from: `dataset_path`, `test_split` and `dataset_revision`, the commit of the hub."""

    @property
    def name(self) -> str:
        """Its name among the results."""
        return f"{self.task.name}_{self.modality}"

    @property
    def fingerprint(self) -> str:
        """Digest of all that the completions depend on."""
        return sha256(self.described)[:16]


def make_jobs(task: Task, settings: EvaluationSettings, weights: Mapping[str, Any]) -> list[Job]:
    """The jobs of one task, a job a modality, over the same rows; `weights` identify the model and its adapter.

    Raises:
        QuestionError, AudioError: rows or clips that cannot be used.
    """
    heard = any(modality != "text" for modality in settings.modalities)
    splits = settings.split or task.splits or (split_of(task.source),)
    rows, commit = read_task(
        task, splits, Prompting(settings.system_prompt, settings.instruction, heard, settings.audio_anywhere)
    )
    original = len(rows)
    numbers = draw_numbers(original, settings.limit, settings.seed)
    rows = rows.select(numbers)
    if heard:
        place = dict(zip(rows["key"][:], numbers, strict=True))
        rows = check_audio(
            rows,
            max_seconds=settings.max_audio_seconds,
            max_megabytes=settings.max_audio_megabytes,
            on_error=settings.on_bad_audio,
        )
        numbers = [place[key] for key in rows["key"][:]]
    path = Path(task.source)
    here = path.is_absolute() and path.is_relative_to(Path.cwd())
    source = {
        "dataset_path": str(path.relative_to(Path.cwd())) if here else task.source,
        "test_split": ",".join(splits),
        "dataset_revision": commit,
    }
    digests = {with_audio: rows_digest(rows, with_audio) for with_audio in {m != "text" for m in settings.modalities}}
    jobs = []
    for modality in settings.modalities:
        described: dict[str, Any] = {
            "task": task.name,
            "version": task.version,
            "modality": modality,
            "rows": digests[modality != "text"],
            "weights": dict(weights),
            "dtype": settings.dtype,
            "attn_implementation": settings.attn_implementation,
            "generation": {**settings.generation, "max_new_tokens": settings.max_completion_length},
            "seed": settings.seed if settings.temperature > 0 else None,
            **engine_facts(settings),
        }
        if modality == "cascade" and settings.transcripts is not None:
            described["transcripts"] = sha256(read_transcripts(settings.transcripts, rows["key"][:]))
        elif modality == "cascade":
            described["transcripts"] = identity(settings.asr_model or "")
        jobs.append(Job(task, modality, rows, numbers, original, described, source))
    return jobs
