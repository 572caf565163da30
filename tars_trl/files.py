"""JSON that others may have written or a disk may have damaged, and files that are there when they are whole."""

import json
from pathlib import Path
from typing import Any

from .errors import SettingError

DEEPEST = 50
"""Levels of lists and objects that are read. Ours have eight; what is nested near Python's limit on recursion can be
parsed, and then ends whatever goes through it: a comparison, a digest, an error text."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    else:
        level = [value]
        for _ in range(DEEPEST + 1):
            boxes = [box for box in level if isinstance(box, list | dict)]
            if not boxes:
                return value
            level = [inner for box in boxes for inner in (box.values() if isinstance(box, dict) else box)]
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; raises what `parse_json` does."""
    return parse_json(Path(path).read_bytes())


def json_object(text: str | bytes, name: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: of a file, a setting, ….
        name: what it is called in an error.

    Raises:
        SettingError: there is none.
    """
    try:
        value, why = parse_json(text), ""
    except ValueError as error:  # also of bytes that are no text
        value, why = None, f" ({error})"
    if not isinstance(value, dict):
        raise SettingError(f'{name} holds no JSON object{why}. Write or restore one, such as {{"a": 1}}.')
    return value


def write_whole(path: str | Path, text: str) -> None:
    """Write a file in the place of the one that is there, which stays as it is if the disk is full or power fails."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
