"""`recipes/chat.py`: a question from a file, in writing, or both."""

import importlib

import pytest
from chat import main, side_by_side

from tars_trl.data import build_prompt
from tars_trl.errors import SettingError
from tars_trl.models.loading import load_speech_llm
from tars_trl.sampling.complete import complete
from tests.conftest import question


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
    def loaded(*args, model_revision, **options):
        raise LookupError(model_revision)

    monkeypatch.setattr("tars_trl.sampling.shared.load_speech_llm", loaded)
    more = {
        "chat": ["--model", "some/model", "--text", "One?"],
        "analyze_drift": ["--models", "base=some/model", "--limit", "1", "--output_dir", str(tmp_path)],
    }
    with pytest.raises(LookupError, match="abc"):
        importlib.import_module(recipe).main(["--model_revision", "abc", *more[recipe]])
