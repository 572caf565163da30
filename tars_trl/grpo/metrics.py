"""Metrics by modality and the gap, of one generation: what TRL logs over all rows, for each twin apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .twins import Modalities, modality_of


def total_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (N,) of the rewards (N, functions) that were given; NaN where none was."""
    total = (rewards * weights.to(rewards)).nansum(dim=1)
    return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)


def twin_metrics(
    rewards: Tensor,
    weights: Tensor,
    names: Sequence[str],
    lengths: Tensor,
    clipped: Tensor,
    *,
    group_size: int,
    modalities: Modalities,
    correct: str,
) -> dict[str, float]:
    """Values by name, such as `speech/accuracy`; NaN where nothing was scored.

    Args:
        rewards: (N, functions) of all processes, group after group; NaN where a function did not apply.
        weights: (functions,).
        names: of the reward functions.
        lengths: (N,) tokens of the completions.
        clipped: (N,) bool, whether they were cut off.
        group_size: rows of a question, both twins together.
        correct: the reward function that says correct: 1 or more (`reference_reward`).
    """
    total = total_rewards(rewards, weights)
    row_modalities = [modality_of(row, group_size, modalities) for row in range(len(rewards))]
    size = group_size // 2 if modalities == "both" else group_size
    metrics: dict[str, float] = {}
    for modality in dict.fromkeys(row_modalities):
        rows = torch.tensor([name == modality for name in row_modalities], device=rewards.device)
        groups = total[rows].view(-1, size)
        std = (groups - groups.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
        values = {
            "reward": groups.nanmean(),
            "reward_std": std.nanmean(),
            "frac_reward_zero_std": std.isclose(torch.zeros_like(std)).float().mean(),
            "completion_length": lengths[rows].float().mean(),
            "clipped_ratio": clipped[rows].float().mean(),
        }
        if correct in names:
            given = rewards[rows, list(names).index(correct)]
            values["accuracy"] = (given >= 1).float().masked_fill(given.isnan(), torch.nan).nanmean()
        if "format_reward" in names:
            values["format"] = rewards[rows, list(names).index("format_reward")].nanmean()
        metrics |= {f"{modality}/{name}": value.item() for name, value in values.items()}
    if {"speech/accuracy", "text/accuracy"} <= metrics.keys():
        speech, text = metrics["speech/accuracy"], metrics["text/accuracy"]
        metrics["gap/accuracy"] = text - speech
        metrics["gap/recovery_rate"] = 100 * speech / text if text > 0 else float("nan")
    return metrics


def layer_metrics(similarity: Tensor, references: Sequence[int]) -> dict[str, float]:
    """Mean similarity of the rows that have a reference, over the first, middle and last third of the layers.

    Args:
        similarity: (N, L), of each row to its reference.
        references: N row numbers, -1 where there is none.
    """
    compared = [row for row, reference in enumerate(references) if reference >= 0]
    if not compared:
        return {}
    thirds = zip(("first", "middle", "last"), similarity[compared].mean(0).tensor_split(3), strict=True)
    return {f"alignment/layer_similarity/{name}_third": part.mean().item() for name, part in thirds if len(part)}
