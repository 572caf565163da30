"""Result files in lm-evaluation-harness's layout and keys, so that other tools read them.

    OUT/<model>/results_<date>.json                       results, configs, versions, n-samples, config, …
    OUT/<model>/samples_<task>_<modality>_<date>.jsonl    one line a question
    OUT/<model>/completions/…                             raw completions, appended as they come: what a resume reads

A task in one modality is a task of its own there (`demo_speech`, `demo_text`), both in a group with the gap (`demo`).
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.journal import Line
from ..errors import NotLoggedError
from .metrics import bootstrap_interval, mcnemar, standard_error


def sanitized(model_name: str) -> str:
    """A model's name as a folder name, the way lm-evaluation-harness writes it."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", model_name)


def date_id() -> str:
    """Now, as lm-evaluation-harness puts it into file names; without an underscore, which separates their parts."""
    return datetime.now().isoformat().replace(":", "-")


# ---- Completions: what a resume reads ------------------------------------------------------------------------------


# ---- Result files --------------------------------------------------------------------------------------------------


def write_results(folder: Path, results: dict[str, Any], samples: dict[str, list[Line]], date: str) -> Path:
    """Write the samples files, then the results file: where there are results, everything is there.

    Returns:
        The path of the results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in samples.items():
        # Columns of a data set may be of any type, such as dates.
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        (folder / f"samples_{task}_{date}.jsonl").write_text(text, encoding="utf-8")
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def results_file(path: str | Path) -> Path:
    """A results file, or the latest one in a folder (the model's, or one above it).

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    found = sorted([*path.glob("results_*.json"), *path.glob("*/results_*.json")], key=lambda file: file.name)
    if not found:
        raise FileNotFoundError(f"{path}: no results_*.json in it. Give a results file or the folder of an evaluation.")
    return found[-1]


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a results file, or of the latest one in a folder."""
    return json.loads(results_file(path).read_text(encoding="utf-8"))


def read_pair(path: str | Path) -> dict[str, Any]:
    """The accuracies of one model in both modalities: of several tasks their average.

    Args:
        path: a results file, or the folder of an evaluation.

    Raises:
        NotLoggedError: there is no result in both modalities, or there are several.
    """
    content = read_results(path)
    pairs = content.get("averages") or content.get("pairs") or {}
    if len(pairs) != 1:
        raise NotLoggedError(
            f"{path} holds {len(pairs)} results in both modalities ({', '.join(pairs)}), where one is drawn. Give "
            "an evaluation with --modality both."
        )
    return dict(next(iter(pairs.values())))


def read_samples(path: str | Path) -> dict[str, list[Line]]:
    """Lines of the samples files that belong to a results file (or the latest one in a folder), by task.

    Raises:
        FileNotFoundError: it was written without samples.
    """
    file = results_file(path)
    date = file.stem.removeprefix("results_")
    found = {}
    for samples in sorted(file.parent.glob(f"samples_*_{date}.jsonl")):
        task = samples.name.removeprefix("samples_").removesuffix(f"_{date}.jsonl")
        found[task] = [json.loads(line) for line in samples.read_bytes().split(b"\n") if line]
    if not found:
        raise FileNotFoundError(
            f"{file}: there are no samples files beside it. Repeat the evaluation with --log_samples."
        )
    return found


def finished_file(folder: Path, fingerprint: str) -> Path | None:
    """The latest results file of exactly this evaluation, if it is finished."""
    for path in sorted(folder.glob("results_*.json"), reverse=True):
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
                return path
        except json.JSONDecodeError:  # cut off while it was written: not finished
            continue
    return None


# ---- Comparing two evaluations -------------------------------------------------------------------------------------


def compare(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The same questions in two evaluations: accuracies, their difference (second minus first) and McNemar's test.

    Args:
        first: results file or folder.
        second: the same.
        seed: of the bootstrap interval of the difference.

    Returns:
        {task: {questions, only_in_one, first, second, difference, difference_stderr, difference_interval, mcnemar}},
        `only_in_one` being how many questions of the task were left out.

    Raises:
        ValueError: no question is in both, none of their tasks has accuracies, or one key means two questions. (System
            prompt and instruction are no part of a question: they may be what is compared.)
    """
    lines = [
        {task: {line["key"]: line for line in part if "acc" in line} for task, part in read_samples(path).items()}
        for path in (first, second)
    ]
    table = {}
    for task in lines[0].keys() & lines[1].keys():
        keys = sorted(lines[0][task].keys() & lines[1][task].keys())
        if not keys:
            continue
        other = [key for key in keys if _question(lines[0][task][key]) != _question(lines[1][task][key])]
        if other:
            raise ValueError(
                f"{first} and {second}, {task}: {len(other)} of {len(keys)} keys, such as {other[0]!r}, stand for "
                "different questions, so their answers are no pairs. Compare evaluations of the same data."
            )
        a, b = ([side[task][key]["acc"] for key in keys] for side in lines)
        differences = [y - x for x, y in zip(a, b, strict=True)]
        table[task] = {
            "questions": len(keys),
            "only_in_one": len(lines[0][task].keys() ^ lines[1][task].keys()),
            "first": sum(a) / len(keys),
            "second": sum(b) / len(keys),
            "difference": sum(differences) / len(keys),
            "difference_stderr": standard_error(differences),
            "difference_interval": bootstrap_interval([differences], seed=seed),
            "mcnemar": mcnemar([x == 1 for x in a], [x == 1 for x in b]),
        }
    if not table:
        raise ValueError(
            f"{first} has {sorted(lines[0])} and {second} has {sorted(lines[1])}: no question was answered in both. "
            "Compare evaluations of the same tasks and modalities."
        )
    return dict(sorted(table.items()))


def _question(line: Line) -> list[Any]:
    """What a sample asks and what is right; other columns, and what else stands in the prompt, may differ."""
    doc = line["doc"]
    said = doc["prompt"][-1]["content"]
    said = said if isinstance(said, str) else said[0].get("text")
    return [said, *(doc.get(name) for name in ("question", "options", "answer_index", "reference"))]
