"""`tars-trl COMMAND`: every job of the recipes for those who have no clone."""

import sys
from importlib import import_module

import pytest

from tars_trl import __version__, cli
from tars_trl.errors import SettingError

NAMES = [name for commands in cli.COMMANDS.values() for name in commands]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["/bin/tars-trl", *words])
    cli.main()


def test_it_lists_every_command_by_group(monkeypatch, capsys):
    for words in ((), ("--help",)):
        call(monkeypatch, *words)
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said for name in NAMES) and all(f"\n{group}:\n" in said for group in cli.COMMANDS)
    call(monkeypatch, "--version")
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("name", NAMES)
def test_help_and_a_misspelt_setting(monkeypatch, capsys, name):
    """Its module's description, settings in groups, ours before TRL's; a wrong name is a sentence."""
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, name, "--help")
    said = capsys.readouterr().out
    modules = {command: module for group in cli.COMMANDS.values() for command, (module, _) in group.items()}
    assert end.value.code == 0 and import_module(f"tars_trl.{modules[name]}").__doc__.splitlines()[0] in said
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert said.startswith(f"usage: tars-trl {name} ") and len(titles) >= 2
    assert titles == sorted(titles, key=lambda title: title.startswith("Of t"))
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, name, "--sed", "3")
    assert end.value.code == 2 and capsys.readouterr().err.startswith("tars-trl: --sed: there is no such setting here.")
    with pytest.raises(SettingError):
        call(monkeypatch, name, "--sed", "3", "--debug")


def test_a_misspelt_command_names_the_nearest(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "evalute")
    assert "'evalute': there is no such command. Did you mean evaluate?" in capsys.readouterr().err
