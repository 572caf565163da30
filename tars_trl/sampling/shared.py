"""Work on the questions of a data set that is shared by processes and survives an interruption.

Whatever asks a model a question (evaluation, preference pairs, scores) goes through `share_out`: finished lines are
appended to files as they come, named after a fingerprint of all that they depend on; what is there is not repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from ..data import journal

Line = dict[str, Any]


def start_processes(use_cpu: bool = False) -> PartialState:
    """This process among those of an `accelerate launch`; they wait a day for the slowest, where torch waits 10 min."""
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available(), timeout=timedelta(hours=24))


def share_out(
    keys: Sequence[str],
    work: Callable[[Sequence[int]], Sequence[Line]],
    folder: Path,
    stem: str,
    *,
    batch_size: int,
    overwrite: bool = False,
    postfix: Callable[[Sequence[Line]], Mapping[str, Any]] | None = None,
) -> list[Line]:
    """A line for each key: read where it was finished before, else made by one of the processes.

    Batches are always the same ones, whole: the unit of seeds, of resuming and of what processes share. So the lines do
    not depend on how many processes there are or where an earlier run stopped.

    Args:
        keys: of the questions, all different.
        work: makes the lines of a batch, given the places of its questions; every line has its `key`.
        folder: where lines are kept; processes on other machines have one of their own.
        stem: name of their files, with a digest of all that the lines depend on.
        batch_size: questions handed to `work` at a time.
        overwrite: make all lines again.
        postfix: figures beside the progress bar, from this process's new lines so far.

    Returns:
        the lines in the order of `keys`, on every process.
    """
    state = PartialState()
    found: dict[str, Line] = {}
    if state.is_main_process:
        files = sorted(folder.glob(f"{stem}.*.jsonl"))
        if overwrite:
            for file in files:
                file.unlink()
        else:
            found = journal.read_lines(files)
    (found,) = broadcast_object_list([found])
    batches = [range(start, min(start + batch_size, len(keys))) for start in range(0, len(keys), batch_size)]
    missing = [batch for batch in batches if any(keys[place] not in found for place in batch)]
    mine = missing[state.process_index :: state.num_processes]
    folder.mkdir(parents=True, exist_ok=True)
    fresh: list[Line] = []
    with tqdm(total=sum(map(len, mine)), desc=stem.split(".")[0], disable=not state.is_main_process) as bar:
        for batch in mine:
            lines = work(batch)
            journal.append_lines(folder / f"{stem}.{state.process_index}.jsonl", lines)
            fresh += lines
            bar.update(len(batch))
            if postfix is not None:
                bar.set_postfix(postfix(fresh))
    found |= {line["key"]: line for line in gather_object(fresh)}
    return [found[key] for key in keys]
