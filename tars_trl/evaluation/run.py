"""Running an evaluation: load rows, complete what is missing, score, write.

Completing and scoring are apart. Completions are kept by `sampling.shared.share_out`, named after a fingerprint of all
that they depend on (weights, rows, modality, prompt, decoding): what is there is not repeated, so an interrupted run
goes on, other extractors or figures cost no completion, and several processes share the rows that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .. import record
from ..data.journal import Line, sha256
from ..models.loading import base_revision, identity, load_processor, load_speech_llm, resolve
from ..sampling.complete import complete
from ..sampling.shared import share_out, start_processes
from ..speaking.recognition import Transcriber, from_asr
from . import cascade, results
from .jobs import Job, make_jobs
from .metrics import RESAMPLES
from .scoring import running_score
from .settings import EvaluationSettings
from .summary import score_job, summarize

LoadModel = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Plan:
    """What an evaluation will ask, and what tells it from any other."""

    model: str
    adapter: str | None
    revision: str | None
    """Of the model on the hub."""
    jobs: list[Job]
    weights: dict[str, str | None]
    """What identifies the model, the adapter and, if it is used, the extractor's model."""
    folder: Path
    """Of this model's result files."""
    fingerprint: str
    """Digest of all that the result files depend on."""


def make_plan(settings: EvaluationSettings) -> Plan:
    """Read the rows and identify the weights; nothing large is loaded.

    Raises:
        SettingError, QuestionError, AudioError: settings, rows or clips that cannot work.
    """
    model, adapter = resolve(settings.model or "", settings.adapter)
    revision = base_revision(model, adapter, settings.model_revision)
    weights = {
        "model": identity(model, revision),
        "adapter": identity(adapter, file="adapter_config.json") if adapter else None,
    }
    jobs = [job for task in settings.named_tasks() for job in make_jobs(task, settings, weights)]
    # Settings that change the files although the completions stay the same. The layout counts too: a finished
    # evaluation in an older one is scored again. 3: one interval of the gap, recovery and MRR apart.
    names = ("extractors", "voicebench_guess", "reference_accuracy", "predict_only", "log_samples", "seed", "domain")
    scoring: dict[str, Any] = {"layout": 3} | {name: getattr(settings, name) for name in names}
    if "xfinder" in settings.extractors and not settings.predict_only:
        # Identified now, so that a model that isn't there is noticed before hours of completions.
        scoring["xfinder"] = weights["xfinder"] = identity(settings.xfinder_model)
    folder = Path(settings.output_dir).expanduser() / results.sanitized(adapter or model)
    fingerprint = sha256([[job.fingerprint for job in jobs], scoring])[:16]
    return Plan(model, adapter, revision, jobs, weights, folder, fingerprint)


def find_evaluation(settings: EvaluationSettings) -> Path | None:
    """The results file of an evaluation as `settings` say, of these very weights and rows; None if it is not finished.

    Raises:
        SettingError, QuestionError, AudioError: settings, rows or clips that cannot work.
    """
    plan = make_plan(settings)
    return results.find_results(plan.folder, plan.fingerprint)


def evaluate(settings: EvaluationSettings) -> Path:
    """Evaluate as `settings` say, on all processes of an `accelerate launch`, and write the result files.

    Returns:
        The results file, on every process. A finished evaluation is not repeated, unless `overwrite` says so.

    Raises:
        SettingError, QuestionError, AudioError: settings or rows that cannot work, before a model is loaded.
    """
    state = start_processes(settings.use_cpu)
    started = time.time()
    with state.main_process_first():  # the others find what the first one downloaded
        plan = make_plan(settings)
    earlier = results.find_results(plan.folder, plan.fingerprint)
    (earlier,) = broadcast_object_list([earlier])  # one answer for all processes
    if earlier is not None and not settings.overwrite:
        state.print(f"Finished already: {earlier}. Pass --overwrite to repeat it.")
        return earlier

    @cache
    def load_model() -> tuple[Any, Any]:
        return load_speech_llm(
            plan.model,
            plan.adapter,
            model_revision=plan.revision,
            dtype=settings.dtype,
            device=state.device,
            attn_implementation=settings.attn_implementation,
        )

    completions = [complete_job(job, settings, plan.folder / "completions", load_model) for job in plan.jobs]
    path = None
    if state.is_main_process:
        is_loaded = load_model.cache_info().currsize
        processor = load_model()[1] if is_loaded else load_processor(plan.model, plan.adapter, plan.revision)
        load_model.cache_clear()  # makes room for the extractor
        samples = {
            job.name: score_job(job, lines, settings, state.device)
            for job, lines in zip(plan.jobs, completions, strict=True)
        }
        content = {
            **summarize(plan.jobs, samples, settings),
            **_circumstances(plan, processor, settings, state),
            "date": started,
            "total_evaluation_time_seconds": str(time.time() - started),
        }
        logged = samples if settings.log_samples or settings.predict_only else {}
        path = results.write_results(plan.folder, content, logged, results.date_id())
    (path,) = broadcast_object_list([path])
    return path


def _circumstances(plan: Plan, processor: Any, settings: EvaluationSettings, state: PartialState) -> dict[str, Any]:
    """What was run, how and where, under lm-evaluation-harness's names."""
    name = plan.adapter or plan.model
    seeds = {f"{kind}_seed": settings.seed for kind in ("random", "numpy", "torch")}
    return {
        "config": {
            "model": "tars_trl",
            "model_args": f"pretrained={plan.model}" + (f",peft={plan.adapter}" if plan.adapter else ""),
            "batch_size": str(settings.batch_size),
            "device": str(state.device),
            "limit": settings.limit,
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": {**settings.generation, "max_new_tokens": settings.max_completion_length},
            **seeds,
            "settings": asdict(settings),
            "processes": state.num_processes,
        },
        **record.environment(),
        "model_source": "tars_trl",
        "model_name": name,
        "model_name_sanitized": results.sanitized(name),
        "model_revision": plan.revision,
        "system_instruction": settings.system_prompt,
        "system_instruction_sha": sha256(settings.system_prompt) if settings.system_prompt else None,
        "fewshot_as_multiturn": False,
        "chat_template": processor.chat_template,
        "chat_template_sha": sha256(processor.chat_template or ""),
        "hashes": {**plan.weights, **{job.name: job.described["rows"] for job in plan.jobs}},
        "fingerprint": plan.fingerprint,
    }


# ---- Completions ---------------------------------------------------------------------------------------------------


def complete_job(job: Job, settings: EvaluationSettings, folder: Path, load_model: LoadModel) -> list[Line]:
    """A line for each row of a job, with its `key`, completion and, of a cascade, transcript."""
    share, weight = 0.0, 0.0  # of what is right, among this process's new completions

    @cache
    def load_transcriber() -> Transcriber | None:
        return _transcriber(job, settings, *load_model())

    def ask(places: Sequence[int]) -> list[Line]:
        nonlocal share, weight
        rows = [job.rows[place] for place in places]
        lines = _ask(job, settings, *load_model(), rows, load_transcriber())
        for row, line in zip(rows, lines, strict=True):
            points = running_score(job.task.kind, row, line["text"])
            share, weight = share + points[0], weight + points[1]
        return lines

    figure = "WER" if job.task.kind == "transcript" else "accuracy"
    return share_out(
        job.rows["key"][:],
        ask,
        folder,
        f"{job.name}.{job.fingerprint}",
        batch_size=settings.batch_size,
        overwrite=settings.overwrite,
        postfix=lambda lines: {figure: f"{share / weight:.3f}" if weight else "-"},
    )


def _transcriber(job: Job, settings: EvaluationSettings, model: Any, processor: Any) -> Transcriber | None:
    if job.modality == "self_cascade":
        return cascade.from_itself(model, processor, settings.max_completion_length, settings.batch_size)
    if job.modality == "cascade" and settings.transcripts is not None:
        return cascade.from_table(cascade.read_transcripts(settings.transcripts, job.rows["key"][:]))
    if job.modality == "cascade":
        return from_asr(settings.asr_model or "", PartialState().device, settings.batch_size)
    return None


def _ask(
    job: Job,
    settings: EvaluationSettings,
    model: Any,
    processor: Any,
    rows: list[dict[str, Any]],
    transcriber: Transcriber | None,
) -> list[Line]:
    transcripts: list[str | None] = [None] * len(rows)
    if transcriber is not None:
        transcripts = list(transcriber(rows))
        rows = [cascade.with_transcript(row, str(text)) for row, text in zip(rows, transcripts, strict=True)]
    completions = complete(
        model,
        processor,
        rows,
        "speech" if job.modality == "speech" else "text",
        batch_size=settings.batch_size,
        max_completion_length=settings.max_completion_length,
        seed=settings.seed,
        **settings.generation,
    )
    return [
        {"key": done.key, "text": done.text, "tokens": done.tokens, "truncated": done.truncated}
        | ({} if transcript is None else {"transcript": transcript})
        for done, transcript in zip(completions, transcripts, strict=True)
    ]
