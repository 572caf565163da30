"""TARS on a Qwen2.5-Omni thinker: GRPO with spoken and written twins and alignment rewards.

The demo, two CPU cores:
    accelerate launch recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/demo.yaml
The paper's setting, GPUs (one line):
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/tars_qwen_omni.py --config recipes/qwen2_5_omni/tars_7b.yaml
Any setting can be overridden behind the file, for example `--learning_rate 1e-5 --representation_weight 0`.
"""

from training import train

from tars_trl import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward
from tars_trl.settings import run


def main(description: str = __doc__) -> None:
    """Train as the settings say."""
    train(TARSGRPOTrainer, TARSGRPOConfig, description, reward_funcs=[accuracy_reward, format_reward])


if __name__ == "__main__":
    run(main)
