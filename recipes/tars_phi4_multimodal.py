"""TARS on Phi-4-multimodal: the same recipe as `tars_qwen_omni.py`, under a name one finds (one line).

    accelerate launch --config_file recipes/accelerate/zero2.yaml
        recipes/tars_phi4_multimodal.py --config recipes/phi4_multimodal/tars.yaml

Nothing in the recipe depends on the architecture. What is Phi-4's own is in `tars_trl.models.phi4_multimodal` (its
speech LoRA is merged on loading, clips are encoded without padding) and in the YAML (the revision with native weights).
Rollouts are sampled by transformers: vLLM has no native Phi-4-multimodal.
"""

from tars_trl.commands.train import main
from tars_trl.settings import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
