"""What differs between speech LLMs, one file each, behind the small protocol `SpeechLLM`.

Adding an architecture is one new file here, one line in `architecture_of`, and one recipe. An architecture file never
imports the trainer. Nothing architecture-specific is imported before it is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

Features = Mapping[str, Tensor]
"""What a processor makes of one clip: tensors without a batch dimension, in the processor's names."""


@dataclass(frozen=True)
class Prompt:
    """One twin's prompt: `ids`, the token ids with one placeholder for every audio token, and the clip's features."""

    ids: list[int]
    features: Features | None = None


class SpeechLLM(Protocol):
    """What the package asks of an architecture."""

    audio_modules: dict[str, str]
    """Component name to module path, for what is frozen beside the language model: audio tower, projector, vision."""
    lora_targets: str
    """Regular expression (full match) of the language model's linear layers, for `peft.LoraConfig.target_modules`."""

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The text-producing model alone, from a hub id or a folder; `kwargs` go to `from_pretrained`."""

    def prepare(self, model: Any) -> None:
        """Give a model that is to be trained, loaded here or by the user, what TRL expects of any multimodal one."""

    def prompt(
        self, processor: Any, conversation: list[dict[str, Any]], waveform: np.ndarray | None, **kwargs
    ) -> Prompt:
        """Tokens (and features) of a conversation that ends with the user's turn, generation prompt added.

        `waveform` is the clip of its audio part, mono float32 at the processor's rate; None for a written conversation.
        `kwargs` go to the chat template.
        """

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio embeddings (audio tokens of the clip, H), one tensor a clip, as the decoder's input wants them."""

    def audio_token(self, model: Any) -> int:
        """Id of the placeholder that stands for one audio embedding."""

    def unsampled_tokens(self, model: Any) -> list[int]:
        """Ids that a completion must never contain: placeholders that the next forward pass would take for media."""

    def state_modules(self, model: Any) -> list[nn.Module]:
        """L modules whose outputs are `hidden_states[1:]` as transformers returns them (the last one normalised)."""


def architecture_of(model_type: str) -> SpeechLLM:
    """The architecture of a config's `model_type`.

    Raises:
        ValueError: the type is not supported; the message names those that are.
    """
    if model_type in ("qwen2_5_omni_thinker", "qwen2_5_omni"):
        from .qwen2_5_omni import Qwen2_5OmniThinker

        return Qwen2_5OmniThinker()
    if model_type == "phi4_multimodal":
        from .phi4_multimodal import Phi4Multimodal

        return Phi4Multimodal()
    raise ValueError(
        f"model_type={model_type!r} is not supported: tars_trl knows qwen2_5_omni (and its thinker) and "
        "phi4_multimodal (revision refs/pr/70 of Microsoft's repository; its main revision is phi4mm, remote code). To "
        "add an architecture, write one file that implements tars_trl.models.SpeechLLM and name it in architecture_of."
    )
