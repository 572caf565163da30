"""Where speech and text part inside a model: layer-wise similarity under the spoken and the written prompt.

    python recipes/analyze_drift.py --models before=recipes/demo/tiny-omni after=runs/demo
        --dataset recipes/demo/questions --output_dir runs/demo/drift    # one line

`tars-trl analyze-drift` does the same; see `--help`.
"""

from tars_trl.commands.analyze_drift import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
