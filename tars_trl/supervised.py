"""TRL's supervised trainers, taught to hear: `SpeechSFTTrainer` and `SpeechDPOTrainer`, baselines of the paper.

TRL pads, batches and scores token ids. Beside them go the features of each row's clip; they are encoded once a batch,
and put into the token embeddings of every forward pass, as in `TARSGRPOTrainer`. So model, LoRA targets, prompts and
audio are the same for every method that is compared.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import AutoProcessor
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .config import INHERITED, SpeechTrainingSettings
from .data.answers import completion_text
from .data.schema import CONTROL, PROBLEMS_SHOWN
from .errors import QuestionError, SettingError
from .grpo.kept_run import KeptRun
from .grpo.preparing import own_settings, prepare_training, usable_questions
from .models import SpeechLLM
from .models.prompting import base_of, end_tokens_of, heard, twin_prompt
from .models.sharding import ClipEncoder
from .settings import Rule, fits, setting

Row = dict[str, Any]
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)


# ---- Settings ------------------------------------------------------------------------------------------------------


@dataclass
class SupervisedSettings(SpeechTrainingSettings):
    """What a supervised run on speech may set beside TRL's settings; the same names as in `TARSGRPOConfig`."""

    max_length: int | None = setting(
        None, "Must stay None: what is cut may be audio. Limit max_audio_seconds and the completions instead."
    )

    def prepare(self) -> None:
        """Check all fields, and keep the columns that the collator needs."""
        super().prepare()
        if self.max_length is not None:
            raise SettingError(
                f"max_length={self.max_length} would cut rows, and with them audio tokens. Leave it None; limit "
                "max_audio_seconds here and the completions where they are sampled."
            )
        if not self.freeze_audio:
            raise SettingError(
                "freeze_audio=False: the supervised trainers encode clips without gradient. Leave freeze_audio on."
            )
        self.remove_unused_columns = False


@dataclass
class SpeechSFTConfig(SupervisedSettings, SFTConfig):
    """TRL's `SFTConfig` with the settings of `SupervisedSettings`; `learning_rate` 2e-5, as TARS and TRL.

    Raises:
        SettingError: a value that cannot work with audio.
    """

    def __post_init__(self) -> None:
        for name in ("packing", "padding_free", "assistant_only_loss"):
            if getattr(self, name):
                raise SettingError(
                    f"{name}=True rearranges tokens that belong to a row's audio. Leave it out: rows are padded, and "
                    "only completions count."
                )
        self.prepare()
        self.dataset_kwargs = {**(vars(self)["dataset_kwargs"] or {}), "skip_prepare_dataset": True}
        SFTConfig.__post_init__(self)
        self.check_optimizer()


@dataclass
class SpeechDPOConfig(SupervisedSettings, DPOConfig):
    """TRL's `DPOConfig` (`beta` 0.1, `learning_rate` 1e-6) with the settings of `SupervisedSettings`.

    Raises:
        SettingError: a value that cannot work with audio, or without an adapter.
    """

    inherited: ClassVar[dict[str, Rule]] = INHERITED | {
        "beta": Rule(least=0),
        "loss_type": Rule(choices=DPO_LOSSES),
        "loss_weights": Rule(least=0, most=1000),
        "label_smoothing": Rule(least=0, below=0.5),
        "ld_alpha": Rule(least=0, most=1),
        "f_divergence_type": Rule(choices=("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")),
    }

    def __post_init__(self) -> None:
        if self.padding_free:
            raise SettingError("padding_free=True rearranges tokens that belong to a row's audio. Leave it out.")
        if self.precompute_ref_log_probs:
            raise SettingError(
                "precompute_ref_log_probs=True passes over the data before audio is in place. Leave it out: the "
                "reference is the same model with its adapter off and takes no memory."
            )
        if self.lora_r == 0:
            raise SettingError(
                "lora_r=0 leaves DPO without a reference, which is the base model with the adapter off. Give a rank "
                "of 1 or more (paper: 8)."
            )
        self.prepare()
        DPOConfig.__post_init__(self)
        self.check_optimizer()


# ---- Rows to batches -----------------------------------------------------------------------------------------------


@dataclass
class SpeechCollator:
    """Rows to a padded batch: each prompt with its question spoken, through the architecture's own prompt builder.

    What is padded is TRL's: `pad` is one of its collators, `example` makes what that one takes (see `SpeechTrainer`).
    The clips' features are added under `audio`, one a row. Nothing is truncated.
    """

    processor: Any
    architecture: SpeechLLM
    end: list[int]
    """Token ids behind every completion."""
    pad: Callable[[list[dict[str, Any]]], dict[str, Any]]
    example: Callable[[list[int], Callable[[str], list[int]]], dict[str, list[int]]]

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Batch of `rows`, with the keys of TRL's collator and `audio`."""
        prompts = [twin_prompt(self.architecture, self.processor, row, "speech") for row in rows]
        examples = [
            self.example(prompt.ids, functools.partial(self.completion_ids, row))
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        return {**self.pad(examples), "audio": [prompt.features for prompt in prompts]}

    def completion_ids(self, row: Row, column: str) -> list[int]:
        """Token ids of the completion in a column, the end of its turn added."""
        text = completion_text(row[column])
        return [*self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], *self.end]


# ---- Trainers ------------------------------------------------------------------------------------------------------


class SpeechTrainer(KeptRun):
    """Mixin in front of one of TRL's supervised trainers. The only changes with respect to that one are:

    1. The data collator: rows stay as they are, and are tokenised with their audio when a batch is made.
    2. Audio embeddings are placed into all forward passes of `compute_loss`.
    3. A run is kept as `TARSGRPOTrainer` keeps its own.

    Arguments are those of TRL's trainer; with no `peft_config` the LoRA of `SpeechTrainingSettings` is used. Data sets
    have the columns `prompt` (the conversation in its written form), `audio` (its last question spoken), `key`, and
    those of `completions`. The audio tower, the projector and the vision tower stay as they are.

    Raises:
        ValueError: settings or data that cannot work, before anything is trained.
    """

    completions: tuple[str, ...]
    """Columns that hold completions: text, or a conversation of one assistant message."""
    padding: Any
    """TRL's collator class for token ids."""

    def __init__(
        self,
        model: Any,
        args: Any,  # a SupervisedSettings that is also TRL's settings
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        *,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, SupervisedSettings):
            raise SettingError(
                f"args is a {type(args).__name__}, which says nothing about audio and LoRA. Give a SpeechSFTConfig or "
                "SpeechDPOConfig: TRL's settings keep their names in it."
            )
        args = own_settings(args)
        train_dataset = completed_questions(train_dataset, self.completions, args)
        eval_dataset = completed_questions(eval_dataset, self.completions, args)
        model, self.architecture, peft_config = prepare_training(model, args, quantization_config, peft_config)
        base = base_of(model)
        processor = processing_class or AutoProcessor.from_pretrained(base.config.name_or_path, padding_side="left")
        pad = self.padding(processor.tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of)
        end = self.architecture.end_of_turn(processor, end_tokens_of(base, processor))
        parent: Any = super()
        parent.__init__(
            model=model,
            args=args,
            data_collator=SpeechCollator(processor, self.architecture, end, pad, self.example),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            peft_config=peft_config,
            **kwargs,
        )
        self._encoder = ClipEncoder(self.architecture, self.accelerator, frozen=True)
        self._show_trainable()

    @staticmethod
    def example(prompt_ids: list[int], completion_ids: Callable[[str], list[int]]) -> dict[str, list[int]]:
        """What `padding` takes out of a row: from its prompt's ids and those of the completion in a column."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, the audio of the batch in every pass; DPO's hold the rows once for each kind of completion."""
        batch = {name: value for name, value in inputs.items() if name != "audio"}
        with torch.no_grad():
            clips = self._encoder.encode(self.model, inputs["audio"]) * len(self.completions)
        parent: Any = super()
        with heard(self._base, clips):
            return parent.compute_loss(model, batch, *args, **kwargs)


class SpeechSFTTrainer(SpeechTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with spoken questions; what is different is in `SpeechTrainer`.

    The completion is in the column `completion`, as `tars-trl build-preferences` writes it. The loss is the mean over
    completion tokens, the end token among them.
    """

    completions = ("completion",)
    padding = DataCollatorForLanguageModeling

    @staticmethod
    def example(prompt_ids: list[int], completion_ids: Callable[[str], list[int]]) -> dict[str, list[int]]:
        """Ids of prompt and completion; only the completion has labels."""
        completion = completion_ids("completion")
        return {"input_ids": prompt_ids + completion, "labels": [-100] * len(prompt_ids) + completion}


class SpeechDPOTrainer(SpeechTrainer, DPOTrainer):
    """TRL's `DPOTrainer` with spoken questions; what is different is in `SpeechTrainer`.

    The completions are in the columns `chosen` and `rejected`, as `tars-trl build-preferences` writes them. The
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


def completed_questions(dataset: Any, columns: Sequence[str], args: Any) -> Any:
    """The usable rows of a data set (see `usable_questions`), if it has `prompt`, `audio`, `key` and `columns`.

    Raises:
        QuestionError: a column is missing, or a row has no completion there, by key and field.
    """
    for rows in dataset.values() if isinstance(dataset, dict) else [dataset]:
        names = rows.column_names if isinstance(rows, Dataset) else []
        missing = [name for name in ("prompt", "audio", "key", *columns) if name not in names]
        if isinstance(rows, Dataset) and missing:
            raise QuestionError(
                f"The data set has the columns {rows.column_names}: {missing} are missing, so there is nothing to "
                "train on. Build it with tars-trl build-preferences, or rename columns."
            )
        if isinstance(rows, Dataset):
            _check_completions(rows, columns)
    return usable_questions(dataset, args)


def _check_completions(rows: Dataset, columns: Sequence[str]) -> None:
    """Refuse completions that are no text, and those in which a tokenizer would see a clip or the end of a turn."""
    problems = []
    for row in rows.select_columns(["key", *columns]).with_format(None):
        for name in columns:
            given = row[name]
            is_turn = fits(given, list[dict]) and len(given) == 1 and given[0].get("role") == "assistant"
            text = given[0].get("content") if is_turn else given
            control = CONTROL.search(text) if isinstance(text, str) else None
            if not isinstance(text, str):
                problems.append(f"row {row['key']!r}, {name}: {given!r:.100} is no text and no assistant's message")
            elif control:
                problems.append(f"row {row['key']!r}, {name}: {control[0]!r} is no text to the model")
    if problems:
        listed = "\n  ".join(problems[:PROBLEMS_SHOWN])
        raise QuestionError(f"{len(problems)} completions cannot be learned from:\n  {listed}\nCorrect or remove them.")
