"""The record of a run, `run.json`: what its card, a report or another person needs to know about how it was made."""

import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from torch import nn

from .errors import SettingError
from .files import json_object, write_whole
from .settings import fits

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
SECRET_NAME = r"[\w-]*(?i:token|key|secret|password)"


def write_run(
    trainer: Any, base: Any, audio_modules: Mapping[str, str], told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `run.json` into the output folder of a run, and return what it says: plain values, nothing secret.

    Args:
        trainer: one of this package's.
        base: its model without adapter around it.
        audio_modules: as an architecture has them (see `trainable_table`).
        told: facts that the user tells for the card; None values are left out.
    """
    dataset, args, state = trainer.train_dataset, trainer.args, trainer.state
    file = Path(args.output_dir) / "run.json"
    system = [turn["content"] for turn in dataset[0]["prompt"] if turn["role"] == "system"]
    if system and not isinstance(system[0], str):
        system = ["".join(part.get("text") or "" for part in system[0])]
    plain = str | int | float | bool | list | dict | None
    facts = {
        "run_id": (read_run(args.output_dir) if file.is_file() else {}).get("run_id") or uuid.uuid4().hex,
        **{name: value for name, value in (told or {}).items() if value is not None},
        "base_model": base.config.name_or_path,
        "base_revision": getattr(base.config, "_commit_hash", None),
        "model_class": type(base).__name__,
        "dtype": str(base.dtype).removeprefix("torch."),
        "attn_implementation": getattr(base.config, "_attn_implementation", None),
        "adapter": hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"),
        "trainer": type(trainer).__name__,
        "system_prompt": system[0] if system else None,
        "questions": len(dataset),
        "data": sorted(dataset.info.download_checksums or {}),
        **trainer.questions_from,
        "steps": state.global_step,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processes": trainer.accelerator.num_processes,
        "processor": platform.processor() or platform.machine(),
        "seconds": next((log["train_runtime"] for log in state.log_history if "train_runtime" in log), None),
        # As they were really used; tokens are masked by transformers.
        "settings": {name: value if isinstance(value, plain) else str(value) for name, value in args.to_dict().items()},
        "trainable": trainable_table(base, audio_modules),
        "command": command_line(),
        **environment(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(facts, indent=2) + "\n")
    return facts


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """`run.json` of a checkpoint, of the folder above it, or of a repository on the hub; empty if there is none.

    Raises:
        SettingError: it is damaged.
    """
    places = [Path(checkpoint) / "run.json", Path(checkpoint).parent / "run.json"]
    if not Path(checkpoint).exists():
        try:
            places = [Path(hf_hub_download(str(checkpoint), "run.json"))]
        except (HFValidationError, EntryNotFoundError, RepositoryNotFoundError):  # also: offline, and never loaded
            return {}
    for place in places:
        if place.is_file():
            return check_record(json_object(place.read_bytes(), str(place)), str(place))
    return {}


RECORD: dict[str, Any] = {
    **dict.fromkeys(
        ("base_model", "base_revision", "system_prompt", "command", "git_hash", "dataset", "split"), str | None
    ),
    **{"questions": int, "steps": int, "processes": int, "seconds": float | None},
    **{"settings": dict, "trainable": list[dict], "data": list[str], "package_versions": dict},
}
TRAINABLE = {"component": str, "parameters": int, "trainable": int, "dtype": str}


def check_record(facts: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The facts of a `run.json`, of which each that is there is of its kind.

    Raises:
        SettingError: one is not; `place` and the fact are named.
    """
    kinds = [(facts, name, kind) for name, kind in RECORD.items() if name in facts]
    rows: Any = facts.get("trainable")
    kinds += [(row, name, kind) for row in (rows if fits(rows, list[dict]) else []) for name, kind in TRAINABLE.items()]
    for values, name, kind in kinds:
        value = values.get(name)
        if not fits(value, kind) or value in (math.inf, -math.inf) or value != value:
            raise SettingError(f"{place}: {name}: {value!r:.100} is not what a run writes there. Restore the file.")
    return dict(facts)


def command_line(argv: Sequence[str] | None = None) -> str:
    """The program's command as it could be typed again, without tokens and without the home folder's name."""
    program, *rest = sys.orig_argv if argv is None else argv
    if rest and Path(rest[0]).name == "tars-trl":  # the command that pip installs, a script of this machine's Python
        program, *rest = rest
    words, hidden = [Path(program).name], False
    for word in rest:
        key, is_pair, _ = word.partition("=")
        is_token = key.startswith("-") and re.fullmatch(SECRET_NAME, key) is not None
        word = re.sub(rf'("{SECRET_NAME}"\s*:\s*)"[^"]*"', r'\1"***"', word)  # in JSON
        words.append("***" if hidden else f"{key}=***" if is_token and is_pair else word)
        hidden = is_token and not is_pair
    home = os.path.expanduser("~") + "/"
    quoted = ["~/" * word.startswith(home) + shlex.quote(word.removeprefix(home)) for word in words]
    return SECRET.sub("***", " ".join(quoted)).replace("'***'", "***")


PACKAGES = ("tars-trl", "trl", "transformers", "torch", "torchaudio", "datasets", "peft", "accelerate", "numpy")


def commit_of(package: Path) -> str | None:
    """Commit of the repository whose package stands in a folder, with `-dirty` behind it where tracked files differ.

    Only of a checkout that has the package at its top, as ours: a package that is installed inside of another project's
    repository, where `git` would name that project's commit, has none.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def ask(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", *words], cwd=package, env=variables, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("rev-parse", "--show-prefix") != f"{package.name}/" or not ask("ls-files", "__init__.py"):
        return None
    return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def environment() -> dict[str, Any]:
    """What a figure depends on beside the model and the data: commit, packages, device."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # used from a checkout, without being installed
            versions[name] = "not installed"
    return {
        "git_hash": commit_of(Path(__file__).parent),
        "package_versions": versions,
        "transformers_version": versions["transformers"],
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def trainable_table(model: nn.Module, audio_modules: Mapping[str, str]) -> list[dict[str, Any]]:
    """Parameters of each component, those of adapters apart, largest components first in the model's own order.

    Args:
        model: the base model, adapters inside.
        audio_modules: component name to module path; what is in none of them is the language model. Of two paths that
            both fit, the longer one counts.

    Returns:
        rows with `component`, `parameters`, `trainable` and `dtype`.
    """
    by_length = sorted(audio_modules.items(), key=lambda item: -len(item[1]))
    table: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        component = next((part for part, path in by_length if name.startswith(path + ".")), "language model")
        if "lora_" in name:
            component += ", LoRA"
        row = table.setdefault(component, {"component": component, "parameters": 0, "trainable": 0, "dtype": ""})
        size = getattr(parameter, "ds_numel", parameter.numel())  # DeepSpeed ZeRO-3 keeps the full size apart
        row["parameters"] += size
        row["trainable"] += size if parameter.requires_grad else 0
        row["dtype"] = str(parameter.dtype).removeprefix("torch.")
    rows = list(table.values())
    total = {key: sum(row[key] for row in rows) for key in ("parameters", "trainable")}
    return [*rows, {"component": "total", **total, "dtype": ""}]


def format_trainable(table: list[dict[str, Any]]) -> str:
    """The table as text for a terminal."""
    lines = [f"{'component':<24}{'parameters':>16}{'trainable':>16}  dtype"]
    lines += [f"{row['component']:<24}{row['parameters']:>16,}{row['trainable']:>16,}  {row['dtype']}" for row in table]
    return "\n".join(lines)
