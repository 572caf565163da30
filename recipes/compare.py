"""Train a list of arms over seeds, one after the other, measure each the same way, and write one table.

    python recipes/compare.py --config recipes/qwen2_5_omni/arms/demo/compare.yaml

`tars-trl compare` does the same; see `--help`.
"""

from tars_trl.commands.compare import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
