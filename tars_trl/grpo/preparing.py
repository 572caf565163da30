"""What a trainer is given, made ready before TRL sees it: settings, questions, the model; and what is refused."""

import copy
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Audio, Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import set_seed
from transformers.integrations import get_reporting_integration_callbacks

from ..data.audio import undecoded
from ..data.checking import check_audio
from ..data.questions import ordered_by
from ..data.schema import check_rows
from ..errors import SettingError
from ..models import SpeechLLM, architecture_of
from ..models.loading import load_model, number_of_parameters
from ..models.prompting import base_of
from ..models.vllm import version as vllm_version
from ..settings import fits
from .resuming import named_checkpoint
from .rewards import check_columns

logger = logging.getLogger(__name__)

LARGE = 1_000_000_000
"""Parameters above which a run does not start on a CPU unless asked to: a step would take an hour."""
ADAPTERS_SHOWN = 20


def own_settings(args: Any) -> Any:
    """A copy of a run's settings that a trainer may change: the user's stay as they were given.

    It is shallow but for lists and dicts, so that what accelerate and DeepSpeed keep in it is the same object. The
    hub's token leaves it for the environment: transformers saves all settings in every checkpoint.

    Raises:
        SettingError: `resume_from_checkpoint` is no folder, `output_dir` cannot be one, `behavior_device` is not
            there, or what `report_to` or `use_vllm` ask for is not installed.
    """
    own = copy.copy(args)
    own.resume_from_checkpoint = named_checkpoint(own.resume_from_checkpoint)
    hide_hub_token(own)
    _check_surroundings(own)
    for name, value in vars(own).items():
        if isinstance(value, list | dict):
            setattr(own, name, copy.deepcopy(value))
    return own


def _check_surroundings(args: Any) -> None:
    """See that there is a place for the run, and what it asks for, before a model is loaded."""
    if getattr(args, "use_vllm", False):
        vllm_version("use_vllm=True")
    folder = Path(args.output_dir).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "this user may not write to" if there.is_dir() else "there is a file,"
        raise SettingError(f"output_dir={args.output_dir!r}: {why} {there}. Give another place.")
    device = getattr(args, "behavior_device", None)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"behavior_device={device!r} is not on this machine, {error} Name another one.") from error
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            if callback.__module__.startswith("transformers."):
                callback()
    except (ValueError, RuntimeError, ImportError) as error:  # no such tracker; not installed, and how it is
        raise SettingError(f"report_to={args.report_to}: {error} Or set report_to: none.") from error


def hide_hub_token(args: Any) -> None:
    """Take the hub's token out of settings and command line, which trackers save, into `HF_TOKEN` of this process."""
    token = args.hub_token
    if token:
        os.environ["HF_TOKEN"], args.hub_token = token, None
        sys.argv = [word.replace(token, "***") for word in sys.argv]


def usable_questions(dataset: Any, args: Any, curriculum: str | None = None, reward_funcs: Sequence[Any] = ()) -> Any:
    """The rows of a data set (or of each in a dict of them) that can be asked, ordered by `curriculum` if it is given.

    Raises:
        SettingError: a data set without rows, or without a known length.
        QuestionError: rows that are no questions, by key and field; columns that `reward_funcs` cannot work with.
        AudioError: clips that cannot be used, unless `on_bad_audio` is `skip`.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: usable_questions(rows, args, None, reward_funcs) for name, rows in dataset.items()}
    if not isinstance(dataset, Dataset):
        raise SettingError(
            f"The data set is a {type(dataset).__name__}; its audio can be checked, and its twins counted, in a "
            "datasets.Dataset only. Load it without streaming, for example with tars_trl.load_questions."
        )
    # As plain values, whatever format the user set; a second recording would be decoded whenever its row is drawn.
    dataset = dataset.with_format(None)
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = undecoded(dataset, name)
    if len(dataset) == 0:
        raise SettingError("The data set has no rows, so there is nothing to train on. Give another dataset or split.")
    if reward_funcs:
        check_columns(dataset.column_names, reward_funcs)
    check_rows(dataset, required=("prompt",), unique=False)  # a group is asked its own question, whatever its key
    if getattr(args, "modalities", "speech") == "text":
        dataset = dataset.remove_columns("audio") if "audio" in dataset.column_names else dataset
    else:
        dataset = check_audio(
            dataset,
            max_seconds=args.max_audio_seconds,
            max_megabytes=args.max_audio_megabytes,
            on_error=args.on_bad_audio,
            together=True,
        )
    return dataset if curriculum is None else ordered_by(dataset, curriculum)


def prepare_training(
    model: Any, args: Any, quantization_config: Any = None, peft_config: Any = None
) -> tuple[Any, SpeechLLM, Any]:
    """The model as TRL takes it: loaded, audio side frozen, and the settings of its adapter.

    Args:
        model: hub id or folder, or a model.
        args: a trainer's own settings (`tars_trl.config.SpeechTrainingSettings`); `model_init_kwargs` are used up.
        quantization_config: as transformers takes it, for a model that is loaded here.
        peft_config: None for the method's LoRA (`lora_r`, `lora_alpha`, `lora_dropout`), unless `lora_r` is 0.

    Returns:
        the model, its architecture, and the `peft_config` to use (None trains the whole language model).

    Raises:
        SettingError: settings that do not go together.
    """
    if isinstance(model, str):
        set_seed(args.seed)
        options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if args.on_cpu_for_want_of_better:
            _refuse_large(model, number_of_parameters(model, **options))
        # A whole model is updated in the type it is loaded in: bfloat16 would lose small steps.
        model = load_model(model, full_precision=args.use_cpu or args.lora_r == 0, **options)
        args.model_init_kwargs = None
    base = base_of(model)
    architecture = architecture_of(base.config.model_type)
    architecture.prepare(base)
    longest = architecture.longest_clip
    if longest is not None and args.max_audio_seconds > longest and getattr(args, "modalities", "speech") != "text":
        raise SettingError(
            f"max_audio_seconds={args.max_audio_seconds:g}, and {architecture.class_name} hears {longest:g} s: its "
            f"processor cuts what is longer. Set max_audio_seconds: {longest:g}; on_bad_audio: skip leaves out longer "
            "questions."
        )
    if architecture.router is not None:
        if args.router_aux_loss_coef:
            raise SettingError(
                f"router_aux_loss_coef={args.router_aux_loss_coef}: the router of a mixture stays as it is here, so a "
                "loss that balances it would move attention instead. Leave it out."
            )
        args.router_aux_loss_coef = 0.0  # None is TRL's word for the checkpoint's own
    if args.freeze_audio:
        _say_frozen_adapters(base, architecture)
        for path in architecture.audio_modules.values():
            base.get_submodule(path).requires_grad_(False)
    if peft_config is None and args.lora_r > 0 and base is model:
        if args.lora_experts and (not architecture.expert_parameters or args.lora_dropout):
            raise SettingError(
                f"lora_experts=True with lora_dropout={args.lora_dropout} on a {architecture.class_name}: only a "
                "mixture has experts, and LoRA on their stacked weights knows no dropout. Set lora_dropout: 0 for a "
                "mixture, or leave lora_experts off."
            )
        peft_config = architecture.lora(
            experts=args.lora_experts, r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout
        )
    whole = peft_config is None and base is model
    if not args.freeze_audio and not whole:
        raise SettingError(
            "freeze_audio=False has no effect beside LoRA, which freezes all but its own weights. Train the whole "
            "model (lora_r=0), or leave freeze_audio on."
        )
    if getattr(args, "modalities", None) is not None and args.beta and whole:
        raise SettingError(
            f"beta={args.beta} with lora_r=0 needs a second whole model, which TRL would load by the class that the "
            "checkpoint names, not the part that is trained. Use LoRA, whose reference is the model with the adapter "
            "off, or beta=0 (the method's)."
        )
    if whole and getattr(args, "distillation_weight", None) and args.teacher_model_kind == "base":
        raise SettingError(
            "teacher_model_kind='base' with lora_r=0: the model as it was is gone once the whole of it is trained. Use "
            "LoRA, whose teacher is the model with the adapter off, or teacher_model_kind='live'."
        )
    return model, architecture, peft_config


def _say_frozen_adapters(base: Any, architecture: SpeechLLM) -> None:
    """Warn of adapters that the model came with and that are frozen with the side that they are on."""
    sides = tuple(f"{path}." for path in architecture.audio_modules.values())
    adapters = (name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))
    frozen = sorted(name for name in adapters if name.startswith(sides))
    if frozen:
        listed = ", ".join(frozen[:ADAPTERS_SHOWN]) + (", …" if len(frozen) > ADAPTERS_SHOWN else "")
        logger.warning(
            "%d adapters that the model came with are on the audio or vision side, which freeze_audio keeps as it is: "
            "they are heard with, and not trained: %s.",
            len(frozen),
            listed,
        )


def suppress(args: Any, tokens: list[int]) -> None:
    """Add to the tokens that are never sampled, in a trainer's own settings."""
    generation = args.generation_kwargs or {}
    if not fits(generation.get("suppress_tokens", []), list[int]):
        raise SettingError(
            f"generation_kwargs: suppress_tokens={generation['suppress_tokens']!r} is no list of token ids. Give one."
        )
    tokens = sorted({*generation.get("suppress_tokens", []), *tokens})
    args.generation_kwargs = {**generation, "suppress_tokens": tokens}


def refuse_several_turns(arguments: dict[str, Any]) -> None:
    """Refuse what `GRPOTrainer` has for several turns."""
    for name in ("tools", "rollout_func", "environment_factory"):
        if arguments.get(name) is not None:
            raise SettingError(
                f"{name} cannot be used here: twins are single-turn and sampled by the trainer. Leave it out, or use "
                "trl.GRPOTrainer for tools, environments and rollout functions."
            )


def refuse_misplaced_adapters(base: Any, architecture: SpeechLLM, args: Any) -> None:
    """Refuse an adapter of any kind that would train a frozen audio side.

    PEFT turns an expression of `target_modules` into bare leaf names for mixture models, and `all-linear` means every
    linear layer there is. A mixture's router is never adapted.

    Raises:
        SettingError: adapters where they should not be, or none on the experts where they were asked for.
    """
    trained = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    misplaced = [name for name in trained if any(name.startswith(f"{p}.") for p in architecture.audio_modules.values())]
    if misplaced and args.freeze_audio:
        raise SettingError(
            f"{len(misplaced)} of {len(trained)} trainable parameters are on the audio or vision side, such as "
            f"{misplaced[0]}, which freeze_audio keeps as it is. Give target_modules of the language model alone, such "
            f"as {architecture.lora_targets!r}, or no peft_config."
        )
    adapted = [name for name, module in base.named_modules() if getattr(module, "lora_A", None)]
    routers = [name for name in adapted if architecture.router is not None and name.endswith(f".{architecture.router}")]
    if routers:
        raise SettingError(
            f"{len(routers)} of {len(adapted)} LoRA adapters are on the router, such as {routers[0]}, which chooses "
            "experts and stays as it is. Give target_modules of attention, and target_parameters "
            f"{list(architecture.expert_parameters)} for the experts, or no peft_config."
        )
    experts = {end.rpartition(".")[0] for end in architecture.expert_parameters}
    if args.lora_experts and not any(name.endswith(end) for name in adapted for end in experts):
        raise SettingError(
            f"lora_experts=True, and none of {len(adapted)} LoRA adapters is on an expert: the peft_config, or the "
            "adapter that the model came with, says otherwise. Leave lora_experts off, or give no peft_config."
        )


def _refuse_large(model_id: str, parameters: int) -> None:
    logger.warning("No accelerator was found: the run goes on the CPU.")
    if parameters > LARGE:
        raise SettingError(
            f"model={model_id!r} has {parameters / 1e9:.1f} billion parameters, and there is no accelerator here: on "
            "the CPU the run would not end. Run it where there is one, or insist with --use_cpu true."
        )
