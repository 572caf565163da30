"""Questions in two forms, spoken and written: the row schema and its loaders."""

from .schema import COLUMNS, SYSTEM_PROMPT, build_prompt, check_rows, spoken_text, written_question

__all__ = ["COLUMNS", "SYSTEM_PROMPT", "build_prompt", "check_rows", "spoken_text", "written_question"]
