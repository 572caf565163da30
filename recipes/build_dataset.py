"""Written multiple-choice questions to spoken ones, in the schema that the trainer reads.

    python recipes/build_dataset.py --config recipes/data/openbookqa_local.yaml
    python recipes/build_dataset.py --config recipes/data/mmlu_train.yaml --stage speech --processes 16

`tars-trl build-dataset` does the same; see `--help`.
"""

from tars_trl.commands.build_dataset import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
