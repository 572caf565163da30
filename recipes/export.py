"""From a checkpoint to a folder that others can open, checked, carded and, if asked, pushed.

    python recipes/export.py runs/demo --output_dir runs/demo-merged --format merged

`tars-trl export` does the same; see `--help`.
"""

from tars_trl.commands.export import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
