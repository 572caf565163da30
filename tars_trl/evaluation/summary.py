"""From a job's completions to its samples, and from samples to the content of a results file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from datasets import Audio, Dataset

from ..extraction import XFinder
from ..twins import spoken_prompt, written_prompt
from .cascade import with_transcript
from .jobs import Job
from .results import Line, sha256
from .scoring import (
    domain_table,
    pair_group,
    pair_metrics,
    score_choices,
    score_texts,
    score_transcripts,
    task_metrics,
)
from .settings import EvaluationSettings


def scored(job: Job, lines: Sequence[Line], settings: EvaluationSettings, device: Any = "cpu") -> list[dict[str, Any]]:
    """The samples of a job: lm-evaluation-harness's keys, ours beside them."""
    rows: list[dict[str, Any]] = list(_without_audio(job.rows))
    texts = [line["text"] for line in lines]
    scores: list[dict[str, Any]] = [{} for _ in rows]
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
    decoding = {**settings.generation, "max_new_tokens": settings.max_new_tokens}
    samples = []
    for number, row, line, score in zip(job.numbers, rows, lines, scores, strict=True):
        asked = with_transcript(row, line["transcript"]) if "transcript" in line else row
        prompt = (spoken_prompt if job.modality == "speech" else written_prompt)(asked["prompt"])
        target = _letter(row["answer_index"]) if job.task.kind == "choice" else str(row["reference"])
        chosen = _letter(next(iter(score["extracted"].values()))) if "extracted" in score else line["text"]
        text = json.dumps(prompt, ensure_ascii=False)
        samples.append(
            {
                "doc_id": number,
                "doc": row,
                "target": target,
                "arguments": {"gen_args_0": {"arg_0": text, "arg_1": decoding}},
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
            }
            | {name: line[name] for name in ("tokens", "truncated", "transcript") if name in line}
            | score
        )
    return samples


def _without_audio(rows: Dataset) -> Dataset:
    kept = [name for name, feature in rows.features.items() if not isinstance(feature, Audio)]
    return rows.select_columns(kept).with_format(None)


def _letter(index: int | None) -> str:
    return "" if index is None else chr(ord("A") + index)


def summary(jobs: Sequence[Job], samples: dict[str, list[dict[str, Any]]], settings: EvaluationSettings) -> dict:
    """The parts of a results file that come from the samples."""
    parts = ["results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
    content: dict[str, Any] = {name: {} for name in [*parts, "task_hashes", "pairs", "domains"]}
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
            "dataset_path": job.source,
            "test_split": ",".join(settings.split or job.task.splits),
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
    for task, names in content["group_subtasks"].items():
        if settings.predict_only or f"{task}_text" not in names or "acc" not in samples[f"{task}_text"][0]:
            continue
        pairs = {
            name.removeprefix(f"{task}_"): pair_metrics(
                samples[name], samples[f"{task}_text"], settings.reference_accuracy, settings.seed
            )
            for name in names
            if name != f"{task}_text"
        }
        content["pairs"] |= {task if form == "speech" else f"{task}_{form}": pair for form, pair in pairs.items()}
        if "speech" in pairs:
            content["groups"][task] = {"name": task, "alias": task, **pair_group(pairs["speech"])}
    return content
