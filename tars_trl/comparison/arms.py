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

from peft import PeftModel
from transformers.utils import ADAPTER_CONFIG_NAME

from ..config import TARSGRPOConfig
from ..errors import SettingError
from ..evaluation.run import find_evaluation
from ..evaluation.settings import EvaluationSettings
from ..files import json_object, write_whole
from ..grpo.resuming import last_checkpoint
from ..models.loading import identity, load_model, load_processor
from ..record import command_line
from ..settings import Settings, TrainingSettings, check_names, read_settings, setting
from ..supervised import SpeechDPOConfig, SpeechSFTConfig
from .study import Study, read_answers, read_training
from .table import BASE, Measured, make_rows, markdown, plot_arms, write_csv

METHODS = {"sft": "sft", "dpo": "dpo", "distill": "distill", "grpo": "train", "tars": "train"}
"""Training command by the first word of an arm's file name, such as dpo of dpo_margin.yaml."""


@dataclass
class ComparisonSettings(Settings):
    """Settings of a comparison."""

    arms: list[str] = setting([], "YAML files of the arms, in the table's order.", required=True)
    seeds: list[int] = setting([0, 1, 2], "Each arm is trained with each of these.", least=0, required=True)
    output_dir: str = setting("runs/compare", "Folder of the runs and of the table.")
    task: str | None = setting(
        None, "Held-out questions: one task as `evaluate` takes it, such as NAME=PATH.", required=True
    )
    split: str | None = setting(None, "Split of them. None: test, or the only one.")
    domain: str | None = setting(None, "Column of them by which results.json can be taken apart, such as voice.")
    carried: list[str] = setting([], "Further such tasks, which the base and the end of each run are asked alone.")
    checkpoints: list[int] = setting(
        [], "Steps at which each run is measured, too; `overrides` has to save there (--save_steps).", least=1
    )
    variants: list[str] = setting(
        [],
        "Settings to try of an arm, as `ARM: --learning_rate 1e-3`: each becomes a run of its own, ARM.1, ARM.2, …, "
        "but a single one keeps the arm's name. Arms that are not named run once, as their file says.",
    )
    after: list[str] = setting(
        [],
        "Arms that start where another one of the list, with the same seed, ended: `ARM: OTHER`, which comes first.",
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
    name: str
    """In tables and folders: the arm's, with the number of its variant if it has any."""
    seed: int
    folder: Path
    command: list[str]
    variant: str
    """Settings that are tried, beside the arm's file and the comparison's `overrides`; empty where none are."""
    after: Path | None = None
    """Folder of the run where this one starts."""

    @property
    def model(self) -> str:
        """What is trained: that of the arm's file, or another run's end, merged."""
        return str(read_settings(self.arm)["model"]) if self.after is None else str(self.folder / "start")


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
    if len(set(settings.seeds)) < len(settings.seeds):
        raise SettingError(f"seeds={settings.seeds}: a run would count twice. Give each seed once.")
    models = {arm.stem: read_settings(arm).get("model") for arm in arms}
    if None in models.values():
        raise SettingError(f"The arms train {models}: a file names no model. Write `model: …` in each, or its base.")
    if len(set(models.values())) > 1:
        raise SettingError(
            f"The arms train different models, {models}, which no table compares. Give arms of one model."
        )
    for arm in arms:
        data = str(read_settings(arm).get("dataset", ""))
        if len(Path(data).parts) > 2 and not Path(data).exists() and not settings.dry_run:
            raise SettingError(f"{arm}: its data set {data} does not exist. Build it with build-preferences.")
    variants, starts = (_pairs(name, getattr(settings, name), arms) for name in ("variants", "after"))
    names: list[str] = []
    for arm in arms:
        for other in starts.get(arm.stem, [])[:1]:
            if other not in names:
                raise SettingError(
                    f"after: {arm.stem!r} starts where {other!r} ends, which is no run before it. Runs before it are "
                    f"{', '.join(names) or 'none'}."
                )
        tried = variants.get(arm.stem, [""])
        names += [f"{arm.stem}.{number}" if len(tried) > 1 else arm.stem for number in range(1, len(tried) + 1)]
        for variant in tried:  # a misspelt setting of the last arm would be noticed after days
            kinds = {"sft": SpeechSFTConfig, "dpo": SpeechDPOConfig}
            config = kinds.get(methods[arm], TARSGRPOConfig)
            check_names((TrainingSettings, config), ["--config", str(arm), *_words(settings.overrides, variant)])
    runs = []
    for seed in settings.seeds:
        for arm in arms:
            tried = variants.get(arm.stem, [""])
            for number, variant in enumerate(tried, 1):
                name = f"{arm.stem}.{number}" if len(tried) > 1 else arm.stem
                folder = Path(settings.output_dir) / f"{name}-seed{seed}"
                start = starts.get(arm.stem)
                before = Path(settings.output_dir) / f"{start[0]}-seed{seed}" if start else None
                command = [*shlex.split(settings.launch), *module_words(METHODS[methods[arm]]), "--config", str(arm)]
                command += ["--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "last"]
                command += _words(settings.overrides, variant)
                command += ["--model", str(folder / "start")] if start else []
                runs.append(Run(arm, name, seed, folder, command, variant, before))
    return runs


def _words(*texts: str) -> list[str]:
    """Settings that are written as on a command line, as words."""
    try:
        return shlex.split(" ".join(texts))
    except ValueError as error:
        raise SettingError(f"{' '.join(texts)!r} is no command line, {error}. Close the quotation mark.") from error


def _pairs(setting_name: str, entries: list[str], arms: list[Path]) -> dict[str, list[str]]:
    """`ARM: WORDS` entries by arm.

    Raises:
        SettingError: an entry of another form, or of an arm that is not in the list.
    """
    by_arm: dict[str, list[str]] = {}
    for entry in entries:
        arm, colon, words = (part.strip() for part in entry.partition(":"))
        if not colon or not words or arm not in {path.stem for path in arms}:
            raise SettingError(
                f"{setting_name}: {entry!r} does not name an arm of the list and, behind a colon, what belongs to it. "
                f"Arms are {', '.join(path.stem for path in arms)}."
            )
        by_arm.setdefault(arm, []).append(words)
    return by_arm


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
        "overrides": f"{settings.overrides} {run.variant}".strip(),
        "seed": run.seed,
        "model": identity(str(own["model"]), own.get("model_revision")),
        "data": _data_digest(str(own.get("dataset", ""))),
    }
    record, state = run.folder / "arm.json", run.folder / "trainer_state.json"
    earlier = json_object(record.read_bytes(), str(record)) if record.is_file() else {}
    resumed = earlier.pop("resumed", False)
    if earlier != made_with and (earlier or state.is_file()):
        raise SettingError(
            f"{run.folder} holds a run of another model, on other data, or with other settings than {run.arm} has "
            "now, so one table would mix them. Remove the folder, or give another output_dir."
        )
    if not state.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.after is not None and not (run.folder / "start" / "config.json").is_file():
            _merge(run.after, run.folder / "start", read_settings(run.arm))
        resumed = resumed or last_checkpoint(str(run.folder)) is not None
        write_whole(record, json.dumps({**made_with, "resumed": resumed}, indent=2) + "\n")
        launch(run.command)
    if resumed:
        return None
    history = json_object(state.read_bytes(), str(state))["log_history"]
    return next((float(entry["train_runtime"]) for entry in reversed(history) if "train_runtime" in entry), None)


def _merge(run: Path, folder: Path, own: dict[str, Any]) -> None:
    """The model that a run left, whole, for another run to start from."""
    model = load_model(
        str(own["model"]), dtype=own.get("dtype"), full_precision=True, revision=own.get("model_revision")
    )
    PeftModel.from_pretrained(model, run).merge_and_unload().save_pretrained(folder)
    load_processor(str(own["model"]), str(run)).save_pretrained(folder)


def measure(
    folder: Path,
    arm: Path,
    settings: ComparisonSettings,
    task: str | None = None,
    step: int | None = None,
    model: str | None = None,
) -> Path:
    """Evaluate the run in `folder`, or in a folder called `BASE` the untrained model that `arm` names, if need be.

    Args:
        folder: of the run.
        arm: its file.
        settings: of the comparison.
        task: another than the comparison's.
        step: of a checkpoint; None for the end.
        model: that was trained, where it is another than the arm's.

    Returns:
        the results file of exactly these weights, questions and settings.
    """
    own = read_settings(arm)
    weights = folder if step is None else folder / f"checkpoint-{step}"
    is_trained, is_adapter = folder.name != BASE, (weights / ADAPTER_CONFIG_NAME).is_file()
    asked: dict[str, Any] = {
        "model": str(weights) if is_trained and not is_adapter else model or str(own["model"]),
        "adapter": str(weights) if is_adapter else None,
        "model_revision": own.get("model_revision") if is_adapter or not is_trained else None,
        "tasks": task or settings.task,
        "split": settings.split,
        "domain": settings.domain,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "max_completion_length": settings.max_completion_length,
        "log_samples": True,
        "output_dir": str(folder / "evaluation" / ("" if step is None else f"step-{step}")),
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    evaluation = EvaluationSettings(**asked)
    results = find_evaluation(evaluation)
    if results is None:
        words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
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


def collect(study: Study, run: Run | None, seconds: float | None, settings: ComparisonSettings, arm: Path) -> None:
    """Measure a run (None: the untrained model) on every task, at its checkpoints and its end, into a study."""
    folder = Path(settings.output_dir) / BASE if run is None else run.folder
    name, seed, model = (BASE, 0, None) if run is None else (run.name, run.seed, run.model)
    places: list[tuple[str | None, int | None]] = [(None, step) for step in settings.checkpoints if run is not None]
    places += [(None, None), *((task, None) for task in settings.carried)]
    end = 0
    if run is not None:
        training = read_training(run.folder, name, seed, run.variant, seconds)
        study.training.append(training)
        end = training.steps
    for task, step in places:
        if step is not None and step >= end:
            continue  # the end itself, or beyond
        results = measure(folder, arm, settings, task, step, model)
        study.answers.append(read_answers(results, name, seed, end if step is None else step))
