"""A run folder as pandas frames: its metrics, its completions, its evaluations. Reads JSON and parquet, never writes.

Metrics come from `trainer_state.json`, under the names they were logged with (`speech/accuracy`, `eval_gap/accuracy`,
...).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pandas import DataFrame

from ..data.answers import completion_text
from ..data.reading import UNFIT
from ..errors import NotLoggedError
from ..evaluation.metrics import wilson_interval
from ..evaluation.results import read_samples
from ..files import json_object
from ..settings import fits

NOT_REWARDS = ("step", "prompt", "completion", "key", "modality", "advantage")
"""Columns of a completions file that are no reward."""


@dataclass(frozen=True)
class LoggedRun:
    """What one run logged."""

    path: Path
    """Its folder."""
    name: str
    """Name in legends and tables."""
    history: list[dict[str, Any]]
    """Log entries in order, each with `step`; as `log_history` of `trainer_state.json`."""


def load_run(path: str | Path, name: str | None = None) -> LoggedRun:
    """Read the log of a run: `trainer_state.json` of its folder, or else of its newest checkpoint that has one.

    Args:
        path: output folder of a run, or a checkpoint.
        name: for legends; the folder's name if None.

    Raises:
        FileNotFoundError: there is no such folder, or no log in it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such run. Give the output_dir of a training run.")
    steps = [folder.name.removeprefix("checkpoint-") for folder in path.glob("checkpoint-*")]
    newest_first = sorted((step for step in steps if step.isdigit()), key=int, reverse=True)
    for folder in (path, *(path / f"checkpoint-{step}" for step in newest_first)):
        file = folder / "trainer_state.json"
        if file.is_file():
            history: Any = json_object(file.read_bytes(), str(file)).get("log_history")
            if not fits(history, list[dict]) or not all("step" in entry for entry in history):
                raise NotLoggedError(f"{file} holds no log_history with steps. Give another checkpoint.")
            return LoggedRun(path, name or path.resolve().name, history)
    raise FileNotFoundError(
        f"{path} holds no trainer_state.json, and no checkpoint with one. Give the output_dir of a run, or end the "
        "training script with trainer.save_state()."
    )


def metrics_frame(run: LoggedRun) -> DataFrame:
    """All numbers of a run, one row a step, in columns named as they were logged; NaN where a step has no value."""
    frame = DataFrame(run.history).apply(pd.to_numeric, errors="coerce")
    # Training and evaluation log the same step in two entries: one row holds both, and of two values the later one.
    return frame.groupby("step").last().sort_index()


def completions_frame(path: str | Path | LoggedRun) -> DataFrame:
    """The completions a run saved (`log_completions`), one row each, in the order of the steps.

    Columns are those of the files (`step`, `key`, `modality`, the rewards, `advantage`), `completion` as plain text and
    `prompt` as text, its audio part as `[audio]` and its words.

    Raises:
        FileNotFoundError: the run saved none.
    """
    folder = (path.path if isinstance(path, LoggedRun) else Path(path)) / "completions"
    files = sorted(folder.glob("completions_*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no completions_*.parquet. Train with log_completions: true to keep completions."
        )
    frames = []
    texts = {"completion": completion_text, "prompt": conversation_text}
    for file in files:
        try:
            table = pq.read_table(file)
            columns = {name: list(map(text, table[name].to_pylist())) for name, text in texts.items()}
            frames.append(table.to_pandas().assign(**columns))
        except UNFIT as error:
            raise NotLoggedError(f"{file} holds no completions ({error}): it is damaged. Remove it.") from error
    return pd.concat(frames, ignore_index=True)


def reward_columns(completions: DataFrame) -> list[str]:
    """The columns of a completions frame that hold rewards."""
    return [column for column in completions.columns if column not in NOT_REWARDS]


def final_means_frame(runs: Sequence[LoggedRun], last: float = 0.1) -> DataFrame:
    """One row a run: steps, and means over the last share `last` of its logged steps (at least one).

    Accuracies and the gap in 0 to 1; `recovery_rate` is speech over text accuracy of those means, in percent. Rows have
    the runs' names (see `names_apart`).
    """
    rows = {}
    for name, run in zip(names_apart(runs), runs, strict=True):
        metrics = metrics_frame(run)
        end = metrics.dropna(how="all", subset=accuracy_columns(metrics))
        end = end.tail(max(1, round(last * len(end)))).mean()
        rows[name] = {
            "steps": metrics.index.max(),
            "speech_accuracy": end.get("speech/accuracy"),
            "text_accuracy": end.get("text/accuracy"),
            "reward": end.get("reward"),
            "no_reference": end.get("alignment/no_reference"),
        }
    frame = DataFrame.from_dict(rows, orient="index").astype({"speech_accuracy": float, "text_accuracy": float})
    speech, text = frame["speech_accuracy"], frame["text_accuracy"]
    frame.insert(3, "gap", text - speech)
    frame.insert(4, "recovery_rate", 100 * speech / text.where(text > 0))
    return frame.rename_axis("run")


def names_apart(runs: Sequence[LoggedRun]) -> list[str]:
    """The runs' names; where several share one, as a/demo and b/demo do, their paths.

    Raises:
        ValueError: one run, or a name with one path, is given twice.
    """
    own_names = [run.name for run in runs]
    names = [run.name if own_names.count(run.name) == 1 else str(run.path) for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Runs are named {', '.join(twice)} more than once: give each run once, or load_run(…, name).")
    return names


def accuracy_columns(metrics: DataFrame) -> list[str]:
    """Which of the training accuracies a run logged: both with twins, one in a baseline on one modality.

    Raises:
        NotLoggedError: neither is there, so this is no run of `TARSGRPOTrainer`, or one without `reference_reward`.
    """
    columns = [column for column in ("speech/accuracy", "text/accuracy") if column in metrics]
    if not columns:
        raise NotLoggedError(
            f"The log has neither speech/accuracy nor text/accuracy, only {', '.join(metrics.columns[:8])}, .... "
            "Give a run of TARSGRPOTrainer that has logged at least one step."
        )
    return columns


def samples_frame(path: str | Path) -> DataFrame:
    """The questions of an evaluation that was asked aloud and in writing, one row each.

    Columns: `key`, `task`, `domain` (the task's name where a question has none), `question`, `options`, `answer` (a
    letter), and for both modalities `speech_right`, `text_right` (bool), `speech_completion`, `text_completion`.

    Args:
        path: a results file of `tars-trl evaluate`, or the folder that holds it; its samples beside it.

    Raises:
        ValueError: no task was asked in both modalities.
    """
    samples, rows = read_samples(path), []
    for task in [name.removesuffix("_text") for name in samples if name.endswith("_text")]:
        spoken = {line["key"]: line for line in samples.get(f"{task}_speech", ())}
        for text in samples[f"{task}_text"]:
            if text["key"] not in spoken or text.get("acc") is None:
                continue
            row = {
                "key": text["key"],
                "task": task,
                "domain": text.get("domain") or task,
                "question": text["doc"].get("question"),
                "options": text["doc"].get("options"),
                "answer": text["target"],
            }
            for modality, line in (("speech", spoken[text["key"]]), ("text", text)):
                row |= {f"{modality}_right": line["acc"] == 1, f"{modality}_completion": line["resps"][0][0]}
            rows.append(row)
    if not rows:
        raise ValueError(
            f"{path} has the samples {', '.join(samples)}: no task was answered both spoken and written. Repeat the "
            "evaluation with --modality both --log_samples."
        )
    return DataFrame(rows)


def domain_frame(samples: DataFrame) -> DataFrame:
    """Accuracies of both modalities by domain, with 95 % intervals, as `plots.plot_domains` takes them."""
    rows: dict[Any, dict[str, Any]] = {}
    for domain, part in samples.groupby("domain"):
        rows[domain] = {"questions": len(part)}
        for modality in ("speech", "text"):
            right = int(part[f"{modality}_right"].sum())
            rows[domain][modality] = right / len(part)
            rows[domain][f"{modality}_interval"] = wilson_interval(right, len(part))
    return DataFrame.from_dict(rows, orient="index").rename_axis("domain")


def conversation_text(prompt: str | Iterable[dict[str, Any]]) -> str:
    """A prompt as text, one turn a paragraph; audio as `[audio]`, with its words where the log has them."""
    if isinstance(prompt, str):
        return prompt
    turns = []
    for message in prompt:
        words = [message["content"]] if isinstance(message["content"], str) else []
        for part in message["content"] if not words else ():
            words += ["" if part["type"] == "text" else f"[{part['type']}]", part.get("text")]
        turns.append(f"{message['role']}: {' '.join(word for word in words if word)}")
    return "\n\n".join(turns)
