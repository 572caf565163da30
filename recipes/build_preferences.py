"""Preference pairs and supervised examples from a model's own spoken and written completions of questions.

    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml

`tars-trl build-preferences` does the same; see `--help`.
"""

from tars_trl.commands.build_preferences import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
