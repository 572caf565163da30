"""`SpeechSFTTrainer`: supervised fine-tuning on spoken questions, a baseline of the paper."""

from collections.abc import Callable
from dataclasses import dataclass

from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .speech_inputs import SpeechSettings, SpeechTrainer


@dataclass
class SpeechSFTConfig(SpeechSettings, SFTConfig):
    """TRL's `SFTConfig` with the settings of `SpeechSettings`; `learning_rate` 2e-5, as TARS and TRL.

    Raises:
        ValueError: a value that cannot work with audio.
    """

    def __post_init__(self) -> None:
        for name in ("packing", "padding_free", "assistant_only_loss"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True rearranges tokens that belong to a row's audio. Leave it out: rows are padded, and "
                    "only completions count."
                )
        self.remove_unused_columns = False  # the collator needs prompt, completion and audio
        self.dataset_kwargs = {**(vars(self)["dataset_kwargs"] or {}), "skip_prepare_dataset": True}
        super().__post_init__()


class SpeechSFTTrainer(SpeechTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with spoken questions; what is different is in `SpeechTrainer`.

    The completion is in the column `completion`, as `recipes/build_preferences.py` writes it. The loss is the mean over
    completion tokens, the end token among them.
    """

    completions = ("completion",)
    padding = DataCollatorForLanguageModeling

    @staticmethod
    def example(prompt_ids: list[int], completion_ids: Callable[[str], list[int]]) -> dict[str, list[int]]:
        """Ids of prompt and completion; only the completion has labels."""
        completion = completion_ids("completion")
        return {"input_ids": prompt_ids + completion, "labels": [-100] * len(prompt_ids) + completion}
