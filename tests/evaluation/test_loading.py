"""Which weights are measured, and how they are told apart."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tars_trl.evaluation.loading import identity, load_speech_llm, resolve


def test_an_adapter_names_its_base_model(tmp_path):
    assert resolve("some/model", "some/adapter") == ("some/model", "some/adapter")
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert resolve(str(tmp_path)) == ("some/model", str(tmp_path))
    with pytest.raises(ValueError, match="is an adapter, and adapter='other' another"):
        resolve(str(tmp_path), "other")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base model. Give --model BASE"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("values", [1_000, 20_000_000])  # read whole; 80 MB, of which pieces are read
def test_identity_follows_the_weights(tmp_path, values):
    weights = torch.zeros(values)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    first = identity(str(tmp_path))
    (tmp_path / "trainer_state.json").write_text("{}")  # no part of the model
    (tmp_path / "optimizer.pt").write_bytes(b"0")
    assert identity(str(tmp_path)) == first
    save_file({"w": weights + 1e-3}, tmp_path / "model.safetensors")
    assert identity(str(tmp_path)) != first
    save_file({"w": weights}, tmp_path / "model.safetensors")
    assert identity(str(tmp_path)) == first
    (tmp_path / "config.json").write_text('{"rope": 1}')
    assert identity(str(tmp_path)) != first


def test_types(model_folder):
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        model, processor = load_speech_llm(model_folder, dtype=dtype)
        assert model.get_input_embeddings().weight.dtype == expected and not model.training
        assert processor.tokenizer.pad_token_id is not None
