"""The log of a run from whatever file it is in: trainer_state.json, TensorBoard events, a wandb offline file.

All readers give a list of entries as `log_history` of trainer_state.json has them: `step`, and numbers by metric.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_history(path: Path) -> list[dict[str, Any]]:
    """Log entries of a run, a checkpoint or a log file, found as `runs.load_run` says; empty if there is none."""
    return _from_state(path) or _from_tensorboard(path) or _from_wandb(path)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    numbered = [c for c in folder.glob("checkpoint-*") if c.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda c: -int(c.name.removeprefix("checkpoint-")))


def _from_state(path: Path) -> list[dict[str, Any]]:
    for folder in (path, *checkpoints(path)):
        state = folder / "trainer_state.json"
        if state.is_file():
            return json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return []


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path] if path.match(pattern) else []
    return sorted(path.rglob(pattern))


def _from_tensorboard(path: Path) -> list[dict[str, Any]]:
    files = _files(path, "events.out.tfevents*")
    if not files:
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = []
    for file in files:
        log = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()  # 0: keep every point
        for tag in log.Tags()["scalars"]:
            history += [{"step": event.step, _our_name(tag): event.value} for event in log.Scalars(tag)]
    return history


def _from_wandb(path: Path) -> list[dict[str, Any]]:
    files = _files(path, "run-*.wandb")
    return [entry for file in files for entry in _wandb_history(file)]


def _wandb_history(file: Path) -> Iterator[dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _wandb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        entry = {_our_name(key): json.loads(value) for key, value in items.items() if not key.startswith("_")}
        if "global_step" in entry:
            yield {"step": entry.pop("global_step"), **entry}


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a wandb offline file, for which wandb (0.31) has no reader in Python.

    LevelDB's log format after a header of 7 bytes: blocks of 32 KiB, in them pieces of checksum (4 bytes), length (2),
    kind (1: whole, 2: first, 3: middle, 4: last piece of a record) and content; the end of a block may be zeros. A
    record that a killed run left incomplete ends the file.
    """
    position, block, record = 7, 32 * 1024, b""
    while position + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if block - position % block < 7 or kind == 0:
            position += block - position % block
            continue
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4) and position <= len(data):
            yield record
            record = b""


def _our_name(tag: str) -> str:
    """Undo transformers' renaming for trackers: `train/x` was `x`, `eval/x` was `eval_x`."""
    return "eval_" + tag.removeprefix("eval/") if tag.startswith("eval/") else tag.removeprefix("train/")
