"""Every table of a study, from the answers that compare has left. Nothing is run, nothing is read beside it.

    python recipes/study.py runs/study/test/results.json --pairs "tars: grpo" "grpo_distill: tars"

`tars-trl study` does the same; see `--help`.
"""

from tars_trl.commands.study import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
