"""Teach a speech LLM to hear from what it reads: clips and their transcripts, no answers and no rewards. Experimental.

    tars-trl distill --config run.yaml
    accelerate launch -m tars_trl.commands.distill --config run.yaml    # several processes

Every clip's transcript is the written twin; the model itself, reading it, says how likely each word is that it sampled
after hearing the clip. Labels in the data set are left out before anything sees them.
"""

from .. import TARSGRPOConfig, TARSGRPOTrainer
from ..settings import run
from .train import train


def main(args: list[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the settings say."""
    train(TARSGRPOTrainer, TARSGRPOConfig, str(description), args, labelled=False)


if __name__ == "__main__":
    run(main)
