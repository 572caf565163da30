"""The record of a run: where it is read from, and whose commit it names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tars_trl
from tars_trl.errors import SettingError
from tars_trl.record import commit_of, read_run


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with a package at its top, as ours."""
    (tmp_path / "tars_trl").mkdir()
    (tmp_path / "tars_trl" / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv/\nruns/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag, which is no commit")
    return tmp_path


def test_a_checkout_s_commit_and_whether_it_was_changed(repository, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    assert len(commit) == 40 and commit_of(repository / "tars_trl") == commit
    monkeypatch.setenv("GIT_DIR", str(repository / "elsewhere"))  # as inside of a git hook
    assert commit_of(repository / "tars_trl") == commit
    monkeypatch.delenv("GIT_DIR")
    (repository / "runs").mkdir()
    (repository / "runs" / "results.json").write_text("{}")
    assert commit_of(repository / "tars_trl") == commit
    (repository / "tars_trl" / "__init__.py").write_text("changed = True\n")
    assert commit_of(repository / "tars_trl") == f"{commit}-dirty"


@pytest.mark.parametrize("place", [".venv/lib/python3.11/site-packages", "vendor", "."])
def test_installed_inside_of_another_s_repository_it_has_none(tmp_path, place):
    """As a wheel in a project's environment, or copied untracked into the project."""
    git(tmp_path, "init", "-q")
    (tmp_path / "mine.py").write_text("")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-q", "-m", "a user's")
    package = tmp_path / place / "tars_trl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert commit_of(package) is None


def test_the_record_names_it(tmp_path):
    """The package itself, copied as an installation would be, asked from inside of a user's repository."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "a user's")
    shutil.copytree(Path(tars_trl.__file__).parent, tmp_path / "site" / "tars_trl")
    program = "from tars_trl import record; print(record.__file__, record.environment()['git_hash'])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "site" / "tars_trl" / "record.py"), "None"]


def test_without_git_there_is_none(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of(repository / "tars_trl") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ('{"seconds": 1', "holds no JSON object"),
        ("[" * 100_000, "holds no JSON object"),
        ('{"settings": [1]}', r"settings: \[1\] is not what a run writes"),
        ('{"trainable": "x"}', "trainable: 'x' is not"),
        ('{"trainable": [{"component": "tower"}]}', "parameters: None is not"),
        ('{"seconds": "x"}', "seconds: 'x' is not"),
        ('{"seconds": Infinity}', "seconds: inf is not"),
        ('{"questions": null}', "questions: None is not"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, content, said):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SettingError, match=f"^{tmp_path / 'run.json'}.*{said}"):
        read_run(tmp_path)


def test_the_record_of_a_pushed_run_is_read_from_the_hub(tmp_path, monkeypatch):
    """As it lies in the hub's cache; a model that no run made, or a name that no repository can have, has none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, files in {"me/run": {"run.json": {"system_prompt": "Think."}}, "they/model": {"config.json": {}}}.items():
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("a" * 40)
        (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
        for file, content in files.items():
            (folder / "snapshots" / ("a" * 40) / file).write_text(json.dumps(content))
    assert read_run("me/run") == {"system_prompt": "Think."}
    assert read_run("they/model") == read_run("no/where") == read_run("no:where") == {}
