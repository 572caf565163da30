"""From completions to scored samples, and from samples to the figures of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data import spoken_text
from ..data.answers import extract_strict, extract_voicebench, voicebench_guess
from ..data.word_errors import names_reference, word_errors
from .metrics import bootstrap_interval, mcnemar, paired_result, standard_error, wilson_interval
from .xfinder import XFinder

Row = dict[str, Any]
Sample = dict[str, Any]


def running_score(kind: str, row: Row, text: str) -> tuple[float, float]:
    """(share, weight) of one completion for the progress bar: right or not, or word errors and words."""
    if kind == "choice":
        return float(extract_strict(text, row["options"]) == row["answer_index"]), 1.0
    if kind == "open":
        return float(names_reference(row["reference"], text)), 1.0
    edits, words = word_errors(row["reference"], text)
    return float(edits), float(words)


def score_choices(
    rows: Sequence[Row],
    texts: Sequence[str],
    extractors: Sequence[str],
    *,
    seed: int = 0,
    guess: bool = False,
    xfinder: XFinder | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Sample]:
    """What every extractor reads out of every completion.

    Args:
        rows: N questions.
        texts: N completions.
        extractors: names; the first one decides `acc`.
        seed: of the guesses.
        guess: voicebench guesses where it finds nothing. A guess counts as a choice in `acc`, and as a failure still.
        xfinder: the model, if it is among the extractors.

    Returns:
        N samples with `extracted` {extractor: index or None}, `failed` {extractor: whether nothing was found}, `acc`.
    """
    choices: dict[str, list[int | None]] = {}
    for name in extractors:
        if name == "xfinder":
            assert xfinder is not None
            choices[name] = xfinder(
                [row["question"] for row in rows], list(texts), [row["options"] for row in rows], on_batch
            )
        else:
            rule = extract_strict if name == "strict" else extract_voicebench
            choices[name] = [rule(text, row["options"]) for row, text in zip(rows, texts, strict=True)]
    samples = []
    for number, row in enumerate(rows):
        extracted = {name: choices[name][number] for name in extractors}
        failed = {name: index is None for name, index in extracted.items()}
        if guess and extracted.get("voicebench", 0) is None:
            extracted["voicebench"] = voicebench_guess(row["key"], row["options"], seed)
        right = float(extracted[extractors[0]] == row["answer_index"])
        samples.append({"extracted": extracted, "failed": failed, "acc": right})
    return samples


def score_texts(kind: str, rows: Sequence[Row], texts: Sequence[str]) -> list[Sample]:
    """`edits`, `words` and `wer` of transcripts; or `acc`, whether an open answer names the reference."""
    samples: list[Sample] = []
    for row, text in zip(rows, texts, strict=True):
        if kind == "open":
            samples.append({"acc": float(names_reference(row["reference"], text))})
        else:
            samples.append(_word_sample("", row["reference"], text))
    return samples


def score_transcripts(rows: Sequence[Row], transcripts: Sequence[str]) -> list[Sample]:
    """Word errors of a cascade's transcripts against the spoken text, as `transcript_edits` and so on."""
    return [
        _word_sample("transcript_", spoken_text(row["prompt"]), transcript)
        for row, transcript in zip(rows, transcripts, strict=True)
    ]


def _word_sample(prefix: str, reference: str, text: str) -> Sample:
    edits, words = word_errors(reference, text)
    rate = edits / words if words else float(edits > 0)
    return {f"{prefix}edits": edits, f"{prefix}words": words, f"{prefix}wer": rate}


def task_metrics(samples: Sequence[Sample], extractors: Sequence[str], seed: int) -> dict[str, float]:
    """The figures of one task in one modality, under lm-evaluation-harness's keys `metric,filter`; shares in 0 to 1."""
    metrics: dict[str, float] = {}
    if "acc" in samples[0]:
        metrics |= _accuracy("none", [sample["acc"] for sample in samples])
    if "extracted" in samples[0]:
        for name in extractors:
            metrics |= _accuracy(name, [float(s["extracted"][name] == s["answer_index"]) for s in samples])
            metrics[f"extraction_failure,{name}"] = _mean([sample["failed"][name] for sample in samples])
        metrics["extraction_failure,none"] = metrics[f"extraction_failure,{extractors[0]}"]
    for prefix in ("", "transcript_"):
        if f"{prefix}edits" in samples[0]:
            metrics |= _error_rate(prefix, samples, seed)
    metrics["truncated,none"] = _mean([sample["truncated"] for sample in samples])
    metrics["mean_tokens,none"] = _mean([sample["tokens"] for sample in samples])
    return metrics


def _accuracy(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = wilson_interval(int(sum(values)), len(values))
    return {
        f"acc,{name}": _mean(values),
        f"acc_stderr,{name}": standard_error(values),
        f"acc_ci_low,{name}": low,
        f"acc_ci_high,{name}": high,
    }


def _error_rate(prefix: str, samples: Sequence[Sample], seed: int) -> dict[str, float]:
    edits, words = ([sample[f"{prefix}{name}"] for sample in samples] for name in ("edits", "words"))
    if not sum(words):
        return {}
    rate = sum(edits) / sum(words)
    metrics = {f"{prefix}wer,none": rate}
    interval = bootstrap_interval([edits, words], lambda e, w: e / w, seed=seed)
    if interval is not None:
        # Half of a 95 % interval is 1.96 standard errors.
        metrics[f"{prefix}wer_stderr,none"] = (interval[1] - interval[0]) / 2 / 1.96
        metrics |= {f"{prefix}wer_ci_low,none": interval[0], f"{prefix}wer_ci_high,none": interval[1]}
    return metrics


def domain_table(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Accuracy by domain: {domain: {n, acc, acc_stderr}}, sorted by name; empty without domains."""
    domains: dict[str, list[float]] = {}
    for sample in samples:
        if sample.get("domain") is not None and "acc" in sample:
            domains.setdefault(str(sample["domain"]), []).append(sample["acc"])
    return {
        name: {"n": len(values), "acc": _mean(values), "acc_stderr": standard_error(values)}
        for name, values in sorted(domains.items())
    }


def pair_metrics(
    first: Sequence[Sample], text: Sequence[Sample], reference_accuracy: float | None, seed: int
) -> dict[str, Any]:
    """The gap between a heard form (speech or a cascade) and the written form of the same questions.

    Returns:
        `paired_result`'s figures, McNemar's test ("only_first": the heard form) and the gap by domain.
    """
    heard, read = ([bool(sample["acc"]) for sample in samples] for samples in (first, text))
    tables = domain_table(first), domain_table(text)
    return {
        **paired_result(heard, read, reference_accuracy, seed),
        "mcnemar": mcnemar(heard, read),
        "gap_by_domain": {name: tables[1][name]["acc"] - tables[0][name]["acc"] for name in tables[0]},
    }


def pair_group(pair: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `pair_metrics` that are numbers, under lm-evaluation-harness's keys; rates in percent."""
    low, high = pair["gap_interval"]
    group = {
        "gap,none": pair["gap"],
        "gap_stderr,none": (high - low) / 2 / 1.96,  # half of a 95 % interval is 1.96 standard errors
        "mcnemar_p,none": pair["mcnemar"]["p_value"],
    }
    return group | {f"{name},none": pair[name] for name in ("recovery", "mrr") if pair[name] is not None}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
