"""What a TARS run may set. Fields not listed here are TRL's (`trl.GRPOConfig`) and keep their meaning.

"Paper" is Closing the Modality Reasoning Gap for Speech Large Language Models (ACL 2026, arXiv 2601.05543); "released
code" the training scripts that go with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from trl import GRPOConfig

from .errors import SettingError
from .grpo.alignment import LAYER_SETS
from .settings import AudioSettings, Rule, check, defaults_of, setting

# Of fields that are TRL's and transformers': refused here, before a model is loaded.
INHERITED = {
    "learning_rate": Rule(above=0, most=100),
    "weight_decay": Rule(least=0, most=1),
    "max_grad_norm": Rule(least=0),
    "adam_epsilon": Rule(least=0),
    "num_train_epochs": Rule(above=0),
    "warmup_steps": Rule(least=0),
    "per_device_train_batch_size": Rule(least=1),
    "per_device_eval_batch_size": Rule(least=1),
    "gradient_accumulation_steps": Rule(least=1),
    "seed": Rule(least=0, most=2**32 - 1),
    "label_smoothing_factor": Rule(least=0, most=1),
    "dataloader_num_workers": Rule(least=0),
}
GRPO_INHERITED = INHERITED | {
    "num_iterations": Rule(least=1),
    "steps_per_generation": Rule(least=1),
    "max_completion_length": Rule(least=1),
    "temperature": Rule(least=1e-3, most=1000),  # logits are divided by it, and must stay finite
    "top_p": Rule(above=0, most=1),
    "top_k": Rule(least=0),
    "min_p": Rule(least=0, most=1),
    "repetition_penalty": Rule(above=0),
    "beta": Rule(least=0),
    "epsilon": Rule(least=0),
    "epsilon_high": Rule(least=0),
    "delta": Rule(least=1),  # the largest ratio to the old policy
    "reward_weights": Rule(least=-1000, most=1000),
    "sapo_temperature_pos": Rule(above=0),
    "sapo_temperature_neg": Rule(above=0),
    "top_entropy_quantile": Rule(least=0, most=1),
    "off_policy_mask_threshold": Rule(least=0),
    "ref_model_mixup_alpha": Rule(least=0, most=1),
    "ref_model_sync_steps": Rule(least=1),
    "vllm_mode": Rule(choices=("server", "colocate")),
    "vllm_gpu_memory_utilization": Rule(above=0, most=1),
    "loss_type": Rule(choices=("grpo", "dapo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")),
    "importance_sampling_level": Rule(choices=("token", "sequence")),
}


@dataclass
class SpeechTrainingSettings(AudioSettings):
    """What every trainer on speech may set: which clips it takes and what of the model it trains."""

    on_cpu_for_want_of_better = False
    """Whether `use_cpu` was not asked for: then only small models are trained (`grpo.preparing`). No setting."""

    lora_r: int = setting(
        8, "Rank of LoRA on the language model's linear layers; 0 trains it whole (paper: 8).", least=0
    )
    lora_alpha: int = setting(32, "Scale of LoRA (paper, table 5: 32).", least=1)
    lora_dropout: float = setting(0.05, "Dropout of LoRA, in the update only (released code).", least=0, below=1)
    lora_experts: bool = setting(
        False, "LoRA on the experts of a mixture, too, beside its attention; needs lora_dropout 0."
    )
    use_cpu: bool = setting(False, "Run on the CPU although there is an accelerator, or train a large model on it.")
    freeze_audio: bool = setting(True, "Keep audio tower, projector and vision as they are (paper).")
    overwrite_output_dir: bool = setting(
        False, "Replace a run that lies in `output_dir`. Without it a second run there is refused."
    )

    inherited: ClassVar[dict[str, Rule]] = INHERITED
    """Rules for fields of TRL and transformers."""

    def prepare(self) -> None:
        """Check all fields, those of TRL too; without an accelerator, run on the CPU (the same YAML serves both)."""
        check(self, self.inherited)
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = self.on_cpu_for_want_of_better = True

    def check_optimizer(self) -> None:
        """Make the optimizer and its schedule for a single weight: what they refuse is told before a model is there."""
        from transformers import Trainer, get_scheduler

        args: Any = self  # also TRL's settings
        if args.optim_target_modules is not None:  # it asks for the model
            return
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
            options = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs, "num_warmup_steps": 0}
            get_scheduler(args.lr_scheduler_type, optimizer, num_training_steps=10**6, **options)
        except (ValueError, TypeError) as error:
            names = ("optim", "optim_args", "adam_beta1", "adam_beta2", "lr_scheduler_type", "lr_scheduler_kwargs")
            told = ", ".join(f"{name}={getattr(getattr(args, name), 'value', getattr(args, name))!r}" for name in names)
            raise SettingError(
                f"{told}: the optimizer and its schedule cannot be made of these, {error}. Correct what it says."
            ) from error


@dataclass
class TARSGRPOConfig(SpeechTrainingSettings, GRPOConfig):
    """Settings of `TARSGRPOTrainer`, with the method's defaults.

    Raises:
        SettingError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    inherited: ClassVar[dict[str, Rule]] = GRPO_INHERITED

    # The method's values for settings that TRL has too.
    learning_rate: float = setting(2e-5, "Initial learning rate of AdamW (released code).", above=0, most=100)
    weight_decay: float = setting(0.01, "Weight decay of AdamW (released code).", least=0, most=1)
    warmup_steps: float = setting(
        0.01, "Warm-up: a share of all steps below 1, else steps (released code: 1 %).", least=0
    )
    num_generations: int | None = setting(
        8, "G, completions of a question in a step: half spoken, half written (paper: 4 + 4).", least=1
    )
    num_generations_eval: int | None = setting(
        None, "The same in evaluation during training. None: as `num_generations`.", least=1
    )
    max_completion_length: int | None = setting(1024, "Most tokens of a completion (paper, table 5).", least=1)
    epsilon_high: float | None = setting(0.28, "Upper clipping bound, DAPO's clip-higher (released code).", least=0)
    scale_rewards: str = setting(
        "none",
        "Advantages are r minus the mean of the modality, not divided (paper).",
        choices=("none", "group", "batch"),
    )
    mask_truncated_completions: bool = setting(True, "Completions cut off at the limit do not count (released code).")
    vllm_importance_sampling_mode: str = setting(
        "token_truncate",
        "What is done with the ratio of the trained policy to vLLM's: per token, truncated (released code).",
        choices=("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    )
    vllm_importance_sampling_clip_max: float | None = setting(2.0, "Truncation of that ratio (released code).", above=0)

    # The method's own.
    modalities: str = setting(
        "both",
        "Which twins are asked: both (TARS), or text or speech: plain GRPO on one modality, a baseline.",
        choices=("both", "speech", "text"),
    )
    format_weight: float = setting(
        0.5, "lambda, weight of `format_reward` unless `reward_weights` is set (paper).", least=0, most=1000
    )
    representation_weight: float = setting(
        1.0, "alpha, weight of R_rep; 0 turns it and its cost off (paper: 1.0).", least=0, most=1000
    )
    behavior_weight: float = setting(
        1.0, "beta, weight of R_beh; 0 turns it and its cost off (paper: 1.0).", least=0, most=1000
    )
    rep_layers: str = setting(
        "all", f"Decoder layers of R_rep: one of {', '.join(LAYER_SETS)}, or indices from 0 as '4,5,6' (figure 3)."
    )
    reference: str = setting(
        "random",
        "Which correct written completion of its question a spoken one is compared with: random (paper), first, or "
        "best (the most similar one).",
        choices=("random", "first", "best"),
    )
    reference_reward: str = setting("accuracy_reward", "Name of the reward that says correct: 1 or more is correct.")
    behavior_model: str = setting(
        "Qwen/Qwen3-Embedding-0.6B",
        "Sentence-embedding model of R_beh: hub id, folder, or package:NAME/FOLDER of an installed package (paper).",
        required=True,
    )
    behavior_device: str | None = setting(None, "Where it runs, such as cpu or cuda:1. None: the training device.")
    behavior_batch_size: int = setting(32, "Texts in a forward pass of the embedding model, per process.", least=1)

    # Learning from the written twin token by token (docs/guides/distillation.md).
    distillation_weight: float = setting(
        0.0,
        "Weight of what the written twin's reader thinks of each spoken token, beside the rewards (experimental) or "
        "alone (X-OPD, arXiv 2603.24596; TRL's SDPO has the name); 0 turns it and its cost off.",
        least=0,
        most=1000,
    )
    distillation_mode: str = setting(
        "sampled_token",
        "How it is learned from: sampled_token adds log pi(y|written) - log pi(y|spoken) to the advantages; "
        "full_logits descends a divergence over the whole vocabulary and keeps a hidden state for every token (TRL).",
        choices=("sampled_token", "full_logits"),
    )
    distillation_alpha: float = setting(
        0.5, "Divergence of full_logits: 0 forward, 1 reverse, between them Jensen-Shannon (TRL: 0.5).", least=0, most=1
    )
    teacher_model_kind: str = setting(
        "base",
        "Who reads the written prompt: base, the model with the adapter off, or live, the model as it is (TRL: base).",
        choices=("base", "live"),
    )
    distillation_text_weight: float | None = setting(
        None,
        "The same weight for written rows, which keeps what the model could in writing; needs the base teacher. None: "
        "as `distillation_weight` where there are no reward functions, else 0 (X-OPD's same-modality half).",
        least=0,
        most=1000,
    )
    distillation_clip: float | None = setting(
        5.0, "Most nats that one token can count, either way. None: no limit.", above=0
    )
    distillation_gate: str = setting(
        "always",
        "Where spoken tokens are taught: always; correct, on questions with a right written completion; one_sided, "
        "only tokens that the teacher finds likelier (OPOD, arXiv 2607.20918).",
        choices=("always", "correct", "one_sided"),
    )

    # Order of the questions; rollouts.
    curriculum: str | None = setting(
        None, "Column of the questions to order them by, ascending. None: they are shuffled."
    )
    vllm_parity_tolerance: float = setting(
        1.0, "Most nats between vLLM's greedy tokens and the model's, checked before step 0; 0 leaves it out.", least=0
    )

    shared_prefix: str = setting(
        "auto",
        "Whether a twin's prompt goes through the model once for all its completions when they are scored: auto, or "
        "never. The result is the same; auto compares both ways in the first batch, and says why if it cannot.",
        choices=("auto", "never"),
    )

    # Health.
    health_steps: int = setting(5, "Logged steps in a row before a health warning is given; 0 gives none.", least=0)

    def __post_init__(self) -> None:
        scale, layers = vars(self)["scale_rewards"], vars(self)["rep_layers"]
        if isinstance(scale, bool):  # as TRL takes it
            self.scale_rewards = "group" if scale else "none"
        if isinstance(layers, list | tuple):
            self.rep_layers = ",".join(map(str, layers))
        self.prepare()
        if self.rep_layers not in LAYER_SETS:
            self.rep_layers = _numbers(self.rep_layers)  # type: ignore[assignment] # argparse has no str | list
        if self.curriculum is not None:
            self.shuffle_dataset = False
        self._check_alignment()
        if self.modalities == "both":
            self._check_twins()
        for name in ("num_beams", "num_return_sequences"):
            if vars(self)["generation_kwargs"] and self.generation_kwargs.get(name, 1) != 1:
                raise SettingError(
                    f"generation_kwargs: {name} makes other completions than one sampled for each row. Leave it out; "
                    "num_generations counts the completions of a question."
                )
        self._check_distillation()
        GRPOConfig.__post_init__(self)
        self.check_optimizer()
        self._check_windows()

    @property
    def aligned(self) -> bool:
        """Whether any alignment reward is on: it needs both twins."""
        return self.modalities == "both" and (self.representation_weight != 0 or self.behavior_weight != 0)

    @property
    def pools_states(self) -> bool:
        """Whether hidden states are pooled for R_rep."""
        return self.modalities == "both" and self.representation_weight != 0

    def _check_alignment(self) -> None:
        if self.reference == "best" and self.aligned and not self.pools_states:
            raise SettingError(
                "reference='best' picks by representation similarity, which representation_weight=0 turns off. "
                "Set reference to 'random' or 'first', or give representation_weight a value."
            )
        try:
            if self.behavior_device is not None:
                torch.device(self.behavior_device)  # whether this machine has it matters to a run, not to a plan
        except RuntimeError as error:
            raise SettingError(
                f"behavior_device={self.behavior_device!r}: nothing can be computed there, {error} Name a device, "
                "such as cpu or cuda:1, or leave it out."
            ) from error
        if self.torch_compile and self.modalities != "text":
            raise SettingError(
                "torch_compile=True cannot be used with spoken questions: audio is placed, and states are pooled, by "
                "hooks that a compiled forward pass may skip. Leave it out, or set modalities to 'text'."
            )

    def _check_twins(self) -> None:
        size, evaluated = self.num_generations, self.num_generations_eval
        if size is None or size < 4 or size % 2:
            raise SettingError(
                f"num_generations={size} cannot be halved into twins: it counts the spoken and the written completions "
                "of a question together, and a mean needs two of each. Use an even number of 4 or more (paper: 8)."
            )
        if evaluated is not None and (evaluated < 2 or evaluated % 2):
            raise SettingError(
                f"num_generations_eval={evaluated} cannot be halved into twins. Use an even number of 2 or more."
            )
        if self.multi_objective_aggregation != "sum_then_normalize" or self.scale_rewards == "batch":
            raise SettingError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} with scale_rewards="
                f"{self.scale_rewards!r} normalises over the whole batch, which mixes the modalities. "
                "Use 'sum_then_normalize', with scale_rewards 'none' (the method) or 'group'."
            )

    def _check_distillation(self) -> None:
        refused = (
            (not self.distillation_weight and self.distillation_text_weight, "distillation_text_weight",
             "nothing is learned from the written twin, whose term for written rows this is", "distillation_weight"),
            (self.distillation_weight and self.modalities == "text", "distillation_weight",
             "without spoken rows there is nobody to teach", "modalities"),
            (self.distillation_text_weight and self.modalities == "speech", "distillation_text_weight",
             "there are no written rows", "modalities"),
            (self.distillation_text_weight and self.teacher_model_kind == "live", "distillation_text_weight",
             "a live teacher says of written rows what the student says", "teacher_model_kind"),
            (self.distillation_weight and self.distillation_gate == "correct" and self.modalities != "both",
             "distillation_gate", "there are no written completions that could be right", "modalities"),
            (self.distillation_mode == "full_logits" and self.distillation_gate == "one_sided", "distillation_gate",
             "a divergence over the vocabulary has no sides", "distillation_mode"),
            (self.distillation_mode == "full_logits" and self.loss_type in ("cispo", "sapo", "vespo"), "loss_type",
             "this loss scales what takes the way of its advantages", "distillation_mode"),
        )  # fmt: skip
        for wrong, name, why, other in refused:
            if wrong:
                raise SettingError(
                    f"{name}={getattr(self, name)!r} with {other}={getattr(self, other)!r}: {why}. Change one of them."
                )

    def _check_windows(self) -> None:
        window = (self.steps_per_generation or 1) * self.num_iterations / self.gradient_accumulation_steps
        if window > 1 and self.save_strategy == "steps" and (self.save_steps < 1 or self.save_steps % window):
            raise SettingError(
                f"save_steps={self.save_steps} falls inside a generation window: one generation serves {window:g} "
                "optimizer steps (steps_per_generation * num_iterations / gradient_accumulation_steps), and a run "
                f"cannot resume exactly from the middle of it. Use a multiple of {window:g}."
            )


def _numbers(text: str) -> list[int]:
    """Layer indices from a command line: `"1,2,3"` or `"[1, 2, 3]"`."""
    try:
        numbers = [int(number) for number in text.strip("[]").split(",")]
        if min(numbers) < 0:
            raise ValueError
        return numbers
    except ValueError:
        raise SettingError(
            f"rep_layers={text!r} is neither a layer set nor a list of indices. "
            f"Use one of {', '.join(LAYER_SETS)}, or indices such as [4, 5, 6]."
        ) from None


OF_THE_MACHINE = ("logging_dir", "output_dir", "run_name")


def telling_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run (of its `run.json`) as others may read them, in two parts.

    Nothing that is secret or names the machine is among them: folders are called by their last name.

    Returns:
        the method's own settings and others that are not at their default; all the rest.
    """
    defaults = defaults_of(TARSGRPOConfig)
    ours = {field.name for field in fields(TARSGRPOConfig) if "rule" in field.metadata}
    chosen: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in settings.items():
        if name in OF_THE_MACHINE or name.endswith("_token"):
            continue
        if isinstance(value, str) and value.startswith(("/", "~")):
            value = Path(value).name
        part = chosen if name in ours or (name in defaults and value != defaults[name]) else rest
        part[name] = value
    return chosen, rest
