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

from comparison.arms import ComparisonSettings, measure, plan_runs, train, write_table
from comparison.table import BASE, read_measured
from tqdm import tqdm

from tars_trl.report.plots import check_matplotlib
from tars_trl.settings import parse, run


def main(args: list[str] | None = None) -> None:
    """Base model first, then every run; the table grows with each."""
    (settings,) = parse(ComparisonSettings, args=args, description=__doc__)
    recipes = Path(__file__).parent
    runs = plan_runs(settings, recipes)
    if settings.dry_run:
        print("\n".join(shlex.join(["accelerate", "launch", *planned.command]) for planned in runs))
        return
    check_matplotlib()  # the table's figure is drawn after hours of training
    base = measure(Path(settings.output_dir) / BASE, runs[0].arm, settings, recipes)
    measured = {BASE: [read_measured(base)]}
    for planned in tqdm(runs, "runs"):
        seconds = train(planned, settings)
        results = measure(planned.folder, planned.arm, settings, recipes)
        measured.setdefault(planned.arm.stem, []).append(read_measured(results, seconds))
        text = write_table(measured, settings)
    print(text)


if __name__ == "__main__":
    run(main)
