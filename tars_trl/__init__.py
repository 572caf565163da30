"""tars_trl: GRPO for speech LLMs in which every question is asked twice, aloud and in writing (TARS, ACL 2026)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "TARSGRPOTrainer": "trainer",
    "TARSGRPOConfig": "config",
    "SpeechSFTTrainer": "supervised",
    "SpeechSFTConfig": "supervised",
    "SpeechDPOTrainer": "supervised",
    "SpeechDPOConfig": "supervised",
    "accuracy_reward": "grpo.rewards",
    "format_reward": "grpo.rewards",
    "last_checkpoint": "grpo.resuming",
    "load_questions": "data.questions",
    "load_audio": "data.audio",
    "load_speech_llm": "models.loading",
    "complete": "sampling.complete",
    "evaluate": "evaluation.run",
    "EvaluationSettings": "evaluation.settings",
    "EvaluationCallback": "evaluation.callback",
    "PublishCallback": "share.publishing",
    "write_report": "report.html",
}
__all__ = [
    "EvaluationCallback",
    "EvaluationSettings",
    "PublishCallback",
    "SpeechDPOConfig",
    "SpeechDPOTrainer",
    "SpeechSFTConfig",
    "SpeechSFTTrainer",
    "TARSGRPOConfig",
    "TARSGRPOTrainer",
    "accuracy_reward",
    "complete",
    "evaluate",
    "format_reward",
    "last_checkpoint",
    "load_audio",
    "load_questions",
    "load_speech_llm",
    "write_report",
]

if TYPE_CHECKING:
    from .config import TARSGRPOConfig
    from .data.audio import load_audio
    from .data.questions import load_questions
    from .evaluation.callback import EvaluationCallback
    from .evaluation.run import evaluate
    from .evaluation.settings import EvaluationSettings
    from .grpo.resuming import last_checkpoint
    from .grpo.rewards import accuracy_reward, format_reward
    from .models.loading import load_speech_llm
    from .report.html import write_report
    from .sampling.complete import complete
    from .share.publishing import PublishCallback
    from .supervised import SpeechDPOConfig, SpeechDPOTrainer, SpeechSFTConfig, SpeechSFTTrainer
    from .trainer import TARSGRPOTrainer


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import tars_trl` alone takes no time and downloads nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
