"""DPO of a speech LLM on spoken questions, from the pairs that build-preferences writes.

    tars-trl build-preferences --model MODEL --dataset my/questions --output_dir runs/preferences
    tars-trl dpo --model MODEL --dataset runs/preferences/preferences --output_dir runs/dpo

Model, LoRA targets, prompts and audio are those of TARS; the loss is TRL's, its reference the adapter off.
"""

from ..settings import run
from ..supervised import SpeechDPOConfig, SpeechDPOTrainer
from .train import train


def main(args: list[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the settings say."""
    train(SpeechDPOTrainer, SpeechDPOConfig, str(description), args)


if __name__ == "__main__":
    run(main)
