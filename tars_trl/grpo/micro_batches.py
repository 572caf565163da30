"""Which rows share a micro-batch: those of one twin, so that their prompt goes through the model once.

TRL shuffles the rows of a generation one by one. Here twins are shuffled: they follow each other as the first of their
rows did, and the rows of each lie together. Every row is in one micro-batch, as many as before in each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.utils import split_tensor_dict

from ..models.shared_prefix import first_with_same_prompt


def twins_together(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of shuffled micro-batches again, those with one prompt behind each other.

    Args:
        batches: equally large micro-batches of one generation, as `GRPOTrainer._prepare_inputs` buffers them: tensors
            and lists with an entry for each row, numbers for all, and None. `audio` has each row's clip.

    Returns:
        as many micro-batches, of as many rows.
    """
    whole = {name: _joined([batch[name] for batch in batches]) for name in batches[0]}
    firsts = first_with_same_prompt(whole["prompt_ids"], whole["prompt_mask"], 0, whole["audio"])
    order = sorted(range(len(firsts)), key=firsts.__getitem__)  # stable
    return split_tensor_dict({name: _reordered(values, order) for name, values in whole.items()}, len(batches))


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    if isinstance(parts[0], torch.Tensor) and parts[0].ndim:
        return torch.cat(parts)
    return parts[0]


def _reordered(values: Any, order: list[int]) -> Any:
    if isinstance(values, list):
        return [values[row] for row in order]
    if isinstance(values, torch.Tensor) and values.ndim:
        return values[order]
    return values
