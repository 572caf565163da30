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
__all__ = list(_PLACES)

if TYPE_CHECKING:
    from .config import TARSGRPOConfig as TARSGRPOConfig
    from .data.audio import load_audio as load_audio
    from .data.questions import load_questions as load_questions
    from .evaluation.callback import EvaluationCallback as EvaluationCallback
    from .evaluation.run import evaluate as evaluate
    from .evaluation.settings import EvaluationSettings as EvaluationSettings
    from .grpo.resuming import last_checkpoint as last_checkpoint
    from .grpo.rewards import accuracy_reward as accuracy_reward
    from .grpo.rewards import format_reward as format_reward
    from .models.loading import load_speech_llm as load_speech_llm
    from .report.html import write_report as write_report
    from .sampling.complete import complete as complete
    from .share.publishing import PublishCallback as PublishCallback
    from .supervised import SpeechDPOConfig as SpeechDPOConfig
    from .supervised import SpeechDPOTrainer as SpeechDPOTrainer
    from .supervised import SpeechSFTConfig as SpeechSFTConfig
    from .supervised import SpeechSFTTrainer as SpeechSFTTrainer
    from .trainer import TARSGRPOTrainer as TARSGRPOTrainer


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import tars_trl` alone takes no time and downloads nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
