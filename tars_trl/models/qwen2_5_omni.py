"""Qwen2.5-Omni: its thinker, the part that hears and writes text."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import SettingError
from . import Features, SpeechLLM

THINKER = "thinker."
"""Prefix of the thinker's tensors in an Omni checkpoint."""
# What a whole folder keeps of its original beside the weights: everything but its card and git's own files.
NOT_COPIED = ("README.md", ".git*", "*.safetensors")


class Qwen2_5OmniThinker(SpeechLLM):
    """The thinker alone, from an Omni checkpoint (`Qwen/Qwen2.5-Omni-7B`) or a thinker's own."""

    class_name = "Qwen2_5OmniThinkerForConditionalGeneration"
    audio_modules = {
        "audio tower": "model.audio_tower",
        "audio projector": "model.audio_tower.proj",
        "vision tower": "model.visual",
    }
    decoder_layer_class = "Qwen2_5OmniDecoderLayer"
    audio_tokens_per_second = 25.0
    in_vllm = True
    whole_config = "Qwen2_5OmniConfig"
    """Class of the whole checkpoint's config in transformers."""
    whole_architecture = "Qwen2_5OmniModel"
    """What the hub's checkpoint names as its architecture."""

    def process(self, processor: Any, text: str, waveform: np.ndarray) -> Mapping[str, Tensor]:
        """The real processor's output, features without its padding to 300 s."""
        extractor = processor.feature_extractor
        extractor.padding_side = "right"  # as in `SpeechLLM.process`
        # Silence of one analysis window behind the clip makes its last frame the same as with padding to 300 s.
        padded = -(-(len(waveform) + extractor.n_fft) // extractor.hop_length) * extractor.hop_length
        inputs = processor(text=[text], audio=[waveform], max_length=padded, truncation=False, return_tensors="pt")
        length = int(inputs["feature_attention_mask"].sum())
        return {**inputs, **{name: inputs[name][..., :length] for name in self.features}}

    def encode(self, model: Any, clips: Sequence[Features]) -> list[Tensor]:
        """Audio tower and projector over the clips, padded to the longest of them; 25 embeddings a second."""
        longest = max(clip["input_features"].size(-1) for clip in clips)

        def pad(part: Tensor) -> Tensor:
            return functional.pad(part, (0, longest - part.size(-1)))

        return super().encode(model, [{**clip, **{name: pad(clip[name]) for name in self.features}} for clip in clips])

    def empty(self, config: Any) -> Any:
        """The thinker of an Omni's config, or of its own."""
        return super().empty(getattr(config, "thinker_config", config))

    def vllm_parameter(self, name: str) -> str:
        """A thinker's parameter under the name of the whole Omni checkpoint."""
        for module, stored in (("language_model.", "model."), ("audio_tower.", "audio_tower."), ("visual.", "visual.")):
            if name.startswith(f"model.{module}"):
                return f"thinker.{stored}{name.removeprefix(f'model.{module}')}"
        return f"thinker.{name}"

    def vllm_config(self, config: Any) -> Any:
        """Of a thinker alone that of an Omni around it: vLLM knows whole Omnis only."""
        return (
            config
            if hasattr(config, "thinker_config")
            else _omni_config(config, self.whole_config, self.whole_architecture)
        )

    def write_whole(
        self, part: Path, processor: Any, folder: Path, original: str | Path | None = None, revision: str | None = None
    ) -> None:
        """Put a trained thinker back into its Omni checkpoint: same files, shards, types and key names.

        Around a thinker that was trained from a thinker's own checkpoint a new Omni is made, without a talker: what
        vLLM, and every tool that knows Omni checkpoints alone, can open.

        Raises:
            SettingError: thinker and checkpoint do not have the same tensors.
        """
        from transformers import AutoConfig

        folder.mkdir(parents=True, exist_ok=True)
        thinkers = AutoConfig.from_pretrained(part).model_type
        if original is None or AutoConfig.from_pretrained(original, revision=revision).model_type == thinkers:
            _write_around(part, folder, self.whole_config, self.whole_architecture)
            processor.save_pretrained(folder)
        else:
            _write_back(part, folder, original, revision)


def _omni_config(thinker: Any, config_class: str, architecture: str) -> Any:
    """Config of an Omni that is nothing but a thinker, given the thinker's."""
    import transformers

    settings = {"enable_audio_output": False, "architectures": [architecture]}
    return getattr(transformers, config_class)(thinker_config=thinker.to_dict(), **settings)


def _write_around(thinker: Path, folder: Path, config_class: str, architecture: str) -> None:
    """A new Omni of a thinker alone, in the thinker's shards."""
    import transformers
    from safetensors.torch import load_file, save_file

    for shard in sorted(thinker.glob("*.safetensors")):
        weights = {THINKER + name: tensor for name, tensor in load_file(shard).items()}
        save_file(weights, folder / shard.name, metadata={"format": "pt"})
    index = thinker / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {THINKER + name: shard for name, shard in content["weight_map"].items()}
        (folder / index.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(thinker)
    _omni_config(config, config_class, architecture).save_pretrained(folder)
    torch.save({}, folder / "spk_dict.pt")  # voices of the talker: none, but the whole's class wants the file
    shutil.copy(thinker / "generation_config.json", folder)


def _write_back(thinker: Path, folder: Path, original: str | Path, revision: str | None) -> None:
    """The original Omni with the tensors of another thinker."""
    from huggingface_hub import snapshot_download
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source = Path(original) if Path(original).is_dir() else Path(snapshot_download(str(original), revision=revision))
    files: dict[str, Path] = {}
    for file in sorted(thinker.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= {THINKER + name: file for name in opened.keys()}  # noqa: SIM118 (no mapping)
    remedy = "Give the Omni checkpoint that the training started from as whole."
    unplaced = set(files)
    for shard in sorted(source.glob("*.safetensors")):
        weights = load_file(shard)
        for name in [name for name in weights if name.startswith(THINKER)]:
            trained = name
            if name not in files and name == f"{THINKER}lm_head.weight":  # tied: written once, as the embedding
                trained = f"{THINKER}model.embed_tokens.weight"
            if trained not in files:
                raise SettingError(
                    f"{name} of {original} has no counterpart in the trained thinker, so the two are not of one model. "
                    f"{remedy}"
                )
            with safe_open(files[trained], "pt") as opened:
                tensor = opened.get_tensor(trained.removeprefix(THINKER))
            if tensor.shape != weights[name].shape:
                raise SettingError(
                    f"{name} has shape {tuple(weights[name].shape)} in {original} and {tuple(tensor.shape)} in the "
                    f"trained thinker. {remedy}"
                )
            weights[name] = tensor.to(weights[name].dtype)
            unplaced.discard(trained)
        save_file(weights, folder / shard.name, metadata={"format": "pt"})
    if unplaced:
        raise SettingError(
            f"{len(unplaced)} tensors of the trained thinker have no place in {original}, such as {min(unplaced)}. "
            f"{remedy}"
        )
    for file in sorted(source.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in NOT_COPIED):
            shutil.copy(file, folder / file.name)
