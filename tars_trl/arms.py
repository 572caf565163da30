"""Running a comparison of arms: which commands train them, and what is done already.

An arm is a YAML file of a training recipe. A run is an arm with a seed; its folder holds `arm.json` (its settings),
what its training leaves, and `result.json` and `answers.jsonl` of its measurement.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.utils import ADAPTER_CONFIG_NAME

from .cli import read_settings
from .comparison import BASE, Measured, figure, markdown, measure, table, write_csv
from .config import setting
from .evaluation.jobs import rows_digest
from .evaluation.loading import identity, load_speech_llm
from .evaluation.results import environment
from .record import command_line

SCRIPTS = {"sft": "sft.py", "dpo": "dpo.py"}
"""Training script by the name of the arm; tars_qwen_omni.py trains all others."""


@dataclass
class ComparisonSettings:
    """Settings of a comparison."""

    arms: list[str] = field(default_factory=list, metadata={"help": "YAML files of the arms, in the table's order."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each arm is trained with each."})
    output_dir: str = setting("runs/compare", "Folder of the runs and of the table.")
    eval_dataset: str = setting("recipes/demo/questions", "Held-out questions: hub id, folder or file.")
    eval_split: str = setting("test", "Split of them.")
    eval_limit: int | None = setting(None, "Measure on this many only, the first ones.")
    batch_size: int = setting(100, "Questions in a forward pass while measuring.")
    max_new_tokens: int = setting(1024, "Most tokens of a completion while measuring.")
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
        ValueError: arms of different models, of the same name, or without their data.
    """
    arms = [Path(name) for name in settings.arms]
    if not arms or len({arm.stem for arm in arms}) != len(arms):
        raise ValueError(f"arms={settings.arms}: names must be there and differ. Give YAML files of different names.")
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
            script = recipes / SCRIPTS.get(arm.stem, "tars_qwen_omni.py")
            command = [*shlex.split(settings.launch), str(script), "--config", str(arm), "--seed", str(seed)]
            command += ["--output_dir", str(folder), "--resume_from_checkpoint", "last"]
            runs.append(Run(arm, seed, folder, [*command, *shlex.split(settings.overrides)]))
    return runs


def train(run: Run, settings: ComparisonSettings, model: str) -> float:
    """Train unless that is done.

    Returns:
        the seconds it took, as the trainer logged them.

    Raises:
        ValueError: the folder holds a run with other settings, or of another model.
        CalledProcessError: the training failed.
    """
    made_with = {
        "settings": read_settings(run.arm),
        "overrides": settings.overrides,
        "seed": run.seed,
        "model": identity(model),
    }
    record, state = run.folder / "arm.json", run.folder / "trainer_state.json"
    if record.is_file() and json.loads(record.read_text()) != made_with:
        raise ValueError(
            f"{run.folder} holds a run of another model, or with other settings than {run.arm} has now, so one "
            "table would mix them. Remove the folder, or give another output_dir."
        )
    if not state.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(made_with, indent=2) + "\n")
        launch(run.command)
    history = json.loads(state.read_text())["log_history"]
    return next(float(entry["train_runtime"]) for entry in reversed(history) if "train_runtime" in entry)


def launch(command: list[str]) -> None:
    """`accelerate launch` with the arguments of a run, its output in this terminal."""
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *command], check=True)


def evaluate(
    model: str, folder: Path, questions: Dataset, settings: ComparisonSettings, trained: bool
) -> dict[str, Any]:
    """Measure the model, or the run in `folder`, unless that is done the same way; the content of its `result.json`."""
    names = ("eval_dataset", "eval_split", "eval_limit", "max_new_tokens", "batch_size")
    how = {name: getattr(settings, name) for name in names}
    how |= {"model": identity(model), "questions": rows_digest(questions, True)}
    file = folder / "result.json"
    if file.is_file() and (found := json.loads(file.read_text()))["how"] == how:
        return found
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    adapter = str(folder) if (folder / ADAPTER_CONFIG_NAME).is_file() else None
    loaded = load_speech_llm(str(folder) if trained and not adapter else model, adapter, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens}
    found = measure(*loaded, list(questions), folder / "answers.jsonl", **sizes)
    del loaded
    if device.type == "cuda":
        torch.cuda.empty_cache()  # makes room for the next training, which is another process
    result = {"how": how, **found, **environment()}
    file.write_text(json.dumps(result, indent=2) + "\n")
    return result


def write(measured: dict[str, list[Measured]], settings: ComparisonSettings) -> str:
    """Write the table in its three forms; the Markdown one is returned."""
    rows, folder = table(measured), Path(settings.output_dir)
    commits = sorted({run.commit for runs in measured.values() for run in runs if run.commit})
    notes = (
        f"{len(measured[BASE][0].speech)} held-out questions ({settings.eval_dataset}, {settings.eval_split}), greedy; "
        "mean ± standard deviation over seeds; 95 % intervals over questions, by Wilson, for the gap a bootstrap. MRR: "
        f"speech accuracy over the base model's text accuracy, {rows[0].text:.2f} %. `{command_line()}`, measured at "
        f"commit {', '.join(commits) or 'unknown'}."
    )
    text = markdown(rows, notes)
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_csv(rows, folder / "table.csv")
    figure(rows, measured).savefig(folder / "table.png")
    return text
