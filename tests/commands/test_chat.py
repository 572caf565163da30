"""`tars-trl chat`: a question from a file, in writing, or both."""

import importlib
import json
import re
import shutil

import pytest

from tars_trl.commands.chat import main, side_by_side
from tars_trl.data import build_prompt
from tars_trl.errors import SettingError
from tars_trl.models.loading import load_speech_llm
from tars_trl.sampling.complete import complete
from tests.conftest import ROOT, question

DEMO = str(ROOT / "recipes" / "demo" / "questions")


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "question.wav"
    path.write_bytes(question(1)["audio"]["bytes"])
    return str(path)


def test_both_twins_side_by_side(model_folder, recording, capsys):
    """Each answer is what the evaluation's greedy decoding gives, streamed first and shown in columns at the end."""
    asked = ["--model", model_folder, "--audio", recording, "--text", "What is one?", "--system_prompt", "Think."]
    answers = main([*asked, "--max_completion_length", "6", "--use_cpu"])
    model, processor = load_speech_llm(model_folder)
    row = {"key": "q", "audio": question(1)["audio"], "prompt": build_prompt("What is one?", "Think.")}
    for modality in ("speech", "text"):
        (done,) = complete(model, processor, [row], modality, max_completion_length=6)
        assert answers[modality] == done.text
    printed = capsys.readouterr().out
    assert printed.index("[speech]") < printed.index("[text]") < printed.index(" | text")
    assert answers["speech"] != answers["text"]


@pytest.mark.parametrize(("given", "modality"), [("audio", "speech"), ("text", "text")])
def test_one_form_alone(model_folder, recording, capsys, given, modality):
    value = recording if given == "audio" else "What is one?"
    answers = main(["--model", model_folder, f"--{given}", value, "--max_completion_length", "3"])
    assert list(answers) == [modality] and " | " not in capsys.readouterr().out


def test_no_question_is_refused(model_folder):
    with pytest.raises(SettingError, match="audio and text are not given"):
        main(["--model", model_folder])


def test_columns():
    table = side_by_side({"speech": "one two three four", "text": "five\n\nsix"}, 23)
    assert table.splitlines() == [
        "speech     | text",
        "---------- | ----------",
        "one two    | five",
        "three four | ",
        "           | six",
    ]


@pytest.mark.parametrize("recipe", ["chat", "analyze_drift"])
def test_the_revision_of_the_model_is_asked_for(monkeypatch, tmp_path, recipe):
    monkeypatch.setattr("tars_trl.sampling.shared.resolve", lambda model, adapter: (model, adapter))

    def loaded(*args, model_revision, **options):
        raise LookupError(model_revision)

    monkeypatch.setattr("tars_trl.data.hub.check_on_hub", lambda *args, **options: None)
    monkeypatch.setattr("tars_trl.sampling.shared.load_speech_llm", loaded)
    more = {
        "chat": ["--model", "some/model", "--text", "One?"],
        "analyze_drift": [
            "--models",
            "base=some/model",
            "--dataset",
            DEMO,
            "--split",
            "test",
            "--limit",
            "1",
            "--output_dir",
            str(tmp_path),
        ],
    }
    with pytest.raises(LookupError, match="abc"):
        importlib.import_module(f"tars_trl.commands.{recipe}").main(["--model_revision", "abc", *more[recipe]])


@pytest.mark.parametrize(("trained", "said"), [("Think.", "'Think.'"), (None, "No system prompt, as for")])
def test_the_system_prompt_of_the_run_is_taken_and_said(model_folder, tmp_path, capsys, trained, said):
    shutil.copytree(model_folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"system_prompt": trained}))
    asked = ["--text", "What is one?", "--max_completion_length", "6", "--use_cpu"]
    own = main(["--model", str(tmp_path / "run"), *asked])
    printed = capsys.readouterr().out
    assert said in printed and str(tmp_path / "run") in printed
    assert own == main(["--model", model_folder, "--system_prompt", trained or "", *asked])
    assert own != main(["--model", model_folder, *asked]), "the method's"
    assert "ystem prompt" not in capsys.readouterr().out


def test_an_empty_text_is_no_question(model_folder):
    with pytest.raises(SettingError, match="audio and text are not given"):
        main(["--model", model_folder, "--text", ""])


def test_a_misspelt_folder_is_called_that(model_folder, tmp_path, monkeypatch):
    """And not taken for a hub id, whether it is the model's or the adapter's; nothing is loaded."""
    monkeypatch.setattr("tars_trl.sampling.shared.load_speech_llm", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    wrong = {
        "runs/dmeo": "Did you mean runs/demo",
        "./rnus/demo": "Did you mean runs",
        str(tmp_path / "runs" / "demo" / "checkpoint-3"): "Correct the path",
        "dmeo": "no hub id, owner/name",
        "~/runs/demo": "Correct the path",
    }
    for path, advice in wrong.items():
        for name, given in (("model", ["--model", path]), ("adapter", ["--model", model_folder, "--adapter", path])):
            with pytest.raises(SettingError, match=f"{name}='{re.escape(path)}': there is no such folder.*{advice}"):
                main([*given, "--text", "What is one?"])


def test_a_file_is_no_model():
    with pytest.raises(SettingError, match="model='README.md' is a file. Give a folder"):
        main(["--model", "README.md", "--text", "What is one?"])


def test_a_model_that_is_nowhere_is_named(monkeypatch):
    """The message of transformers says that it could not connect, and not what it was asked for."""

    def load(*args, **options):
        raise OSError("We couldn't connect to the hub, and couldn't find them in the cache.\nCheck your connection.")

    asked = []
    monkeypatch.setattr("tars_trl.sampling.shared.resolve", lambda model, adapter: (model, adapter))
    monkeypatch.setattr("tars_trl.data.hub.check_on_hub", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr("tars_trl.sampling.shared.load_speech_llm", load)
    given = ["--model", "some/model", "--model_revision", "abc", "--adapter", "some/adapter", "--text", "One?"]
    with pytest.raises(SettingError, match="model='some/model', adapter='some/adapter': .* couldn't connect"):
        main(given)
    assert asked == [(("some/model",), {"revision": "abc"}), (("some/adapter",), {"revision": None})]


def test_a_base_that_moved_is_named(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "moved/a/way", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=f"{tmp_path}: its base_model='moved/a/way': there is no such folder"):
        main(["--model", str(tmp_path), "--text", "One?"])
