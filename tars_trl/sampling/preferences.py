"""Preference pairs and supervised examples from a model's own completions of spoken and of written questions.

Of each question the model completes the spoken prompt (student) and the written prompt (teacher) several times. A pair
is a correct written completion (chosen) and a wrong or lower-scored spoken one (rejected), for the spoken prompt.

    OUT/samples_<digest>.<process>.jsonl   every completion and its score, appended as they come: what a resume reads
    OUT/preferences/train-*.parquet        the questions' columns, `chosen`, `rejected` and their scores
    OUT/sft/train-*.parquet                the questions' columns and `completion`
    OUT/report.json                        what was kept, dropped and why, and what it was made with

Filters are no part of the digest: other filters make other pairs of the same completions.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, List, Value
from datasets.table import embed_table_storage
from tqdm import tqdm

from ..data.audio import check_audio
from ..data.journal import append_lines, read_lines, rows_digest, sha256
from ..data.questions import load_questions
from ..grpo.rewards import accuracy_reward, format_reward
from ..models.loading import identity, load_speech_llm, resolve
from ..record import environment
from ..settings import setting
from .complete import complete
from .scores import from_full_distribution

MODALITIES = ("speech", "text")
MESSAGES = List({"role": Value("string"), "content": Value("string")})
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHARD_ROWS = 2000  # 500 MB with clips of 16 s as 16-bit samples
KEPT = "kept"


@dataclass
class PreferenceSettings:
    """Settings of `build_preferences`.

    Raises:
        ValueError: a value that cannot work; the message says what was given, why it fails and what to do.
    """

    model: str = setting("Qwen/Qwen2.5-Omni-7B", "Speech LLM that is sampled: hub id or folder, also of an adapter.")
    model_revision: str | None = setting(None, "Revision of the model on the hub.")
    dtype: str = setting("auto", "auto (as saved; float32 on a CPU), float32, bfloat16 or float16.")
    use_cpu: bool = setting(False, "Run on the CPU although there is a GPU.")
    dataset: str = setting("yuantuo666/MMLU_FULL-full_train_hf_format.merged.v1", "Questions: hub id, folder or file.")
    split: str = setting("train", "Split of the questions.")
    limit: int | None = setting(None, "Use this many questions only, drawn by seed.")
    system_prompt: str | None = setting(None, "System prompt of rows that bring none; None for the method's.")
    output_dir: str = setting("runs/preferences", "Folder of what is written.")

    num_samples: int = setting(4, "Completions of a question in each modality (as TARS: 4 + 4).")
    temperature: float = setting(1.0, "Of sampling (paper: 1.0).")
    max_new_tokens: int = setting(1024, "Most tokens of a completion (paper: 1024).")
    batch_size: int = setting(8, "Questions in a forward pass, per process; each has num_samples rows.")
    seed: int = setting(0, "Of sampling and of the choice among equal completions.")
    max_audio_seconds: float = setting(30.0, "Longer clips are refused; audio is never truncated.")
    on_bad_audio: str = setting("refuse", "`refuse` to start with unusable clips, or `skip` and count them.")

    format_weight: float = setting(0.5, "A completion's score is accuracy + format_weight * format (paper: 0.5).")
    min_margin: float = setting(0.5, "Smallest difference of the two scores; 1 asks for a wrong rejected completion.")
    min_tokens: int = setting(1, "Shorter completions are not used.")
    max_tokens: int | None = setting(None, "Longer completions are not used. None: max_new_tokens.")
    max_length_ratio: float = setting(2.0, "Most tokens of the longer completion of a pair over the shorter one's.")

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size", "min_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} leaves no completion. Give 1 or more.")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} would sample the same again. Give more than 0, such as 1."
            )
        if not self.format_weight >= 0:
            raise ValueError(f"format_weight={self.format_weight} would reward what is badly formed. Give 0 or more.")
        if not 0 < self.min_margin <= 1 + self.format_weight:
            raise ValueError(
                f"min_margin={self.min_margin}: no difference is 0 or less, and none above {1 + self.format_weight} "
                "(1 + format_weight) is possible. Give one between, such as 0.5."
            )
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} is below min_tokens={self.min_tokens}: no completion would be used. "
                "Give a larger max_tokens, or None for max_new_tokens."
            )
        if self.min_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_new_tokens={self.max_new_tokens}: no completion would be "
                "used. Give a smaller min_tokens or a larger max_new_tokens."
            )
        for name, choices in (("on_bad_audio", ("refuse", "skip")), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a choice. Use one of {', '.join(choices)}.")
        if self.max_length_ratio < 1:
            raise ValueError(f"max_length_ratio={self.max_length_ratio}: no pair is below 1. Give 1 or more.")


@dataclass(frozen=True)
class Candidate:
    """One sampled completion; `score` is its reward, `correct` whether its answer is right."""

    text: str
    tokens: int
    truncated: bool
    correct: bool
    score: float


Sampled = dict[str, list[Candidate]]
"""The candidates of one question, by modality."""


def choose(sampled: Sampled, key: str, settings: PreferenceSettings) -> tuple[Candidate | None, Candidate | None, str]:
    """(chosen, rejected, reason) of one question: the pair of the largest margin, drawn by seed and key among equals.

    Truncated completions are never used.

    Returns:
        reason is `KEPT`, or why there is no pair; then rejected is None, and chosen a correct written completion for
        the supervised set, if there is one.
    """
    longest = settings.max_new_tokens if settings.max_tokens is None else settings.max_tokens
    generator = random.Random(f"{settings.seed}/{key}")  # seeding with a string is stable across runs
    spoken, written = (
        [c for c in sampled[name] if not c.truncated and settings.min_tokens <= c.tokens <= longest]
        for name in MODALITIES
    )
    if not any(c.correct for c in sampled["text"]):
        return None, None, "no correct written completion"
    teachers = [c for c in written if c.correct]
    if not teachers:
        return None, None, "correct written completions truncated, too short or too long"
    best = max(c.score for c in teachers)
    alone = generator.choice([c for c in teachers if c.score == best])
    if not spoken:
        return alone, None, "spoken completions truncated, too short or too long"
    pairs = [(c, r) for c in teachers for r in spoken if c.score > r.score]
    if not pairs:
        return alone, None, "spoken completions as good as written ones"
    pairs = [(c, r) for c, r in pairs if c.score - r.score >= settings.min_margin]
    if not pairs:
        return alone, None, "margin below min_margin"
    pairs = [(c, r) for c, r in pairs if _ratio(c, r) <= settings.max_length_ratio]
    if not pairs:
        return alone, None, "lengths differ by more than max_length_ratio"
    widest = max(c.score - r.score for c, r in pairs)
    chosen, rejected = generator.choice([(c, r) for c, r in pairs if c.score - r.score == widest])
    return chosen, rejected, KEPT


def _ratio(first: Candidate, second: Candidate) -> float:
    return max(first.tokens, second.tokens) / min(first.tokens, second.tokens)


def build_preferences(settings: PreferenceSettings) -> Counter[str]:
    """Sample what is missing, on all processes of an `accelerate launch`, then write both data sets and the report.

    Returns:
        questions by reason, `KEPT` among them, on every process.

    Raises:
        ValueError, QuestionError, AudioError: settings or rows that cannot work, before a model is loaded; and no pair
            at all.
    """
    # Processes meet only after hours of sampling, and wait for the slowest one.
    state = PartialState(cpu=settings.use_cpu or not torch.accelerator.is_available(), timeout=timedelta(hours=24))
    with state.main_process_first():
        questions = load_questions(
            settings.dataset,
            settings.split,
            system_prompt=settings.system_prompt,
            limit=settings.limit,
            seed=settings.seed if settings.limit else None,
        )
    questions = check_audio(questions, max_seconds=settings.max_audio_seconds, on_error=settings.on_bad_audio)
    lines = _sampled(questions, settings, state)
    keys = questions["key"][:]
    choices = [choose(_candidates(lines[key]), key, settings) for key in keys]
    counts = Counter(reason for _, _, reason in choices)
    if counts[KEPT] == 0:
        raise ValueError(
            f"{len(keys)} questions gave no pair ({_listed(counts)}). Sample more with num_samples, or loosen "
            "min_margin, max_tokens or max_length_ratio."
        )
    if state.is_main_process:
        _write(questions, choices, counts, settings)
    state.wait_for_everyone()
    return counts


# ---- Sampling ------------------------------------------------------------------------------------------------------


def _sampled(questions: Dataset, settings: PreferenceSettings, state: PartialState) -> dict[str, dict[str, Any]]:
    """A line of scored completions for each question: read where there is one, sampled by one of the processes else."""
    names = ("dtype", "num_samples", "temperature", "max_new_tokens", "batch_size", "seed", "format_weight")
    model_name, adapter = resolve(settings.model)
    described = {name: getattr(settings, name) for name in names} | {
        "sampling": from_full_distribution(settings.temperature),
        "rows": rows_digest(questions, True),
        "model": identity(model_name, settings.model_revision),
        "adapter": identity(adapter, file="adapter_config.json") if adapter else None,
    }
    folder, stem = Path(settings.output_dir), f"samples_{sha256(described)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    found = read_lines(sorted(folder.glob(f"{stem}.*.jsonl"))) if state.is_main_process else {}
    (found,) = broadcast_object_list([found])
    keys, size = questions["key"][:], settings.batch_size
    # Whole batches, always the same ones: a batch is the unit of seeds, of resuming and of what processes share.
    batches = [range(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
    missing = [numbers for numbers in batches if any(keys[number] not in found for number in numbers)]
    mine = missing[state.process_index :: state.num_processes]
    fresh: list[dict[str, Any]] = []
    if mine:
        revision, device = settings.model_revision, state.device
        model, processor = load_speech_llm(model_name, adapter, revision=revision, dtype=settings.dtype, device=device)
        counts: Counter[str] = Counter()
        with tqdm(total=sum(map(len, mine)), desc="sampling", disable=not state.is_main_process) as bar:
            for numbers in mine:
                batch = [questions[number] for number in numbers]
                lines = _batch(model, processor, batch, settings)
                append_lines(folder / f"{stem}.{state.process_index}.jsonl", lines)
                fresh += lines
                counts.update(choose(_candidates(line), line["key"], settings)[2] for line in lines)
                bar.update(len(batch))
                bar.set_postfix({"pairs": counts[KEPT], "dropped": counts.total() - counts[KEPT]})
    return found | {line["key"]: line for line in gather_object(fresh)}


def _batch(model: Any, processor: Any, rows: list[dict[str, Any]], settings: PreferenceSettings) -> list[dict]:
    lines: list[dict[str, Any]] = [{"key": row["key"]} for row in rows]
    for modality in MODALITIES:
        done = complete(
            model,
            processor,
            rows,
            modality,  # type: ignore[arg-type]
            batch_size=len(rows),
            max_new_tokens=settings.max_new_tokens,
            num_samples=settings.num_samples,
            seed=settings.seed,
            **from_full_distribution(settings.temperature),
        )
        for number, completion in enumerate(done):
            row, line = rows[number // settings.num_samples], lines[number // settings.num_samples]
            (accuracy,) = accuracy_reward([completion.text], [row["answer_index"]], [row["options"]])
            (well_formed,) = format_reward([completion.text])
            score = accuracy + settings.format_weight * well_formed
            made = Candidate(completion.text, completion.tokens, completion.truncated, accuracy == 1, score)
            line.setdefault(modality, []).append(asdict(made))
    return lines


def _candidates(line: dict[str, Any]) -> Sampled:
    return {modality: [Candidate(**candidate) for candidate in line[modality]] for modality in MODALITIES}


# ---- Files ---------------------------------------------------------------------------------------------------------


def _write(questions: Dataset, choices: Sequence[tuple], counts: Counter[str], settings: PreferenceSettings) -> None:
    folder = Path(settings.output_dir)
    added = ("chosen", "rejected", "chosen_score", "rejected_score", "completion")
    questions = questions.remove_columns([name for name in added if name in questions.column_names])
    taught = [number for number, (chosen, _, _) in enumerate(choices) if chosen is not None]
    paired = [number for number in taught if choices[number][2] == KEPT]
    supervised = questions.select(taught)
    supervised = supervised.add_column("completion", [_said(choices[n][0]) for n in taught], feature=MESSAGES)
    preferences = questions.select(paired)
    for place, name in enumerate(("chosen", "rejected")):
        picked = [choices[number][place] for number in paired]
        preferences = preferences.add_column(name, [_said(candidate) for candidate in picked], feature=MESSAGES)
        preferences = preferences.add_column(f"{name}_score", [candidate.score for candidate in picked])
    _write_shards(supervised, folder / "sft")
    _write_shards(preferences, folder / "preferences")
    report = {
        "questions": len(choices),
        "preferences": len(paired),
        "sft": len(taught),
        "reasons": dict(counts.most_common()),
        "settings": asdict(settings),
        **environment(),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(choices)} questions: {_listed(counts)}.")
    print(f"{folder}: {len(paired)} preference pairs, {len(taught)} supervised examples.")


def _said(candidate: Candidate) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": candidate.text}]


def _write_shards(dataset: Dataset, folder: Path) -> None:
    """Parquet shards with the audio inside, written beside `folder` and moved there when all are whole.

    What an earlier run left goes only then: killed in between, the folder is the old set, none, or the new one.
    """
    beside, old = (folder.with_name(folder.name + ending) for ending in (".part", ".old"))
    for stale in (beside, old):
        shutil.rmtree(stale, ignore_errors=True)
    beside.mkdir(parents=True)
    shards = -(-len(dataset) // SHARD_ROWS)
    for index in range(shards):
        shard = dataset.shard(shards, index, contiguous=True).with_format("arrow")
        shard = shard.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
        shard.with_format(None).to_parquet(beside / f"train-{index:05d}-of-{shards:05d}.parquet")
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
