"""What a TARS run may set. Fields not listed here are TRL's (`trl.GRPOConfig`) and keep their meaning.

"Paper" is Closing the Modality Reasoning Gap for Speech Large Language Models (ACL 2026, arXiv 2601.05543); "released
code" its Phi-4 training scripts.
"""

from dataclasses import dataclass

import torch
from trl import GRPOConfig

from .grpo.alignment import LAYER_SETS
from .settings import setting


@dataclass
class TARSGRPOConfig(GRPOConfig):
    """Settings of `TARSGRPOTrainer`, with the method's defaults.

    Raises:
        ValueError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    # The method's values for settings that TRL has too.
    learning_rate: float = setting(2e-5, "Initial learning rate of AdamW (released code).")
    weight_decay: float = setting(0.01, "Weight decay (released code).")
    warmup_steps: float = setting(0.01, "Warm-up: a share of all steps below 1, else steps (released code: 1 %).")
    num_generations: int | None = setting(8, "G, completions of a question: half spoken, half written (paper: 4 + 4).")
    max_completion_length: int | None = setting(1024, "Most tokens of a completion (paper, table 5).")
    epsilon_high: float | None = setting(0.28, "Upper clipping bound, DAPO's clip-higher (released code).")
    scale_rewards: str = setting("none", "Advantages are r minus the mean of the modality, not divided (paper).")
    mask_truncated_completions: bool = setting(True, "Completions cut off at the limit do not count (released code).")
    vllm_importance_sampling_mode: str = setting("token_truncate", "Per-token ratio, truncated (released code).")
    vllm_importance_sampling_clip_max: float | None = setting(2.0, "Truncation of that ratio (released code).")

    # The method's own.
    modalities: str = setting("both", "`both` (TARS), or `text` / `speech`: plain GRPO on one modality, a baseline.")
    format_weight: float = setting(0.5, "lambda, weight of `format_reward` unless `reward_weights` is set (paper).")
    representation_weight: float = setting(1.0, "alpha, weight of R_rep; 0 turns it and its cost off (paper: 1.0).")
    behavior_weight: float = setting(1.0, "beta, weight of R_beh; 0 turns it and its cost off (paper: 1.0).")
    rep_layers: str = setting("all", f"Layers of R_rep: one of {LAYER_SETS}, or indices as '4,5,6' (figure 3).")
    reference: str = setting("random", "Which correct written completion is the reference: random, first or best.")
    reference_reward: str = setting("accuracy_reward", "Name of the reward that says correct: 1 or more is correct.")
    behavior_model: str = setting("Qwen/Qwen3-Embedding-0.6B", "Sentence-embedding model of R_beh (paper).")
    behavior_device: str | None = setting(
        None, "Where it runs, such as `cpu` or `cuda:1`; the training device if None."
    )
    behavior_batch_size: int = setting(32, "Texts a forward pass of the embedding model, per process.")

    # Order of the questions; rollouts.
    curriculum: str | None = setting(None, "Column to order the questions by, ascending; None shuffles them.")
    vllm_parity_tolerance: float = setting(
        1.0, "Most nats between vLLM's greedy tokens and the model's, checked before step 0; 0 leaves it out."
    )

    # What is trained.
    lora_r: int = setting(8, "Rank of LoRA on the language model's linear layers; 0 trains it whole (paper: 8).")
    lora_alpha: int = setting(32, "Scale of LoRA (paper, table 5: 32).")
    lora_dropout: float = setting(0.05, "Dropout of LoRA, in the update only (released code).")
    freeze_audio: bool = setting(True, "Keep audio tower, projector and vision as they are (paper).")

    # Audio and health.
    max_audio_seconds: float = setting(30.0, "Longer clips are refused before training; audio is never truncated.")
    on_bad_audio: str = setting("refuse", "`refuse` to start with unusable clips, or `skip` and count them.")
    health_steps: int = setting(20, "Logged steps in a row before a health warning is given; 0 gives none.")

    def __post_init__(self) -> None:
        self._check()
        if not torch.accelerator.is_available():
            self.use_cpu = True  # the same YAML then runs with a GPU and without
        super().__post_init__()
        self._check_windows()

    @property
    def aligned(self) -> bool:
        """Whether any alignment reward is on: it needs both twins."""
        return self.modalities == "both" and (self.representation_weight != 0 or self.behavior_weight != 0)

    def _check(self) -> None:
        choices = {
            "modalities": ("both", "speech", "text"),
            "reference": ("random", "first", "best"),
            "on_bad_audio": ("refuse", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a choice. Use one of {', '.join(allowed)}.")
        for name in ("num_generations", "num_generations_eval", "lora_r", "lora_alpha", "health_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{name}={value!r} is not a whole number. Give a whole number of 0 or more.")
        for name in (
            "representation_weight",
            "behavior_weight",
            "format_weight",
            "lora_dropout",
            "max_audio_seconds",
            "vllm_parity_tolerance",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} is not a finite number of 0 or more. Give one, such as 1.0.")
        if isinstance(self.rep_layers, str) and self.rep_layers not in LAYER_SETS:
            self.rep_layers = _numbers(self.rep_layers)  # type: ignore[assignment] # argparse has no str | list
        if self.curriculum is not None:
            self.shuffle_dataset = False
        if self.modalities == "both":
            self._check_twins()
        if self.reference == "best" and self.representation_weight == 0 and self.aligned:
            raise ValueError(
                "reference='best' picks by representation similarity, which representation_weight=0 turns off. "
                "Set reference to 'random' or 'first', or give representation_weight a value."
            )

    def _check_twins(self) -> None:
        size = self.num_generations
        if size is None or size < 4 or size % 2:
            raise ValueError(
                f"num_generations={size} cannot be halved into twins: it counts the spoken and the written completions "
                "of a question together, and a mean needs two of each. Use an even number of 4 or more (paper: 8)."
            )
        evaluated = self.num_generations_eval
        if evaluated is not None and (evaluated < 2 or evaluated % 2):
            raise ValueError(
                f"num_generations_eval={evaluated} cannot be halved into twins. Use an even number of 2 or more."
            )
        if self.multi_objective_aggregation != "sum_then_normalize" or self.scale_rewards == "batch":
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} with scale_rewards="
                f"{self.scale_rewards!r} normalises over the whole batch, which mixes the modalities. "
                "Use 'sum_then_normalize', with scale_rewards 'none' (the method) or 'group'."
            )

    def _check_windows(self) -> None:
        window = (self.steps_per_generation or 1) * self.num_iterations / self.gradient_accumulation_steps
        if window > 1 and self.save_strategy == "steps" and (self.save_steps < 1 or self.save_steps % window):
            raise ValueError(
                f"save_steps={self.save_steps} falls inside a generation window: one generation serves {window:g} "
                "optimizer steps (steps_per_generation * num_iterations / gradient_accumulation_steps), and a run "
                f"cannot resume exactly from the middle of it. Use a multiple of {window:g}."
            )


def _numbers(text: str) -> list[int]:
    """Layer indices from a command line: `"1,2,3"` or `"[1, 2, 3]"`."""
    try:
        return [int(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(
            f"rep_layers={text!r} is neither a layer set nor a list of indices. "
            f"Use one of {', '.join(LAYER_SETS)}, or indices such as [4, 5, 6]."
        ) from None
