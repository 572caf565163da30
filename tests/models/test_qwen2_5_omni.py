"""What is Qwen2.5-Omni's own: where its thinker loads from, and how its clips are padded."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5OmniConfig

from tars_trl.data.prompts import spoken_prompt
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tests.conftest import question


def test_thinker_loads_from_an_omni_checkpoint(tiny, tmp_path):
    """The hub's key names (`thinker.model.layers…`, `thinker.audio_tower…`) give the same weights."""
    model, _ = tiny
    config = Qwen2_5OmniConfig(thinker_config=model.config.to_dict(), enable_audio_output=False).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2_5OmniModel"]}, default=str))
    renamed = {"model.language_model.": "model.", "model.audio_tower.": "audio_tower.", "model.visual.": "visual."}
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renamed.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        weights[f"thinker.{name}"] = tensor.clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = Qwen2_5OmniThinker().load(str(tmp_path))
    assert type(loaded).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_thinker_loads_from_its_own_checkpoint(tiny, tmp_path):
    model, _ = tiny
    model.save_pretrained(tmp_path)
    loaded = Qwen2_5OmniThinker().load(str(tmp_path))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_features_equal_those_padded_to_the_full_window(tiny):
    """Cropping is exact: features, and the number of audio tokens, are those of the processor's padding."""
    _, processor = tiny
    conversation = spoken_prompt(question(0)["prompt"])
    text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
    for samples in (1600, 12_345, 48_000, 48_001):
        waveform = np.random.default_rng(samples).standard_normal(samples).astype("float32") * 0.1
        full = processor(text=text, audio=[waveform], return_tensors="pt")
        prompt = Qwen2_5OmniThinker().prompt(processor, conversation, waveform)
        features = prompt.features["input_features"]
        frames = int(full["feature_attention_mask"].sum())
        assert features.size(-1) == frames < full["input_features"].size(-1)
        assert torch.equal(features, full["input_features"][:, :, :frames])
        assert prompt.ids == full["input_ids"][0].tolist()
