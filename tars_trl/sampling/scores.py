"""How hard each question is for a model, spoken and written; what to train on, and in which order.

Every question is sampled n times in both modalities, c of n are right. From that follow these columns:

    speech_accuracy, text_accuracy    c / n
    speech_pass_at_k, text_pass_at_k  chance that one of k samples is right, estimated without bias from all n
    gap                               text_accuracy - speech_accuracy
    text_references                   share of the written samples that are right and not cut off at the limit
    curriculum                        what to sort by: smaller first (`order` decides)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Audio, Dataset, Features, Value
from tqdm import tqdm

from ..data.answers import extract_strict
from ..data.audio import TARGET_RATE, undecoded
from ..data.journal import append_lines, read_lines, sha256
from ..data.prompts import Modality
from .complete import complete

KEEP = ("all", "reachable", "learnable")
ORDERS = ("easy_first", "largest_gap")
COLUMNS = (
    *("speech_accuracy", "text_accuracy", "speech_pass_at_k", "text_pass_at_k"),
    *("gap", "text_references", "curriculum"),
)
MODALITIES: tuple[Modality, ...] = ("speech", "text")
Score = Mapping[str, float]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    num_samples: int = 8
    max_new_tokens: int = 1024
    batch_size: int = 4
    seed: int = 0
    temperature: float = 1.0


@dataclass(frozen=True)
class Samples:
    """The samples of one question in one modality."""

    right: Sequence[bool]
    """Whether the answer of each is right."""
    complete: Sequence[bool]
    """Whether each came to its end within `max_new_tokens`: in training a truncated one is no reference."""


def from_full_distribution(temperature: float = 1.0) -> dict[str, Any]:
    """Generation settings that sample as the trainer does; what is not named would come from the checkpoint."""
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    return {"do_sample": True, "temperature": temperature, **neutral}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n of which c are: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: k is not from 1 to n, or c not from 0 to n.
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise ValueError(
            f"pass@{k} of {samples} samples, {correct} of them right, is not defined. Draw at least k samples a "
            "question (num_samples), or lower k."
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def score(speech: Samples, text: Samples, k: int, order: str = "easy_first") -> dict[str, float]:
    """The columns of one question.

    Args:
        speech: samples of the spoken form.
        text: samples of the written form.
        k: of pass@k; with G completions in training, G / 2 of each modality.
        order: `easy_first`: curriculum is the share of wrong samples over both; `largest_gap`: it is minus the gap.

    Raises:
        ValueError: an unknown order, or fewer than k samples.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not a choice. Use one of {', '.join(ORDERS)}.")
    heard, read = (sum(samples.right) / max(1, len(samples.right)) for samples in (speech, text))
    references = sum(right and complete for right, complete in zip(text.right, text.complete, strict=True))
    return {
        "speech_accuracy": heard,
        "text_accuracy": read,
        "speech_pass_at_k": pass_at_k(len(speech.right), sum(speech.right), k),
        "text_pass_at_k": pass_at_k(len(text.right), sum(text.right), k),
        "gap": read - heard,
        "text_references": references / max(1, len(text.right)),
        "curriculum": 1 - (heard + read) / 2 if order == "easy_first" else heard - read,
    }


def selected(scores: Sequence[Score], keep: str = "all", top: int | None = None) -> list[int]:
    """Numbers of the questions to train on, in the order of their curriculum; equal ones as they came.

    Args:
        scores: one a question, as `score` gives them.
        keep: `all`; `reachable`: a written sample is right and complete, so that a reference can be found (the paper's
            alignment rewards are 0 without one); `learnable`: also, not every sample of both modalities is right, so
            that some advantage is not 0.
        top: how many at most, the first ones.

    Raises:
        ValueError: an unknown choice, or no question is left.
    """
    if keep not in KEEP or (top is not None and top < 1):
        raise ValueError(f"keep={keep!r}, top={top}: use one of {', '.join(KEEP)}, and a top of 1 or more, or None.")
    numbers = [number for number, found in enumerate(scores) if _reason(found, keep) is None]
    if not numbers:
        raise ValueError(
            f"keep={keep!r} leaves none of {len(scores)} questions ({_listed(dropped(scores, keep, 0))}). Give others, "
            "a larger num_samples or max_new_tokens, or keep='all'."
        )
    return sorted(numbers, key=lambda number: scores[number]["curriculum"])[:top]


def dropped(scores: Sequence[Score], keep: str, kept: int) -> Counter[str]:
    """How many questions were dropped, by reason, where `kept` of them were left by `selected`."""
    reasons = Counter(reason for found in scores if (reason := _reason(found, keep)) is not None)
    cut = len(scores) - reasons.total() - kept
    return reasons + Counter({"cut by top": cut})


def _reason(found: Score, keep: str) -> str | None:
    """Why a question is dropped, or None."""
    if keep != "all" and not found["text_references"] > 0:
        return "unreachable"
    if keep == "learnable" and found["text_accuracy"] == found["speech_accuracy"] == 1:
        return "solved already"
    return None


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def sampled(
    model: Any,
    processor: Any,
    rows: Dataset,
    modality: Modality,
    sampling: Sampling,
    folder: Path,
    described: Mapping[str, Any],
) -> list[Samples]:
    """The samples of each question; over all processes, and continued where it stopped.

    Batches are the same however many processes share them, so the draws are too.

    Args:
        rows: N questions of the schema.
        folder: where finished questions are noted.
        described: what identifies model and data; samples of others are not taken for these.

    Returns:
        N times `num_samples` samples.
    """
    state = PartialState()
    drawn = from_full_distribution(sampling.temperature)
    digest = sha256({**described, **asdict(sampling), **drawn, "modality": modality})[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if state.is_main_process:
        found = read_lines(sorted(folder.glob(f"{modality}_{digest}.*.jsonl")))
    (found,) = broadcast_object_list([found])
    keys = rows["key"][:]
    size = sampling.batch_size
    batches = [range(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
    missing = [batch for batch in batches if any(keys[number] not in found for number in batch)]
    mine = missing[state.process_index :: state.num_processes]
    fresh = []
    with tqdm(total=len(mine) * size, desc=f"Asking, {modality}", disable=not state.is_main_process) as bar:
        for batch in mine:
            lines = _asked(model, processor, [rows[number] for number in batch], modality, sampling)
            append_lines(folder / f"{modality}_{digest}.{state.process_index}.jsonl", lines)
            fresh += lines
            bar.update(len(batch))
    found |= {line["key"]: line for line in gather_object(fresh)}
    return [Samples(found[key]["correct"], found[key]["complete"]) for key in keys]


def _asked(
    model: Any, processor: Any, rows: list[dict[str, Any]], modality: Modality, sampling: Sampling
) -> list[dict[str, Any]]:
    completions = list(
        complete(
            model,
            processor,
            rows,
            modality,
            batch_size=len(rows),
            max_new_tokens=sampling.max_new_tokens,
            num_samples=sampling.num_samples,
            seed=sampling.seed,
            **from_full_distribution(sampling.temperature),
        )
    )
    lines = []
    for number, row in enumerate(rows):
        own = completions[number * sampling.num_samples : (number + 1) * sampling.num_samples]
        right = [extract_strict(done.text, row["options"]) == row["answer_index"] for done in own]
        lines.append({"key": row["key"], "correct": right, "complete": [not done.truncated for done in own]})
    return lines


def write_scored(rows: Dataset, scores: Sequence[Score], numbers: Sequence[int], place: Path) -> None:
    """Write the selected rows with their scores as one parquet file, audio inside, in the given order."""
    rows = undecoded(rows)
    own = {name: feature for name, feature in rows.features.items() if name not in COLUMNS}
    features = {**own, "audio": Audio(sampling_rate=TARGET_RATE), **dict.fromkeys(COLUMNS, Value("float32"))}
    schema = Features(features).arrow_schema
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(place.name + ".part")
    with pq.ParquetWriter(beside, schema) as writer:
        for start in range(0, len(numbers), 100):  # audio of this many rows is in memory
            batch = [{**rows[number], **scores[number]} for number in numbers[start : start + 100]]
            for row in batch:
                audio = row["audio"]
                if audio is not None and audio.get("bytes") is None and audio.get("path"):
                    row["audio"] = {"bytes": Path(audio["path"]).read_bytes(), "path": Path(audio["path"]).name}
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    beside.replace(place)
