"""The card says what is known, nothing secret, in metadata the hub reads; its quick start runs as written."""

import ast
import json
import re

import numpy as np
import pytest
import soundfile
import torch
import transformers
from huggingface_hub import DatasetCard, ModelCard

from tars_trl.evaluation.metrics import paired_result
from tars_trl.models import architecture_of
from tars_trl.models.loading import identity, load_speech_llm
from tars_trl.record import command_line
from tars_trl.share.cards import count_table, read_pairs, write_card, write_dataset_card
from tars_trl.share.export import load_trained, write_export
from tars_trl.share.verify import greedy_answers
from tests.conftest import SYSTEM
from tests.models import tiny_phi4
from tests.models.test_phi4_multimodal import with_random_lora
from tests.trained import checkpoint, logits

FACTS = {
    "base_model": "Qwen/Qwen2.5-Omni-7B",
    "system_prompt": SYSTEM,
    "questions": 9953,
    "data": ["hf://datasets/me/questions@abc"],
    "steps": 467,
    "processes": 8,
    "device_name": "NVIDIA H200",
    "processor": "x86_64",
    "seconds": 99_000.0,
    "settings": {"learning_rate": 2e-5, "num_generations": 8},
    "command": "python recipes/tars_qwen_omni.py --config x.yaml",
    "git_hash": "0123456",
    "package_versions": {"trl": "1.16.0"},
}
OMNI = architecture_of("qwen2_5_omni_thinker")


def code_of(folder):
    """The card's own code block."""
    return re.search(r"```python\n(.*?)^```$", (folder / "README.md").read_text(), re.S | re.M)[1]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
@pytest.mark.parametrize("architecture", ["qwen2_5_omni_thinker", "phi4_multimodal"])
def test_quick_start_runs_as_written(tiny, tmp_path, monkeypatch, capsys, kind, architecture):
    """The card's own code block, on a wave file, prints the greedy answer of the exported model."""
    run = checkpoint(*(tiny if architecture.startswith("qwen") else tiny_phi4.tiny_random(0)), tmp_path)
    model, processor = load_trained(run)
    wave = (0.1 * np.sin(np.arange(8000) / 20)).astype("float32")
    soundfile.write(tmp_path / "question.wav", wave, 16_000)
    row = {"audio": {"path": str(tmp_path / "question.wav"), "bytes": None}, "key": "q"}
    row["prompt"] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "?"}]
    (expected,) = greedy_answers(model, processor, [("speech", row)], 20)
    write_export(model, processor, tmp_path / "out", kind)
    facts = {**FACTS, "base_model": str(tmp_path / "base")}
    write_card(tmp_path / "out", facts, architecture_of(architecture), "out", adapter=kind == "adapter")

    code = code_of(tmp_path / "out")
    assert 'soundfile.read("question.wav"' in code and "tars_trl" not in code
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code.replace("max_new_tokens=1024", "max_new_tokens=20"), "README.md", "exec"), {})
    assert capsys.readouterr().out == expected.text + "\n"


def test_quick_start_merges_the_speech_adapter_that_a_base_comes_with(tmp_path, monkeypatch):
    """As our own loading does, which is not at hand where a card is read."""
    base = tmp_path / "base"
    model, processor = tiny_phi4.tiny_random(0)
    model.save_pretrained(base)
    with_random_lora(model).save_pretrained(base / "speech-lora")
    processor.save_pretrained(base)
    monkeypatch.setattr("tars_trl.models.phi4_multimodal.MODEL_ID", "base")
    monkeypatch.chdir(tmp_path)
    names = {}
    lines = architecture_of("phi4_multimodal").card_loading("base", None)
    imports = "from peft import LoraConfig, PeftModel\nfrom transformers import Phi4MultimodalForCausalLM\n"
    exec(imports + "\n".join(lines), names)
    expected = logits(load_speech_llm(str(base), dtype="float32")[0])
    torch.testing.assert_close(logits(names["model"].eval()), expected, rtol=0, atol=1e-5)
    untouched = architecture_of("phi4_multimodal").class_name
    assert (expected - logits(getattr(transformers, untouched).from_pretrained(base).eval())).abs().max() > 1e-3


def test_metadata_and_text(tmp_path):
    pair = paired_result([True, True, False, False], [True, True, True, False])
    write_card(
        tmp_path,
        FACTS,
        OMNI,
        "me/TARS",
        adapter=False,
        results={"VoiceBench MMSU": {**pair, "mrr_interval": [50.0, 90.0]}},
        license="mit",
        verification={"logits": 2e-6, "tolerance": 1e-3, "lost": 0.0},
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Omni-7B" and card.data.license == "mit"
    assert card.data.pipeline_tag == "audio-text-to-text" and "tars" in card.data.tags
    values = {(result.metric_name, result.metric_value) for result in card.data.eval_results}
    assert values == {
        ("accuracy, spoken", 50.0),
        ("accuracy, written", 75.0),
        ("written minus spoken accuracy", 25.0),
        ("modality recovery rate", 66.67),
    }
    text = card.text
    figures = "| 50.0 [15.0, 85.0] | 75.0 [30.1, 95.4] | 25.0 [-24.0, 74.0] | 66.7 [50.0, 90.0], of own text accuracy |"
    assert f"| VoiceBench MMSU | 4 {figures}" in text
    for said in (
        "9,953 questions, spoken and written (hf://datasets/me/questions@abc)",
        "8 x NVIDIA H200, 467 steps, 27.5 hours",
        "| `learning_rate` | `2e-05` |",
        FACTS["command"],
        "tars-trl at commit `0123456`",
        "trl 1.16.0",
        "Licence: mit.",
        "2e-06 of their spread (0.001 allowed)",
        "arxiv.org/abs/2601.05543",
        "from_pretrained('me/TARS'",
    ):
        assert said in text, said


def test_what_is_unknown_is_said(tmp_path):
    """No facts at all still make a valid card, and a base that is a folder is not named by its path."""
    for adapter in (False, True):
        facts = {"base_model": str(tmp_path / "private" / "base")}
        write_card(tmp_path, facts, OMNI, "TARS", adapter=adapter)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model is None and card.data.license == "other" and card.data.eval_results is None
        assert "- Data: unknown" in card.text and "None were given" in card.text and "export: no" in card.text
        assert str(tmp_path) not in card.text and '"role": "system"' not in card.text
        assert ("# The base model is a folder ('base') and on no hub" in card.text) == adapter


def test_packages_of_the_quick_start_are_in_a_registry(tmp_path):
    """tars-trl is in none: a card asks for transformers and peft alone."""
    for adapter in (False, True):
        write_card(tmp_path, FACTS, OMNI, "me/TARS", adapter=adapter)
        (line,) = re.findall("^pip install (.*)$", (tmp_path / "README.md").read_text(), re.M)
        assert set(line.split()) - {"peft"} == {"transformers", "accelerate", "soundfile", "torchaudio", "torchvision"}
        assert ("peft" in line) == adapter and "tars_trl" not in code_of(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "tag", "said"),
    [
        ("TARSGRPOTrainer", "grpo", "trained with **TARS**"),
        ("SpeechSFTTrainer", "sft", "supervised fine-tuning"),
        ("SpeechDPOTrainer", "dpo", "direct preference optimisation"),
    ],
)
def test_the_method_is_that_of_the_trainer(tmp_path, trainer, tag, said):
    write_card(tmp_path, {**FACTS, "trainer": trainer}, OMNI, "me/x", adapter=True)
    card = ModelCard.load(tmp_path / "README.md")
    assert said in card.text and {"grpo", "sft", "dpo"} & set(card.data.tags) == {tag}


def test_settings_are_the_telling_ones_and_name_no_machine(tmp_path):
    settings = {
        "num_generations": 8, "learning_rate": 2e-5, "adam_beta1": 0.9, "adam_beta2": 0.5, "output_dir": "/home/me/x",
        "behavior_model": "/home/me/embedder", "hub_token": "hf_abcdefghijkl",
    }  # fmt: skip
    write_card(tmp_path, {**FACTS, "settings": settings}, OMNI, "me/x", adapter=True)
    text = (tmp_path / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `(.*)` \|$", text, re.M)
    assert dict(table) == {
        "num_generations": "8", "learning_rate": "2e-05", "adam_beta2": "0.5", "behavior_model": "embedder",
    }  # fmt: skip
    assert "/home" not in text and "hf_a" not in text


def test_system_prompt_survives_quotes(tmp_path):
    said = 'Say "A", \\n or {B}.\n```\nÄ it\'s \u202e'
    write_card(tmp_path, {**FACTS, "system_prompt": said}, OMNI, "me/x", adapter=True)
    (conversation,) = [node for node in ast.walk(ast.parse(code_of(tmp_path))) if isinstance(node, ast.List)][:1]
    assert ast.literal_eval(conversation)[0] == {"role": "system", "content": said}
    assert "\u202e" not in (tmp_path / "README.md").read_text()


def test_command_line_shows_no_token_and_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    words = ["/usr/bin/python", "train.py", "--hub_token", "abc", "--token=def", "--output_dir", "/home/somebody/a b"]
    words += ["--note", "with hf_0123456789abcdef inside", "--end_token"]
    shown = command_line(words)
    assert shown == (
        "python train.py --hub_token *** '--token=***' --output_dir ~/'a b' --note 'with *** inside' --end_token"
    )


def test_pairs_of_files_and_folders(tmp_path):
    pair = paired_result([True, False], [True, True])
    files = {"a/results_1.json": {"pairs": {"demo": pair}}, "b/results_2.json": {"pairs": {"x": pair, "y": pair}}}
    files["b/results_2.json"]["averages"] = {"average of x, y": pair}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    pairs = read_pairs([tmp_path / "a" / "results_1.json", tmp_path / "b"])
    assert list(pairs) == ["demo", "x", "y", "average of x, y"] and pairs["x"]["gap"] == 0.5
    (tmp_path / "text_only.json").write_text(json.dumps({"results": {"demo_text": {"acc,none": 0.5}}}))
    with pytest.raises(ValueError, match="text_only.json holds no result in both modalities"):
        read_pairs([tmp_path / "text_only.json"])


def results_of(folder, model, right, **more):
    folder.mkdir(parents=True, exist_ok=True)
    pair = paired_result([right, False], [True, True])
    (folder / "results_1.json").write_text(json.dumps({"model_name": model, "pairs": {"mmsu": pair}, **more}))
    return folder / "results_1.json"


def test_another_model_s_results_are_refused(tmp_path, monkeypatch):
    """`results/*/results_*.json` also holds the base model's; an adapter's are recorded under the adapter's name."""
    monkeypatch.chdir(tmp_path)
    ours, base = results_of(tmp_path / "ours", "runs/mine", True), results_of(tmp_path / "base", "Qwen/base", False)
    for exported in ("runs/mine", tmp_path / "runs" / "mine", "./runs/mine/", None):
        assert read_pairs([ours], exported)["mmsu"]["speech_accuracy"] == 0.5
    for files, exported in (([base, ours], "runs/mine"), ([ours, base], None)):
        with pytest.raises(ValueError, match="base/results_1.json is of Qwen/base, and the card of runs/mine"):
            read_pairs(files, exported)


def test_results_of_the_same_weights_elsewhere_are_taken(tiny, tmp_path):
    run = checkpoint(*tiny, tmp_path)
    file = results_of(
        tmp_path / "results", "/scratch/run", True, hashes={"model": "x@1", "adapter": identity(str(run))}
    )
    assert list(read_pairs([file], run)) == ["mmsu"]
    (run / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is of /scratch/run"):
        read_pairs([file], run)


def test_two_figures_of_one_benchmark_are_refused(tmp_path):
    files = [results_of(tmp_path / name, "runs/mine", name == "a") for name in "ab"]
    assert list(read_pairs([files[0], files[0]])) == ["mmsu"]
    with pytest.raises(ValueError, match="a/results_1.json and .*b/results_1.json have different figures of mmsu"):
        read_pairs(files)


# ---- A data set ------------------------------------------------------------------------------------------------------

COUNTS = {
    "train": {
        "questions": 12, "kept": 10, "dropped": {"reference": 1, "held out": 1}, "seconds": 36.0, "tts_wer": 0.025,
        "voices": {"tone:plain": 7, "tone:high": 3},
    },
    "test": {"questions": 3, "kept": 0, "dropped": {}},
}  # fmt: skip
BUILD = {
    "source": "allenai/openbookqa, revision abc", "counts": COUNTS, "license": "apache-2.0", "asr": "whisper-base",
    "max_wer": 0.1, "tries": 3, "augment": 0.25, "codec": "opus", "seed": 7, "push_to": "me/spoken",
}  # fmt: skip


def test_card_of_a_data_set(tmp_path):
    card = DatasetCard.load(write_dataset_card(tmp_path / "spoken", BUILD))
    assert card.data.license == "apache-2.0"
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for said in (
        count_table(COUNTS),
        "| train | 12 | 10 | 0.01 | 2.5 % | 1 reference, 1 held out |",
        "| test | 3 | 0 | not spoken | not heard | none |",
        "Source: allenai/openbookqa, revision abc.",
        "- train: tone:high (3), tone:plain (7)",
        "transcribed with whisper-base and kept at a word error rate of at most 10 %",
        "had 3 tries",
        "25 % of the clips have noise",
        "load_dataset('me/spoken', split=\"train\")",
        "seed 7",
    ):
        assert said in card.text.replace("\nquestion", " question"), said
    bare = {**BUILD, "asr": None, "augment": 0.0, "license": None, "push_to": None}
    card = DatasetCard.load(write_dataset_card(tmp_path / "spoken", bare))
    assert "Nobody has checked" in card.text and "noise" not in card.text and card.data.license is None
    assert "load_dataset('spoken'" in card.text
