"""The demo: measure tiny-omni, train it with TARS, measure it again, and show what changed. `make demo` runs it.

    python recipes/run_demo.py                  # runs/demo
    python recipes/run_demo.py --seed 1 --output runs/demo-1
    python recipes/run_demo.py --arm grpo --output runs/grpo     # both alignment weights 0

Everything is measured on held-out questions, greedily, and left in the output folder: `summary.json`, the adapter,
curves as PNG, and one question with its audio, its twins' completions and their rewards.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoProcessor

from tars_trl import accuracy_reward, load_questions
from tars_trl.evaluation.metrics import paired_result
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.sampling.complete import complete

CONFIG = "recipes/qwen2_5_omni/demo.yaml"
MODEL, QUESTIONS = "recipes/demo/tiny-omni", "recipes/demo/questions"
ARMS = {"tars": [], "grpo": ["--representation_weight", "0", "--behavior_weight", "0"]}


def measure(adapter: str | None, name: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Greedy accuracy in both modalities on the held-out questions, and every completion."""
    model = Qwen2_5OmniThinker().load(MODEL, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model = model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    processor = AutoProcessor.from_pretrained(MODEL)
    rows = list(load_questions(QUESTIONS, "test"))
    answers = []
    for modality in ("speech", "text"):
        done = complete(model, processor, rows, modality, batch_size=100, max_new_tokens=64)
        for row, completion in zip(rows, tqdm(done, f"{name}, {modality}", len(rows)), strict=True):
            (correct,) = accuracy_reward([completion.text], [row["answer_index"]], [row["options"]])
            answers.append({**vars(completion), "voice": row["voice"], "correct": bool(correct)})
    frame = pd.DataFrame(answers)
    by_modality = {modality: part["correct"].tolist() for modality, part in frame.groupby("modality")}
    return dict(paired_result(by_modality["speech"], by_modality["text"])), frame


def show_one(folder: Path) -> None:
    """Leave one training question of the last step as a person would want it: audio, both completions, rewards."""
    last = pd.read_parquet(max((folder / "completions").glob("*.parquet")))
    columns = [name for name in last.columns if name.endswith(("_reward", "_alignment"))]
    key = last.sort_values(columns, ascending=False)["key"].iloc[0]
    row = next(row for row in load_questions(QUESTIONS, "train") if row["key"] == key)
    (folder / "question.ogg").write_bytes(row["audio"]["bytes"])
    lines = [f"# {row['question']}", "", f"`question.ogg` ({row['voice']}), key {key}", ""]
    for modality, twin in last[last["key"] == key].groupby("modality"):
        shown = twin.iloc[0]
        rewards = ", ".join(f"{name} {shown[name]:.2f}" for name in columns if pd.notna(shown[name]))
        lines += [f"**{modality}** — {rewards}", "", f"> {shown['completion'][0]['content']}", ""]
    (folder / "question.md").write_text("\n".join(lines))


def pictures(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Curves of the run and the held-out accuracies before and after, as PNG, and a report to open in a browser."""
    from tars_trl.report.frames import load_run
    from tars_trl.report.html import write_report
    from tars_trl.report.plots import plot_before_after, plot_gap, plot_rewards

    run = load_run(folder)
    plot_gap([run]).savefig(folder / "gap.png")
    plot_rewards(run).savefig(folder / "rewards.png")
    plot_before_after(before, after).savefig(folder / "before_after.png")
    write_report(folder, questions=load_questions(QUESTIONS))


def line(name: str, result: dict[str, Any]) -> str:
    """One row of the table that the demo prints."""
    speech, text = (
        f"{100 * result[f'{m}_accuracy']:5.1f} [{100 * result[f'{m}_interval'][0]:.1f}, "
        f"{100 * result[f'{m}_interval'][1]:.1f}]"
        for m in ("speech", "text")
    )
    return f"{name:<8}{speech:>22}{text:>22}{100 * result['gap']:>8.1f}{result['mrr']:>8.1f}"


def main() -> None:
    """Before, training, after, files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=ARMS, default="tars")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is here

    start = time.perf_counter()
    before, answers_before = measure(None, "before")
    command = ["recipes/tars_qwen_omni.py", "--config", CONFIG, "--seed", str(options.seed)]
    command += ["--output_dir", str(options.output), *ARMS[options.arm]]
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", *command], check=True)
    after, answers_after = measure(str(options.output), "after")
    seconds = time.perf_counter() - start

    summary = {"arm": options.arm, "seed": options.seed, "before": before, "after": after, "seconds": round(seconds, 1)}
    summary["command"] = " ".join(["accelerate launch", *command])
    (options.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    frames = answers_before.assign(when="before"), answers_after.assign(when="after")
    pd.concat(frames).to_json(options.output / "answers.jsonl", orient="records", lines=True)
    show_one(options.output)
    pictures(options.output, before, after)
    print(f"\n{'':<8}{'speech, %':>22}{'text, %':>22}{'gap':>8}{'MRR, %':>8}   (held-out questions, 95 % intervals)")
    print(line("before", before), line("after", after), sep="\n")
    print(f"\n{seconds:.0f} s of training and evaluation. Curves, report.html and an example: {options.output}/")


if __name__ == "__main__":
    main()
