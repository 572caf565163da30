"""Questions in two forms, spoken and written: the row schema and its loaders."""

from .questions import load_questions
from .schema import COLUMNS, SYSTEM_PROMPT, build_prompt, check_questions, spoken_text, written_question

__all__ = [
    "COLUMNS",
    "SYSTEM_PROMPT",
    "QuestionError",
    "build_prompt",
    "check_questions",
    "load_questions",
    "spoken_text",
    "written_question",
]
