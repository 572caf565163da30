"""Teach a speech LLM to hear from what it reads: clips and their transcripts, no answers and no rewards. Experimental.

The demo's questions without their answers, two CPU cores:
    accelerate launch recipes/distill.py --config recipes/qwen2_5_omni/arms/demo/distill.yaml
Spoken instructions, 7B, GPUs (one line):
    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/distill.py --config recipes/qwen2_5_omni/distill_7b.yaml
docs/guides/distillation.md has the method and what is known of it.
"""

from tars_trl.commands.distill import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
