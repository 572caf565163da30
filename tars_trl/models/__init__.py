"""What differs between speech LLMs, one file each, behind the small protocol `SpeechLLM`.

Adding an architecture is one new file here, one line in `architecture_of`, and one recipe. An architecture file never
imports the trainer. Nothing architecture-specific is imported before it is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
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


@contextmanager
def last_logits_only(model: Any) -> Iterator[None]:
    """While completions are sampled in the block, logits are computed for the last token of each row alone.

    Qwen2.5-Omni's thinker otherwise makes those of the whole prompt, of which sampling uses the last: for 64 rows with
    two minutes of speech 60 GB in bfloat16. Prompts must be padded on the left.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def placed_audio(embedding: nn.Module, audio_token: int, rows: Sequence[Tensor | None]) -> Iterator[None]:
    """While the block runs, the token embedding gives audio embeddings where the ids hold audio placeholders.

    Everything else of a forward pass (position ids, masks, caches, wrappers, fused heads) stays the model's own, and a
    row without placeholders is untouched. This is how clips are encoded once and reach every pass.

    Args:
        embedding: the model's token embedding, called with (rows, tokens) ids.
        audio_token: id of the placeholder.
        rows: for each row the audio embeddings (audio tokens, H), or None for a written row. Passes go through the
            rows in order, in chunks of any size, or through all of them again and again (decoding).

    Raises:
        ValueError: from the pass itself, if a row's placeholders and embeddings differ in number.
    """
    position = 0

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal position
        ids: Tensor = args[0]
        chunk = [rows[(position + offset) % len(rows)] for offset in range(ids.size(0))]
        position = (position + ids.size(0)) % len(rows)
        if ids.size(1) == 1:  # decoding, where placeholders are suppressed; to look would wait for the GPU
            return output
        mask = ids == audio_token
        if all(clip is None for clip in chunk) and not bool(mask.any()):
            return output
        for number, (clip, found) in enumerate(zip(chunk, mask.sum(1).tolist(), strict=True)):
            wanted = 0 if clip is None else clip.size(0)
            if found != wanted:
                raise ValueError(
                    f"Row {number} of a forward pass holds {found} audio placeholders for {wanted} audio embeddings. "
                    "Audio tokens were cut, repeated or sampled; do not truncate prompts, and keep the placeholders "
                    "among the tokens that generation suppresses."
                )
        audio = torch.cat([clip for clip in chunk if clip is not None]).to(output.device, output.dtype)
        return output.masked_scatter(mask.unsqueeze(-1), audio)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
