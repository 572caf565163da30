"""Going on after a run was interrupted: from which checkpoint, and with which questions."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import RepeatSampler


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end; None if there is none.

    A save that was cut short (disk full, SIGTERM, a killed process) leaves the checkpoints before it as they were and
    one of its own that `transformers.trainer_utils.get_last_checkpoint` would pick. `trainer_state.json` is written
    last, so a checkpoint without it, or with half of it, is passed over.
    """
    steps = []
    for state in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"):
        number = state.parent.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and _is_json(state):
            steps.append(int(number))
    return str(Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{max(steps)}") if steps else None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


class ResumableSampler(RepeatSampler):
    """TRL's sampler, in the same order, also where a run is resumed in a later epoch.

    TRL's draws the order of an epoch from where the last epoch left its generator; a new process starts anew, and so
    would repeat the first epoch's order.

    Args:
        epoch: gives the number of epochs behind, fractions allowed, whenever an epoch begins.
        arguments: of `RepeatSampler`.
    """

    def __init__(self, epoch: Callable[[], float | None], **arguments: Any):
        super().__init__(**arguments)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(int(self.epoch() or 0)):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()
