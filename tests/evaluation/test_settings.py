"""Settings of an evaluation: the YAML files, comma-separated lists, and what is refused at the start."""

import contextlib
import dataclasses
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl import EvaluationSettings
from tars_trl.comparison.arms import ComparisonSettings
from tars_trl.errors import SettingError
from tars_trl.settings import parse
from tests.conftest import ROOT, check_header

YAMLS = sorted((ROOT / "recipes" / "evaluation").glob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_yaml_parses_and_says_how_to_launch_it(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (settings,) = parse(EvaluationSettings, args=["--config", str(path), "--limit", "5"])
    assert settings.modalities == ["speech", "text"] and settings.limit == 5
    check_header(path)


def test_lists_are_comma_separated():
    lists = ["--tasks", "tars_obqa,voicebench_mmsu", "sd_qa", "--modality", "text, speech", "--split", "a,b"]
    (settings,) = parse(EvaluationSettings, args=["--model", "m", *lists])
    assert settings.tasks == ["tars_obqa", "voicebench_mmsu", "sd_qa"]
    assert settings.modalities == ["text", "speech"] and settings.split == ["a", "b"]


def test_neither_model_nor_tasks_are_needed_to_compare_or_list():
    assert EvaluationSettings(compare=["a", "b"]).model is None
    (settings,) = parse(EvaluationSettings, args=["--tasks", "list"])
    assert settings.tasks == ["list"] and settings.model is None


def test_decoding_is_greedy_unless_a_temperature_is_given():
    assert EvaluationSettings(model="m", tasks=["sd_qa"]).generation == {"do_sample": False, "repetition_penalty": 1.0}
    sampled = EvaluationSettings(model="m", tasks=["sd_qa"], temperature=0.7, top_p=0.9).generation
    assert sampled == {"do_sample": True, "repetition_penalty": 1.0, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": []}, "tasks is not given"),
        ({"model": None}, "model is not given"),
        ({"tasks": ["mmlu_spoken"]}, "tasks='mmlu_spoken' is no task"),
        ({"modality": ["audio"]}, "modality='audio' is not a choice. Use one of both, speech"),
        ({"extractors": ["regex"]}, "extractors='regex' is not a choice"),
        ({"extractors": []}, "extractors or modality is empty"),
        ({"tasks": ["librispeech"]}, "tasks='librispeech' with modality=.'text'.: this task has speech only"),
        ({"modality": ["cascade"]}, "modality cascade takes its transcripts from exactly one"),
        ({"modality": ["cascade"], "transcripts": "a", "asr_model": "b"}, "from exactly one"),
        ({"limit": 0}, "limit=0 is out of range. Give more than 0"),
        ({"limit": 2.5}, "limit=2.5 is neither a share below 1 nor a whole number"),
        ({"batch_size": 0}, "batch_size=0 is out of range. Give 1 or more"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range. Give 0 or more"),
        ({"reference_accuracy": 0.777}, "reference_accuracy=0.777 is out of range. Give more than 1 and at most 100"),
        ({"tasks": ["sd_qa", "sd_qa"]}, "two of them would both be called"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"limit": float("inf")}, "limit=inf is not a finite number"),
        ({"max_completion_length": 1.5}, "max_completion_length=1.5 is a float. Give a whole number"),
        ({"seed": True}, "seed=True is a bool"),
        ({"dtype": "int8"}, "dtype='int8' is not a choice"),
        ({"compare": ["one"]}, "compare=.'one'.: a comparison is between two"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**{"model": "m", "tasks": ["sd_qa"], **given})


# ---- Whatever is given ---------------------------------------------------------------------------------------------

plain = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    st.sampled_from(["", ",", "nan", "-1", "no", "sd_qa", "list", "both", "speech", "refuse", 0, -1, 1e400, 10**30]),
)
anything = st.one_of(plain, st.lists(plain, max_size=3), st.dictionaries(st.text(max_size=3), plain, max_size=2))


def hostile(cls):
    """Some fields of a settings class, with values of any kind."""
    names = [field.name for field in dataclasses.fields(cls)]
    return st.dictionaries(st.sampled_from(names), anything, max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [EvaluationSettings, ComparisonSettings])
@settings(max_examples=3000, deadline=None)
@given(data=st.data())
def test_settings_hold_or_are_refused_in_words(cls, data, tmp_path_factory):
    """Nothing but a `SettingError`, given in Python or in a file; what is taken is finite, and of its field's kind."""
    given_ones = {"model": "m", "tasks": ["sd_qa"]} if cls is EvaluationSettings else {"arms": ["a"], "task": "sd_qa"}
    given_ones |= data.draw(hostile(cls))
    try:
        made = cls(**given_ones)
    except SettingError as error:
        assert str(error).count(". ") + str(error).count(": ") >= 1 and str(error).endswith(".")
        made = None
    if made is not None:
        for name, value in vars(made).items():
            assert not isinstance(value, dict | bytes), name
            if isinstance(value, float):
                assert math.isfinite(value), name
        assert made.limit is None or made.limit > 0
        assert made.batch_size >= 1 and made.max_completion_length >= 1
    file = tmp_path_factory.getbasetemp() / "given.yaml"
    file.write_text(yaml.safe_dump(given_ones, allow_unicode=True))
    with contextlib.suppress(SettingError):
        parse(cls, args=["--config", str(file)])
