"""Running a comparison of arms: which commands train and evaluate them, and what is done already.

An arm is a YAML file of a training recipe; the first word of its name says which one (`METHODS`). A run is an arm with
a seed; its folder holds `arm.json` (what it was made with), what its training leaves, the files of its evaluation under
`evaluation/`, and `result.json`, which is what the table is made of.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME

from tars_trl.evaluation.results import read_results, read_samples
from tars_trl.evaluation.tasks import task_named
from tars_trl.grpo.resuming import last_checkpoint
from tars_trl.models.loading import identity
from tars_trl.record import command_line
from tars_trl.settings import read_settings, setting

from .table import BASE, Measured, figure, markdown, table, write_csv

METHODS = {"sft": "sft.py", "dpo": "dpo.py", "grpo": "tars_qwen_omni.py", "tars": "tars_qwen_omni.py"}
"""Training recipe by the first word of an arm's file name, such as dpo of dpo_margin.yaml. The last one trains any of
the architectures."""


@dataclass
class ComparisonSettings:
    """Settings of a comparison."""

    arms: list[str] = field(default_factory=list, metadata={"help": "YAML files of the arms, in the table's order."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each arm is trained with each."})
    output_dir: str = setting("runs/compare", "Folder of the runs and of the table.")
    task: str = setting("demo", "Held-out questions: a task of recipes/evaluate.py, or the path of your own.")
    limit: int | None = setting(None, "Ask this many of them only, the same ones of every run.")
    batch_size: int = setting(100, "Questions in a forward pass of the evaluation.")
    max_new_tokens: int = setting(1024, "Most tokens of a completion in the evaluation.")
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


def plan(settings: ComparisonSettings, recipes: Path) -> list[Run]:
    """All runs, seed by seed.

    Args:
        recipes: folder of the training scripts.

    Raises:
        ValueError: arms of different models, of the same name, of an unknown method, or without their data.
    """
    arms = [Path(name) for name in settings.arms]
    if not arms or len({arm.stem for arm in arms}) != len(arms):
        raise ValueError(f"arms={settings.arms}: names must be there and differ. Give YAML files of different names.")
    for arm in arms:
        if _method(arm) not in METHODS:
            raise ValueError(
                f"{arm}: the first word of its name, {_method(arm)!r}, is no method, so nothing says which recipe "
                f"trains it. Let the name begin with one of {', '.join(METHODS)}, such as grpo_{arm.name}."
            )
    models = {arm.stem: read_settings(arm).get("model") for arm in arms}
    if len(set(models.values())) > 1:
        raise ValueError(f"The arms train different models, {models}, which no table compares. Give arms of one model.")
    for arm in arms:
        data = str(read_settings(arm).get("dataset", ""))
        if len(Path(data).parts) > 2 and not Path(data).exists() and not settings.dry_run:
            raise ValueError(f"{arm}: its data set {data} does not exist. Build it with recipes/build_preferences.py.")
    runs = []
    for seed in settings.seeds:
        for arm in arms:
            folder = Path(settings.output_dir) / f"{arm.stem}-seed{seed}"
            script = recipes / METHODS[_method(arm)]
            command = [*shlex.split(settings.launch), str(script), "--config", str(arm), "--seed", str(seed)]
            command += ["--output_dir", str(folder), "--resume_from_checkpoint", "last"]
            runs.append(Run(arm, seed, folder, [*command, *shlex.split(settings.overrides)]))
    return runs


def _method(arm: Path) -> str:
    return arm.stem.partition("_")[0]


def train(run: Run, settings: ComparisonSettings) -> float | None:
    """Train unless that is done.

    Returns:
        the seconds it took, as the trainer logged them; None if it went on from a checkpoint, since the trainer then
        knows those of the last part only.

    Raises:
        ValueError: the folder holds a run with other settings, of another model, or on other data.
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
    found = json.loads(record.read_text()) if record.is_file() else {}
    resumed = found.pop("resumed", False)
    if found and found != made_with:
        raise ValueError(
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


def launch(command: list[str]) -> None:
    """`accelerate launch` with the arguments of a run, its output in this terminal."""
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *command], check=True)


def evaluate(arm: Path, folder: Path, settings: ComparisonSettings, recipes: Path) -> dict[str, Any]:
    """Evaluate the run in `folder`, or in a folder called `BASE` the untrained model, unless that is done.

    Returns:
        the content of its `result.json`: whether each answer is right (`speech`, `text`, in the order of `keys`), the
        `commit` of this package, and `how` it was measured.
    """
    own = read_settings(arm)
    model, revision = str(own["model"]), own.get("model_revision")
    trained, adapted = folder.name != BASE, (folder / ADAPTER_CONFIG_NAME).is_file()
    how = {
        "model": identity(model, revision),
        "run": _digest(folder.glob("*.safetensors")) if trained else None,
        "questions": _data_digest(task_named(settings.task)[1]),
        **{name: getattr(settings, name) for name in ("task", "limit", "batch_size", "max_new_tokens")},
    }
    file = folder / "result.json"
    if file.is_file() and (found := json.loads(file.read_text())).get("how") == how:
        return found
    command = [*shlex.split(settings.launch), str(recipes / "evaluate.py"), "--tasks", settings.task]
    command += ["--model", str(folder) if trained and not adapted else model]
    command += ["--adapter", str(folder)] if adapted else []
    command += ["--revision", revision] if revision and (adapted or not trained) else []
    command += ["--limit", str(settings.limit)] if settings.limit else []
    command += ["--batch_size", str(settings.batch_size), "--max_new_tokens", str(settings.max_new_tokens)]
    if file.is_file():  # measured otherwise before: the newest files are read, and those may be of that
        command += ["--overwrite", "true"]
    command += ["--log_samples", "true", "--output_path", str(folder / "evaluation")]
    launch(command)
    right = {}
    for name, lines in read_samples(folder / "evaluation").items():
        right[name.rpartition("_")[2]] = {line["key"]: line["acc"] == 1 for line in lines}
    keys = sorted(right["text"])
    result = {
        "how": how,
        "commit": read_results(folder / "evaluation")["git_hash"],
        "keys": keys,
        **{modality: [answers[key] for key in keys] for modality, answers in right.items()},
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _data_digest(source: str) -> str:
    """Of all files in a folder, or of a file; a hub id is its own."""
    path = Path(source)
    return _digest(path.rglob("*") if path.is_dir() else [path]) if path.exists() else source


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def write(measured: dict[str, list[Measured]], settings: ComparisonSettings) -> str:
    """Write the table in its three forms; the Markdown one is returned."""
    rows, folder = table(measured), Path(settings.output_dir)
    commits = sorted({run.commit for runs in measured.values() for run in runs if run.commit})
    notes = (
        f"{len(measured[BASE][0].speech)} held-out questions ({settings.task}), greedy; mean ± standard deviation over "
        "seeds; 95 % intervals over questions, by Wilson, for the gap a bootstrap. MRR: speech accuracy over the base "
        f"model's text accuracy, {rows[0].text:.2f} %. `{command_line()}`, measured at commit "
        f"{', '.join(commits) or 'unknown'}."
    )
    text = markdown(rows, notes)
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_csv(rows, folder / "table.csv")
    figure(rows, measured).savefig(folder / "table.png")
    return text
