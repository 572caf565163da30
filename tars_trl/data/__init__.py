"""Questions in two forms, spoken and written: the row schema and its loaders."""

from typing import TYPE_CHECKING, Any

from .schema import COLUMNS, SYSTEM_PROMPT, build_prompt, check_rows, spoken_text, written_question

if TYPE_CHECKING:
    from .questions import load_questions

__all__ = [
    "COLUMNS",
    "SYSTEM_PROMPT",
    "build_prompt",
    "check_rows",
    "load_questions",
    "spoken_text",
    "written_question",
]


def __getattr__(name: str) -> Any:
    if name != "load_questions":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .questions import load_questions  # brings `datasets` and torch

    return load_questions
