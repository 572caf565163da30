"""Result files in lm-evaluation-harness's layout and keys, so that other tools read them; and what is read from them.

    OUT/<model>/results_<date>.json                       results, configs, versions, n-samples, config, …
    OUT/<model>/samples_<task>_<modality>_<date>.jsonl    one line a question
    OUT/<model>/completions/…                             raw completions, appended as they come: what a resume reads

A task in one modality is a task of its own there (`demo_speech`, `demo_text`), both in a group with the gap (`demo`).
Beside the harness's keys, `pairs` has a `metrics.PairedResult` of each task that was asked in both forms, `averages`
one of all of them. The report, comparisons and cards read these files and no others.
"""

import contextlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ..data.journal import Line
from ..data.prompts import MODALITIES
from ..errors import NotLoggedError, QuestionError
from ..files import parse_json, read_json, write_whole
from ..settings import fits
from .metrics import PairedResult, bootstrap_interval, mcnemar, standard_error

CONTENT: dict[str, Any] = {
    **{"results": dict[str, dict], "pairs": dict[str, dict], "averages": dict[str, dict]},
    "hashes": dict | None,
    **dict.fromkeys(("model_name", "git_hash"), str | None),
}
PAIR = get_type_hints(PairedResult)
SAMPLE: dict[str, Any] = {"key": str, "doc": dict, "resps": list[list[str]], "acc": float | None}
"""What is read of results files, their pairs and their samples, and its kinds: others may write them, or a bad disk."""


def sanitized(model_name: str) -> str:
    """A model's name as a folder name, the way lm-evaluation-harness writes it."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", model_name)


def date_id() -> str:
    """Now, as lm-evaluation-harness puts it into file names; without an underscore, which separates their parts."""
    return datetime.now().isoformat().replace(":", "-")


def write_results(folder: Path, results: dict[str, Any], samples: dict[str, list[Line]], date: str) -> Path:
    """Write the samples files, then the results file, whose path is returned: where it is, everything is."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in samples.items():
        # Columns of a data set may be of any type, such as dates.
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        (folder / f"samples_{task}_{date}.jsonl").write_text(text, encoding="utf-8")
    path = folder / f"results_{date}.json"
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return path


def find_results(folder: Path, fingerprint: str) -> Path | None:
    """The latest results file of exactly this evaluation, if it is finished."""
    for path in sorted(folder.glob("results_*.json"), reverse=True):
        with contextlib.suppress(NotLoggedError):  # a damaged one is not finished
            if read_results(path).get("fingerprint") == fingerprint:
                return path
    return None


def results_file(path: str | Path) -> Path:
    """A results file, or the latest one in a folder (the model's, or one above it).

    Raises:
        NotLoggedError: there is none, or there are those of several models.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    files = sorted([*path.glob("results_*.json"), *path.glob("*/results_*.json")], key=lambda file: file.name)
    if not files:
        what = "no results_*.json in it" if path.is_dir() else "there is no such file or folder"
        raise NotLoggedError(f"{path}: {what}. Give a results file or the folder of an evaluation.")
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise NotLoggedError(
            f"{path} holds the results of several models, and one is read. Give one of {', '.join(folders)}."
        )
    return files[-1]


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a results file, or of the latest one in a folder.

    Raises:
        NotLoggedError: there is none, or it is no results file, or a damaged one.
    """
    file = results_file(path)
    try:
        content = read_json(file)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise NotLoggedError(f"{file} is no results file of an evaluation. Give one, or the folder of an evaluation.")
    content = {"pairs": {}, "averages": {}, **content}
    missing = _unusable(content)
    if missing:
        raise NotLoggedError(f"{file} has no {', '.join(missing)}, or nothing usable there. Repeat the evaluation.")
    return content


def _unusable(content: dict[str, Any]) -> list[str]:
    """Names of what is missing in a results file, or of another kind than an evaluation writes."""
    wrong = [name for name, kind in CONTENT.items() if not fits(content.get(name), kind)]
    if wrong:
        return wrong
    for task, figures in content["results"].items():
        numbers = {name: value for name, value in figures.items() if name not in ("name", "alias")}
        ends = ("acc_ci_low,none", "acc_ci_high,none") if "acc,none" in numbers else ()
        if not {"sample_len", *ends} <= numbers.keys() or not all(fits(value, float) for value in numbers.values()):
            wrong.append(f"figures of {task}")
    for task, pair in [*content["pairs"].items(), *content["averages"].items()]:
        wrong += [f"{name} of {task}" for name, kind in PAIR.items() if not fits(pair.get(name), kind)]
        if "mcnemar" in pair and not (fits(pair["mcnemar"], dict) and fits(pair["mcnemar"].get("p_value"), float)):
            wrong.append(f"mcnemar of {task}")
        if pair.get("mrr") is not None and pair.get("reference_accuracy") is None:
            wrong.append(f"reference_accuracy of {task}")
    return wrong


def _is_sample(line: Any) -> bool:
    """Whether a line of a samples file is of the kinds that an evaluation writes."""
    if not isinstance(line, dict) or not all(fits(line.get(name), kind) for name, kind in SAMPLE.items()):
        return False
    prompt = line["doc"].get("prompt", [{}])
    return bool(line["resps"] and line["resps"][0] and prompt and fits(prompt, list[dict]))


def read_samples(path: str | Path) -> dict[str, list[Line]]:
    """Lines of the samples files that belong to a results file (or the latest one in a folder), by task.

    Raises:
        NotLoggedError: it was written without samples, or they are damaged.
    """
    file = results_file(path)
    date = file.stem.removeprefix("results_")
    samples: dict[str, list[Line]] = {}
    for lines in sorted(file.parent.glob(f"samples_*_{date}.jsonl")):
        task = lines.name.removeprefix("samples_").removesuffix(f"_{date}.jsonl")
        samples[task] = []
        for number, line in enumerate(filter(None, lines.read_bytes().split(b"\n")), 1):
            with contextlib.suppress(ValueError):
                samples[task] += filter(_is_sample, [parse_json(line)])
            if len(samples[task]) < number:
                raise NotLoggedError(f"{lines}, line {number}, is no sample: it is damaged. Repeat the evaluation.")
    if not samples:
        raise NotLoggedError(
            f"{file}: there are no samples files beside it. Repeat the evaluation with --log_samples true."
        )
    return samples


def read_pair(path: str | Path) -> dict[str, Any]:
    """The figures of a results file (or its folder), a `metrics.PairedResult`: of several tasks those of their average.

    Raises:
        NotLoggedError: there is no result in both modalities, or there are several.
    """
    content = read_results(path)
    pairs = content["averages"] or content["pairs"]
    if len(pairs) != 1:
        raise NotLoggedError(
            f"{results_file(path)} holds {len(pairs)} results in both modalities ({', '.join(pairs)}), where one is "
            "read. Give an evaluation with --modality both."
        )
    (pair,) = pairs.values()
    return dict(pair)


def read_twins(path: str | Path) -> tuple[str, list[tuple[Line, Line]]]:
    """The task of an evaluation, and the spoken and the written sample of each of its questions, in order of the keys.

    Raises:
        NotLoggedError: it has no scored samples of the same questions in both forms.
    """
    samples = read_samples(path)
    lines = {name.rpartition("_")[2]: {line["key"]: line for line in lines} for name, lines in samples.items()}
    spoken, written = (lines.get(modality, {}) for modality in MODALITIES)
    scored = [line for side in (spoken, written) for line in side.values() if line.get("acc") is not None]
    if not spoken or spoken.keys() != written.keys() or len(scored) < 2 * len(spoken):
        raise NotLoggedError(
            f"{results_file(path)} has no answers to the same questions in both forms, right or wrong. Evaluate a task "
            "of choices with --modality both --log_samples true."
        )
    return next(iter(samples)).rpartition("_")[0], [(spoken[key], written[key]) for key in sorted(spoken)]


def paired_difference(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The same questions in two evaluations: accuracies, their difference (second minus first) and McNemar's test.

    Args:
        first: results file or folder.
        second: the same.
        seed: of the bootstrap interval of the difference.

    Returns:
        {task: {questions, only_in_one (how many were left out), first, second, difference, difference_stderr,
        difference_interval, mcnemar}}.

    Raises:
        QuestionError: no question is in both, none of their tasks has accuracies, or one key means two questions.
            (System prompt and instruction are no part of a question: they may be what differs.)
    """
    sides = [
        {
            task: {line["key"]: line for line in lines if line.get("acc") is not None}
            for task, lines in read_samples(path).items()
        }
        for path in (first, second)
    ]
    table = {}
    for task in sorted(sides[0].keys() & sides[1].keys()):
        ours, theirs = sides[0][task], sides[1][task]
        keys = sorted(ours.keys() & theirs.keys())
        other = [key for key in keys if _question(ours[key]) != _question(theirs[key])]
        if other:
            raise QuestionError(
                f"{first} and {second}, {task}: {len(other)} of {len(keys)} keys, such as {other[0]!r}, stand for "
                "different questions, so their answers are no pairs. Compare evaluations of the same data."
            )
        if keys:
            a, b = (np.array([side[key]["acc"] for key in keys]) for side in (ours, theirs))
            table[task] = {
                "questions": len(keys),
                "only_in_one": len(ours.keys() ^ theirs.keys()),
                "first": float(a.mean()),
                "second": float(b.mean()),
                "difference": float((b - a).mean()),
                "difference_stderr": standard_error(b - a),
                "difference_interval": bootstrap_interval([b - a], seed=seed),
                "mcnemar": mcnemar(a == 1, b == 1),
            }
    if not table:
        raise QuestionError(
            f"{first} has {sorted(sides[0])} and {second} has {sorted(sides[1])}: no question was answered in both. "
            "Compare evaluations of the same tasks and modalities."
        )
    return table


def _question(line: Line) -> list[Any]:
    """What a sample asks and what is right; other columns, and what else stands in the prompt, may differ."""
    doc = line["doc"]
    question = doc.get("prompt", [{}])[-1].get("content")
    if fits(question, list[dict]):
        question = question[0].get("text") if question else None
    return [question, *(doc.get(name) for name in ("question", "options", "answer_index", "reference"))]
