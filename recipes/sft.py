"""SFT of a speech LLM on spoken questions, from the completions that recipes/build_preferences.py writes.

The demo, two CPU cores:
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/demo/preferences.yaml
    accelerate launch recipes/sft.py --config recipes/qwen2_5_omni/arms/demo/sft.yaml
7B, GPUs (one line each):
    accelerate launch recipes/build_preferences.py --config recipes/qwen2_5_omni/arms/7b/preferences.yaml
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/sft.py --config recipes/qwen2_5_omni/arms/7b/sft.yaml
Model, LoRA targets, prompts and audio are those of TARS; the loss is TRL's.
"""

from tars_trl.commands.sft import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
