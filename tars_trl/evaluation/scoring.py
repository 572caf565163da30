"""From completions to samples, a line a question with lm-evaluation-harness's keys and ours beside them."""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Audio

from ..data import spoken_text
from ..data.answers import extract_strict, extract_voicebench, voicebench_guess
from ..data.journal import Line, sha256
from ..data.prompts import spoken_prompt, written_prompt
from ..data.word_errors import names_reference, word_errors
from .cascade import with_transcript
from .jobs import Job
from .settings import EvaluationSettings
from .xfinder import XFinder

Row = dict[str, Any]
Sample = dict[str, Any]


def score_job(job: Job, lines: Sequence[Line], settings: EvaluationSettings, device: Any = "cpu") -> list[Sample]:
    """The samples of a job, of the lines that `run.complete_job` returned; `device` is of the extractor's model."""
    written = [name for name, feature in job.rows.features.items() if not isinstance(feature, Audio)]
    rows: list[Row] = list(job.rows.select_columns(written).with_format(None))
    texts = [line["text"] for line in lines]
    scores: list[Sample] = [{} for _ in rows]
    if settings.predict_only:
        pass
    elif job.task.kind == "choice":
        scores = score_choices(rows, texts, settings, device)
    else:
        scores = [score_text(job.task.kind, row, text) for row, text in zip(rows, texts, strict=True)]
    if "cascade" in job.modality and not settings.predict_only:
        for row, line, score in zip(rows, lines, scores, strict=True):
            errors = score_text("transcript", {"reference": spoken_text(row["prompt"])}, line["transcript"])
            score |= {f"transcript_{name}": value for name, value in errors.items()}
    return [_sample(job, *parts) for parts in zip(job.numbers, rows, lines, scores, strict=True)]


def score_choices(rows: Sequence[Row], texts: Sequence[str], settings: EvaluationSettings, device: Any) -> list[Sample]:
    """What every extractor reads out of every completion; the first one decides `acc`.

    Returns:
        N samples with `extracted` {extractor: index or None}, `failed` {extractor: whether nothing was found}, `acc`.
        A guess of voicebench counts as a choice in `acc`, and as a failure still.
    """
    options, rules = [row["options"] for row in rows], {"strict": extract_strict, "voicebench": extract_voicebench}
    choices: dict[str, list[int | None]] = {}
    for name in settings.extractors:
        if name == "xfinder":
            finder = XFinder(settings.xfinder_model, device)
            choices[name] = finder([row["question"] for row in rows], texts, options)
        else:
            choices[name] = list(map(rules[name], texts, options))
    samples = []
    for row, *indices in zip(rows, *choices.values(), strict=True):
        extracted = dict(zip(choices, indices, strict=True))
        failed = {name: index is None for name, index in extracted.items()}
        if settings.voicebench_guess and failed.get("voicebench"):
            extracted["voicebench"] = voicebench_guess(row["key"], row["options"], settings.seed)
        right = float(extracted[settings.extractors[0]] == row["answer_index"])
        samples.append({"extracted": extracted, "failed": failed, "acc": right})
    return samples


def score_text(kind: str, row: Row, text: str) -> Sample:
    """`acc` of a choice, read by the strict rule, or of an open answer; `edits`, `words` and `wer` of a transcript."""
    if kind == "choice":
        return {"acc": float(extract_strict(text, row["options"]) == row["answer_index"])}
    if kind == "open":
        return {"acc": float(names_reference(row["reference"], text))}
    edits, words = word_errors(row["reference"], text)
    return {"edits": edits, "words": words, "wer": edits / words if words else float(edits > 0)}


def _sample(job: Job, number: int, row: Row, line: Line, score: Sample) -> Sample:
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
        "modality": job.modality,
        "domain": row.get(job.task.domain) if job.task.domain else None,
        "answer_index": row.get("answer_index"),
        **{name: value for name, value in line.items() if name != "text"},
        **score,
    }


def _letter(index: int | None) -> str:
    return "" if index is None else chr(ord("A") + index)
