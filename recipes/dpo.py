"""DPO of a speech LLM on spoken questions, from the pairs that recipes/build_preferences.py writes.

The demo, two CPU cores:
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    accelerate launch recipes/dpo.py --config recipes/qwen2_5_omni/arms/demo/dpo.yaml
7B, GPUs (one line each):
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/7b/preferences.yaml
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/dpo.py --config recipes/qwen2_5_omni/arms/7b/dpo.yaml
Model, LoRA targets, prompts and audio are those of TARS; the loss is TRL's, its reference the adapter off.
"""

from tars_trl.commands.dpo import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
