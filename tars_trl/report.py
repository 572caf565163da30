"""What is trainable in a model, by component."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


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
        inside = [component for component, path in by_length if name.startswith(path + ".")]
        component = inside[0] if inside else "language model"
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


def report_trainable(model: nn.Module, audio_modules: Mapping[str, str], folder: str | Path) -> None:
    """Print the table, and save it as `trainable.json` in a run's folder."""
    table = trainable_table(model, audio_modules)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "trainable.json").write_text(json.dumps(table, indent=2) + "\n")
    print(format_trainable(table))
