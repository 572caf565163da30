"""The house: what each room may know, what a command says of itself, what `import` costs, what a wheel holds."""

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

import tars_trl
from tars_trl import cli
from tars_trl.settings import parse
from tests.conftest import ROOT, questions

SCRIPTS = sorted([*ROOT.glob("recipes/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py")])
SCRIPTS = [path for path in SCRIPTS if "__main__" in path.read_text()]
RECIPES = [path for path in SCRIPTS if path.parent.name == "recipes"]


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("recipes/**/*.md"))]
TYPED = r"(?:(?:recipes|tools|benchmarks)/|^tars-trl |-m tars_trl\.commands\.)([\w-]+)(?:\.py)? +(.*)"
DOCUMENTED = [
    (str(path.relative_to(ROOT)), *found)
    for path in PAGES
    for block in re.findall(r"```bash\n(.*?)```", path.read_text().replace("\\\n", " "), re.DOTALL)
    for found in re.findall(TYPED, block, re.MULTILINE)
]
"""Page, command and its arguments, of every command that a page tells to type."""


def main_of(command):
    """The function behind a command of `tars-trl`, or a script."""
    modules = {name: f"tars_trl.{place}" for group in cli.COMMANDS.values() for name, (place, _) in group.items()}
    modules |= {path.stem: path.stem for path in SCRIPTS}
    return import_module(modules[command]).main


def python(*words, **options):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, **options)


def test_public_names_are_there():
    assert all(getattr(tars_trl, name) is not None for name in tars_trl.__all__)


def test_importing_the_trainer_imports_neither_evaluation_nor_report_nor_share():
    code = "import sys, tars_trl.trainer; print([name for name in sys.modules if name.startswith('tars_trl.')])"
    rooms = {name.split(".")[1] for name in ast.literal_eval(python("-c", code).stdout.splitlines()[-1])}
    assert "trainer" in rooms and not rooms & {"evaluation", "report", "share", "sampling", "speaking"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tars_trl; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"


def test_an_architecture_is_one_file():
    """Nothing outside of `models/` names an architecture; two other models' ids are left aside."""
    names = re.compile(r"phi[-_ ]?4|qwen|voxtral|granite|flamingo", re.IGNORECASE)
    others = r"Qwen/Qwen3-Embedding|xFinder-qwen1505"
    for path in sorted((ROOT / "tars_trl").rglob("*")):
        if path.suffix in (".py", ".jinja") and path.parent.name != "models":
            lines = [line for line in path.read_text().splitlines() if names.search(re.sub(others, "", line))]
            assert not lines, f"{path}: {lines}"


def test_only_what_is_about_vllm_imports_it():
    rooms = {"models/vllm.py", "grpo/vllm.py"}
    for path in sorted((ROOT / "tars_trl").rglob("*.py")):
        importing = re.search(r"^\s*(from|import) vllm\b", path.read_text(), re.MULTILINE)
        assert not importing or str(path.relative_to(ROOT / "tars_trl")) in rooms, path


def test_no_library_file_looks_for_the_recipes():
    """Messages may name a recipe; paths and defaults may not lead to one."""
    for path in sorted((ROOT / "tars_trl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value != "recipes" and not node.value.startswith("recipes/demo"), path


def test_the_trainer_is_small():
    source = (ROOT / "tars_trl" / "trainer.py").read_text()
    assert len(source.splitlines()) <= 300
    (trainer,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    (constructor,) = [n for n in trainer.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    assert constructor.end_lineno - constructor.lineno <= 60


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_of_every_script(path):
    """It prints its own description and every setting; a `%` in a help text once ended three of them."""
    done = python(path, "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (description, *_) = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    assert description in done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_scripts_around_commands(path):
    """Nothing but `run_demo.py` is done in a script: who installed a wheel has no recipes."""
    assert path.stem == "run_demo" or len(ast.parse(path.read_text()).body) == 4


class ParsedError(Exception):
    """The command line was understood; what it asks for is not done here."""


@pytest.mark.parametrize(("page", "command", "words"), DOCUMENTED, ids=lambda value: value[:60])
def test_documented_commands_are_understood(page, command, words, monkeypatch):
    """A command of the README whose settings were renamed, or are given another way, is noticed here."""
    monkeypatch.chdir(ROOT)
    given = shlex.split(words, comments=True)

    def only_parse(*classes, args=None, **options):
        parse(*classes, args=given, **options)
        raise ParsedError

    main = main_of(command)
    for place in (import_module(main.__module__), import_module("tars_trl.commands.train")):
        monkeypatch.setattr(place, "parse", only_parse, raising=False)
    with pytest.raises(ParsedError):
        main()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_snippets_are_python(path):
    """Files and headings that a page links to exist; what it shows as Python can be compiled."""
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else ()
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in slugs, target
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(snippet, str(path), "exec")


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path, model_folder, embedder_folder):
    """Installed without the clone: evaluate, train and report on a model and questions of one's own."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    built = python("-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    assert installed.returncode == 0, installed.stderr[-2000:]
    listed = python(site / "bin" / "tars-trl", cwd=work, env=os.environ | {"PYTHONPATH": str(site)})
    assert "build-dataset" in listed.stdout, listed.stderr[-2000:]
    questions(4).to_parquet(work / "train-00000-of-00001.parquet")
    script = work / "own.py"
    script.write_text(f"""
import tars_trl
assert tars_trl.__file__.startswith({str(site)!r}), tars_trl.__file__
rows = tars_trl.load_questions("train-00000-of-00001.parquet")

def measure(model, folder):
    tars_trl.evaluate(tars_trl.EvaluationSettings(
        model=model, tasks=["own=train-00000-of-00001.parquet"], split=["train"], max_completion_length=4,
        use_cpu=True, log_samples=True, output_dir=folder,
    ))

measure({model_folder!r}, "run/evaluation/before")
trainer = tars_trl.TARSGRPOTrainer(
    {model_folder!r}, [tars_trl.accuracy_reward, tars_trl.format_reward],
    tars_trl.TARSGRPOConfig(
        "run", max_steps=1, per_device_train_batch_size=8, max_completion_length=4, behavior_model={embedder_folder!r},
        use_cpu=True, bf16=False, report_to=[], log_completions=True, num_completions_to_print=0, save_strategy="no",
        logging_steps=1, overwrite_output_dir=True,
    ),
    rows, callbacks=[tars_trl.PublishCallback()],
)
trainer.train()
trainer.save_model()
trainer.save_state()
measure("run", "run/evaluation/after")
print(tars_trl.write_report("run", questions=rows))
""")
    done = python(script, cwd=work, env=os.environ | {"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr[-3000:]
    page = (work / "run" / "report.html").read_text()
    assert "Before and after" in page and "<audio" in page and (work / "run" / "README.md").is_file()


def test_nothing_tells_users_to_install_this_package_from_a_registry():
    """It is in none, and whoever took the name there would be run."""
    wrong = re.compile(r"pip install [\"'`]*tars[-_]trl(?!.*@ git)")
    files = [path for path in (ROOT / "tars_trl").rglob("*") if path.suffix in (".py", ".jinja")]
    assert not [path.name for path in files if wrong.search(path.read_text())]
