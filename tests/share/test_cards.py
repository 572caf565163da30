"""The card says what is known, nothing secret, in metadata the hub reads; its quick start runs as written."""

import json
import re

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard

from tars_trl.evaluation.metrics import paired_result
from tars_trl.models.loading import identity
from tars_trl.record import command_line
from tars_trl.share.cards import quick_start, read_pairs, write_card
from tars_trl.share.export import load_trained, write_export
from tars_trl.share.verify import greedy_answers
from tests.conftest import SYSTEM
from tests.models import tiny_phi4
from tests.trained import checkpoint

FACTS = {
    "base_model": "Qwen/Qwen2.5-Omni-7B",
    "model_class": "Qwen2_5OmniThinkerForConditionalGeneration",
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


@pytest.mark.parametrize("kind", ["merged", "adapter"])
@pytest.mark.parametrize("architecture", ["qwen2_5_omni_thinker", "phi4_multimodal"])
def test_quick_start_runs_as_written(tiny, tmp_path, monkeypatch, capsys, kind, architecture):
    """The card's own code block, on a wave file, prints the greedy answer of the exported model."""
    run = checkpoint(*(tiny if architecture.startswith("qwen") else tiny_phi4.tiny_random(0)), tmp_path)
    model, processor = load_trained(run)
    model_class = type(model.get_base_model()).__name__
    wave = (0.1 * np.sin(np.arange(8000) / 20)).astype("float32")
    soundfile.write(tmp_path / "question.wav", wave, 16_000)
    row = {"audio": {"path": str(tmp_path / "question.wav"), "bytes": None}, "key": "q"}
    row["prompt"] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "?"}]
    (expected,) = greedy_answers(model, processor, [("speech", row)], 20)
    write_export(model, processor, tmp_path / "out", kind)
    facts = {**FACTS, "base_model": str(tmp_path / "base"), "model_class": model_class}
    write_card(tmp_path / "out", facts, "out", kind)

    block = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)[1]
    assert 'soundfile.read("question.wav"' in block
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(block.replace("max_new_tokens=1024", "max_new_tokens=20"), "README.md", "exec"), {})
    assert capsys.readouterr().out == expected.text + "\n"


def test_metadata_and_text(tmp_path):
    pair = paired_result([True, True, False, False], [True, True, True, False])
    write_card(
        tmp_path,
        FACTS,
        "me/TARS",
        "merged",
        results={"VoiceBench MMSU": {**pair, "mrr_interval": [50.0, 90.0]}},
        licence="mit",
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
    assert (
        "| VoiceBench MMSU | 4 | 50.0 [15.0, 85.0] | 75.0 [30.1, 95.4] | 25.0 [-24.0, 74.0] | 66.7 [50.0, 90.0]" in text
    )
    for said in (
        "9,953 questions, spoken and written (hf://datasets/me/questions@abc)",
        "8 x NVIDIA H200, 467 steps, 27.5 hours",
        "| `learning_rate` | 2e-05 |",
        FACTS["command"],
        "tars-trl at commit `0123456`",
        "trl 1.16.0",
        "Licence: mit.",
        "2e-06 of their spread (0.001 allowed)",
        "arxiv.org/abs/2601.05543",
        'from_pretrained("me/TARS"',
    ):
        assert said in text, said


def test_what_is_unknown_is_said(tmp_path):
    """No facts at all still make a valid card, and a base that is a folder is not named by its path."""
    write_card(tmp_path, {"base_model": str(tmp_path / "private" / "base")}, "TARS", "merged")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None and card.data.license == "other" and card.data.eval_results is None
    assert "- Data: unknown" in card.text and "None were given" in card.text and "export: no" in card.text
    assert str(tmp_path) not in card.text and '"role": "system"' not in card.text


def test_system_prompt_survives_quotes():
    said = 'Say "A", \\n or {B}.\nÄ'
    assert json.dumps(said, ensure_ascii=False) in quick_start({**FACTS, "system_prompt": said}, "me/x", "merged")


def test_command_line_shows_no_token_and_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    words = ["/usr/bin/python", "train.py", "--hub_token", "abc", "--token=def", "--output_dir", "/home/somebody/a b"]
    words += ["--note", "with hf_0123456789abcdef inside", "--end_token"]
    shown = command_line(words)
    assert shown == (
        "python train.py --hub_token *** '--token=***' --output_dir ~/'a b' --note 'with *** inside' --end_token"
    )


def test_pairs_are_found_wherever_they_are(tmp_path):
    pair = paired_result([True, False], [True, True])
    files = {"summary.json": {"before": pair, "after": pair}, "demo.json": pair, "lm.json": {"pairs": {"mmsu": pair}}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = read_pairs([tmp_path / name for name in files])
    assert list(found) == ["before", "after", "demo", "mmsu"] and found["mmsu"]["gap"] == 0.5
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
