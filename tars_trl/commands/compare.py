"""Train a list of arms over seeds, one after the other, measure each the same way, and write one table.

    tars-trl compare --config compare.yaml
    tars-trl compare --config compare.yaml --dry_run true    # commands only

An arm is a YAML file whose name begins with its method: `sft` trains sft.yaml and sft_low.yaml, `dpo` dpo*.yaml,
`train` grpo*.yaml and tars*.yaml; `evaluate` measures each. In OUT there is a folder for each run (`grpo_rep-seed1`)
and, rewritten after every run, table.md, table.csv and table.png. The same command again repeats nothing that is
finished.
"""

import shlex
from pathlib import Path

from tqdm import tqdm

from ..comparison.arms import ComparisonSettings, measure, plan_runs, train, write_table
from ..comparison.table import BASE, read_measured
from ..report.plots import check_matplotlib
from ..settings import parse, run


def main(args: list[str] | None = None) -> None:
    """Base model first, then every run; the table grows with each."""
    (settings,) = parse(ComparisonSettings, args=args, description=__doc__)
    runs = plan_runs(settings)
    if settings.dry_run:
        print("\n".join(shlex.join(["accelerate", "launch", *planned.command]) for planned in runs))
        return
    check_matplotlib()  # the table's figure is drawn after hours of training
    base = measure(Path(settings.output_dir) / BASE, runs[0].arm, settings)
    measured = {BASE: [read_measured(base)]}
    for planned in tqdm(runs, "runs"):
        seconds = train(planned, settings)
        results = measure(planned.folder, planned.arm, settings)
        measured.setdefault(planned.arm.stem, []).append(read_measured(results, seconds))
        text = write_table(measured, settings)
    print(text)


if __name__ == "__main__":
    run(main)
