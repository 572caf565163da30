"""TARS on a Qwen2.5-Omni thinker: GRPO with spoken and written twins and alignment rewards.

The demo, two CPU cores:
    accelerate launch recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/demo.yaml
The paper's setting, GPUs (one line):
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/tars_7b.yaml
Any setting can be overridden behind the file, for example `--learning_rate 1e-5 --representation_weight 0`.
"""

from tars_trl.commands.train import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
