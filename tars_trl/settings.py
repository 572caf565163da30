"""Command lines of the recipes: a YAML file and overrides, parsed strictly into dataclasses."""

import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its help text for the command line."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelAndData:
    """Which model is trained on which questions. Everything else is in `TARSGRPOConfig`."""

    model: str = setting("Qwen/Qwen2.5-Omni-7B", "Speech LLM: hub id or folder.")
    model_revision: str | None = setting(None, "Revision of the model on the hub.")
    dtype: str = setting("bfloat16", "Type its weights are loaded in: bfloat16, float16, float32 or auto.")
    attn_implementation: str | None = setting(None, "Attention: sdpa, flash_attention_2, eager; None for its default.")
    dataset: str = setting("yuantuo666/MMLU_FULL-full_train_hf_format.merged.v1", "Questions: hub id, folder or file.")
    split: str = setting("train", "Split to train on.")
    limit: int | None = setting(None, "Train on this many questions only, drawn by seed.")
    eval_dataset: str | None = setting(None, "Questions for `eval_strategy`: hub id, folder or file.")
    eval_split: str = setting("test", "Split to evaluate on.")
    eval_limit: int | None = setting(None, "Evaluate on this many questions only, drawn by seed.")
    system_prompt: str | None = setting(None, "System prompt of rows that bring none; None for the method's.")


def parse(*classes: type, args: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Instances of the dataclasses, from `--config FILE.yaml` and overrides such as `--learning_rate 1e-5`.

    A file may name another one as its `base` (see `read_settings`).

    Args:
        classes: dataclasses whose fields are the arguments.
        args: the command line; None for the program's own.

    Raises:
        ValueError: a key that no dataclass knows, or a YAML value of another type than its field's; the message names
            the key, what was given and what belongs there.
    """
    split = [part for arg in (sys.argv[1:] if args is None else args) for part in _split_config(arg)]
    parser = TrlParser(list(classes))
    if "--config" in split[:-1]:
        place = split.index("--config")
        path = split[place + 1]
        values = read_settings(path)
        _check_types(values, classes, path)
        parser.set_defaults_with_config(**values)
        split[place : place + 2] = []
    return parser.parse_args_into_dataclasses(args=split)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, over those of the file that it names as its `base`, relative to itself, if it does.

    Raises:
        ValueError: the file holds no settings, or is its own base.
    """
    values: dict[str, Any] = {}
    below, seen = Path(path), set()
    while True:
        seen.add(below.resolve())
        with below.open(encoding="utf-8") as file:
            found = yaml.safe_load(file) or {}
        if not isinstance(found, dict):
            raise ValueError(f"{below}: it holds a {type(found).__name__}, no settings. Write lines such as `seed: 0`.")
        base = found.pop("base", None)
        values = found | values
        if base is None:
            return values
        below = below.parent / base
        if below.resolve() in seen:
            raise ValueError(f"{path}: its base {base} leads back to itself. Name a file that ends the chain.")


def _split_config(arg: str) -> list[str]:
    return arg.split("=", 1) if arg.startswith("--config=") else [arg]


def _check_types(values: dict[str, Any], classes: Sequence[type], path: str) -> None:
    hints: dict[str, Any] = {}
    for cls in classes:
        hints |= {field.name: typing.get_type_hints(cls).get(field.name, Any) for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{path}: {name} is no setting of this recipe. Remove it, or correct its name.")
        if not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]).replace("typing.", ""))
            raise ValueError(
                f"{path}: {name}: {value!r} is a {type(value).__name__} where {wanted} belongs. Correct the value "
                "(YAML reads a bare no, off or yes as true or false, and 1e-5 as text: write 'no' and 1.0e-5)."
            )


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = typing.get_origin(hint) or hint
    if isinstance(plain, type) and issubclass(plain, str):  # also enumerations of strings
        return isinstance(value, str)
    return not isinstance(plain, type) or isinstance(value, plain)
