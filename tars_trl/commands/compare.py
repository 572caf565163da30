"""Train a list of arms over seeds, one after the other, measure each the same way, and write one table.

    tars-trl compare --config compare.yaml
    tars-trl compare --config compare.yaml --dry_run true    # commands only

An arm is a YAML file whose name begins with its method: `sft` trains sft.yaml and sft_low.yaml, `dpo` dpo*.yaml,
`distill` distill*.yaml, `train` grpo*.yaml and tars*.yaml; `evaluate` measures each. In OUT there is a folder for each
run (`grpo_rep-seed1`) and, rewritten after every run, table.md, table.csv, table.png and results.json (every answer,
for `study`). The same command again repeats nothing that is finished.
"""

import shlex
from pathlib import Path

from tqdm import tqdm

from ..comparison.arms import ComparisonSettings, collect, measure, plan_runs, train, write_table
from ..comparison.study import Study
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
    measured, study = {BASE: [read_measured(base)]}, Study()
    collect(study, None, None, settings, runs[0].arm)
    for planned in tqdm(runs, "runs"):
        seconds = train(planned, settings)
        results = measure(planned.folder, planned.arm, settings, model=planned.model)
        measured.setdefault(planned.name, []).append(read_measured(results, seconds))
        collect(study, planned, seconds, settings, planned.arm)
        text = write_table(measured, settings)
        study.write(Path(settings.output_dir) / "results.json")
    print(text)


if __name__ == "__main__":
    run(main)
