"""SFT of a speech LLM on spoken questions, from the completions that build-preferences writes.

    tars-trl build-preferences --model MODEL --dataset my/questions --output_dir runs/preferences
    tars-trl sft --model MODEL --dataset runs/preferences/sft --output_dir runs/sft

Model, LoRA targets, prompts and audio are those of TARS; the loss is TRL's.
"""

from ..settings import run
from ..supervised import SpeechSFTConfig, SpeechSFTTrainer
from .train import train


def main(args: list[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the settings say."""
    train(SpeechSFTTrainer, SpeechSFTConfig, str(description), args)


if __name__ == "__main__":
    run(main)
