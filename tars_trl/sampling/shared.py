"""Work on the questions of a data set that is shared by processes and survives an interruption.

Whatever asks a model a question (evaluation, preference pairs, scores) goes through `share_out`: finished lines are
appended to files as they come, named after a fingerprint of all that they depend on; what is there is not repeated.
Below it stands what the commands that sample have in common beside: settings, questions, model and files.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, Features
from datasets.table import embed_table_storage
from tqdm import tqdm

from ..data import journal
from ..data.checking import check_audio
from ..data.hub import check_place
from ..data.journal import Line
from ..data.questions import load_questions
from ..errors import SettingError
from ..models import vllm
from ..models.loading import base_revision, identity, load_speech_llm, resolve
from ..settings import AskedModelSettings, AudioSettings, BackendSettings, DecodingSettings, QuestionSettings


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
    finished: dict[str, Line] = {}
    if state.is_main_process:
        files = sorted(folder.glob(f"{stem}.*.jsonl"))
        for file in files if overwrite else ():
            file.unlink()
        finished = {} if overwrite else journal.read_lines(files)
    (finished,) = broadcast_object_list([finished])
    batches = [range(start, min(start + batch_size, len(keys))) for start in range(0, len(keys), batch_size)]
    missing = [batch for batch in batches if any(keys[place] not in finished for place in batch)]
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
    finished |= {line["key"]: line for line in gather_object(fresh)}
    return [finished[key] for key in keys]


# ---- What is asked, of which model ---------------------------------------------------------------------------------


@dataclass
class SamplingSettings(DecodingSettings, AudioSettings, QuestionSettings, AskedModelSettings):
    """Settings of a command that asks a model all questions of a data set."""


def chosen_questions(settings: SamplingSettings) -> Dataset:
    """Its questions, those of `limit` drawn with the seed, every clip checked; audio undecoded."""
    with PartialState().main_process_first():
        rows = load_questions(
            settings.dataset or "",
            settings.split,
            system_prompt=settings.system_prompt,
            limit=settings.limit,
            seed=settings.seed,
            audio_anywhere=settings.audio_anywhere,
        )
    return check_audio(
        rows,
        max_seconds=settings.max_audio_seconds,
        max_megabytes=settings.max_audio_megabytes,
        on_error=settings.on_bad_audio,
        together=True,
    )


def engine_facts(settings: Any) -> dict[str, str]:
    """VLLM and its version, if it samples, so that its samples are told from those of transformers; else nothing.

    Raises:
        SettingError: it is not installed.
    """
    by_vllm = isinstance(settings, BackendSettings) and settings.backend == "vllm"
    return {"backend": f"vllm {vllm.version()}"} if by_vllm else {}


def model_facts(settings: AskedModelSettings) -> dict[str, Any]:
    """What identifies the model of the settings, so that samples of another one are not taken for its own."""
    model, adapter = check_model(settings)
    return {
        "model": identity(model, base_revision(model, adapter, settings.model_revision)),
        "adapter": identity(adapter, file="adapter_config.json") if adapter else None,
        "dtype": settings.dtype,
        "attn_implementation": settings.attn_implementation,
        **engine_facts(settings),
    }


def model_loader(settings: AskedModelSettings) -> Callable[[], tuple[Any, Any]]:
    """Loads (model, processor) when it is called first: where all lines are there, nothing is loaded.

    With `backend` vllm the model is an engine that has its weights.

    Raises:
        SettingError, OSError: at once, see `check_model`.
    """
    names = ("model_revision", "dtype", "attn_implementation")
    base, adapter = check_model(settings)
    by_vllm = bool(engine_facts(settings))

    @functools.cache
    def load() -> tuple[Any, Any]:
        options: dict[str, Any] = {name: getattr(settings, name) for name in names}
        try:
            options |= {"device": PartialState().device, "move": not by_vllm}
            loaded, processor = load_speech_llm(settings.model or "", settings.adapter, **options)
        except OSError as error:  # of which some don't say what was asked for
            told = f", adapter={settings.adapter!r}" if settings.adapter else ""
            why = str(error).partition("\n")[0]
            raise SettingError(
                f"model={settings.model!r}{told}: it cannot be loaded, {why} Correct the name, or connect to the hub."
            ) from error
        if by_vllm and isinstance(settings, BackendSettings):
            loaded = vllm.Engine(
                loaded,
                processor,
                base,
                base_revision(base, adapter, settings.model_revision),
                gpu_memory_utilization=settings.vllm_gpu_memory_utilization,
                max_model_length=settings.vllm_max_model_length,
            )
        return loaded, processor

    return load


def check_model(settings: AskedModelSettings) -> tuple[str, str | None]:
    """(base model, adapter) of the settings, seen to be somewhere before anything waits for the hub.

    Raises:
        SettingError, OSError: a model or an adapter that is nowhere, see `check_place`.
    """
    check_place("model", settings.model, settings.model_revision)
    check_place("adapter", settings.adapter)
    base, adapter = resolve(settings.model or "", settings.adapter)
    if base != settings.model:  # it is an adapter
        check_place(f"{settings.model}: its base_model", base, base_revision(base, adapter, settings.model_revision))
    return base, adapter


# ---- What is written -----------------------------------------------------------------------------------------------


def write_parquet(rows: Dataset, columns: Dataset, place: Path) -> None:
    """Write questions, audio inside, and as many rows of new columns, which replace those of the same names, as a file.

    It is there when it is whole; its folders are made.
    """
    rows = rows.remove_columns([name for name in columns.column_names if name in rows.column_names])
    schema = Features({**rows.features, **columns.features}).arrow_schema
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(place.name + ".part")
    with pq.ParquetWriter(beside, schema) as writer:
        for start in range(0, len(rows), 100):  # audio of this many rows is in memory
            parts = [part.with_format("arrow")[start : start + 100] for part in (rows, columns)]
            tables = [embed_table_storage(table) for table in parts]
            writer.write_table(pa.table([c for table in tables for c in table.columns], schema=schema))
    beside.replace(place)


def spell_counts(counts: Counter[str]) -> str:
    """Counts by reason in words, the most common one first."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"
