"""From a job's completions to its samples, and from samples to the content of a results file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from datasets import Audio, Dataset

from ..data.journal import Line, sha256
from ..data.prompts import spoken_prompt, written_prompt
from .cascade import with_transcript
from .jobs import Job
from .metrics import average_result
from .scoring import (
    Sample,
    domain_table,
    pair_group,
    pair_metrics,
    score_choices,
    score_texts,
    score_transcripts,
    task_metrics,
)
from .settings import EvaluationSettings
from .xfinder import XFinder


def score_job(job: Job, lines: Sequence[Line], settings: EvaluationSettings, device: Any = "cpu") -> list[Sample]:
    """The samples of a job: lm-evaluation-harness's keys, ours beside them.

    Args:
        lines: what `run.complete_job` returned.
        device: of the extractor's model.
    """
    rows: list[dict[str, Any]] = list(_without_audio(job.rows))
    texts = [line["text"] for line in lines]
    scores: list[Sample] = [{} for _ in rows]
    if settings.predict_only:
        pass
    elif job.task.kind == "choice":
        xfinder = XFinder(settings.xfinder_model, device) if "xfinder" in settings.extractors else None
        scores = score_choices(
            rows, texts, settings.extractors, seed=settings.seed, guess=settings.voicebench_guess, xfinder=xfinder
        )
    else:
        scores = score_texts(job.task.kind, rows, texts)
    if "cascade" in job.modality and not settings.predict_only:
        errors = score_transcripts(rows, [line["transcript"] for line in lines])
        scores = [score | error for score, error in zip(scores, errors, strict=True)]
    return [
        _sample(job, number, row, line, score)
        for number, row, line, score in zip(job.numbers, rows, lines, scores, strict=True)
    ]


def _sample(job: Job, number: int, row: dict[str, Any], line: Line, score: Sample) -> Sample:
    asked = with_transcript(row, line["transcript"]) if "transcript" in line else row
    prompt = (spoken_prompt if job.modality == "speech" else written_prompt)(asked["prompt"])
    target = _letter(row["answer_index"]) if job.task.kind == "choice" else str(row["reference"])
    chosen = _letter(next(iter(score["extracted"].values()))) if "extracted" in score else line["text"]
    text = json.dumps(prompt, ensure_ascii=False)
    return {
        "doc_id": number,
        "doc": row,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": text, "arg_1": job.described["generation"]}},
        "resps": [[line["text"]]],
        "filtered_resps": [chosen],
        "filter": "none",
        "metrics": [name for name in ("acc", "wer") if name in score],
        "doc_hash": sha256(row),
        "prompt_hash": sha256(text),
        "target_hash": sha256(target),
        "key": row["key"],
        "modality": job.modality,
        "domain": row.get(job.task.domain) if job.task.domain else None,
        "answer_index": row.get("answer_index"),
        **{name: line[name] for name in ("tokens", "truncated", "transcript") if name in line},
        **score,
    }


def _without_audio(rows: Dataset) -> Dataset:
    names = [name for name, feature in rows.features.items() if not isinstance(feature, Audio)]
    return rows.select_columns(names).with_format(None)


def _letter(index: int | None) -> str:
    return "" if index is None else chr(ord("A") + index)


def summarize(jobs: Sequence[Job], samples: dict[str, list[Sample]], settings: EvaluationSettings) -> dict[str, Any]:
    """The parts of a results file that come from the samples."""
    parts = ["results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
    content: dict[str, Any] = {name: {} for name in [*parts, "task_hashes", "pairs", "averages", "domains"]}
    for job in jobs:
        lines = samples[job.name]
        metrics: dict[str, float] = (
            {} if settings.predict_only else task_metrics(lines, settings.extractors, settings.seed)
        )
        content["results"][job.name] = {
            "name": job.name,
            "alias": f"{job.task.name} ({job.modality})",
            "sample_len": len(lines),
            **metrics,
        }
        content["configs"][job.name] = {
            "task": job.name,
            **job.source,
            "output_type": "generate_until",
            "generation_kwargs": job.described["generation"],
            "num_fewshot": 0,
            "repeats": 1,
            "modality": job.modality,
            "extractors": settings.extractors if job.task.kind == "choice" else [],
            "scored_by": job.task.kind,
            "prompt": lines[0]["arguments"]["gen_args_0"]["arg_0"],
            "metadata": {"version": float(job.task.version), "changes": job.task.changes},
            **{name: job.described[name] for name in ("transcripts",) if name in job.described},
        }
        content["versions"][job.name] = float(job.task.version)
        content["n-shot"][job.name] = 0
        content["higher_is_better"][job.name] = {
            name: name == "acc" for name in ("acc", "wer") if f"{name},none" in metrics
        }
        content["n-samples"][job.name] = {"original": job.original, "effective": len(lines)}
        content["task_hashes"][job.name] = sha256(
            "".join(line[f"{part}_hash"] for line in lines for part in ("doc", "prompt", "target"))
        )
        if not settings.predict_only and (table := domain_table(lines)):
            content["domains"][job.name] = table
        content["group_subtasks"].setdefault(job.task.name, []).append(job.name)
    if not settings.predict_only:
        _add_pairs(content, samples, settings)
    return content


def _add_pairs(content: dict[str, Any], samples: dict[str, list[Sample]], settings: EvaluationSettings) -> None:
    """Add what comes from the same questions in two forms: `pairs`, `groups` and, over several tasks, `averages`."""
    forms: dict[str, list[str]] = {}  # tasks that were asked in a heard form and in writing
    for task, names in content["group_subtasks"].items():
        if f"{task}_text" in names and "acc" in samples[f"{task}_text"][0]:
            for name in names:
                if name != f"{task}_text":
                    forms.setdefault(name.removeprefix(f"{task}_"), []).append(task)
    for form, tasks in forms.items():
        suffix = "" if form == "speech" else f"_{form}"
        # A published denominator is an average over tasks: of one among several it would be wrong.
        own = settings.reference_accuracy if len(tasks) == 1 else None
        pairs = {t: pair_metrics(samples[f"{t}_{form}"], samples[f"{t}_text"], own, settings.seed) for t in tasks}
        content["pairs"] |= {f"{task}{suffix}": pair for task, pair in pairs.items()}
        if form == "speech":
            groups = {task: {"name": task, "alias": task, **pair_group(pair)} for task, pair in pairs.items()}
            content["groups"] |= groups
        if len(tasks) > 1:
            average = average_result(list(pairs.values()), settings.reference_accuracy)
            content["averages"][f"average of {', '.join(f'{task}{suffix}' for task in tasks)}"] = average
