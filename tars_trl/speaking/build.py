"""A build in stages: written questions to rows (`text`), and rows to clips (`speech`).

    OUT/data/train-00000-of-00020.parquet   what is kept: rows of the schema with compressed audio; none, no file
    OUT/.work/text-train.parquet            rows that are going to be spoken
    OUT/.work/train-00000.jsonl             outcomes of a shard under way, a line each, appended as they come
    OUT/.work/train-00000.json              what a finished shard kept, and what it dropped and why
    OUT/.work/dropped-train.jsonl           what was dropped before it was spoken, a line each: key, reason, detail
    OUT/.work/settings.json                 what a continued build has to agree with

Files are written beside their place and renamed, so that each is whole. A build that was killed at any moment and
started again repeats what was under way and nothing else, and ends with the same rows and samples, as everything random
depends on the seed and the question's key.
"""

import base64
import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value
from tqdm import tqdm

from ..data.audio import TARGET_RATE
from ..data.journal import append_lines, read_lines
from ..errors import SettingError
from ..files import json_object, write_whole
from .clips import CODECS
from .recognition import Recognizer, recognizer
from .say import Outcome, Speaker, say_all
from .settings import BuildSettings
from .voices import Engine
from .written import written_rows

SPOKEN = {
    **{"voice": Value("string"), "pace": Value("float32"), "seconds": Value("float32")},
    **{"transcript": Value("string"), "tts_wer": Value("float32"), "tts_retries": Value("int32")},
    **{"augmentation": Value("string")},
}
"""Columns that speaking adds, beside `audio`."""


def build(
    settings: BuildSettings, *, engines: Mapping[str, Engine] | None = None, listener: Recognizer | None = None
) -> dict[str, Any]:
    """Run the stages that `settings.stage` names, or what is left of them.

    Args:
        engines: further engines by name; each can be pickled.
        listener: recogniser in place of the one that `settings.asr` names.

    Returns:
        what a card tells of the data set: `counts`, by split, of `questions`, `kept`, `dropped` {reason: number} and,
        once spoken, `seconds`, `tts_wer` (its mean) and `voices` {name: clips}; and `source`, `license`, `asr`,
        `max_wer`, `tries`, `augment`, `codec`, `seed`, `push_to`. No paths of this machine.

    Raises:
        SettingError: the output folder belongs to a build with other settings, or another process is building there.
        QuestionError: the questions cannot be read, or none is left.
        VoiceError: a voice cannot be used.
        ChildProcessError: a process was killed.
    """
    output = Path(str(settings.output_dir)).expanduser()
    (output / ".work").mkdir(parents=True, exist_ok=True)
    with _hold(output / ".work") as work:
        for stage in ("text", "speech"):
            if settings.stage in ("all", stage):
                _check_agreement(work / "settings.json", settings, stage)
                if stage == "text":
                    _write_text(settings, work)
                else:
                    _speak(settings, output, engines or {}, listener)
        splits = _count_splits(work)
    source = str(settings.dataset)
    if Path(source).expanduser().exists():
        source = f"a local copy, {Path(source).name}"
    elif settings.dataset_revision is not None:
        source = f"{source}, revision {settings.dataset_revision}"
    names = ("license", "max_wer", "tries", "augment", "codec", "seed", "push_to")
    return {
        "source": source,
        "asr": Path(settings.asr).name if settings.asr else None,
        "counts": splits,
        **{name: getattr(settings, name) for name in names},
    }


def _count_splits(work: Path) -> dict[str, dict[str, Any]]:
    """What a build has kept and dropped so far, by split; see `build`."""
    counts: dict[str, dict[str, Any]] = {}
    for split, written in _written(work).items():
        shards = [json_object(file.read_bytes(), str(file)) for file in sorted(work.glob(f"{split}-[0-9]*.json"))]
        dropped = sum((Counter(shard["dropped"]) for shard in shards), Counter(written["dropped"]))
        counts[split] = {**written, "dropped": dict(dropped.most_common())}
        if shards:
            kept = sum(shard["kept"] for shard in shards)
            errors = [shard["errors"] for shard in shards if shard["errors"] is not None]
            counts[split] |= {
                "kept": kept,
                "seconds": round(sum(shard["seconds"] for shard in shards), 1),
                "tts_wer": sum(errors) / max(1, kept) if errors else None,
                "voices": dict(sum((Counter(shard["voices"]) for shard in shards), Counter())),
            }
    return counts


# ---- Stages --------------------------------------------------------------------------------------------------------


def _write_text(settings: BuildSettings, work: Path) -> None:
    if (work / "text.json").is_file():
        return
    rows, dropped = written_rows(settings)
    counts = {}
    for split, kept in rows.items():
        _replace(work / f"text-{split}.parquet", lambda path, kept=kept: kept.to_parquet(path))
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped[split]]
        write_whole(work / f"dropped-{split}.jsonl", "".join(lines))
        reasons = Counter(entry["reason"] for entry in dropped[split])
        counts[split] = {"questions": len(kept) + len(dropped[split]), "kept": len(kept), "dropped": reasons}
    write_whole(work / "text.json", json.dumps(counts, indent=2))  # last: with it the stage is done


def _speak(settings: BuildSettings, output: Path, engines: Mapping[str, Engine], listener: Recognizer | None) -> None:
    splits = _written(output / ".work")
    if listener is None and settings.asr is not None:
        listener = recognizer(settings.asr, settings.asr_device)
    (output / "data").mkdir(exist_ok=True)
    for split in splits:
        speaker = Speaker(
            {**settings.engines(), **engines},
            settings.voices_of(split),
            listener,
            seed=settings.seed,
            pace=(settings.pace[0], settings.pace[1]),
            tries=settings.tries,
            max_wer=settings.max_wer,
            min_seconds=settings.min_audio_seconds,
            max_seconds=settings.max_audio_seconds,
            augmentation=settings.augmentation,
            codec=settings.codec,
        )
        _speak_split(speaker, split, output, settings)


def _speak_split(speaker: Speaker, split: str, output: Path, settings: BuildSettings) -> None:
    """Speak what is missing of a split, and write each shard as soon as its last question is done."""
    work, size = output / ".work", settings.shard_size
    table = pq.read_table(work / f"text-{split}.parquet")
    features, rows = Features.from_arrow_schema(table.schema), table.to_pylist()
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    shard_of = {row["key"]: index // size for index, row in enumerate(rows)}
    stems = [f"{split}-{number:05d}" for number in range(len(parts))]
    places = [output / "data" / f"{stem}-of-{len(parts):05d}.parquet" for stem in stems]
    reports, journals = ([work / f"{stem}.{ending}" for stem in stems] for ending in ("json", "jsonl"))
    outcomes: dict[int, dict[str, Outcome]] = {}  # of the shards that are not written yet
    tally: Counter[str] = Counter()  # kept, and dropped by reason

    def write_if_whole(number: int) -> None:
        if len(outcomes[number]) == len(parts[number]):
            said = outcomes.pop(number)
            _write_shard(parts[number], said, features, places[number], reports[number], speaker.codec)
            journals[number].unlink(missing_ok=True)

    for number, (report, journal) in enumerate(zip(reports, journals, strict=True)):
        if report.is_file():
            content = json_object(report.read_bytes(), str(report))
            tally.update(content["dropped"], kept=content["kept"])
        else:
            outcomes[number] = read_lines([journal] if journal.is_file() else [])
            tally.update(outcome.get("reason", "kept") for outcome in outcomes[number].values())
    missing = [row for number, said in outcomes.items() for row in parts[number] if row["key"] not in said]
    for number in list(outcomes):
        write_if_whole(number)
    if missing:
        speaker.check()
    with tqdm(total=len(rows), initial=tally.total(), desc=f"Speaking {split}", disable=None) as bar:
        for outcome in say_all(speaker, missing, settings.processes):
            number = shard_of[outcome["key"]]
            append_lines(journals[number], [outcome])
            outcomes[number][outcome["key"]] = outcome
            tally[outcome.get("reason", "kept")] += 1
            bar.update()
            bar.set_postfix(tally)
            write_if_whole(number)


def _write_shard(
    rows: list[dict], outcomes: Mapping[str, Outcome], features: Features, place: Path, report: Path, codec: str
) -> None:
    kept, dropped = [], []
    for row in rows:
        outcome = outcomes[row["key"]]
        if "reason" in outcome:
            dropped.append({name: outcome[name] for name in ("key", "reason", "detail")})
        else:
            audio = {"bytes": base64.b64decode(outcome["audio"]), "path": f"{row['key']}.{CODECS[codec][2]}"}
            kept.append({**row, "audio": audio, **{name: outcome[name] for name in SPOKEN}})
    columns = {name: feature for name, feature in features.items() if name != "words"}
    schema = Features({"audio": Audio(sampling_rate=TARGET_RATE), **columns, **SPOKEN}).arrow_schema
    errors = [row["tts_wer"] for row in kept if row["tts_wer"] is not None]
    content = {
        "kept": len(kept),
        "dropped": Counter(entry["reason"] for entry in dropped),
        "seconds": sum(row["seconds"] for row in kept),
        "errors": sum(errors) if errors else None,
        "voices": Counter(row["voice"] for row in kept),
        "dropped_rows": dropped,
    }
    if kept:  # `datasets` cannot read a file without rows
        _replace(place, lambda path: pq.write_table(pa.Table.from_pylist(kept, schema=schema), path))
    write_whole(report, json.dumps(content, indent=2, ensure_ascii=False))  # last: with it the shard is done


# ---- Files ---------------------------------------------------------------------------------------------------------


@contextmanager
def _hold(work: Path) -> Iterator[Path]:
    """Hold the folder's lock, which the system takes back when the process ends in whatever way."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(
                f"output_dir={str(work.parent)!r}: another process is building there. Wait, or name another folder."
            ) from error
        yield work


def _check_agreement(file: Path, settings: BuildSettings, stage: str) -> None:
    """See that a stage that is continued has the settings it began with, and note those of one that begins."""
    now = json.loads(json.dumps(settings.fixed(stage)))
    before = json_object(file.read_bytes(), str(file)) if file.is_file() else {}
    changed = [name for name in now if name in before and now[name] != before[name]]
    if changed:
        changes = "; ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed)
        raise SettingError(
            f"output_dir={settings.output_dir!r} belongs to a build with other settings ({changes}): its rows would "
            "not go together with new ones. Use the old settings, name another folder, or remove this one."
        )
    write_whole(file, json.dumps({**before, **now}, indent=2, ensure_ascii=False))


def _written(work: Path) -> dict[str, dict[str, Any]]:
    """What the text stage kept and dropped, by split."""
    file = work / "text.json"
    if not file.is_file():
        raise SettingError(f"There is no {file}, so there is nothing to go on from. Run --stage text first.")
    return json_object(file.read_bytes(), str(file))


def _replace(place: Path, write: Any) -> None:
    """Write a file beside its place and move it there."""
    beside = place.with_name(place.name + ".part")
    write(beside)
    beside.replace(place)
