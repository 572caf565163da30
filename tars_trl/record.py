"""The record of a run, `run.json`: what its card, a report or another person needs to know about how it was made."""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .evaluation.results import environment

SETTINGS = """
    modalities num_generations temperature max_completion_length representation_weight behavior_weight format_weight
    rep_layers reference behavior_model lora_r lora_alpha lora_dropout freeze_audio loss_type scale_rewards beta epsilon
    epsilon_high mask_truncated_completions learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm
    num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps num_iterations max_audio_seconds
    bf16 seed
"""
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def run_record(trainer: Any) -> dict[str, Any]:
    """Facts about a run from its trainer, as plain values; nothing secret is among them."""
    base = trainer._base_model()
    dataset, args = trainer.train_dataset, trainer.args
    system = [turn["content"] for turn in dataset[0]["prompt"] if turn["role"] == "system"]
    return {
        "base_model": base.config.name_or_path,
        "base_revision": getattr(base.config, "_commit_hash", None),
        "model_class": type(base).__name__,
        "adapter": hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"),
        "system_prompt": _text(system[0]) if system else None,
        "questions": len(dataset),
        "data": sorted(dataset.info.download_checksums or {}),
        "steps": trainer.state.global_step,
        "processes": trainer.accelerator.num_processes,
        "processor": platform.processor() or platform.machine(),
        "seconds": next((log["train_runtime"] for log in trainer.state.log_history if "train_runtime" in log), None),
        "settings": {name: _plain(getattr(args, name)) for name in SETTINGS.split() if hasattr(args, name)},
        "command": command_line(),
        **environment(),
    }


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """`run.json` of a checkpoint or of the folder above it; empty if there is none."""
    for folder in (Path(checkpoint), Path(checkpoint).parent):
        if (folder / "run.json").is_file():
            return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    return {}


def command_line(argv: Sequence[str] | None = None) -> str:
    """The program's command as it could be typed again, without tokens and without the home folder's name."""
    words = list(sys.orig_argv if argv is None else argv)
    words[0] = Path(words[0]).name
    for place, word in enumerate(words):
        key, is_pair, _ = word.partition("=")
        if key.startswith("-") and key.endswith("token"):
            if is_pair:
                words[place] = f"{key}=***"
            elif place + 1 < len(words):
                words[place + 1] = "***"
    home = os.path.expanduser("~")
    quoted = [
        "~/" + shlex.quote(word.removeprefix(home + "/")) if word.startswith(home + "/") else shlex.quote(word)
        for word in words
    ]
    return SECRET.sub("***", " ".join(quoted)).replace("'***'", "***")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)
