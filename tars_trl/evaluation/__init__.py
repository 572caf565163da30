"""Measuring a speech LLM on the same questions, aloud and in writing: accuracies, the gap, what is recovered."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "EvaluationCallback": "callback",
    "EvaluationSettings": "settings",
    "evaluate": "run",
    "paired_result": "metrics",
}
__all__ = ["EvaluationCallback", "EvaluationSettings", "evaluate", "paired_result"]

if TYPE_CHECKING:
    from .callback import EvaluationCallback
    from .metrics import paired_result
    from .run import evaluate
    from .settings import EvaluationSettings


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
