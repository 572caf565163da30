"""The log of a run from whatever file it is in: trainer_state.json, TensorBoard events, a wandb offline file.

All readers give a list of entries as `log_history` of trainer_state.json has them: `step`, and numbers by metric.
A run that was started again has several event or wandb files: each counts up to the step at which the next one begins.
"""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OF_A_START = re.compile(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_|(offline-)?run-\d{8}_\d{6}-")
"""Folders that every start of a run makes: `RUN/runs/Nov23_23-32-18_host` (transformers, for TensorBoard) and
`RUN/wandb/offline-run-20261123_233218-id`."""


def read_history(path: Path) -> list[dict[str, Any]]:
    """Log entries of a run, a checkpoint or a log file, found as `runs.load_run` says; empty if there is none.

    Raises:
        ValueError: the folder holds event or wandb files of several runs.
    """
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
    """The log files of one run, the oldest first: event files have the time in their names, wandb's in the folders'."""
    if path.is_file():
        return [path] if path.match(pattern) else []
    files = sorted(path.rglob(pattern), key=lambda file: (file.name if "events" in pattern else file.parent.name, file))
    runs = {folder.parent.parent if OF_A_START.match(folder.name) else folder for folder in (f.parent for f in files)}
    if len(runs) > 1:
        shown = ", ".join(sorted(map(str, runs))[:5])
        raise ValueError(
            f"{path} holds the logs of {len(runs)} runs, in {shown}: one curve would mix them. Give the folder of one."
        )
    return files


def _joined(logs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Entries of logs in order, without what a log says of steps after the first one that a later log was trained."""
    history: list[dict[str, Any]] = []
    for log in logs:
        first = min((entry["step"] for entry in log if "loss" in entry), default=None)  # None: an evaluation alone
        history = [entry for entry in history if first is None or entry["step"] <= first] + log
    return history


def _from_tensorboard(path: Path) -> list[dict[str, Any]]:
    files = _files(path, "events.out.tfevents*")
    if not files:
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = []
    for file in files:
        log = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()  # 0: keep every point
        tags = log.Tags()["scalars"]
        logs.append([{"step": event.step, _our_name(tag): event.value} for tag in tags for event in log.Scalars(tag)])
    return _joined(logs)


def _from_wandb(path: Path) -> list[dict[str, Any]]:
    files = _files(path, "run-*.wandb")
    return _joined([list(_wandb_history(file)) for file in files])


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
