"""Result files in lm-evaluation-harness's layout and keys, so that other tools read them; and what is read from them.

    OUT/<model>/results_<date>.json                       results, configs, versions, n-samples, config, …
    OUT/<model>/samples_<task>_<modality>_<date>.jsonl    one line a question
    OUT/<model>/completions/…                             raw completions, appended as they come: what a resume reads

A task in one modality is a task of its own there (`demo_speech`, `demo_text`), both in a group with the gap (`demo`).
Beside the harness's keys, `pairs` has a `metrics.PairedResult` of each task that was asked in both forms, `averages`
one of all of them. The report, comparisons and cards read these files and no others.
"""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..data.journal import Line
from ..errors import NotLoggedError, QuestionError
from ..settings import fits
from .metrics import bootstrap_interval, mcnemar, standard_error


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
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def find_results(folder: Path, fingerprint: str) -> Path | None:
    """The latest results file of exactly this evaluation, if it is finished."""
    for path in sorted(folder.glob("results_*.json"), reverse=True):
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
                return path
        except json.JSONDecodeError:  # cut off while it was written: not finished
            continue
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
        NotLoggedError: there is none, or it is no results file.
    """
    file = results_file(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise NotLoggedError(f"{file} is no results file of an evaluation. Give one, or the folder of an evaluation.")
    return content


def read_samples(path: str | Path) -> dict[str, list[Line]]:
    """Lines of the samples files that belong to a results file (or the latest one in a folder), by task.

    Raises:
        NotLoggedError: it was written without samples.
    """
    file = results_file(path)
    date = file.stem.removeprefix("results_")
    samples = {}
    for lines in sorted(file.parent.glob(f"samples_*_{date}.jsonl")):
        task = lines.name.removeprefix("samples_").removesuffix(f"_{date}.jsonl")
        samples[task] = [json.loads(line) for line in lines.read_bytes().split(b"\n") if line]
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
    pairs = content.get("averages") or content.get("pairs") or {}
    if len(pairs) != 1:
        raise NotLoggedError(
            f"{results_file(path)} holds {len(pairs)} results in both modalities ({', '.join(pairs)}), where one is "
            "read. Give an evaluation with --modality both."
        )
    (pair,) = pairs.values()
    kinds: dict[str, Any] = dict.fromkeys(("speech_accuracy", "text_accuracy", "gap"), float)
    kinds |= dict.fromkeys(("speech_interval", "text_interval", "gap_interval"), list[float])
    missing = [name for name, kind in kinds.items() if not fits(pair.get(name), kind)]
    if missing:
        raise NotLoggedError(f"{results_file(path)} has no {', '.join(missing)}. Repeat the evaluation.")
    return dict(pair)


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
        {task: {line["key"]: line for line in lines if "acc" in line} for task, lines in read_samples(path).items()}
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
    content = doc["prompt"][-1]["content"]
    question = content if isinstance(content, str) else content[0].get("text")
    return [question, *(doc.get(name) for name in ("question", "options", "answer_index", "reference"))]
