"""tars_trl: GRPO for speech LLMs in which every question is asked twice, aloud and in writing (TARS, ACL 2026)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "TARSGRPOConfig": "config",
    "TARSGRPOTrainer": "trainer",
    "accuracy_reward": "grpo.rewards",
    "format_reward": "grpo.rewards",
    "load_audio": "data.audio",
    "load_questions": "data",
}
__all__ = [
    "TARSGRPOConfig",
    "TARSGRPOTrainer",
    "accuracy_reward",
    "format_reward",
    "load_audio",
    "load_questions",
]

if TYPE_CHECKING:
    from .config import TARSGRPOConfig
    from .data import load_questions
    from .data.audio import load_audio
    from .grpo.rewards import accuracy_reward, format_reward
    from .trainer import TARSGRPOTrainer


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import tars_trl` alone takes no time and downloads nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
