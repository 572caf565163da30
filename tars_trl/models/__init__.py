"""What differs between speech LLMs: one file each, a subclass of `SpeechLLM`.

Adding an architecture is one new file here, one line in `ARCHITECTURES`, and one recipe. An architecture file never
imports the trainer. Nothing architecture-specific is imported before it is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SettingError

Features = Mapping[str, Tensor]
"""What a processor makes of one clip: tensors without a batch dimension, in the processor's names."""

ARCHITECTURES = {
    "qwen2_5_omni": "qwen2_5_omni.Qwen2_5OmniThinker",
    "qwen2_5_omni_thinker": "qwen2_5_omni.Qwen2_5OmniThinker",
    "phi4_multimodal": "phi4_multimodal.Phi4Multimodal",
}
"""Module and class in this folder, by the `model_type` of a config."""


@dataclass(frozen=True)
class Prompt:
    """One twin's prompt."""

    ids: list[int]
    """Token ids, with one placeholder for every audio token."""
    features: Features | None = None
    """Of the clip; None for a written prompt."""
    waveform: np.ndarray | None = None
    """The clip itself, float32 (samples,), for engines that make features of their own."""


class SpeechLLM(ABC):
    """What the package asks of an architecture; stateless. Defaults are what most have in common."""

    class_name: ClassVar[str]
    """Class of the text-producing model in transformers."""
    audio_modules: ClassVar[dict[str, str]]
    """Component name to module path, for what is frozen beside the language model: audio tower, projector, vision."""
    decoder: ClassVar[str]
    """Path of the language model: a module with `layers` and a final `norm`."""
    lora_targets: ClassVar[str]
    """Regular expression (full match) of the language model's linear layers, for `peft.LoraConfig.target_modules`."""
    decoder_layer_class: ClassVar[str]
    """Class of a decoder layer, which FSDP wraps (`fsdp_transformer_layer_cls_to_wrap`)."""
    native_revisions: ClassVar[dict[str, str]] = {}
    """Hub id to the revision that holds weights of the class, where that is not main."""
    in_vllm: ClassVar[bool] = False
    """Whether vLLM has an implementation that takes these weights and hears."""

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The text-producing model alone, from a hub id or a folder; `kwargs` go to `from_pretrained`."""
        import transformers

        return getattr(transformers, self.class_name).from_pretrained(model_id, **kwargs)

    def empty(self, config: Any) -> Any:
        """The text-producing model of a checkpoint's config without weights, on torch's meta device."""
        import transformers

        with torch.device("meta"):
            return getattr(transformers, self.class_name)(config)

    def prepare(self, model: Any) -> None:
        """Give a model that is to be trained, loaded here or by the user, what TRL expects of any multimodal one.

        TRL 1.16 reads the image placeholder of every multimodal model from its config (`GRPOTrainer.__init__`).
        """
        if not hasattr(model.config, "image_token_id"):
            model.config.image_token_id = None

    @abstractmethod
    def prompt(
        self, processor: Any, conversation: list[dict[str, Any]], waveform: np.ndarray | None, **kwargs: Any
    ) -> Prompt:
        """Tokens (and features) of a conversation that ends with the user's turn, generation prompt added.

        Args:
            processor: the checkpoint's.
            conversation: messages whose contents are lists of parts, one of them `{"type": "audio"}` if it is spoken.
            waveform: the clip of its audio part, float32 (samples,) at the processor's rate; None if it is written.
            kwargs: go to the chat template.
        """

    @abstractmethod
    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio embeddings (audio tokens of the clip, H), one tensor a clip, as the decoder's input wants them."""

    def audio_token(self, model: Any) -> int:
        """Id of the placeholder that stands for one audio embedding."""
        return int(model.config.audio_token_id)

    def unsampled_tokens(self, model: Any) -> list[int]:
        """Ids that a completion must never contain: placeholders that the next forward pass would take for media."""
        ids = [getattr(model.config, f"{kind}_token_id", None) for kind in ("audio", "image", "video")]
        return sorted({token for token in ids if token is not None})

    def state_modules(self, model: Any) -> list[nn.Module]:
        """L modules whose outputs are `hidden_states[1:]` as transformers returns them.

        These are the decoder layers but the last, and the final norm in place of the last.
        """
        decoder = model.get_submodule(self.decoder)
        return [*decoder.layers[:-1], decoder.norm]

    def vllm_parameter(self, name: str) -> str:
        """A parameter of the text-producing model under the name that vLLM's loader expects (only if `in_vllm`)."""
        return name

    # ---- What is exported ------------------------------------------------------------------------------------------

    card_template: ClassVar[str] = "processor"
    """In the code of a model card, what has the chat template: an expression of `processor`."""
    card_audio: ClassVar[str] = '[{"type": "audio"}]'
    """There, the content of a user turn that is nothing but a clip."""

    def card_loading(self, model: str, revision: str | None = None) -> list[str]:
        """Lines of Python with which a card loads a hub id (or folder) as `model`; transformers and peft must do.

        The class is imported there, and of peft `PeftModel` and `LoraConfig` where the lines name them.
        """
        of_revision = f", revision={revision!r}" if revision else ""
        return [f'model = {self.class_name}.from_pretrained({model!r}{of_revision}, dtype="auto", device_map="auto")']

    def write_whole(
        self, part: Path, processor: Any, folder: Path, original: str | Path | None = None, revision: str | None = None
    ) -> None:
        """Put the trained part (the class that is loaded here) back into the whole checkpoint that it came from.

        Args:
            part: folder of the trained part, as `save_pretrained` writes it.
            processor: its processor.
            folder: where the whole goes; empty or not there yet.
            original: folder or hub id of the checkpoint that training started from. Where that is a part alone, or
                None, a new whole is made around it.
            revision: of `original`, on the hub.

        Raises:
            SettingError: there is no larger checkpoint of this architecture, or `original` is of another model.
        """
        raise SettingError(
            f"format='omni' was asked of a {self.class_name}, which is no part of a larger checkpoint. Use 'merged'."
        )


def architecture_of(model_type: str) -> SpeechLLM:
    """The architecture of a config's `model_type`.

    Raises:
        ValueError: the type is not supported; the message names those that are.
    """
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"model_type={model_type!r} is not supported: tars_trl knows {', '.join(ARCHITECTURES)} (of "
            "Phi-4-multimodal the native weights, revision refs/pr/70 of Microsoft's repository; its main revision, "
            "phi4mm, is remote code). To add an architecture, write one file with a subclass of "
            "tars_trl.models.SpeechLLM and name it in ARCHITECTURES."
        )
    module, _, name = ARCHITECTURES[model_type].partition(".")
    return getattr(import_module(f".{module}", __name__), name)()


def native_revision(model_id: str) -> str | None:
    """The revision of a hub id that holds weights of a supported class, where that is not main; None elsewhere."""
    for model_type in ARCHITECTURES:
        revision = architecture_of(model_type).native_revisions.get(model_id)
        if revision is not None:
            return revision
    return None
