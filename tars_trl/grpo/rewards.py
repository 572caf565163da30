"""Task rewards: ordinary TRL reward functions, for both modalities alike; and the columns of the alignment rewards.

A reward function gets `completions` (as TRL gives them: text, or a conversation of one assistant message) and the data
set's columns, and returns one number a completion, or None where it does not apply.
"""

from collections.abc import Sequence
from inspect import isfunction, signature
from typing import Any

from ..data.answers import Completion, completion_text, extract_strict, is_well_formed
from ..errors import QuestionError, SettingError


def accuracy_reward(
    completions: list[Completion], answer_index: list[int], options: list[list[str]], **kwargs: Any
) -> list[float]:
    """R_acc: 1 if the completion chose the right option, else 0 (paper section on rewards).

    The choice is read from the `<answer>` element by `extract_strict`; a completion without a readable choice is wrong,
    and so is every completion of a row without a right option.

    Args:
        completions: N completions.
        answer_index: N indices of the right options, from 0.
        options: N lists of option texts.
    """
    choices = [
        extract_strict(completion_text(completion), option_texts)
        for completion, option_texts in zip(completions, options, strict=True)
    ]
    return [float(choice is not None and choice == right) for choice, right in zip(choices, answer_index, strict=True)]


def format_reward(completions: list[Completion], **kwargs: Any) -> list[float]:
    """R_fmt: 1 if the completion is `<think>…</think><answer>The answer is X.</answer>`, else 0 (weight 0.5)."""
    return [float(is_well_formed(completion_text(completion))) for completion in completions]


def no_reward(prompts: list, **kwargs: Any) -> list[float]:
    """0 for everything: what stands among TRL's reward functions where the written teacher alone is learned from."""
    return [0.0] * len(prompts)


def representation_alignment(prompts: list, **kwargs: Any) -> list[None]:
    """Column of R_rep among TRL's reward functions; the trainer fills it in once references are known."""
    return [None] * len(prompts)


def behavior_alignment(prompts: list, **kwargs: Any) -> list[None]:
    """Column of R_beh among TRL's reward functions; the trainer fills it in once references are known."""
    return [None] * len(prompts)


TRLS_OWN = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "images", "image")
"""What TRL gives to reward functions, or takes for its own, beside the columns."""
GIVEN = ("completion_ids", "modality")
"""What they are given in the place of such a column."""


def check_columns(columns: Sequence[str], reward_funcs: Sequence[Any]) -> None:
    """See that a data set has the columns that reward functions ask for, and none that TRL has.

    Raises:
        QuestionError: it has not.
    """
    taken = [name for name in columns if name in TRLS_OWN]
    if taken:
        raise QuestionError(
            f"The data set has the columns {list(columns)}: TRL gives {taken} of its own to reward functions. Rename "
            "or remove them."
        )
    for func in filter(isfunction, reward_funcs):
        by_name = [
            of for of in signature(func).parameters.values() if of.kind in (of.POSITIONAL_OR_KEYWORD, of.KEYWORD_ONLY)
        ]
        missing = [of.name for of in by_name if of.default is of.empty and of.name not in (*columns, *TRLS_OWN, *GIVEN)]
        if missing:
            raise QuestionError(
                f"The data set has the columns {list(columns)}: {func.__name__} asks for {missing}. Rename columns "
                "with column_map={'theirs': 'ours'}, or leave that reward out."
            )


def rewards_and_weights(reward_funcs: Any, config: Any) -> tuple[list[Any], list[float]]:
    """The reward functions of a run, alignment columns behind the user's own, and the weight of each.

    Args:
        reward_funcs: as TRL takes them: one or several functions, models or model ids.
        config: a `TARSGRPOConfig`.

    Raises:
        SettingError: there is none, weights do not match, or none is called `reference_reward` where it is needed.
    """
    funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs] if reward_funcs else []
    if not funcs and not config.distillation_weight:
        raise SettingError(
            "No reward_funcs were given, so nothing can be learned. Give [accuracy_reward, format_reward], or learn "
            "from the written twin alone: distillation_weight=1."
        )
    funcs = funcs or [no_reward]
    names = [getattr(func, "__name__", type(func).__name__) for func in funcs]
    weights = config.reward_weights
    if weights is None:
        weights = [config.format_weight if name == "format_reward" else 1.0 for name in names]
    if len(weights) != len(funcs):
        raise SettingError(
            f"reward_weights has {len(weights)} values for {len(funcs)} reward functions. Give one weight for each; "
            "the alignment rewards have representation_weight and behavior_weight."
        )
    gated = config.distillation_weight and config.distillation_gate == "correct"
    if (config.aligned or gated) and config.reference_reward not in names:
        raise SettingError(
            f"reference_reward={config.reference_reward!r} is none of the reward functions ({', '.join(names)}), so "
            "no written completion could be known to be correct. Name one of them, or set representation_weight and "
            "behavior_weight to 0 and distillation_gate to another than 'correct'."
        )
    if not config.aligned:
        return funcs, [*weights]
    columns = (
        (representation_alignment, config.representation_weight),
        (behavior_alignment, config.behavior_weight),
    )
    used = [(column, weight) for column, weight in columns if weight]
    return [*funcs, *(column for column, _ in used)], [*weights, *(weight for _, weight in used)]
