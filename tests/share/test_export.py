"""Exports open as what they claim to be and hold what was trained, for every architecture."""

import json

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, Qwen2_5OmniForConditionalGeneration

from tars_trl.errors import SettingError
from tars_trl.models import architecture_of
from tars_trl.models.loading import load_speech_llm
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.share.export import ExportSettings, export, stored_dtype, write_export
from tests.models.tiny import ARCHITECTURES
from tests.trained import checkpoint, logits, tiny_omni_folder


@pytest.fixture(params=ARCHITECTURES)
def run(request, tmp_path):
    return checkpoint(*ARCHITECTURES[request.param](0), tmp_path)


@pytest.fixture
def omni(tiny, tmp_path):
    return tiny_omni_folder(*tiny, tmp_path / "omni")


def test_adapter_export_is_the_trained_model(run, tmp_path):
    model, processor = load_speech_llm(str(run))
    expected = logits(model)
    write_export(model, processor, tmp_path / "out", "adapter")
    again, _ = load_speech_llm(str(tmp_path / "out"))
    assert isinstance(again, PeftModel)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)


def test_merged_export_is_the_trained_model(run, tmp_path):
    """It opens by class name and AutoProcessor, without peft, and answers as adapter on base."""
    model, processor = load_speech_llm(str(run))
    expected, untrained = logits(model), logits(load_speech_llm(str(run.parent / "base"))[0])
    write_export(model, processor, tmp_path / "out", "merged")
    names = AutoConfig.from_pretrained(tmp_path / "out").architectures
    merged = getattr(transformers, names[0]).from_pretrained(tmp_path / "out")
    architecture_of(merged.config.model_type).prepare(merged)  # of Granite Speech, transformers forgets the scale
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)  # measured: 1.5e-6
    assert (expected - untrained).abs().max() > 1e-2
    again = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert again("What is one plus two?").input_ids == processor.tokenizer("What is one plus two?").input_ids


def test_merged_export_in_another_type(run, tmp_path):
    model, processor = load_speech_llm(str(run))
    write_export(model, processor, tmp_path / "out", "merged", dtype="bfloat16")
    assert stored_dtype(tmp_path / "out") == "bfloat16" and stored_dtype(run.parent / "base") == "float32"
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_omni_export_holds_the_trained_thinker_and_all_else_as_it_was(tiny, omni, tmp_path):
    """Same files and keys; AutoConfig, the whole Omni and the thinker class open it and find the trained thinker."""
    run = checkpoint(*tiny, tmp_path)
    model, processor = load_speech_llm(str(run))
    expected = logits(model)
    write_export(model, processor, tmp_path / "out", "omni", original=str(omni))

    left = {path.name for path in omni.iterdir()} - {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"README.md"}
    shards = sorted(omni.glob("*.safetensors"))
    assert len(shards) > 1
    changed = set()
    for shard in shards:
        before, after = load_file(shard), load_file(tmp_path / "out" / shard.name)
        assert before.keys() == after.keys()
        changed |= {name for name in before if not torch.equal(before[name], after[name])}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert changed == {f"thinker.model.layers.{n}.{part}.{linear}.weight"
                       for n in range(3) for linear in linears
                       for part in ["mlp" if "attn" not in linear and linear[0] in "gud" else "self_attn"]}  # fmt: skip

    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "qwen2_5_omni"
    thinker = load_speech_llm(str(tmp_path / "out"))[0]
    torch.testing.assert_close(logits(thinker), expected, rtol=0, atol=1e-5)
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole.thinker), expected, rtol=0, atol=1e-5)
    original = Qwen2_5OmniForConditionalGeneration.from_pretrained(omni)
    for name, tensor in original.talker.state_dict().items():
        assert torch.equal(whole.talker.state_dict()[name], tensor), name


def test_omni_keeps_its_type(tiny, omni, tmp_path):
    """The original's weights decide the type, tensor by tensor."""
    for shard in omni.glob("*.safetensors"):
        save_file({name: t.bfloat16() for name, t in load_file(shard).items()}, shard, metadata={"format": "pt"})
    model, _ = tiny
    model.save_pretrained(tmp_path / "thinker")
    Qwen2_5OmniThinker().write_whole(tmp_path / "thinker", None, tmp_path / "out", omni)
    for shard in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(shard, "pt") as opened:
            assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"BF16"}  # noqa: SIM118


def test_omni_of_another_model_is_refused(tiny, omni, tmp_path):
    from tiny_omni import tiny_random

    for name, sizes, message in (
        ("smaller", {"layers": 2}, "thinker.model.layers.2.* has no counterpart"),
        ("larger", {"layers": 4}, "tensors of the trained thinker have no place .* thinker.model.layers.3"),
        ("wider", {"intermediate": 320}, "has shape .*256.* and .*320.* in the trained"),
    ):
        tiny_random(0, **sizes)[0].save_pretrained(tmp_path / name)
        with pytest.raises(SettingError, match=message):
            Qwen2_5OmniThinker().write_whole(tmp_path / name, None, tmp_path / f"out-{name}", omni)


def test_a_thinker_alone_becomes_an_omni(tiny, tmp_path):
    """A trained part whose base is a part itself: a whole folder around it, in the names of the hub's checkpoint."""
    run = checkpoint(*tiny, tmp_path)
    model, processor = load_speech_llm(str(run))
    expected = logits(model)
    write_export(model, processor, tmp_path / "out", "omni", original=str(tmp_path / "base"))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "qwen2_5_omni" and config.architectures == ["Qwen2_5OmniModel"]
    names = [name for shard in (tmp_path / "out").glob("*.safetensors") for name in load_file(shard)]
    assert {name.split(".")[0] for name in names} == {"thinker"} and "thinker.model.embed_tokens.weight" in names
    assert {name.split(".")[1] for name in names} == {"model", "audio_tower", "visual"}  # and no talker
    again, processor_again = load_speech_llm(str(tmp_path / "out"))
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    assert processor_again.tokenizer("One?").input_ids == processor.tokenizer("One?").input_ids
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole.thinker), expected, rtol=0, atol=1e-5)
    assert not whole.has_talker


def test_shards_of_a_thinker_alone_keep_their_index(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "thinker", max_shard_size="1MB")
    Qwen2_5OmniThinker().write_whole(tmp_path / "thinker", processor, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    torch.testing.assert_close(
        logits(load_speech_llm(str(tmp_path / "out"))[0]), logits(model.eval()), rtol=0, atol=1e-5
    )


def test_exports_that_cannot_be_are_refused(run, tmp_path):
    model, processor = load_speech_llm(str(run))
    whole, _ = load_speech_llm(str(run.parent / "base"))
    with pytest.raises(SettingError, match="format='gguf' is not known"):
        write_export(model, processor, tmp_path / "out", "gguf")
    with pytest.raises(SettingError, match="'adapter' was asked of a whole model"):
        write_export(whole, processor, tmp_path / "out", "adapter")
    with pytest.raises(SettingError, match="output_dir=.* holds files already"):
        write_export(model, processor, run, "merged")
    if whole.config.model_type == "phi4_multimodal":
        with pytest.raises(SettingError, match="format='omni' was asked of a Phi4.*no part of a larger"):
            write_export(whole, processor, tmp_path / "out", "omni")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"push_to": "me/it", "verify": False}, "nothing unchecked is pushed"),
        ({"format": "gguf"}, "format='gguf' is not a choice"),
        ({"output_dir": None}, "output_dir is not given"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(SettingError, match=message):
        ExportSettings(**{"checkpoint": "run", "output_dir": "out", "dataset": "questions", **settings})


def test_without_questions_nothing_can_be_verified(tmp_path):
    with pytest.raises(SettingError, match="does not say what it was trained on: there is no question to ask"):
        export(ExportSettings(str(tmp_path), str(tmp_path / "out")))
    with pytest.raises(SettingError, match="checkpoint='.*/rnu': there is no such folder"):
        export(ExportSettings(str(tmp_path / "rnu"), str(tmp_path / "out")))


def test_the_run_s_own_questions_are_asked_as_it_was_trained(tiny, tmp_path, monkeypatch):
    """From what `run.json` names, under its system prompt."""
    run = checkpoint(*tiny, tmp_path)
    facts = {"dataset": "mine", "split": "dev", "system_prompt": "Think."}
    (run / "run.json").write_text(json.dumps(facts))
    asked = []

    def load(dataset, split, **options):
        asked.append((dataset, split, options["system_prompt"]))
        raise LookupError

    monkeypatch.setattr("tars_trl.share.export.load_questions", load)
    with pytest.raises(LookupError):
        export(ExportSettings(str(run), str(tmp_path / "out")))
    assert asked == [("mine", "dev", "Think.")]


def test_an_export_names_the_base_it_is_given(tiny, tmp_path, capsys):
    """`--model`: trained from a copy, published as an adapter of what it is a copy of."""
    run = checkpoint(*tiny, tmp_path)
    (tmp_path / "base").rename(tmp_path / "copy")
    settings = ExportSettings(str(run), str(tmp_path / "out"), verify=False, model=str(tmp_path / "copy"))
    export(settings)
    assert "Wrote" in capsys.readouterr().out
    named = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "copy") and "copy" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SettingError, match="holds files already"):
        export(settings)


def test_the_question_is_looked_for_before_the_model_is_loaded_and_a_repository_made(tmp_path, monkeypatch):
    for name in ("load_speech_llm", "prepare_repository"):
        monkeypatch.setattr(f"tars_trl.share.export.{name}", None)
    (tmp_path / "run").mkdir()
    settings = ExportSettings(
        checkpoint=str(tmp_path / "run"),
        output_dir=str(tmp_path / "out"),
        push_to="a/b",
        dataset=str(tmp_path / "gone"),
    )
    with pytest.raises(FileNotFoundError, match="gone: there is no such file or folder"):
        export(settings)
