"""Running an evaluation: load rows, complete what is missing, score, write.

Completing and scoring are apart. Completions are kept by `sampling.shared.share_out`, named after a fingerprint of all
that they depend on (weights, rows, modality, prompt, decoding): what is there is not repeated, so an interrupted run
goes on, other extractors or figures cost no completion, and several processes share the rows that are missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .. import record
from ..data.journal import Line, sha256
from ..data.prompts import Modality
from ..models.loading import base_revision, identity, load_processor
from ..sampling.complete import complete, decoding
from ..sampling.shared import check_model, engine_facts, model_loader, share_out, start_processes
from ..speaking.recognition import Transcriber, from_asr
from . import cascade, results
from .jobs import Job, make_jobs
from .metrics import RESAMPLES
from .scoring import Sample, score_job, score_text
from .settings import EvaluationSettings
from .summary import summarize


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
    model, adapter = check_model(settings)
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

    Raises what `make_plan` raises.
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

    load_model: Any = model_loader(settings)
    completions = [complete_job(job, settings, plan.folder / "completions", load_model) for job in plan.jobs]
    load_model.cache_clear()  # makes room for the extractor
    path = None
    if state.is_main_process:
        samples = {
            job.name: score_job(job, lines, settings, state.device)
            for job, lines in zip(plan.jobs, completions, strict=True)
        }
        content = {
            **summarize(plan.jobs, samples, settings),
            **_circumstances(plan, settings, state),
            "date": started,
            "total_evaluation_time_seconds": str(time.time() - started),
        }
        logged = samples if settings.log_samples or settings.predict_only else {}
        path = results.write_results(plan.folder, content, logged, results.date_id())
    (path,) = broadcast_object_list([path])
    return path


def _circumstances(plan: Plan, settings: EvaluationSettings, state: PartialState) -> dict[str, Any]:
    """What was run, how and where, under lm-evaluation-harness's names."""
    name = plan.adapter or plan.model
    template = load_processor(plan.model, plan.adapter, plan.revision).chat_template
    return {
        "config": {
            "model": "tars_trl",
            "model_args": f"pretrained={plan.model}" + (f",peft={plan.adapter}" if plan.adapter else ""),
            "batch_size": str(settings.batch_size),
            "device": str(state.device),
            "limit": settings.limit,
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": plan.jobs[0].described["generation"],
            **{f"{kind}_seed": settings.seed for kind in ("random", "numpy", "torch")},
            "backend": engine_facts(settings).get("backend", f"transformers {transformers.__version__}"),
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
        "chat_template": template,
        "chat_template_sha": sha256(template or ""),
        "hashes": {**plan.weights, **{job.name: job.described["rows"] for job in plan.jobs}},
        "fingerprint": plan.fingerprint,
    }


def complete_job(
    job: Job, settings: EvaluationSettings, folder: Path, load_model: Callable[[], tuple[Any, Any]]
) -> list[Line]:
    """A line for each row of a job, with its `key`, completion and, of a cascade, transcript."""
    scores: list[Sample] = []  # of this process's new completions, for the progress bar

    @cache
    def load_transcriber() -> Transcriber:
        if job.modality == "self_cascade":
            return cascade.from_itself(*load_model(), settings.max_completion_length, settings.batch_size)
        if settings.transcripts is None:
            return from_asr(settings.asr_model or "", PartialState().device, settings.batch_size)
        transcripts = cascade.read_transcripts(settings.transcripts, job.rows["key"][:])
        return lambda rows: [transcripts[row["key"]] for row in rows]

    def ask(places: Sequence[int]) -> list[Line]:
        rows: list[dict[str, Any]] = [job.rows[place] for place in places]
        transcripts = load_transcriber()(rows) if "cascade" in job.modality else []
        if transcripts:
            rows = [cascade.with_transcript(row, text) for row, text in zip(rows, transcripts, strict=True)]
        modality: Modality = "speech" if job.modality == "speech" else "text"
        answers = complete(*load_model(), rows, modality, batch_size=settings.batch_size, **decoding(settings))
        lines: list[Line] = []
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            lines.append({name: getattr(answer, name) for name in ("key", "text", "tokens", "truncated")})
            if transcripts:
                lines[-1]["transcript"] = transcripts[number]
            scores.append(score_text(job.task.kind, row, answer.text))
        return lines

    def figures(_lines: Sequence[Line]) -> dict[str, str]:
        total = {name: sum(score[name] for score in scores) for name in scores[0]}
        if "acc" in total:
            return {"accuracy": f"{total['acc'] / len(scores):.3f}"}
        return {"WER": f"{total['edits'] / total['words']:.3f}" if total["words"] else "-"}

    stem = f"{job.name}.{job.fingerprint}"
    options: dict[str, Any] = {"batch_size": settings.batch_size, "overwrite": settings.overwrite, "postfix": figures}
    return share_out(job.rows["key"][:], ask, folder, stem, **options)
