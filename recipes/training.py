"""What the training recipes share: a model, questions, a trainer, and what is left when it has trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tars_trl import PublishCallback, load_questions
from tars_trl.data.hub import check_place
from tars_trl.models.loading import load_processor
from tars_trl.settings import ModelSettings, QuestionSettings, parse, setting


@dataclass
class TrainingSettings(ModelSettings, QuestionSettings):
    """Which model is trained on which questions. Everything else is in the trainer's own configuration."""

    eval_dataset: str | None = setting(None, "Questions for `eval_strategy`: hub id, folder or file.")
    eval_split: str = setting("test", "Split of the questions to evaluate on.")
    eval_limit: float | None = setting(None, "Evaluate on this many questions only, as `limit`.", above=0)


def train(trainer: Callable[..., Any], config_class: type, description: str, **arguments: Any) -> None:
    """Load, train, save the adapter and the processor; push them if asked.

    Args:
        trainer: class of the trainer.
        config_class: of its settings.
        description: what `--help` says.
        arguments: further ones of the trainer.
    """
    run, config = parse(TrainingSettings, config_class, description=description)
    check_place("model", run.model, run.model_revision)
    config.model_init_kwargs = {
        "dtype": run.dtype,
        "revision": run.model_revision,
        "attn_implementation": run.attn_implementation,
        **(config.model_init_kwargs or {}),
    }
    options = {"seed": config.seed, "system_prompt": run.system_prompt, "audio_anywhere": config.audio_anywhere}
    questions = load_questions(run.dataset, run.split, limit=run.limit, **options).shuffle(seed=config.seed)
    evaluated = None
    if run.eval_dataset:
        evaluated = load_questions(run.eval_dataset, run.eval_split, limit=run.eval_limit, **options)

    made = trainer(
        run.model,
        args=config,
        train_dataset=questions,
        eval_dataset=evaluated,
        processing_class=load_processor(run.model, model_revision=run.model_revision),
        callbacks=[PublishCallback()],
        **arguments,
    )
    made.train(config.resume_from_checkpoint)
    made.save_model()
    made.save_state()
    made.create_model_card()
    if config.push_to_hub:
        made.push_to_hub()
