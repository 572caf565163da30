"""Running a comparison of arms: which commands train and evaluate them, and what is done already.

An arm is a YAML file of a training command; the first word of its name says which one (`METHODS`). A run is an arm with
a seed; its folder holds `arm.json` (what it is made with, written before it trains), what its training leaves, and the
files of its evaluation under `evaluation/`.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME

from ..errors import SettingError
from ..evaluation.run import find_evaluation
from ..evaluation.settings import EvaluationSettings
from ..grpo.resuming import last_checkpoint
from ..models.loading import identity
from ..record import command_line
from ..settings import Settings, read_settings, setting
from .table import BASE, Measured, make_rows, markdown, plot_arms, write_csv

METHODS = {"sft": "sft", "dpo": "dpo", "grpo": "train", "tars": "train"}
"""Training command by the first word of an arm's file name, such as dpo of dpo_margin.yaml."""


@dataclass
class ComparisonSettings(Settings):
    """Settings of a comparison."""

    arms: list[str] = setting([], "YAML files of the arms, in the table's order.", required=True)
    seeds: list[int] = setting([0, 1, 2], "Each arm is trained with each of these.", least=0)
    output_dir: str = setting("runs/compare", "Folder of the runs and of the table.")
    task: str | None = setting(
        None, "Held-out questions: one task as `evaluate` takes it, such as NAME=PATH.", required=True
    )
    limit: float | None = setting(
        None, "Ask this many of them only, the same ones of every run; a number below 1 is a share of them.", above=0
    )
    batch_size: int = setting(100, "Questions in a forward pass of the evaluation, per process.", least=1)
    max_completion_length: int = setting(1024, "Most tokens of a completion in the evaluation.", least=1)
    launch: str = setting("--num_processes 1", "Arguments of `accelerate launch`, such as `--config_file FILE`.")
    overrides: str = setting("", "Settings for every arm as on its command line, such as `--max_steps 2`.")
    dry_run: bool = setting(False, "Print the training commands and stop.")


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Path
    seed: int
    folder: Path
    command: list[str]


def plan_runs(settings: ComparisonSettings) -> list[Run]:
    """All runs, seed by seed.

    Raises:
        SettingError: arms of different models, of the same name, of an unknown method, or without their data.
    """
    arms = [Path(name) for name in settings.arms]
    if len({arm.stem for arm in arms}) != len(arms):
        raise SettingError(f"arms={settings.arms}: two have the same name, which names their folders. Rename one.")
    methods = {arm: arm.stem.partition("_")[0] for arm in arms}
    for arm, method in methods.items():
        if method not in METHODS:
            raise SettingError(
                f"{arm}: the first word of its name, {method!r}, is no method, so nothing says what trains it. "
                f"Let the name begin with one of {', '.join(METHODS)}, such as grpo_{arm.name}."
            )
    models = {arm.stem: read_settings(arm).get("model") for arm in arms}
    if len(set(models.values())) > 1:
        raise SettingError(
            f"The arms train different models, {models}, which no table compares. Give arms of one model."
        )
    for arm in arms:
        data = str(read_settings(arm).get("dataset", ""))
        if len(Path(data).parts) > 2 and not Path(data).exists() and not settings.dry_run:
            raise SettingError(f"{arm}: its data set {data} does not exist. Build it with build-preferences.")
    runs = []
    for seed in settings.seeds:
        for arm in arms:
            folder = Path(settings.output_dir) / f"{arm.stem}-seed{seed}"
            command = [*shlex.split(settings.launch), *module_words(METHODS[methods[arm]]), "--config", str(arm)]
            command += ["--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "last"]
            runs.append(Run(arm, seed, folder, [*command, *shlex.split(settings.overrides)]))
    return runs


def module_words(command: str) -> list[str]:
    """How `accelerate launch` is told to run one of this package's commands."""
    return ["-m", f"tars_trl.commands.{command}"]


def launch(command: list[str]) -> None:
    """`accelerate launch` with the arguments of a run, its output in this terminal."""
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *command], check=True)


def train(run: Run, settings: ComparisonSettings) -> float | None:
    """Train unless that is done; the seconds it took, as the trainer logged them.

    They are None if it went on from a checkpoint, since the trainer then knows those of the last part only.

    Raises:
        SettingError: the folder holds a run with other settings, of another model, or on other data.
        CalledProcessError: the training failed.
    """
    own = read_settings(run.arm)
    made_with = {
        "settings": own,
        "overrides": settings.overrides,
        "seed": run.seed,
        "model": identity(str(own["model"]), own.get("model_revision")),
        "data": _data_digest(str(own.get("dataset", ""))),
    }
    record, state = run.folder / "arm.json", run.folder / "trainer_state.json"
    earlier = json.loads(record.read_text()) if record.is_file() else {}
    resumed = earlier.pop("resumed", False)
    if earlier != made_with and (earlier or state.is_file()):
        raise SettingError(
            f"{run.folder} holds a run of another model, on other data, or with other settings than {run.arm} has "
            "now, so one table would mix them. Remove the folder, or give another output_dir."
        )
    if not state.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        resumed = resumed or last_checkpoint(str(run.folder)) is not None
        record.write_text(json.dumps({**made_with, "resumed": resumed}, indent=2) + "\n")
        launch(run.command)
    if resumed:
        return None
    history = json.loads(state.read_text())["log_history"]
    return next(float(entry["train_runtime"]) for entry in reversed(history) if "train_runtime" in entry)


def measure(folder: Path, arm: Path, settings: ComparisonSettings) -> Path:
    """Evaluate the run in `folder`, or in a folder called `BASE` the untrained model that `arm` names, if need be.

    Returns:
        the results file of exactly these weights, questions and settings.
    """
    own = read_settings(arm)
    is_trained, is_adapter = folder.name != BASE, (folder / ADAPTER_CONFIG_NAME).is_file()
    asked: dict[str, Any] = {
        "model": str(folder) if is_trained and not is_adapter else str(own["model"]),
        "adapter": str(folder) if is_adapter else None,
        "model_revision": own.get("model_revision") if is_adapter or not is_trained else None,
        "tasks": settings.task,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "max_completion_length": settings.max_completion_length,
        "log_samples": True,
        "output_dir": str(folder / "evaluation"),
    }
    evaluation = EvaluationSettings(**asked)
    results = find_evaluation(evaluation)
    if results is None:
        words = [word for name, value in asked.items() if value is not None for word in (f"--{name}", str(value))]
        launch([*shlex.split(settings.launch), *module_words("evaluate"), *words])
        results = find_evaluation(evaluation)
    assert results is not None, f"{folder}: the evaluation that just ended left no results file of its own."
    return results


def _data_digest(source: str) -> str:
    """Of all files in a folder, or of a file; a hub id is its own."""
    digest, path = hashlib.sha256(), Path(source)
    for file in sorted([path, *path.rglob("*")]):
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}" if path.exists() else source


def write_table(measured: dict[str, list[Measured]], settings: ComparisonSettings) -> str:
    """Write the table in its three forms; the Markdown one is returned."""
    rows, folder = make_rows(measured), Path(settings.output_dir)
    commits = sorted({model.commit for models in measured.values() for model in models if model.commit})
    notes = (
        f"{len(measured[BASE][0].speech)} held-out questions ({settings.task}), greedy; mean ± standard deviation over "
        "seeds; 95 % intervals over questions, by Wilson, for the gap a bootstrap. MRR: speech accuracy over the base "
        f"model's text accuracy, {rows[0].text:.2f} %. `{command_line()}`, measured at commit "
        f"{', '.join(commits) or 'unknown'}."
    )
    text = markdown(rows, notes)
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_csv(rows, folder / "table.csv")
    plot_arms(rows, measured).savefig(folder / "table.png")
    return text
