"""How hard each question is for a model, spoken and written; what to train on, and in which order.

Every question is sampled n times in both modalities, c of n are right. From that follow these columns:

    speech_accuracy, text_accuracy    c / n
    speech_pass_at_k, text_pass_at_k  chance that one of k samples is right, estimated without bias from all n
    gap                               text_accuracy - speech_accuracy
    text_references                   share of the written samples that are right and not cut off at the limit
    curriculum                        what to sort by: smaller first (`order` decides)

    OUT/data/<split>-00000-of-00001.parquet        the selected questions with their scores, in that order
    OUT/.work/<modality>.<digest>.<process>.jsonl  which samples were right, appended as they come: what a resume reads
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Value

from ..data.answers import extract_strict
from ..data.audio import TARGET_RATE
from ..data.journal import Line, rows_digest, sha256
from ..data.prompts import MODALITIES, Modality
from ..errors import SettingError
from ..settings import BackendSettings, setting
from . import shared
from .complete import complete, decoding

KEEP = ("all", "reachable", "learnable")
ORDERS = ("easy_first", "largest_gap")
COLUMNS = (
    *("speech_accuracy", "text_accuracy", "speech_pass_at_k", "text_pass_at_k"),
    *("gap", "text_references", "curriculum"),
)
Score = Mapping[str, float]


@dataclass
class ScoreSettings(BackendSettings, shared.SamplingSettings):
    """Settings of `score_questions`."""

    output_dir: str = setting("runs/scored", "Folder of the scored questions.", required=True)
    num_samples: int = setting(8, "Completions of each question in each modality.", least=1)
    k: int = setting(4, "Of pass@k: in training a modality has num_generations / 2 completions.", least=1)
    temperature: float = setting(1.0, "Of sampling (paper: 1.0); near 0 all samples are the same.", least=0.01)
    batch_size: int = setting(4, "Questions in a forward pass, per process; each takes num_samples rows.", least=1)
    keep: str = setting(
        "all", "all; reachable: a written sample is right and complete; learnable: and not all are right.", choices=KEEP
    )
    order: str = setting("easy_first", "easy_first (curriculum) or largest_gap (active selection).", choices=ORDERS)
    top: int | None = setting(None, "Keep this many questions, the first ones in that order.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        pass_at_k(self.num_samples, 0, self.k)  # refused now, not at the end


@dataclass(frozen=True)
class Samples:
    right: Sequence[bool]
    """Whether the answer of each is right."""
    complete: Sequence[bool]
    """Whether each came to its end within `max_completion_length`: in training a truncated one is no reference."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n of which c are: 1 - C(n - c, k) / C(n, k).

    Raises:
        SettingError: k is not from 1 to n, or c not from 0 to n.
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise SettingError(
            f"pass@{k} of {samples} samples, {correct} of them right, is not defined. Draw at least k samples a "
            "question (num_samples), or lower k."
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def score(speech: Samples, text: Samples, k: int, order: str = "easy_first") -> dict[str, float]:
    """The columns of one question.

    Args:
        k: of pass@k; with G completions in training, G / 2 of each modality.
        order: `easy_first`: curriculum is the share of wrong samples over both; `largest_gap`: it is minus the gap.

    Raises:
        SettingError: fewer than k samples.
    """
    columns = {}
    for name, samples in (("speech", speech), ("text", text)):
        columns[f"{name}_pass_at_k"] = pass_at_k(len(samples.right), sum(samples.right), k)
        columns[f"{name}_accuracy"] = sum(samples.right) / len(samples.right)
    heard, read = columns["speech_accuracy"], columns["text_accuracy"]
    references = sum(right and complete for right, complete in zip(text.right, text.complete, strict=True))
    columns |= {"gap": read - heard, "text_references": references / len(text.right)}
    return columns | {"curriculum": 1 - (heard + read) / 2 if order == "easy_first" else heard - read}


def select_questions(scores: Sequence[Score], keep: str = "all", top: int | None = None) -> list[int]:
    """Numbers of the questions to train on, in the order of their curriculum; equal ones as they came.

    Args:
        scores: one a question, as `score` gives them.
        keep: `reachable`: a written sample is right and complete, so that a reference can be found (the paper's
            alignment rewards are 0 without one); `learnable`: also, some sample is wrong, so that some advantage is
            not 0.
        top: how many at most, the first ones.

    Raises:
        SettingError: no question is left.
    """
    numbers = [number for number, columns in enumerate(scores) if _drop_reason(columns, keep) is None]
    if not numbers:
        raise SettingError(
            f"keep={keep!r} leaves none of {len(scores)} questions "
            f"({shared.spell_counts(count_drops(scores, keep, 0))}). Give others, a larger num_samples or "
            "max_completion_length, or keep='all'."
        )
    return sorted(numbers, key=lambda number: scores[number]["curriculum"])[:top]


def count_drops(scores: Sequence[Score], keep: str, selected: int) -> Counter[str]:
    """How many questions were dropped, by reason, where `select_questions` left this many."""
    reasons = Counter(reason for columns in scores if (reason := _drop_reason(columns, keep)) is not None)
    return reasons + Counter({"cut by top": len(scores) - reasons.total() - selected})


def _drop_reason(columns: Score, keep: str) -> str | None:
    """Why a question is dropped, or None."""
    if keep != "all" and not columns["text_references"] > 0:
        return "unreachable"
    if keep == "learnable" and columns["text_accuracy"] == columns["speech_accuracy"] == 1:
        return "solved already"
    return None


def score_questions(settings: ScoreSettings) -> tuple[list[dict[str, float]], list[int]]:
    """Sample what is missing, on all processes of an `accelerate launch`, then score, select and write.

    Returns:
        the scores of all questions, and the numbers of the selected ones in their order, on every process.

    Raises:
        SettingError, QuestionError, AudioError: settings or rows that cannot work, before a model is loaded; and no
            question is left.
    """
    state = shared.start_processes(settings.use_cpu)
    loaded = shared.model_loader(settings)
    rows = shared.chosen_questions(settings)
    facts = shared.model_facts(settings) | {"rows": rows_digest(rows, with_audio=True)}
    speech, text = (sample_answers(settings, rows, modality, loaded, facts) for modality in MODALITIES)
    scores = [score(*pair, settings.k, settings.order) for pair in zip(speech, text, strict=True)]
    numbers = select_questions(scores, settings.keep, settings.top)
    if state.is_main_process:
        folder = Path(settings.output_dir).expanduser() / "data"
        write_scores(rows, scores, numbers, folder / f"{settings.split}-00000-of-00001.parquet")
    state.wait_for_everyone()
    return scores, numbers


def sample_answers(
    settings: ScoreSettings,
    rows: Dataset,
    modality: Modality,
    loaded: Callable[[], tuple[Any, Any]],
    facts: Mapping[str, Any],
) -> list[Samples]:
    """The `num_samples` samples of each question; over all processes, and continued where it stopped.

    Args:
        rows: questions of the schema.
        loaded: gives (model, processor); called where samples are missing.
        facts: what identifies model and data; samples of others are not taken for these.
    """
    options, size = {"num_samples": settings.num_samples, **decoding(settings)}, settings.batch_size
    digest = sha256({**facts, **options, "batch_size": size, "modality": modality})

    def work(places: Sequence[int]) -> list[Line]:
        batch = [rows[place] for place in places]
        lines: list[Line] = [{"key": row["key"], "correct": [], "complete": []} for row in batch]
        for number, completion in enumerate(complete(*loaded(), batch, modality, batch_size=len(batch), **options)):
            place = number // settings.num_samples
            right = extract_strict(completion.text, batch[place]["options"]) == batch[place]["answer_index"]
            lines[place]["correct"].append(right)
            lines[place]["complete"].append(not completion.truncated)
        return lines

    folder, stem = Path(settings.output_dir).expanduser() / ".work", f"{modality}.{digest[:16]}"
    lines = shared.share_out(rows["key"][:], work, folder, stem, batch_size=size)
    return [Samples(line["correct"], line["complete"]) for line in lines]


def write_scores(rows: Dataset, scores: Sequence[Score], numbers: Sequence[int], place: Path) -> None:
    """Write the selected rows with their scores as one parquet file, audio inside, in the given order."""
    types = Features(dict.fromkeys(COLUMNS, Value("float32")))
    columns = Dataset.from_list([dict(scores[number]) for number in numbers], features=types)
    if isinstance(rows.features["audio"], Audio):
        rows = rows.cast_column("audio", Audio(sampling_rate=TARGET_RATE))
    shared.write_parquet(rows.select(numbers), columns, place)
