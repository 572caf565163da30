"""Preference pairs and supervised examples from a model's own completions of spoken and of written questions.

Of each question the model completes the spoken prompt (student) and the written prompt (teacher) several times. A pair
is a correct written completion (chosen) and a wrong or lower-scored spoken one (rejected), for the spoken prompt.

    OUT/samples.<digest>.<process>.jsonl   every completion and its score, appended as they come: what a resume reads
    OUT/preferences/train-*.parquet        the questions' columns, `chosen`, `rejected` and their scores
    OUT/sft/train-*.parquet                the questions' columns and `completion`
    OUT/report.json                        what was kept, dropped and why, and what it was made with

Filters are no part of the digest: other filters make other pairs of the same completions.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ..data.journal import Line, rows_digest, sha256
from ..data.prompts import MODALITIES
from ..errors import SettingError
from ..grpo.rewards import accuracy_reward, format_reward
from ..record import environment
from ..settings import BackendSettings, setting
from . import shared
from .complete import complete, decoding

MESSAGES = List({"role": Value("string"), "content": Value("string")})
SHARD_ROWS = 2000  # 500 MB with clips of 16 s as 16-bit samples
PAIRED = "kept"


@dataclass
class PreferenceSettings(BackendSettings, shared.SamplingSettings):
    """Settings of `build_preferences`."""

    output_dir: str = setting("runs/preferences", "Folder of what is written.", required=True)
    num_samples: int = setting(4, "Completions of a question in each modality (as TARS: 4 + 4).", least=1)
    temperature: float = setting(1.0, "Of sampling (paper: 1.0); near 0 all samples are the same.", least=0.01)
    format_weight: float = setting(0.5, "A score is accuracy + format_weight * format (paper: 0.5).", least=0)
    min_margin: float = setting(0.5, "Smallest difference of the scores; 1: the rejected one is wrong.", above=0)
    min_tokens: int = setting(1, "Shorter completions are not used.", least=1)
    max_tokens: int | None = setting(None, "Longer completions are not used. None: max_completion_length.", least=1)
    max_length_ratio: float = setting(2.0, "Most tokens of a pair's longer completion over the shorter's.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_margin > 1 + self.format_weight:
            raise SettingError(
                f"min_margin={self.min_margin}: no difference of two scores is above {1 + self.format_weight} "
                "(1 + format_weight). Give a smaller one, such as 0.5."
            )
        longest = "max_completion_length" if self.max_tokens is None else "max_tokens"
        if self.min_tokens > getattr(self, longest):
            raise SettingError(
                f"min_tokens={self.min_tokens} is above {longest}={getattr(self, longest)}: no completion would be "
                f"used. Give a smaller min_tokens or a larger {longest}."
            )


@dataclass(frozen=True)
class Candidate:
    """One sampled completion; `score` is its reward, `correct` whether its answer is right."""

    text: str
    tokens: int
    truncated: bool
    correct: bool
    score: float


Candidates = dict[str, list[Candidate]]
"""The candidates of one question, by modality."""


def choose(
    candidates: Candidates, key: str, settings: PreferenceSettings
) -> tuple[Candidate | None, Candidate | None, str]:
    """(chosen, rejected, reason) of one question: the pair of the largest margin, drawn by seed and key among equals.

    Truncated completions are never used.

    Returns:
        reason is `PAIRED`, or why there is no pair; then rejected is None, and chosen a correct written completion for
        the supervised set, if there is one.
    """
    longest = settings.max_completion_length if settings.max_tokens is None else settings.max_tokens
    generator = random.Random(f"{settings.seed}/{key}")  # seeding with a string is stable across runs
    spoken, written = (
        [c for c in candidates[name] if not c.truncated and settings.min_tokens <= c.tokens <= longest]
        for name in MODALITIES
    )
    if not any(c.correct for c in candidates["text"]):
        return None, None, "no correct written completion"
    teachers = [c for c in written if c.correct]
    if not teachers:
        return None, None, "correct written completions truncated, too short or too long"
    best = max(c.score for c in teachers)
    alone = generator.choice([c for c in teachers if c.score == best])
    pairs = [(c, r) for c in teachers for r in spoken]
    filters: tuple[tuple[str, Callable[[Candidate, Candidate], bool]], ...] = (
        ("spoken completions truncated, too short or too long", lambda c, r: True),
        ("spoken completions as good as written ones", lambda c, r: _margin(c, r) > 0),
        ("margin below min_margin", lambda c, r: _margin(c, r) >= settings.min_margin),
        ("lengths differ by more than max_length_ratio", lambda c, r: _ratio(c, r) <= settings.max_length_ratio),
    )
    for reason, passes in filters:
        pairs = [pair for pair in pairs if passes(*pair)]
        if not pairs:
            return alone, None, reason
    widest = max(_margin(*pair) for pair in pairs)
    return *generator.choice([pair for pair in pairs if _margin(*pair) == widest]), PAIRED


def _margin(chosen: Candidate, rejected: Candidate) -> float:
    return round(chosen.score - rejected.score, 9)  # 1.15 - 0.15 is 0.9999999999999999


def _ratio(first: Candidate, second: Candidate) -> float:
    return max(first.tokens, second.tokens) / min(first.tokens, second.tokens)


def build_preferences(settings: PreferenceSettings) -> Counter[str]:
    """Sample what is missing, on all processes of an `accelerate launch`, then write both data sets and the report.

    Returns:
        questions by reason, `PAIRED` among them, on every process.

    Raises:
        SettingError, QuestionError, AudioError: settings or rows that cannot work, before a model is loaded; and no
            pair at all.
    """
    state = shared.start_processes(settings.use_cpu)
    loaded = shared.model_loader(settings)
    questions = shared.chosen_questions(settings)
    choices = [choose(_candidates(line), line["key"], settings) for line in _sample(questions, settings, loaded)]
    counts = Counter(reason for _, _, reason in choices)
    if counts[PAIRED] == 0:
        raise SettingError(
            f"{len(choices)} questions gave no pair ({shared.spell_counts(counts)}). Sample more with num_samples, or "
            "loosen min_margin, max_tokens or max_length_ratio."
        )
    if state.is_main_process:
        _write(questions, choices, counts, settings)
    state.wait_for_everyone()
    return counts


# ---- Sampling ------------------------------------------------------------------------------------------------------


def _sample(questions: Dataset, settings: PreferenceSettings, loaded: Callable[[], tuple[Any, Any]]) -> list[Line]:
    """A line of scored completions for each question, in its order."""
    names = ("num_samples", "batch_size", "format_weight")
    facts = {name: getattr(settings, name) for name in names} | decoding(settings) | shared.model_facts(settings)
    stem = f"samples.{sha256(facts | {'rows': rows_digest(questions, True)})[:16]}"
    counts: Counter[bool] = Counter()

    def work(places: Sequence[int]) -> list[Line]:
        lines = _sample_batch(*loaded(), [questions[place] for place in places], settings)
        counts.update(choose(_candidates(line), line["key"], settings)[2] == PAIRED for line in lines)
        return lines

    return shared.share_out(
        questions["key"][:],
        work,
        Path(settings.output_dir),
        stem,
        batch_size=settings.batch_size,
        postfix=lambda _: {"pairs": counts[True], "dropped": counts[False]},
    )


def _sample_batch(model: Any, processor: Any, rows: list[dict[str, Any]], settings: PreferenceSettings) -> list[Line]:
    lines: list[Line] = [{"key": row["key"], **{modality: [] for modality in MODALITIES}} for row in rows]
    options = {"batch_size": len(rows), "num_samples": settings.num_samples, **decoding(settings)}
    for modality in MODALITIES:
        for number, completion in enumerate(complete(model, processor, rows, modality, **options)):
            place = number // settings.num_samples
            (accuracy,) = accuracy_reward([completion.text], [rows[place]["answer_index"]], [rows[place]["options"]])
            score = accuracy + settings.format_weight * format_reward([completion.text])[0]
            candidate = Candidate(completion.text, completion.tokens, completion.truncated, accuracy == 1, score)
            lines[place][modality].append(asdict(candidate))
    return lines


def _candidates(line: Line) -> Candidates:
    return {modality: [Candidate(**candidate) for candidate in line[modality]] for modality in MODALITIES}


# ---- Files ---------------------------------------------------------------------------------------------------------


def _write(questions: Dataset, choices: Sequence[tuple], counts: Counter[str], settings: PreferenceSettings) -> None:
    folder = Path(settings.output_dir)
    added = ("chosen", "rejected", "chosen_score", "rejected_score", "completion")
    questions = questions.remove_columns([name for name in added if name in questions.column_names])
    sft = [number for number, (chosen, _, _) in enumerate(choices) if chosen is not None]
    pairable = [number for number, (_, rejected, _) in enumerate(choices) if rejected is not None]
    pairs: dict[str, list] = {}
    for place, name in enumerate(("chosen", "rejected")):
        pairs[name] = [_message(choices[number][place]) for number in pairable]
        pairs[f"{name}_score"] = [choices[number][place].score for number in pairable]
    _write_shards(questions.select(sft), {"completion": [_message(choices[n][0]) for n in sft]}, folder / "sft")
    _write_shards(questions.select(pairable), pairs, folder / "preferences")
    sizes = {"questions": len(choices), "preferences": len(pairable), "sft": len(sft)}
    report = {**sizes, "reasons": dict(counts.most_common()), "settings": asdict(settings), **environment()}
    report |= shared.engine_facts(settings)
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(choices)} questions: {shared.spell_counts(counts)}.")
    print(f"{folder}: {len(pairable)} preference pairs, {len(sft)} supervised examples.")


def _message(candidate: Candidate) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": candidate.text}]


def _write_shards(rows: Dataset, columns: dict[str, list], folder: Path) -> None:
    """Parquet shards with the audio inside, written beside `folder` and moved there when all are whole.

    What an earlier run left goes only then: killed in between, the folder is the old set, none, or the new one.
    """
    types = {name: Value("float64") if name.endswith("_score") else MESSAGES for name in columns}
    added = Dataset.from_dict(columns, features=Features(types))
    beside, old = (folder.with_name(folder.name + ending) for ending in (".part", ".old"))
    for stale in (beside, old):
        shutil.rmtree(stale, ignore_errors=True)
    shards = -(-len(rows) // SHARD_ROWS)
    for index in range(shards):
        part, beside_it = (whole.shard(shards, index, contiguous=True) for whole in (rows, added))
        shared.write_parquet(part, beside_it, beside / f"train-{index:05d}-of-{shards:05d}.parquet")
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
