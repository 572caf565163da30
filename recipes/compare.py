"""Train a list of arms over seeds, one after the other, measure each the same way, and write one table.

    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    python recipes/compare.py --config recipes/qwen2_5_omni/arms/demo/compare.yaml
    python recipes/compare.py --config recipes/qwen2_5_omni/arms/demo/compare.yaml --dry_run true    # commands only

An arm is a YAML file whose name begins with its method: recipes/sft.py trains sft.yaml and sft_low.yaml, recipes/dpo.py
dpo*.yaml, recipes/tars_qwen_omni.py grpo*.yaml and tars*.yaml; recipes/evaluate.py measures each. In OUT there is a
folder for each run (`grpo_rep-seed1`) and, rewritten after every run, table.md, table.csv and table.png. The same
command again repeats nothing that is finished.
"""

import shlex
from pathlib import Path

from comparison.arms import ComparisonSettings, evaluate, plan, train, write
from comparison.table import BASE, Measured
from tqdm import tqdm

from tars_trl.settings import parse


def main(args: list[str] | None = None) -> None:
    """Base model first, then every run; the table grows with each."""
    (settings,) = parse(ComparisonSettings, args=args)
    runs = plan(settings, Path(__file__).parent)
    if settings.dry_run:
        print("\n".join(shlex.join(["accelerate", "launch", *run.command]) for run in runs))
        return
    recipes = Path(__file__).parent
    base = evaluate(runs[0].arm, Path(settings.output_dir) / BASE, settings, recipes)
    measured = {BASE: [Measured(base["speech"], base["text"], commit=base["commit"])]}
    for run in tqdm(runs, "runs"):
        seconds = train(run, settings)
        found = evaluate(run.arm, run.folder, settings, recipes)
        result = Measured(found["speech"], found["text"], seconds, found["commit"])
        measured.setdefault(run.arm.stem, []).append(result)
        text = write(measured, settings)
    print(text)


if __name__ == "__main__":
    main()
