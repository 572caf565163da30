"""TARS on a speech LLM: GRPO with spoken and written twins and alignment rewards.

    tars-trl train --config run.yaml
    accelerate launch -m tars_trl.commands.train --config run.yaml    # several processes

Any setting can be overridden behind the file, for example `--learning_rate 1e-5 --representation_weight 0`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import TARSGRPOConfig, TARSGRPOTrainer, accuracy_reward, format_reward, load_questions
from ..data.hub import check_place
from ..errors import SettingError
from ..models.loading import load_processor
from ..settings import TrainingSettings, parse, run
from ..share.publishing import PublishCallback


def train(
    trainer: Callable[..., Any],
    config_class: type,
    description: str,
    args: list[str] | None = None,
    labelled: bool = True,
    **arguments: Any,
) -> None:
    """Load, train, save the adapter and the processor; push them if asked.

    Args:
        trainer: class of the trainer.
        config_class: of its settings.
        description: what `--help` says.
        args: the command line; None for the program's own.
        labelled: whether the training rows are questions with answers, or clips and transcripts.
        arguments: further ones of the trainer.
    """
    asked, config = parse(TrainingSettings, config_class, args=args, description=description)
    check_place("model", asked.model, asked.model_revision)
    folder = Path(str(asked.model))
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise SettingError(
            f"model={asked.model!r} is an adapter, and a training starts from a whole model. Make one of it with "
            "tars-trl export --format merged, or go on with its run: --resume_from_checkpoint last."
        )
    config.model_init_kwargs = {
        "dtype": asked.dtype,
        "revision": asked.model_revision,
        "attn_implementation": asked.attn_implementation,
        **(config.model_init_kwargs or {}),
    }
    options = {"seed": config.seed, "system_prompt": asked.system_prompt, "audio_anywhere": config.audio_anywhere}
    names = [tuple(entry.split("=")) for entry in asked.column_map]
    if any(len(pair) != 2 or not all(pair) for pair in names):
        raise SettingError(f"column_map={asked.column_map}: these do not say which column is which. Write theirs=ours.")
    questions = load_questions(
        asked.dataset, asked.split, limit=asked.limit, labelled=labelled, column_map=dict(names), **options
    ).shuffle(seed=config.seed)
    evaluated = None
    if asked.eval_dataset:
        evaluated = load_questions(asked.eval_dataset, asked.eval_split, limit=asked.eval_limit, **options)

    made = trainer(
        asked.model,
        args=config,
        train_dataset=questions,
        eval_dataset=evaluated,
        processing_class=load_processor(asked.model, model_revision=asked.model_revision),
        callbacks=[PublishCallback()],
        **arguments,
    )
    made.questions_from = {"dataset": asked.dataset, "split": asked.split}
    made.train(config.resume_from_checkpoint)
    made.save_model()
    made.save_state()
    made.create_model_card()
    if config.push_to_hub:
        made.push_to_hub()


def main(args: list[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the settings say."""
    rewards = [accuracy_reward, format_reward]
    train(TARSGRPOTrainer, TARSGRPOConfig, str(description), args, reward_funcs=rewards)


if __name__ == "__main__":
    run(main)
