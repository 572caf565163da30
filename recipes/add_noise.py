"""Make spoken questions hard to hear: other clips mixed in as babble, or noise without speech, at a stated level.

    python recipes/add_noise.py --config recipes/data/demo_babble.yaml

`tars-trl add-noise` does the same; see `--help`.
"""

from tars_trl.commands.add_noise import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
