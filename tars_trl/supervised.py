"""Speech for TRL's supervised trainers: what `SpeechSFTTrainer` and `SpeechDPOTrainer` share.

TRL pads, batches and scores token ids. Beside them go the features of each row's clip; they are encoded once a batch,
and `placed_audio` puts them into the token embeddings of every forward pass, as in `TARSGRPOTrainer`. So model, LoRA
targets, prompts and audio are the same for every method that is compared.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import AutoProcessor
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .data.answers import completion_text
from .data.audio import check_audio, load_audio
from .data.prompts import spoken_prompt
from .models import Features, SpeechLLM, architecture_of
from .models.hooks import placed_audio
from .models.loading import load_model, method_lora
from .models.sharding import encode_together, is_spread
from .record import report_trainable
from .settings import setting

Row = dict[str, Any]


@dataclass
class SpeechSettings:
    """What a supervised run on speech may set beside TRL's settings; the same names as in `TARSGRPOConfig`.

    Raises:
        ValueError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    max_length: int | None = setting(None, "Must stay None: what is cut may be audio. Limit max_audio_seconds instead.")
    lora_r: int = setting(8, "Rank of LoRA on the language model's linear layers; 0 trains it whole (paper: 8).")
    lora_alpha: int = setting(32, "Scale of LoRA (paper, table 5: 32).")
    lora_dropout: float = setting(0.05, "Dropout of LoRA (released code of TARS).")
    max_audio_seconds: float = setting(30.0, "Longer clips are refused before training; audio is never truncated.")
    on_bad_audio: str = setting("refuse", "`refuse` to start with unusable clips, or `skip` and count them.")

    def __post_init__(self) -> None:
        if self.max_length is not None:
            raise ValueError(
                f"max_length={self.max_length} would cut rows, and with them audio tokens. Leave it None; limit "
                "max_audio_seconds here and the completions where they are sampled."
            )
        for name in ("lora_r", "lora_alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} is not a whole number. Give a whole number of 0 or more.")
        for name in ("lora_dropout", "max_audio_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} is not a finite number of 0 or more. Give one, such as 30.0.")
        if self.on_bad_audio not in ("refuse", "skip"):
            raise ValueError(f"on_bad_audio={self.on_bad_audio!r} is not a choice. Use refuse or skip.")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # the same YAML then runs with a GPU and without
        parent: Any = super()
        parent.__post_init__()


class SpeechTrainer:
    """Mixin in front of one of TRL's supervised trainers. The only changes with respect to that one are:

    1. The data collator: rows stay as they are, and are tokenised with their audio when a batch is made.
    2. Audio embeddings are placed into all forward passes of `compute_loss`.

    Arguments are those of TRL's trainer; with no `peft_config` the LoRA of `SpeechSettings` is used. Data sets have the
    columns `prompt` (the conversation in its written form), `audio` (its last question spoken), `key`, and those of
    `completions`. The audio tower, the projector and the vision tower stay as they are.

    Raises:
        ValueError: settings or data that cannot work, before anything is trained.
    """

    completions: tuple[str, ...]
    """Columns that hold completions: text, or a conversation of one assistant message."""
    padding: Any
    """TRL's collator class for token ids."""

    args: Any
    model: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        args: Any,  # a SpeechSettings that is also TRL's settings
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        train_dataset = checked(train_dataset, self.completions, args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: checked(dataset, self.completions, args) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = checked(eval_dataset, self.completions, args)
        if isinstance(model, str):
            model = load_model(model, args, quantization_config)
        base = model.get_base_model() if is_peft_model(model) else model
        self.architecture = architecture_of(base.config.model_type)
        self.architecture.prepare(base)
        for path in self.architecture.audio_modules.values():
            base.get_submodule(path).requires_grad_(False)
        if peft_config is None and args.lora_r > 0 and not is_peft_model(model):
            peft_config = method_lora(self.architecture, args)
        processor = processing_class or AutoProcessor.from_pretrained(base.config.name_or_path, padding_side="left")
        pad = self.padding(processor.tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of)
        end = end_of_turn(processor, end_tokens_of(base, processor))
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
        self._report_trainable()

    @staticmethod
    def example(prompt_ids: list[int], completion_ids: Callable[[str], list[int]]) -> dict[str, list[int]]:
        """What `padding` takes out of a row: from its prompt's ids and those of the completion in a column."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, the audio of the batch in every pass; a pass may hold the rows twice, chosen and rejected."""
        batch = {name: value for name, value in inputs.items() if name != "audio"}
        parent: Any = super()
        with self._audio(inputs["audio"]):
            return parent.compute_loss(model, batch, *args, **kwargs)

    @contextmanager
    def _audio(self, clips: Sequence[Features]) -> Iterator[None]:
        base = self._base_model()
        with torch.no_grad():
            if is_spread(self.accelerator):
                rows, _ = encode_together(self.architecture, self.accelerator, self.model, list(clips), clips[0])
            else:
                rows = self.architecture.encode(base, clips)
        with placed_audio(base.get_input_embeddings(), self.architecture.audio_token(base), rows):
            yield

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    def _report_trainable(self) -> None:
        if self.accelerator.is_main_process:
            report_trainable(self._base_model(), self.architecture.audio_modules, self.args.output_dir)

    def _send_telemetry(self) -> None:
        """Nothing: what runs where is nobody's business unless the user asks for it."""


def checked(dataset: Any, columns: Sequence[str], args: Any) -> Dataset:
    """`dataset` with usable audio, if it has the columns `prompt`, `audio` and `key`, and `columns`.

    Raises:
        ValueError: another kind of settings or of data set, or a column is missing.
        AudioError: clips that cannot be used, unless `on_bad_audio` is `skip`.
    """
    if not isinstance(args, SpeechSettings):
        raise ValueError(
            f"args is a {type(args).__name__}, which says nothing about audio and LoRA. Give a SpeechSFTConfig or "
            "SpeechDPOConfig: TRL's settings keep their names in it."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The data set is a {type(dataset).__name__}; its audio can be checked in a datasets.Dataset only. "
            "Load it without streaming, for example with tars_trl.data.load_questions."
        )
    missing = [name for name in ("prompt", "audio", "key", *columns) if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set has the columns {dataset.column_names}: {missing} are missing, so there is nothing to "
            "train on. Build it with recipes/build_preferences.py, or rename columns."
        )
    return check_audio(dataset, max_seconds=args.max_audio_seconds, on_error=args.on_bad_audio)


def end_of_turn(processor: Any, end_tokens: Sequence[int]) -> list[int]:
    """Token ids behind an assistant's text, as the chat template writes them, up to the first one that ends a turn.

    Args:
        end_tokens: ids at which generation stops.

    Raises:
        ValueError: no such token follows, so that a trained model would not know when to stop.
    """
    said = "tars-trl"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    written = processor.apply_chat_template([turns], tokenize=False)
    text = written[0] if isinstance(written, list) else written
    ids = processor.tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    ends = [place for place, token in enumerate(ids) if token in end_tokens]
    if not ends:
        raise ValueError(
            f"The chat template writes {text.rpartition(said)[2]!r} behind an assistant's turn, which holds none of "
            f"the tokens {list(end_tokens)} that end a generation: the model would not learn to stop. Correct the "
            "chat template, or eos_token_id of the generation config."
        )
    return list(ids[: ends[0] + 1])


def end_tokens_of(model: Any, processor: Any) -> list[int]:
    """Ids at which a model's generation stops, sorted."""
    ends = model.generation_config.eos_token_id
    return sorted({processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


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
        examples, clips = [], []
        for row in rows:
            prompt = self.architecture.prompt(self.processor, spoken_prompt(row["prompt"]), load_audio(row["audio"]))
            completions = functools.partial(self.completion_ids, row)
            examples.append(self.example(prompt.ids, completions))
            clips.append(prompt.features)
        return {**self.pad(examples), "audio": clips}

    def completion_ids(self, row: Row, column: str) -> list[int]:
        """Token ids of the completion in a column, the end of its turn added."""
        text = completion_text(row[column])
        return [*self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], *self.end]


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
