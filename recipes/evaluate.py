"""Accuracy, gap and recovery of a speech LLM or an adapter, by benchmark and modality, with intervals.

    accelerate launch recipes/evaluate.py --config recipes/evaluation/demo.yaml
    accelerate launch recipes/evaluate.py --config recipes/evaluation/paper.yaml --adapter runs/tars-qwen2.5-omni-7b

`tars-trl evaluate` does the same; see `--help`.
"""

from tars_trl.commands.evaluate import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(main)
