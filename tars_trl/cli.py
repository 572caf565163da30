"""`tars-trl COMMAND …`: the jobs of the recipes as one command, for those who installed the package and have no clone.

The same functions and settings as the files in `recipes/`, which are the form that `accelerate launch` takes.
"""

import difflib
import sys
from importlib import import_module

from . import __version__
from .errors import SettingError
from .settings import run

COMMANDS = {
    "Train": {
        "plan": ("plan", "which GPU a run needs, and for how long"),
        "train": ("commands.train", "GRPO with spoken and written twins and alignment rewards (TARS)"),
        "sft": ("commands.sft", "supervised baseline on spoken questions"),
        "dpo": ("commands.dpo", "preference baseline on spoken questions"),
        "distill": ("commands.distill", "from clips and transcripts alone, without labels (experimental)"),
        "compare": ("commands.compare", "train several arms over seeds, measure each, one table"),
    },
    "Questions": {
        "build-dataset": ("commands.build_dataset", "written questions to spoken ones"),
        "check-recordings": ("commands.check_recordings", "do your clips say question and options?"),
        "add-noise": ("commands.add_noise", "spoken questions in babble or noise, at a stated level"),
        "score-questions": ("commands.score_questions", "pass@k of a model on each question: what to train on"),
        "build-preferences": ("commands.build_preferences", "pairs and examples for dpo and sft"),
    },
    "Measure": {
        "evaluate": ("commands.evaluate", "accuracy, gap and recovery, with intervals"),
        "analyze-drift": ("commands.analyze_drift", "where speech and text part, layer by layer"),
        "study": ("commands.study", "every table of a study, from compare's answers"),
        "report": ("commands.report", "a run as one HTML file"),
    },
    "Use": {
        "chat": ("commands.chat", "ask a model, from a sound file, in writing, or in the browser (--web)"),
        "export": ("commands.export", "a folder that others can open, checked, carded, pushed if asked"),
    },
}
"""Module, whose `main` does it, and one line of help, of every command by group."""


def help_text() -> str:
    """What `tars-trl --help` says."""
    lines = ["tars-trl COMMAND [--config FILE.yaml] [--setting value …]", "tars-trl COMMAND --help"]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<19}{what}" for name, (_, what) in commands.items())]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """Run the command that the first word names."""
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
    elif words[0] == "--version":
        print(__version__)
    else:
        sys.argv = ["tars-trl", *words]
        run(lambda: dispatch(words[0]))


def dispatch(name: str) -> None:
    """Import a command's module, and leave the rest of the command line to it."""
    modules = {command: module for group in COMMANDS.values() for command, (module, _) in group.items()}
    if name not in modules:
        near = difflib.get_close_matches(name, modules, 1)
        advice = f"Did you mean {near[0]}?" if near else "tars-trl --help lists them."
        raise SettingError(f"{name!r}: there is no such command. {advice}")
    sys.argv = [f"tars-trl {name}", *sys.argv[2:]]
    import_module(f".{modules[name]}", __package__).main()


if __name__ == "__main__":
    main()
