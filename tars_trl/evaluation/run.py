"""Running an evaluation: load rows, complete what is missing, score, write.

Completing and scoring are apart. Completions are appended to files as they come, named after a fingerprint of all that
they depend on (weights, rows, modality, prompt, decoding); what is there is not repeated, so an interrupted run goes on
and other extractors or figures cost no completion. Several processes share the rows that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from .. import record
from ..data import journal
from ..models.loading import base_revision, identity, load_processor, load_speech_llm, resolve
from ..sampling.complete import complete
from ..speaking.recognition import from_asr
from . import cascade, results
from .jobs import Job, make_jobs
from .metrics import RESAMPLES
from .scoring import running_score
from .settings import EvaluationSettings
from .summary import scored, summary

Loaded = Callable[[], tuple[Any, Any]]


def evaluate(settings: EvaluationSettings) -> Path:
    """Evaluate as `settings` say, on all processes of an `accelerate launch`, and write the result files.

    Returns:
        The results file, on every process. A finished evaluation is not repeated, unless `overwrite` says so.

    Raises:
        ValueError, QuestionError, AudioError: settings or rows that cannot work, before a model is loaded.
    """
    # The slowest process may finish hours after the first, which waits for it; torch's own limit is 10 minutes.
    state = PartialState(cpu=settings.use_cpu or not torch.accelerator.is_available(), timeout=timedelta(hours=24))
    started = time.time()
    model_name, adapter = resolve(settings.model or "", settings.adapter)
    revision = base_revision(model_name, adapter, settings.revision)
    weights = {
        "model": identity(model_name, revision),
        "adapter": identity(adapter, file="adapter_config.json") if adapter else None,
    }
    folder = Path(settings.output_path).expanduser() / results.sanitized(adapter or model_name)
    with state.main_process_first():  # the others find what the first one downloaded
        jobs = [job for name in settings.tasks for job in make_jobs(name, settings, weights)]
    names = [job.name for job in jobs]
    if len(set(names)) != len(names):
        raise ValueError(f"tasks={settings.tasks}: two of them would both write {names}. Evaluate them one by one.")
    fingerprint = journal.sha256([[job.fingerprint for job in jobs], _scoring(settings)])[:16]
    finished = results.finished_file(folder, fingerprint)
    (finished,) = broadcast_object_list([finished])  # one answer for all processes
    if finished is not None and not settings.overwrite:
        state.print(f"Finished already: {finished}. Pass --overwrite to repeat it.")
        return finished

    models: list[tuple[Any, Any]] = []

    def loaded() -> tuple[Any, Any]:
        if not models:
            options = {"revision": revision, "dtype": settings.dtype, "device": state.device}
            models.append(load_speech_llm(model_name, adapter, **options))
        return models[0]

    completions = [completed(job, settings, folder / "completions", loaded, state) for job in jobs]
    path = None
    if state.is_main_process:
        processor = models[0][1] if models else load_processor(model_name, adapter, revision)
        models.clear()  # makes room for the extractor
        samples = {
            job.name: scored(job, lines, settings, state.device) for job, lines in zip(jobs, completions, strict=True)
        }
        content = {
            **summary(jobs, samples, settings),
            **_circumstances(model_name, adapter, processor, settings, state),
            "hashes": {**weights, **{job.name: job.described["rows"] for job in jobs}},
            "fingerprint": fingerprint,
            "date": started,
            "total_evaluation_time_seconds": str(time.time() - started),
        }
        logged = samples if settings.log_samples or settings.predict_only else {}
        path = results.write_results(folder, content, logged, results.date_id())
    (path,) = broadcast_object_list([path])
    return path


def _circumstances(
    model_name: str, adapter: str | None, processor: Any, settings: EvaluationSettings, state: PartialState
) -> dict[str, Any]:
    """What was run, how and where, under lm-evaluation-harness's names."""
    seeds = {f"{name}_seed": settings.seed for name in ("random", "numpy", "torch")}
    return {
        "config": {
            "model": "tars_trl",
            "model_args": f"pretrained={model_name}" + (f",peft={adapter}" if adapter else ""),
            "batch_size": str(settings.batch_size),
            "device": str(state.device),
            "limit": settings.limit,
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": {**settings.generation, "max_new_tokens": settings.max_new_tokens},
            **seeds,
            "settings": asdict(settings),
            "processes": state.num_processes,
        },
        **record.environment(),
        "model_source": "tars_trl",
        "model_name": adapter or model_name,
        "model_name_sanitized": results.sanitized(adapter or model_name),
        "system_instruction": settings.system_prompt,
        "system_instruction_sha": journal.sha256(settings.system_prompt) if settings.system_prompt else None,
        "fewshot_as_multiturn": False,
        "chat_template": processor.chat_template,
        "chat_template_sha": journal.sha256(processor.chat_template or ""),
    }


def _scoring(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that change the files although the completions stay the same."""
    names = ("extractors", "voicebench_guess", "reference_accuracy", "predict_only", "log_samples", "seed")
    # The layout counts too: a finished evaluation in an older one is scored again. 2: averages over tasks.
    scoring = {"layout": 2} | {name: getattr(settings, name) for name in names}
    return scoring | ({"xfinder_model": settings.xfinder_model} if "xfinder" in settings.extractors else {})


# ---- Completions ---------------------------------------------------------------------------------------------------


def completed(
    job: Job, settings: EvaluationSettings, folder: Path, loaded: Loaded, state: PartialState
) -> list[journal.Line]:
    """A line for each row of a job: read where it was completed before, completed by one of the processes otherwise."""
    stem = f"{job.name}_{job.fingerprint}"
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{stem}.*.jsonl") if settings.overwrite else ():
            path.unlink()
    found = journal.read_lines(sorted(folder.glob(f"{stem}.*.jsonl"))) if state.is_main_process else {}
    (found,) = broadcast_object_list([found])
    keys = job.rows["key"][:]
    missing = [number for number, key in enumerate(keys) if key not in found]
    mine = missing[state.process_index :: state.num_processes]
    folder.mkdir(parents=True, exist_ok=True)  # where the processes share no disk
    fresh: list[journal.Line] = []
    if missing:
        model, processor = loaded()
        transcriber = _transcriber(job, settings, model, processor, state)
        path = folder / f"{stem}.{state.process_index}.jsonl"
        with tqdm(total=len(mine), desc=job.name.replace("_", " "), disable=not state.is_main_process) as bar:
            share = weight = 0.0
            for start in range(0, len(mine), settings.batch_size):
                batch = [job.rows[number] for number in mine[start : start + settings.batch_size]]
                lines = _answered(job, settings, model, processor, batch, transcriber)
                journal.append_lines(path, lines)
                fresh += lines
                for row, line in zip(batch, lines, strict=True):
                    scores = running_score(job.task.kind, row, line["text"])
                    share, weight = share + scores[0], weight + scores[1]
                bar.update(len(batch))
                figure = "WER" if job.task.kind == "transcript" else "accuracy"
                bar.set_postfix({figure: f"{share / weight:.3f}" if weight else "-"})
    found |= {line["key"]: line for line in gather_object(fresh)}
    return [found[key] for key in keys]


def _transcriber(
    job: Job, settings: EvaluationSettings, model: Any, processor: Any, state: PartialState
) -> cascade.Transcriber | None:
    if job.modality == "self_cascade":
        return cascade.from_itself(model, processor, settings.max_new_tokens, settings.batch_size)
    if job.modality == "cascade" and settings.transcripts is not None:
        return cascade.from_table(cascade.read_transcripts(settings.transcripts, job.rows["key"][:]))
    if job.modality == "cascade":
        return from_asr(settings.asr_model or "", state.device, settings.batch_size)
    return None


def _answered(
    job: Job,
    settings: EvaluationSettings,
    model: Any,
    processor: Any,
    batch: Sequence[dict[str, Any]],
    transcriber: cascade.Transcriber | None,
) -> list[journal.Line]:
    heard: list[str | None] = [None] * len(batch)
    if transcriber is not None:
        heard = list(transcriber(batch))
        batch = [cascade.with_transcript(row, str(text)) for row, text in zip(batch, heard, strict=True)]
    completions = complete(
        model,
        processor,
        batch,
        "speech" if job.modality == "speech" else "text",
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        **settings.generation,
    )
    return [
        {"key": done.key, "text": done.text, "tokens": done.tokens, "truncated": done.truncated}
        | ({} if transcript is None else {"transcript": transcript})
        for done, transcript in zip(completions, heard, strict=True)
    ]
