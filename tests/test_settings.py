"""One vocabulary of settings: what fields refuse, how files and command lines are read, how refusals are shown."""

import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tars_trl.errors import SettingError
from tars_trl.settings import DecodingSettings, QuestionSettings, Settings, parse, read_settings, run, setting


@dataclass
class Walk(Settings):
    """Settings with one field of each kind."""

    place: str = setting("here", "Where: 100 % of it.", positional=True)
    steps: int = setting(3, "How many.", least=1, most=9)
    pace: float | None = setting(None, "How fast, in km/h.", above=0)
    names: list[str] = setting([], "Who.", choices=("ada", "bob"))
    back: bool = setting(False, "And back.")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps=0 is out of range. Give 1 or more and at most 9."),
        ({"steps": 10}, "steps=10 is out of range"),
        ({"steps": True}, "steps=True is a bool. Give a whole number."),
        ({"steps": 2.0}, "steps=2.0 is a float. Give a whole number."),
        ({"pace": 0}, "pace=0 is out of range. Give more than 0."),
        ({"pace": float("nan")}, "pace=nan is not a finite number"),
        ({"pace": float("inf")}, "pace=inf is not a finite number"),
        ({"pace": "2"}, "pace='2' is a str. Give a number or nothing."),
        ({"names": ["eve"]}, "names='eve' is not a choice. Use one of ada, bob."),
        ({"names": [1]}, r"names=\[1\] is a list. Give a list, each item a text."),
        ({"place": None}, "place=None is a NoneType. Give a text."),
    ],
)
def test_fields_check_themselves(values, said):
    with pytest.raises(SettingError, match=said):
        Walk(**values)


def test_lists_may_be_written_with_commas():
    assert Walk(names="ada,bob").names == Walk(names=["ada", "bob"]).names == ["ada", "bob"]
    assert parse(Walk, args=["--names", "ada", "bob"]) == parse(Walk, args=["--names=ada,bob"])
    assert Walk().names is not Walk().names


def test_one_grammar(tmp_path):
    file = tmp_path / "walk.yaml"
    file.write_text("steps: 5\nback: true\n")
    (walk,) = parse(Walk, args=["there", "--config", str(file), "--pace=2.5", "--back", "false"])
    assert walk == Walk("there", 5, 2.5, [], False)
    (walk,) = parse(Walk, args=[f"--config={file}", "--steps", "6"])
    assert walk == Walk("here", 6, None, [], True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--step", "3"], "--step: there is no such setting here. Did you mean steps"),
        (["--zzz"], "--zzz: there is no such setting here. Remove it, or correct its name"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--steps"], "expected one argument"),
        (["--steps", "3", "stray"], "'stray' belongs to no setting"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file of settings"),
    ],
)
def test_command_lines_that_cannot_be_read(args, said):
    with pytest.raises(SettingError, match=said):
        parse(Walk, args=args)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step: 3", "step is no setting of this recipe. Did you mean steps"),
        ("steps: many", "steps: 'many' is a str where a whole number belongs"),
        ("pace: 1e1", "pace: '1e1' is a str where a number or nothing belongs"),
        ("- 3", "it holds a list, no settings"),
        ("a: b: c", "is no YAML"),
        ("5: 6", r"with the names \[5\], no settings"),
        ("null: 6", r"with the names \[None\], no settings"),
        ("base: 5", "walk.yaml: base: 5 is a int"),
        ("steps: 1\nsteps: 2", "walk.yaml is no YAML, steps is written twice"),
        ("place: \xe9", "walk.yaml is no YAML, 'utf-8' codec can't decode"),
        ("place: " + "[" * 2000, "walk.yaml is no YAML, maximum recursion depth"),
        ("steps: 2024-99-99", "walk.yaml is no YAML, month must be in 1..12"),
        ("steps: " + "9" * 5000, "walk.yaml is no YAML, Exceeds the limit"),
        ("steps: !!int x", "walk.yaml is no YAML, invalid literal"),
        ("steps: !!timestamp x", "walk.yaml is no YAML, "),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, said):
    (tmp_path / "walk.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(SettingError, match=said):
        parse(Walk, args=["--config", str(tmp_path / "walk.yaml")])


def test_bases(tmp_path):
    (tmp_path / "one.yaml").write_text("base: two.yaml\nsteps: 1\n")
    (tmp_path / "two.yaml").write_text("steps: 2\nplace: there\n")
    assert read_settings(tmp_path / "one.yaml") == {"steps": 1, "place": "there"}
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    with pytest.raises(SettingError, match="leads back to itself"):
        read_settings(tmp_path / "one.yaml")


def test_refusals_are_sentences_and_faults_are_tracebacks(monkeypatch, capsys):
    def refuse():
        raise SettingError("steps=0 is out of range. Give 1 or more.")

    monkeypatch.setattr(sys, "argv", ["walk.py", "--steps", "0"])
    with pytest.raises(SystemExit) as end:
        run(refuse)
    assert end.value.code == 2 and capsys.readouterr().err.startswith("walk.py: steps=0 is out of range")
    monkeypatch.setattr(sys, "argv", ["walk.py", "--debug", "--steps", "0"])
    with pytest.raises(SettingError):
        run(refuse)
    assert sys.argv == ["walk.py", "--steps", "0"]
    monkeypatch.setattr(sys, "argv", ["walk.py", "--debug", "underflow_overflow"])  # transformers' own setting
    with pytest.raises(SystemExit):
        run(refuse)
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_what_is_required_is_asked_for():
    with pytest.raises(SettingError, match="dataset is not given, and nothing can be done without it. Pass --dataset."):
        QuestionSettings()


@pytest.mark.slow
@hypothesis_settings(max_examples=3000, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.none())
            )
            for name in ("batch_size", "max_completion_length", "temperature", "top_p", "top_k", "seed")
        },
    )
)
def test_any_value_is_taken_or_refused_by_name(values):
    """Never another error than a `SettingError` that names one of the fields."""
    try:
        made = DecodingSettings(**values)
    except SettingError as error:
        assert any(str(error).startswith(name) for name in values)
    else:
        assert made.batch_size >= 1 and 0 < made.top_p <= 1 and made.temperature >= 0
