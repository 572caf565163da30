"""Going on after a run was interrupted, exactly or not at all: from which checkpoint, and with which questions.

A checkpoint is whole once its manifest is there, which is written last and names every file with size and hash.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from ..data.audio import undecoded
from ..data.checking import TOGETHER, clip_digest, clips_of
from ..data.hub import nearest
from ..data.journal import sampled_pieces, sha256
from ..errors import SettingError
from ..files import read_json, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
HASHED_WHOLE = 1 << 30  # bytes; of a larger file as many are hashed, in 64 pieces evenly spread
ORDER = ("seed", "num_generations", "modalities", "steps_per_generation", "num_iterations", "curriculum")
"""Settings that decide which question is asked when: with another one, no step would go on from the last."""
MAY_DIFFER = (
    *("output_dir", "run_name", "resume_from_checkpoint", "overwrite_output_dir"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "report_to", "disable_tqdm"),
)
"""Settings that a run may change on its way without a word; so may those of logging, saving and evaluating."""
LEFT_BY_A_RUN = (
    *(f"{PREFIX_CHECKPOINT_DIR}-*", "trainer_state.json", "completions/*.parquet", "adapter_config.json"),
    *("adapter_model.*", "run.json", "report.html"),
)


# ---- Checkpoints ---------------------------------------------------------------------------------------------------


def seal_checkpoint(trainer: Any, save_total_limit: int | None) -> None:
    """Write the manifest of the checkpoint that a trainer has just saved; older ones go only then.

    Args:
        trainer: on all processes, each of which may have written files.
        save_total_limit: checkpoints to keep.
    """
    trainer.accelerator.wait_for_everyone()
    if not trainer.args.should_save:
        return
    run = Path(trainer.args.output_dir)
    folder = run / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        "step": trainer.state.global_step,
        "resumable": not trainer.args.save_only_model,
        **what_continues(trainer),
        "files": {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files},
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, default=str) + "\n")
    rotate_checkpoints(str(run), save_total_limit, trainer.state.best_model_checkpoint, use_mtime=True)


def what_continues(trainer: Any) -> dict[str, Any]:
    """What a run must have in common with the checkpoint that it goes on from, as plain values."""
    args = trainer.args
    return {
        "model": trainer.model.config.name_or_path,
        "dtype": str(trainer.model.dtype),
        "questions": _questions_digest(trainer.train_dataset),
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "processes": args.world_size,
        "settings": json.loads(json.dumps(args.to_dict(), default=str)),
    }


@lru_cache(maxsize=1)
def _questions_digest(dataset: Dataset) -> str:
    """Digest of what is asked, what is right and what is heard; of a clip in a file, of its name and size."""
    digests = []
    if "audio" in dataset.column_names:
        clips = undecoded(dataset).select_columns(["audio"]).with_format("arrow")
        digests = [clip_digest(clip) for rows in clips.iter(TOGETHER) for clip in clips_of(rows["audio"])]
        dataset = dataset.remove_columns("audio")
    return sha256([*digests, *(sha256(json.dumps(row, default=str)) for row in dataset.with_format(None))])


def checkpoint_problem(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint exactly; None if it can."""
    try:
        manifest = read_json(folder / MANIFEST)
        files = [(folder / name, size, digest) for name, (size, digest) in manifest["files"].items()]
        complete = {"model", "dtype", "questions", "batch", "processes", "resumable"} <= manifest.keys()
        damaged = not (complete and files and isinstance(manifest["settings"], dict))
    except FileNotFoundError:
        return f"it has no {MANIFEST}: its save was cut short, or another program wrote it"
    except (ValueError, TypeError, KeyError, AttributeError):
        damaged = True
    if damaged:
        return f"its {MANIFEST} is damaged"
    if not manifest["resumable"]:
        return "it was saved with save_only_model, without optimizer, scheduler and random states"
    for path, size, digest in files:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{path.name} was changed after it was saved"
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in sampled_pieces(path, 1 << 24, HASHED_WHOLE):
        digest.update(piece)
    return digest.hexdigest()


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in `folder`, None if there is none; what is passed over is logged, and why.

    A save that was cut short (disk full, SIGTERM, a killed process) leaves the checkpoints before it as they were and
    one of its own that `transformers.trainer_utils.get_last_checkpoint` would pick.
    """
    names = [path.name for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    steps = [int(name.rpartition("-")[2]) for name in names if name.rpartition("-")[2].isdigit()]
    for step in sorted(steps, reverse=True):
        path = Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        problem = checkpoint_problem(path)
        if problem is None:
            return str(path)
        logger.warning("%s is passed over: %s.", path, problem)
    return None


# ---- The start of a run --------------------------------------------------------------------------------------------


def named_checkpoint(wanted: str | bool | None) -> str | None:
    """What `resume_from_checkpoint` names: `last`, a folder, or None for a fresh start.

    Raises:
        SettingError: there is no such folder.
    """
    word = str(wanted or False).lower()
    if word in ("last", "true", "false"):
        return None if word == "false" else "last"
    if not Path(str(wanted)).is_dir():
        raise SettingError(
            f"resume_from_checkpoint={wanted!r}: there is no such folder. {nearest(Path(str(wanted)))} `last` is the "
            "newest whole checkpoint."
        )
    return str(wanted)


def checkpoint_to_continue(trainer: Any, wanted: str | bool | None) -> str | None:
    """The checkpoint that a run goes on from, after a look at it and at the folder; None for a fresh start.

    The main process looks, as a whole checkpoint is hashed for it, and tells the others.

    Args:
        trainer: whose `output_dir` it is.
        wanted: a checkpoint; `last` or True for the newest whole one, or a fresh start where there is none; None or
            False for a fresh start.

    Raises:
        SettingError: the folder holds another run, the checkpoint is not whole, or the run is another than its own; on
            every process.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint, refusal = None, None
    if trainer.accelerator.is_main_process:
        try:
            checkpoint = _look_for_checkpoint(trainer, folder, wanted)
        except SettingError as error:
            refusal = str(error)
    checkpoint, refusal = broadcast_object_list([checkpoint, refusal])
    if refusal is not None:
        raise SettingError(refusal)
    if trainer.args.should_save and (checkpoint is None or _is_elsewhere(checkpoint, folder)):
        for path in _left_by_a_run(folder):
            if path.is_dir() and not trainer.args.overwrite_output_dir:  # a save that was cut short
                names = (path.with_name(f"cut-short-{number}-{path.name}") for number in count(1))
                put_aside = path.rename(next(name for name in names if not name.exists()))
                logger.warning("%s is not whole and was put aside, as %s.", path, put_aside.name)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    trainer.accelerator.wait_for_everyone()
    return checkpoint


def _look_for_checkpoint(trainer: Any, folder: Path, wanted: str | bool | None) -> str | None:
    """The checkpoint; None for a fresh start. Where it is not the folder's own, the folder may hold no other run."""
    wanted = named_checkpoint(wanted)
    last = wanted == "last"
    if last:
        wanted = last_checkpoint(folder)
        say = "goes on from" if wanted else "starts anew: there is no whole checkpoint in"
        logger.warning("The run %s %s.", say, wanted or folder)
    elif wanted:
        problem = checkpoint_problem(Path(wanted))
        if problem is not None:
            raise SettingError(
                f"resume_from_checkpoint={wanted!r}: {problem}, so a run cannot go on from it exactly. Name another "
                "checkpoint, or `last` for the newest whole one."
            )
    if wanted:
        _refuse_another_run(what_continues(trainer), Path(wanted))
    if not wanted or _is_elsewhere(wanted, folder):
        left = [path for path in _left_by_a_run(folder) if path.name not in ("run.json", "report.html")]
        # What this very run leaves, where it was interrupted before its first checkpoint was whole.
        begun = [path for path in left if path.suffix == ".parquet" or path.is_dir() and not (path / MANIFEST).exists()]
        if left and not trainer.args.overwrite_output_dir and not (last and begun == left):
            raise SettingError(
                f"output_dir={str(folder)!r} holds a run already ({left[0].name}), and two runs in one folder would be "
                "mixed in its report. Give another output_dir, go on with --resume_from_checkpoint last from a "
                "checkpoint that is whole, or replace it with --overwrite_output_dir true."
            )
    return wanted


def _is_elsewhere(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent != folder.resolve()


def _left_by_a_run(folder: Path) -> list[Path]:
    return [path for pattern in LEFT_BY_A_RUN for path in sorted(folder.glob(pattern))]


def _refuse_another_run(now: dict[str, Any], folder: Path) -> None:
    manifest = read_json(folder / MANIFEST)
    before, settings = manifest["settings"], now["settings"]
    changed = [name for name in ("model", "questions", "batch") if manifest[name] != now[name]]
    changed += [name for name in ORDER if before.get(name) != settings.get(name)]
    if changed:
        told = [
            f"{name} ({before.get(name, manifest.get(name))!r} there, {settings.get(name, now.get(name))!r} here)"
            for name in changed
        ]
        raise SettingError(
            f"{folder} was saved by another run: {', '.join(told)}. No step would go on from its last one. Give the "
            "same values, or start anew in another output_dir."
        )
    ways = ("logging_", "save_", "eval_", "hub_")
    others = [
        f"{name} {before[name]!r} -> {settings.get(name)!r}"
        for name in before
        if before[name] != settings.get(name) and name not in MAY_DIFFER and not name.startswith(ways)
    ]
    if manifest["dtype"] != now["dtype"]:
        others.append(f"dtype {manifest['dtype']} -> {now['dtype']}")
    if manifest["processes"] != now["processes"]:
        others.append(f"processes {manifest['processes']} -> {now['processes']} (other random states)")
    if others:
        logger.warning("Going on with other settings than %s has, so not exactly: %s.", folder, "; ".join(others))


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
