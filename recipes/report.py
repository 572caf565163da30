"""A run as one self-contained HTML file: curves, before and after, drift, samples to listen to, settings.

    python recipes/report.py runs/demo

`tars-trl report` does the same; see `--help`.
"""

from tars_trl.commands.report import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
