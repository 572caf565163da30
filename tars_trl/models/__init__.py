"""What differs between speech LLMs: one file each, a subclass of `SpeechLLM`.

Adding an architecture is one new file here, one line in `ARCHITECTURES`, and one recipe. An architecture file never
imports the trainer. Nothing architecture-specific is imported before it is asked for.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.audio import TARGET_RATE
from ..errors import AudioError, SettingError
from .hooks import placed_audio

Features = Mapping[str, Tensor]
"""What a processor makes of one clip, in the processor's names, and under `AUDIO_TOKENS` how many placeholders."""
AUDIO_TOKENS = "audio_tokens"

ARCHITECTURES = {
    "qwen2_5_omni": "qwen2_5_omni.Qwen2_5OmniThinker",
    "qwen2_5_omni_thinker": "qwen2_5_omni.Qwen2_5OmniThinker",
    "qwen3_omni_moe": "qwen3_omni.Qwen3OmniThinker",
    "qwen3_omni_moe_thinker": "qwen3_omni.Qwen3OmniThinker",
    "qwen2_audio": "qwen2_audio.Qwen2Audio",
    "voxtral": "voxtral.Voxtral",
    "audioflamingo3": "audio_flamingo_3.AudioFlamingo3",
    "granite_speech": "granite_speech.GraniteSpeech",
    "gemma4": "gemma4.Gemma4",
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


class SpeechLLM:
    """What the package asks of an architecture; stateless. Defaults are what most have in common.

    A plain one (a tower, a projector, a decoder called `language_model`, and the class's own `get_audio_features`) sets
    the first few attributes and is done.
    """

    class_name: ClassVar[str]
    """Class of the text-producing model in transformers."""
    audio_modules: ClassVar[dict[str, str]] = {
        "audio tower": "model.audio_tower",
        "audio projector": "model.multi_modal_projector",
    }
    """Component name to module path, for what is frozen beside the language model: audio tower, projector, vision."""
    decoder: ClassVar[str] = "model.language_model"
    """Path of the language model: a module with `layers` and a final `norm`."""
    lora_targets: ClassVar[str] = (
        r"(.*\.)?model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    )
    """Regular expression (full match) of the language model's linear layers, for `peft.LoraConfig.target_modules`."""
    expert_parameters: ClassVar[tuple[str, ...]] = ()
    """Of a mixture: ends of the names of its experts' parameters, for `peft.LoraConfig.target_parameters`."""
    router: ClassVar[str | None] = None
    """Of a mixture: end of the names of the modules that choose experts, which are never adapted."""
    decoder_layer_class: ClassVar[str]
    """Class of a decoder layer, which FSDP wraps (`fsdp_transformer_layer_cls_to_wrap`)."""
    features: ClassVar[tuple[str, ...]] = ("input_features", "feature_attention_mask")
    """What of the processor's output for one clip `get_audio_features` takes; of several clips it is concatenated."""
    processor_options: ClassVar[dict[str, str]] = {}
    """What `AutoProcessor.from_pretrained` has to be told to open a folder without the model, such as an adapter's."""
    whole_windows: ClassVar[bool] = False
    """Whether the processor pads a clip to whole windows of the tower's."""
    longest_clip: ClassVar[float | None] = None
    """Seconds, where the processor cuts what is longer without a word; None where it takes any length."""
    audio_tokens_per_second: ClassVar[float]
    """Audio embeddings of a second of speech."""
    native_revisions: ClassVar[dict[str, str]] = {}
    """Hub id to the revision that holds weights of the class, where that is not main."""
    in_vllm: ClassVar[bool] = False
    """Whether vLLM has an implementation that takes these weights and hears."""

    # ---- The model -------------------------------------------------------------------------------------------------

    def load(self, model_id: str, **kwargs: Any) -> Any:
        """The text-producing model alone, from a hub id or a folder; `kwargs` go to `from_pretrained`."""
        import transformers

        return getattr(transformers, self.class_name).from_pretrained(model_id, **kwargs)

    def empty(self, config: Any) -> Any:
        """The text-producing model of a checkpoint's config without weights, on torch's meta device."""
        import transformers

        with torch.device("meta"):
            return getattr(transformers, self.class_name)(config)

    def image_token(self, model: Any) -> int | None:
        """Id of the image placeholder, None for a class without images."""
        return getattr(model.config, "image_token_id", None)

    def prepare(self, model: Any) -> None:
        """Give a model that is to be trained, loaded here or by the user, what TRL expects of any multimodal one.

        TRL 1.16 reads the image placeholder of every multimodal model from its config (`GRPOTrainer.__init__`).
        """
        model.config.image_token_id = self.image_token(model)

    def audio_token(self, model: Any) -> int:
        """Id of the placeholder that stands for one audio embedding."""
        return int(model.config.audio_token_id)

    def unsampled_tokens(self, model: Any) -> list[int]:
        """Ids that a completion must never contain: placeholders that the next forward pass would take for media."""
        ids = {self.audio_token(model), self.image_token(model), getattr(model.config, "video_token_id", None)}
        return sorted(token for token in ids if token is not None)

    def lora(self, *, experts: bool = False, **settings: Any) -> Any:
        """The `peft.LoraConfig` that adapts the language model's linear layers, with further `settings` of it.

        PEFT makes bare names (`q_proj`) of an expression for mixtures, which towers have too: they are excluded.

        Args:
            experts: whether a mixture's experts are adapted beside its attention.
            settings: such as `r`, `lora_alpha` and `lora_dropout`.
        """
        from peft import LoraConfig

        if self.expert_parameters:
            outside = "|".join(map(re.escape, self.audio_modules.values()))
            settings["exclude_modules"] = rf"(.*\.)?({outside})\..*"
            settings["target_parameters"] = list(self.expert_parameters) if experts else None
        return LoraConfig(target_modules=self.lora_targets, task_type="CAUSAL_LM", **settings)

    def state_modules(self, model: Any) -> list[nn.Module]:
        """L modules whose outputs are `hidden_states[1:]` as transformers returns them.

        These are the decoder layers but the last, and the final norm in place of the last.
        """
        decoder = model.get_submodule(self.decoder)
        return [*decoder.layers[:-1], decoder.norm]

    def vllm_parameter(self, name: str) -> str:
        """A parameter of the text-producing model under the name that vLLM's loader expects (only if `in_vllm`)."""
        return name

    def vllm_config(self, config: Any) -> Any:
        """A checkpoint's config as vLLM knows it (only if `in_vllm`)."""
        return config

    # ---- What it reads and hears -----------------------------------------------------------------------------------

    def prompt(
        self, processor: Any, conversation: list[dict[str, Any]], waveform: np.ndarray | None, **kwargs: Any
    ) -> Prompt:
        """Tokens (and features) of a conversation that ends with the user's turn, generation prompt added.

        Here through the processor's chat template and the processor itself.

        Args:
            processor: the checkpoint's.
            conversation: messages whose contents are lists of parts, one of them `{"type": "audio"}` if it is spoken.
            waveform: the clip of its audio part, float32 (samples,) at the processor's rate; None if it is written.
            kwargs: go to the chat template.

        Raises:
            AudioError: the clip is longer than `longest_clip`.
        """
        text = self.chat_text(processor, conversation, add_generation_prompt=True, **kwargs)
        if waveform is None:
            return Prompt(torch.as_tensor(processor(text=[text])["input_ids"][0]).tolist())  # of a list or a tensor
        seconds = len(waveform) / TARGET_RATE
        if self.longest_clip is not None and seconds > self.longest_clip:
            raise AudioError(
                f"a clip of {seconds:.1f} s",
                f"{self.class_name} hears {self.longest_clip:g} s and no more",
                f"Set max_audio_seconds: {self.longest_clip:g}, or ask another model.",
                reason="too long",
            )
        inputs = self.process(processor, text, waveform)
        ids = inputs["input_ids"][0].tolist()
        count = ids.count(processor.tokenizer.convert_tokens_to_ids(processor.audio_token))
        return Prompt(ids, {**{name: inputs[name] for name in self.features}, AUDIO_TOKENS: torch.tensor(count)})

    def chat_text(self, processor: Any, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        """A conversation as the chat template writes it; `kwargs` go to the template."""
        return processor.apply_chat_template([conversation], tokenize=False, **kwargs)[0]

    def process(self, processor: Any, text: str, waveform: np.ndarray) -> Mapping[str, Tensor]:
        """The processor's output for one prompt: `input_ids` (1, T), and `features`."""
        # A processor loaded with `padding_side="left"`, for its tokenizer, would put silence before the clip.
        processor.feature_extractor.padding_side = "right"
        return processor(text=[text], audio=[waveform], return_tensors="pt")

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio embeddings (audio tokens of the clip, H), one tensor a clip, as the decoder's input wants them."""
        return list(self.encode_alike(model, clips).split([int(clip[AUDIO_TOKENS]) for clip in clips]))

    def encode_alike(self, model: Any, clips: Sequence[Features]) -> Tensor:
        """(audio tokens of all clips, H), of clips whose features have one shape."""
        tower = model.get_submodule(self.audio_modules["audio tower"])
        batch = {name: torch.cat([clip[name] for clip in clips]).to(tower.device) for name in self.features}
        batch = {name: part.to(tower.dtype) if part.is_floating_point() else part for name, part in batch.items()}
        return self.audio_embeddings(model, batch)

    def audio_embeddings(self, model: Any, features: Mapping[str, Tensor]) -> Tensor:
        """(audio tokens of all clips, H) of their concatenated features."""
        return model.get_audio_features(**features).pooler_output

    def blank_features(self, config: Any, seconds: float) -> Features:
        """Features of a clip, as a processor makes them but zero: for a plan, which has the configuration alone."""
        frames = math.ceil(100 * seconds)
        window = 2 * config.audio_config.max_source_positions if self.whole_windows else frames
        mask = (torch.arange(-(-frames // window) * window) < frames).long().view(-1, window)
        features = torch.zeros(len(mask), config.audio_config.num_mel_bins, window)
        return dict(zip(self.features, (features, mask), strict=False))  # not all take a mask

    def placed(self, model: Any, clips: Sequence[Tensor | None]) -> AbstractContextManager[None]:
        """While the block runs, each row's audio embeddings reach the decoder (see `hooks.placed_audio`).

        Here through the token embedding. A class that rewrites ids before the look-up, or embeddings behind it, has
        them placed in front of the decoder instead (`hooks.audio_before_decoder`).
        """
        return placed_audio(model.get_input_embeddings(), self.audio_token(model), clips)

    def end_of_turn(self, processor: Any, end_tokens: Sequence[int]) -> list[int]:
        """Token ids behind an assistant's text, as the chat template writes them, up to the first that ends a turn.

        Args:
            processor: the checkpoint's.
            end_tokens: ids at which generation stops.

        Raises:
            ValueError: no such token follows, so that a trained model would not know when to stop.
        """
        said = "tars-trl"
        turns = [{"role": role, "content": [{"type": "text", "text": said}]} for role in ("user", "assistant")]
        text = self.chat_text(processor, turns)
        ids = processor.tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
        ends = [place for place, token in enumerate(ids) if token in end_tokens]
        if not ends:
            raise ValueError(
                f"The chat template writes {text.rpartition(said)[2]!r} behind an assistant's turn, which holds none "
                f"of the tokens {list(end_tokens)} that end a generation: the model would not learn to stop. Correct "
                "the chat template, or eos_token_id of the generation config."
            )
        return list(ids[: ends[0] + 1])

    # ---- What is exported ------------------------------------------------------------------------------------------

    card_audio: ClassVar[str] = '[{"type": "audio"}]'
    """In the code of a model card, the content of a user turn that is nothing but a clip."""
    card_inputs: ClassVar[tuple[str, ...]] = (
        "text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)",
        'inputs = processor(text=text, audio=[waveform], return_tensors="pt")',
    )
    """There, lines that make `inputs` of `processor`, `conversation` and `waveform`."""
    card_imports: ClassVar[tuple[str, ...]] = ()
    """There, lines that import what those lines need of Python's own modules."""
    card_packages: ClassVar[tuple[str, ...]] = ("torchvision",)
    """There, what has to be installed for the processor, beside what all need."""

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


def as_strings(conversation: list[dict[str, Any]], audio_token: str) -> list[dict[str, Any]]:
    """The conversation with contents as strings, an audio part as its placeholder, for templates that take no parts."""

    def written(part: dict[str, Any]) -> str:
        return audio_token if part["type"] == "audio" else part["text"]

    return [{**turn, "content": "".join(map(written, turn["content"]))} for turn in conversation]


def encode_in_groups(
    clips: Sequence[Features], group: Callable[[Features], int], encode: Callable[[list[Features]], list[Tensor]]
) -> list[Tensor]:
    """Audio embeddings of clips of which only those of one group may share a pass, in the order of the clips.

    Args:
        clips: the clips.
        group: of a clip; for towers that hear a padded clip otherwise than the clip alone, its length.
        encode: embeddings of the clips of a group.
    """
    groups: dict[int, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(group(clip), []).append(number)
    encoded: dict[int, Tensor] = {}
    for numbers in groups.values():
        encoded |= zip(numbers, encode([clips[number] for number in numbers]), strict=True)
    return [encoded[number] for number in range(len(clips))]


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
