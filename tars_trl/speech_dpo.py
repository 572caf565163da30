"""`SpeechDPOTrainer`: direct preference optimisation on spoken questions, a baseline of the paper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from .speech_inputs import SpeechSettings, SpeechTrainer


@dataclass
class SpeechDPOConfig(SpeechSettings, DPOConfig):
    """TRL's `DPOConfig` (`beta` 0.1, `learning_rate` 1e-6) with the settings of `SpeechSettings`.

    Raises:
        ValueError: a value that cannot work with audio, or without an adapter.
    """

    def __post_init__(self) -> None:
        if self.padding_free:
            raise ValueError("padding_free=True rearranges tokens that belong to a row's audio. Leave it out.")
        if self.precompute_ref_log_probs:
            raise ValueError(
                "precompute_ref_log_probs=True passes over the data before audio is in place. Leave it out: the "
                "reference is the same model with its adapter off and takes no memory."
            )
        if self.lora_r == 0:
            raise ValueError(
                "lora_r=0 leaves DPO without a reference, which is the base model with the adapter off. Give a rank "
                "of 1 or more (paper: 8)."
            )
        self.remove_unused_columns = False  # the collator needs prompt, chosen, rejected and audio
        super().__post_init__()


class SpeechDPOTrainer(SpeechTrainer, DPOTrainer):
    """TRL's `DPOTrainer` with spoken questions; what is different is in `SpeechTrainer`.

    The completions are in the columns `chosen` and `rejected`, as `recipes/build_preferences.py` writes them. The
    reference is the base model with the adapter off; of a model that comes with an adapter it is, as in TRL, that
    adapter as it came.
    """

    completions = ("chosen", "rejected")
    padding = DataCollatorForPreference

    @staticmethod
    def example(prompt_ids: list[int], completion_ids: Callable[[str], list[int]]) -> dict[str, list[int]]:
        """Ids of the prompt and of both completions."""
        chosen, rejected = completion_ids("chosen"), completion_ids("rejected")
        return {"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """The data set as it is: TRL 1.16 has `skip_prepare_dataset` for SFT only."""
        return dataset
