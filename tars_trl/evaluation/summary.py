"""From samples to the content of a results file: figures under lm-evaluation-harness's keys, shares in 0 to 1."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..data.journal import sha256
from .jobs import Job
from .metrics import average_result, bootstrap_interval, mcnemar, paired_result, standard_error, wilson_interval
from .scoring import Sample
from .settings import EvaluationSettings


def summarize(jobs: Sequence[Job], samples: dict[str, list[Sample]], settings: EvaluationSettings) -> dict[str, Any]:
    """The parts of a results file that come from the samples."""
    parts = ["results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
    content: dict[str, Any] = {name: {} for name in [*parts, "task_hashes", "pairs", "averages", "domains"]}
    for job in jobs:
        task, lines = job.task, samples[job.name]
        metrics = {} if settings.predict_only else task_metrics(lines, settings.extractors, settings.seed)
        hashes = "".join(line[f"{part}_hash"] for line in lines for part in ("doc", "prompt", "target"))
        described = {
            "results": {
                "name": job.name,
                "alias": f"{task.name} ({job.modality})",
                "sample_len": len(lines),
                **metrics,
            },
            "configs": {
                "task": job.name,
                **job.source,
                "output_type": "generate_until",
                "generation_kwargs": job.described["generation"],
                "num_fewshot": 0,
                "repeats": 1,
                "modality": job.modality,
                "extractors": settings.extractors if task.kind == "choice" else [],
                "scored_by": task.kind,
                "prompt": lines[0]["arguments"]["gen_args_0"]["arg_0"],
                "metadata": {"version": float(task.version), "changes": task.changes},
                **{name: job.described[name] for name in ("transcripts",) if name in job.described},
            },
            "versions": float(task.version),
            "n-shot": 0,
            "higher_is_better": {name: name == "acc" for name in ("acc", "wer") if f"{name},none" in metrics},
            "n-samples": {"original": job.original, "effective": len(lines)},
            "task_hashes": sha256(hashes),
        }
        for part, value in described.items():
            content[part][job.name] = value
        if table := domain_table(lines):
            content["domains"][job.name] = table
        content["group_subtasks"].setdefault(task.name, []).append(job.name)
    _add_pairs(content, samples, settings)
    return content


def task_metrics(samples: Sequence[Sample], extractors: Sequence[str], seed: int) -> dict[str, float]:
    """The figures of one task in one modality, under lm-evaluation-harness's keys `metric,filter`."""
    metrics: dict[str, float] = {}
    if "acc" in samples[0]:
        metrics |= _accuracy("none", [sample["acc"] for sample in samples])
    if "extracted" in samples[0]:
        for name in extractors:
            metrics |= _accuracy(name, [float(s["extracted"][name] == s["answer_index"]) for s in samples])
            metrics[f"extraction_failure,{name}"] = fmean([sample["failed"][name] for sample in samples])
        metrics["extraction_failure,none"] = metrics[f"extraction_failure,{extractors[0]}"]
    for prefix in ("", "transcript_"):
        edits, words = ([sample.get(f"{prefix}{name}", 0) for sample in samples] for name in ("edits", "words"))
        if sum(words):
            metrics[f"{prefix}wer,none"] = sum(edits) / sum(words)
            interval = bootstrap_interval([edits, words], lambda e, w: e / w, seed=seed)
            if interval is not None:
                metrics[f"{prefix}wer_stderr,none"] = _stderr(interval)
                metrics |= {f"{prefix}wer_ci_low,none": interval[0], f"{prefix}wer_ci_high,none": interval[1]}
    metrics["truncated,none"] = fmean([sample["truncated"] for sample in samples])
    metrics["mean_tokens,none"] = fmean([sample["tokens"] for sample in samples])
    return metrics


def _accuracy(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = wilson_interval(sum(values), len(values))
    figures = {"acc": fmean(values), "acc_stderr": standard_error(values), "acc_ci_low": low, "acc_ci_high": high}
    return {f"{figure},{name}": value for figure, value in figures.items()}


def _stderr(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2 / 1.96  # half of a 95 % interval is 1.96 standard errors


def domain_table(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Accuracy by domain: {domain: {n, acc, acc_stderr}}, sorted by name; empty without domains."""
    domains: dict[str, list[float]] = {}
    for sample in samples:
        if sample.get("domain") is not None and "acc" in sample:
            domains.setdefault(str(sample["domain"]), []).append(sample["acc"])
    return {
        name: {"n": len(values), "acc": fmean(values), "acc_stderr": standard_error(values)}
        for name, values in sorted(domains.items())
    }


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
        pairs = {t: _pair(samples[f"{t}_{form}"], samples[f"{t}_text"], own, settings.seed) for t in tasks}
        content["pairs"] |= {f"{task}{suffix}": pair for task, pair in pairs.items()}
        if form == "speech":
            content["groups"] |= {task: {"name": task, "alias": task, **_group(pair)} for task, pair in pairs.items()}
        if len(tasks) > 1:
            average = average_result(list(pairs.values()), settings.reference_accuracy)
            content["averages"][f"average of {', '.join(f'{task}{suffix}' for task in tasks)}"] = average


def _pair(heard: Sequence[Sample], text: Sequence[Sample], reference_accuracy: float | None, seed: int) -> Any:
    """A `PairedResult`, McNemar's test ("only_first": the heard form, speech or a cascade) and the gap by domain."""
    spoken_right, written_right = ([bool(sample["acc"]) for sample in samples] for samples in (heard, text))
    spoken, written = domain_table(heard), domain_table(text)
    return {
        **paired_result(spoken_right, written_right, reference_accuracy, seed),
        "mcnemar": mcnemar(spoken_right, written_right),
        "gap_by_domain": {name: written[name]["acc"] - spoken[name]["acc"] for name in spoken},
    }


def _group(pair: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a pair that are numbers, under lm-evaluation-harness's keys; rates in percent."""
    group = {"gap": pair["gap"], "gap_stderr": _stderr(pair["gap_interval"]), "mcnemar_p": pair["mcnemar"]["p_value"]}
    group |= {name: pair[name] for name in ("recovery", "mrr") if pair[name] is not None}
    return {f"{name},none": value for name, value in group.items()}
