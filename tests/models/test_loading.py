"""Which weights are measured, and how they are told apart."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tars_trl.models import loading
from tars_trl.models.loading import identity, load_processor, load_speech_llm, resolve
from tars_trl.models.phi4_multimodal import MODEL_ID, NATIVE_REVISION, Phi4Multimodal
from tars_trl.record import write_run


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


@pytest.fixture
def asked(monkeypatch):
    """(what, model, revision) of everything that is asked of the hub; nothing is."""
    asked = []

    class Loaded:
        model_type = "phi4_multimodal"
        tokenizer = SimpleNamespace()
        config = SimpleNamespace()

        def to(self, device):
            return self

        def eval(self):
            return self

    def ask(what):
        def asking(model, *args, revision=None, **kwargs):
            asked.append((what, model, revision))
            return Loaded()

        return asking

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", ask("config"))
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", ask("processor"))
    monkeypatch.setattr(Phi4Multimodal, "load", lambda self, model, **kwargs: ask("model")(model, **kwargs))
    monkeypatch.setattr("peft.PeftModel.from_pretrained", lambda model, adapter: model)
    return asked


def test_phi4_is_asked_for_in_its_native_revision(asked, monkeypatch, tmp_path):
    """Its main is remote code: config, weights and processor are all of one revision, the given one if there is one."""
    for given, expected in ((None, NATIVE_REVISION), ("abc", "abc")):
        asked.clear()
        load_speech_llm(MODEL_ID, model_revision=given)
        assert asked == [(what, MODEL_ID, expected) for what in ("config", "model", "config", "processor")]

    def download(model, file, revision):
        asked.append(("identity", model, revision))
        return f"/cache/snapshots/{revision}/config.json"

    monkeypatch.setattr(loading, "hf_hub_download", download)
    assert identity(MODEL_ID) == f"{MODEL_ID}@70" and asked[-1] == ("identity", MODEL_ID, NATIVE_REVISION)
    identity("some/model")
    assert asked[-1] == ("identity", "some/model", None)


def test_an_adapter_is_put_on_the_revision_that_it_was_trained_on(asked, tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "run.json").write_text(json.dumps({"base_model": "some/model", "base_revision": "abc"}))
    load_speech_llm(str(tmp_path))
    assert asked == [(what, "some/model", "abc") for what in ("config", "model", "config", "processor")]
    assert loading.base_revision("some/model", str(tmp_path), "given") == "given"
    assert loading.base_revision("other/model", str(tmp_path)) is None
    (tmp_path / "checkpoint-9").mkdir()  # the record is in the run's folder, above
    assert loading.base_revision("some/model", str(tmp_path / "checkpoint-9")) == "abc"


def test_a_run_records_the_commit_that_main_was(model_folder, tmp_path, make_trainer):
    """And an adapter that names its base model is put on that commit again; a folder has none."""
    commit = f"{7:040x}"
    cached = tmp_path / "cache" / "models--some--model"
    shutil.copytree(model_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    model = loading.load_model("some/model", full_precision=True, cache_dir=str(tmp_path / "cache"))
    trainer = make_trainer(build_model=model, output="run")
    run = write_run(trainer, trainer._base, {})
    assert (run["base_model"], run["base_revision"]) == ("some/model", commit)
    assert loading.base_revision("some/model", str(tmp_path / "run")) == commit
    assert loading.load_model(model_folder, full_precision=True).config._commit_hash is None


def test_processors_pad_tokens_on_the_left_and_clips_on_the_right(model_folder, tmp_path):
    """Also one that is saved again: what reads it otherwise, such as vLLM, would put silence before a clip."""
    load_processor(model_folder).save_pretrained(tmp_path)
    shutil.copy(Path(model_folder) / "config.json", tmp_path)
    again = load_processor(str(tmp_path))
    assert again.tokenizer.padding_side == "left" and again.feature_extractor.padding_side == "right"
