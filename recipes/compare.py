"""Train a list of arms over seeds, one after the other, measure each the same way, and write one table.

    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    python recipes/compare.py --config recipes/qwen2_5_omni/arms/demo/compare.yaml
    python recipes/compare.py --config recipes/qwen2_5_omni/arms/demo/compare.yaml --dry_run true    # commands only

An arm is a YAML file; recipes/sft.py trains sft.yaml, recipes/dpo.py dpo.yaml, recipes/tars_qwen_omni.py all others.
In OUT there is a folder for each run (`grpo_rep-seed1`) and, rewritten after every run, table.md, table.csv and
table.png. What is finished is not repeated when the same command is given again.
"""

import shlex
from pathlib import Path

from tqdm import tqdm

from tars_trl import load_questions
from tars_trl.arms import ComparisonSettings, evaluate, plan, train, write
from tars_trl.cli import parse, read_settings
from tars_trl.comparison import BASE, Measured


def main(args: list[str] | None = None) -> None:
    """Base model first, then every run; the table grows with each."""
    (settings,) = parse(ComparisonSettings, args=args)
    runs = plan(settings, Path(__file__).parent)
    if settings.dry_run:
        print("\n".join(shlex.join(["accelerate", "launch", *run.command]) for run in runs))
        return
    questions = load_questions(settings.eval_dataset, settings.eval_split, limit=settings.eval_limit)
    model = str(read_settings(runs[0].arm)["model"])
    base = evaluate(model, Path(settings.output_dir) / BASE, questions, settings, trained=False)
    measured = {BASE: [Measured(base["speech"], base["text"], commit=base["git_hash"])]}
    for run in tqdm(runs, "runs"):
        seconds = train(run, settings, model)
        found = evaluate(model, run.folder, questions, settings, trained=True)
        result = Measured(found["speech"], found["text"], seconds, found["git_hash"])
        measured.setdefault(run.arm.stem, []).append(result)
        text = write(measured, settings)
    print(text)


if __name__ == "__main__":
    main()
