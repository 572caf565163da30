"""Task rewards: ordinary TRL reward functions, for both modalities alike.

A reward function gets `completions` (as TRL gives them: text, or a conversation of one assistant message) and the data
set's columns, and returns one number a completion, or None where it does not apply.
"""

from collections.abc import Sequence
from typing import Any

from ..data.answers import Completion, completion_text, extract_strict, is_well_formed


def accuracy_reward(
    completions: list[Completion],
    answer_index: list[int],
    options: list[list[str]] | None = None,
    **kwargs: Any,
) -> list[float]:
    """R_acc: 1 if the completion chose the right option, else 0 (paper section on rewards).

    The choice is read from the `<answer>` element by `extract_strict`; a completion without a readable choice is wrong.

    Args:
        completions: N completions.
        answer_index: N indices of the right options, from 0.
        options: N lists of option texts.
    """
    texts: Sequence[list[str] | None] = options or [None] * len(completions)
    return [
        float(extract_strict(completion_text(completion), option_texts) == right)
        for completion, right, option_texts in zip(completions, answer_index, texts, strict=True)
    ]


def format_reward(completions: list[Completion], **kwargs: Any) -> list[float]:
    """R_fmt: 1 if the completion is `<think>…</think><answer>The answer is X.</answer>`, else 0 (weight 0.5)."""
    return [float(is_well_formed(completion_text(completion))) for completion in completions]
