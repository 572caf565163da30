"""What can be measured: a table of benchmarks, and the loaders that turn what each publishes into rows to ask.

Adding a benchmark is an entry in `TASKS`, and a loader where its columns are of a new kind. A path of questions in the
schema of `tars_trl.data` is a task, too. Nothing is downloaded before `read_task` is called.
"""

import contextlib
import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets, get_dataset_split_names

from ..data import SYSTEM_PROMPT, build_prompt, written_question
from ..data.audio import undecoded
from ..data.questions import load_questions, read_rows, with_columns
from ..errors import QuestionError, SettingError
from ..files import json_object

logger = logging.getLogger(__name__)

Modality = Literal["speech", "text", "cascade", "self_cascade"]
MODALITIES: tuple[Modality, ...] = ("speech", "text", "cascade", "self_cascade")

CLIP = "(recording)"
"""Stands in the written prompt where a recording without a written form is placed; a model never sees it."""
TRANSCRIBER = "You are a speech recognition model."
TRANSCRIBE = "Transcribe the audio clip into text."


@dataclass(frozen=True)
class Prompting:
    system_prompt: str | None = None
    """None: the task's own; "": none."""
    instruction: str | None = None
    """Stays written in both twins; None: the task's own; "": none."""
    audio_required: bool = True
    audio_anywhere: bool = False
    """See `load_questions`."""


@dataclass(frozen=True)
class Task:
    name: str
    source: str
    """Hub id, folder or file."""
    load: Callable[["Task", str, Prompting], Dataset]
    """Reads one split as rows with `key`, `prompt`, `audio` and what the answer is scored by: `options` and
    `answer_index`, or `reference`."""
    splits: tuple[str, ...] = ()
    """Read one after the other. Empty for a path of questions: "test", or the only one there is."""
    configuration: str | None = None
    """Of a hub repository that has several."""
    columns: tuple[str, ...] = ()
    """What the loader needs of the published columns; the loader of the schema checks them itself."""
    key: str | None = None
    """How keys are made of a row's columns, its split and its number there. None: the rows' own."""
    kind: Literal["choice", "transcript", "open"] = "choice"
    """Scored by the chosen option, by word error rate, or by whether the answer names the reference."""
    modalities: tuple[Modality, ...] = MODALITIES
    domain: str | None = None
    """Column by which figures are broken down."""
    version: int = 1
    """Goes up when figures are no longer comparable with earlier ones."""
    changes: str = "1: rows as they are."
    """What each version changed."""
    revision: str | None = None
    """Of the source on the hub. None: the newest; which one that was is in the result file."""


# ---- Loaders -------------------------------------------------------------------------------------------------------


def load_choices(task: Task, split: str, prompting: Prompting) -> Dataset:
    """Multiple-choice questions in the schema of `tars_trl.data`, or anything that its loader converts."""
    return load_questions(
        task.source,
        split,
        system_prompt=prompting.system_prompt,
        instruction=prompting.instruction,
        audio_required=prompting.audio_required,
        audio_anywhere=prompting.audio_anywhere,
        strict=False,  # benchmarks are measured as they were published
        name=_configuration(task),
        revision=task.revision,
    )


def load_recordings(task: Task, split: str, prompting: Prompting) -> Dataset:
    """Choices about a recording: the clip first, question and options in writing behind it; so there is no twin."""
    dataset = _published(task, split)
    columns: dict[str, list[Any]] = {"question": [], "options": [], "answer_index": [], "prompt": []}
    for row in _text_columns(dataset):
        options, index = _lettered(row) if "answer_gt" in row else (row["options"], row["answer_index"])
        prompt = _prompt_about_clip(prompting, SYSTEM_PROMPT, written_question(row["question"], options))
        for column, value in zip(columns.values(), (row["question"], options, index, prompt), strict=True):
            column.append(value)
    return with_columns(dataset, columns)


def _lettered(row: Mapping[str, Any]) -> tuple[list[str], int]:
    """Options and answer of a row of MMSU."""
    options = [str(row[name]) for name in ("choice_a", "choice_b", "choice_c", "choice_d") if row.get(name)]
    if options.count(str(row["answer_gt"])) != 1:
        raise QuestionError(
            f"row {row.get('id')!r}, answer_gt={row['answer_gt']!r}: it is not one of the options {options}. Correct "
            "the row."
        )
    return options, options.index(str(row["answer_gt"]))


def load_transcripts(task: Task, split: str, prompting: Prompting) -> Dataset:
    """Recordings to write down, `reference` being what is said in them."""
    dataset = _published(task, split)
    prompt = _prompt_about_clip(prompting, TRANSCRIBER, TRANSCRIBE)
    return with_columns(dataset, {"prompt": [prompt] * len(dataset), "reference": dataset["text"][:]})


def load_open(task: Task, split: str, prompting: Prompting) -> Dataset:
    """Questions with a short `reference` answer and no options; `region` is the split."""
    dataset = _published(task, split)
    questions = dataset["prompt"][:]
    prompts = [build_prompt(text, prompting.system_prompt, prompting.instruction) for text in questions]
    return with_columns(dataset, {"question": questions, "prompt": prompts, "region": [split] * len(dataset)})


def _published(task: Task, split: str) -> Dataset:
    """The rows of a split as they are, audio undecoded."""
    dataset = read_rows(task.source, split, _configuration(task), task.revision)
    missing = [name for name in task.columns if name not in dataset.column_names]
    if missing:
        raise QuestionError(
            f"{task.source}, split {split!r}, has the columns {dataset.column_names}: {task.name} needs {missing}, "
            f"too. Rename columns so that there are {', '.join(task.columns)}, or add their table."
        )
    if not len(dataset):
        raise QuestionError(f"{task.source}, split {split!r}: there are no rows. Check path and split.")
    return undecoded(dataset) if "audio" in dataset.column_names else dataset


def _configuration(task: Task) -> str | None:
    """A hub repository (or its clone, with its README) has configurations, a local copy has not."""
    folder = Path(task.source).expanduser()
    return None if folder.exists() and not (folder / "README.md").is_file() else task.configuration


def _text_columns(dataset: Dataset) -> Dataset:
    return dataset.select_columns([name for name in dataset.column_names if name != "audio"]).with_format(None)


def _prompt_about_clip(prompting: Prompting, system_prompt: str, instruction: str) -> list[dict]:
    system = system_prompt if prompting.system_prompt is None else prompting.system_prompt
    extra = f"{instruction}\n\n{prompting.instruction}" if prompting.instruction else instruction
    return build_prompt(CLIP, system, extra)


# ---- The table -----------------------------------------------------------------------------------------------------

_SPOKEN = "1: our system prompt, the question as the benchmark speaks it."
_WRITTEN = "1: question and options written after the recording, with our system prompt."
_HEARD = "1: system prompt and instruction of TARS' released code; corpus word error rate."
_DOMAINS = (
    *("biology", "business", "chemistry", "economics", "engineering", "health"),
    *("history", "law", "other", "philosophy", "physics", "psychology"),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # VoiceBench (columns audio, prompt with question, options and a request to choose, all of it spoken; reference,
        # a letter). `mmsu` is 3,074 MMLU-Pro questions, a split a domain: the paper's main table.
        Task(
            "voicebench_mmsu", "hlt-lab/voicebench", load_choices, _DOMAINS, "mmsu",
            key="{src}_{question_id}", domain="category", changes=_SPOKEN,
        ),
        Task(
            "voicebench_openbookqa", "hlt-lab/voicebench", load_choices, ("test",), "openbookqa",
            key="obqa_{number}", changes=_SPOKEN,
        ),
        # The TARS authors' copies (key, question, options, answer_index, prompt_for_tts, category). The first two ids
        # are in the released evaluation script; MMLU is named there as a local folder, so its id follows the others'.
        Task(
            "tars_mmsu", "yuantuo666/VB_MMSU-full_3074_hf_format.v0", load_choices, ("train",),
            domain="category", changes=_SPOKEN,
        ),
        Task("tars_obqa", "yuantuo666/VB_OBQA-full_455_hf_format.v0", load_choices, ("train",), changes=_SPOKEN),
        Task(
            "tars_mmlu", "yuantuo666/MMLU_FULL-full_5k_hf_format.v1", load_choices, ("train",),
            domain="category", changes=_SPOKEN,
        ),
        # MMSU, another benchmark than VoiceBench's `mmsu`: 5,000 questions about recordings, and TARS' copy of it.
        Task(
            "mmsu_paralinguistic", "ddwang2000/MMSU", load_recordings, ("train",),
            columns=("audio", "id", "question", "choice_a", "choice_b", "answer_gt"), key="{id}",
            modalities=("speech",), domain="sub-category", changes=_WRITTEN,
        ),
        Task(
            "tars_mmsu_paralinguistic", "yuantuo666/MMSU-full_5k_hf_format.v0", load_recordings, ("train",),
            columns=("audio", "key", "question", "options", "answer_index"),
            modalities=("speech",), domain="category", changes=_WRITTEN,
        ),
        # Transcription. The released code averages each recording's rate, capped at 1; here edits and words are summed
        # over the corpus, as is usual.
        *(
            Task(
                name, source, load_transcripts, (split,), configuration,
                columns=("audio", "text"), kind="transcript", modalities=("speech",), changes=_HEARD,
            )
            for name, source, configuration, split in (
                ("librispeech", "yuantuo666/LIBRISPEECH-test_hf_format.v1", None, "train"),
                ("librispeech_clean", "openslr/librispeech_asr", "clean", "test"),
                ("librispeech_other", "openslr/librispeech_asr", "other", "test"),
            )
        ),
        # SD-QA as VoiceBench has it: 553 questions spoken by people of 11 regions, a split a region. VoiceBench scores
        # with a judge (GPT) and a trained matcher (PEDANT); here an answer is right where it names the reference, word
        # for word after Whisper's normaliser, which is stricter: compare it only with itself.
        Task(
            "sd_qa", "hlt-lab/voicebench", load_open, ("usa",), "sd-qa",
            columns=("audio", "prompt", "reference"), key="{split}-{number:06d}", kind="open", domain="region",
            changes="1: no system prompt; right where the answer names the reference.",
        ),
    )
}  # fmt: skip


def task_table() -> str:
    """`TASKS` as text for a terminal."""
    lines = [f"{'task':<26}{'source':<44}{'splits':<12}{'scored by':<12}{'modalities':<12}domain"]
    for task in TASKS.values():
        splits = task.splits[0] if len(task.splits) == 1 else f"{len(task.splits)} splits"
        source = task.source + (f", {task.configuration}" if task.configuration else "")
        forms = "all" if task.modalities == MODALITIES else ", ".join(task.modalities)
        lines.append(f"{task.name:<26}{source:<44}{splits:<12}{task.kind:<12}{forms:<12}{task.domain or ''}".rstrip())
    lines += ["", "NAME=SOURCE takes a task's rows from elsewhere: a folder, or a hub id, of which ID@REVISION is one"]
    lines += ["commit. A path of your own questions is a task, too, and NAME=PATH gives it another name."]
    return "\n".join(lines)


def task_named(text: str, domain: str | None = None) -> Task:
    """The task that a command line means.

    Args:
        text: a name in `TASKS`; `NAME=SOURCE` for its rows from another hub id or from a local copy, `ID@REVISION`
            naming a commit; or a path of questions in the schema of `tars_trl.data`, after `NAME=` or by itself, when
            the task is named after it.
        domain: column by which figures of such questions are broken down.

    Raises:
        SettingError: neither a task nor something that exists.
    """
    name, equals, source = text.partition("=")
    if not equals and name in TASKS:
        return TASKS[name]
    path = Path(source or text).expanduser()
    is_hub_id = bool(equals) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", source) is not None
    if not path.exists() and not is_hub_id:
        if equals or "/" in text or path.suffix in (".parquet", ".jsonl", ".csv"):
            raise SettingError(f"tasks={text!r}: there is no file or folder {str(path)!r}. Correct the path.")
        near = difflib.get_close_matches(text, TASKS, 1)
        raise SettingError(
            f"tasks={text!r} is no task. {f'Did you mean {near[0]}? ' if near else ''}`--tasks list` shows them all; "
            "give one of them, the path of your own questions, or NAME=PATH."
        )
    revision = None
    if path.exists():
        source = source or text
    else:
        source, _, revision = source.partition("@")
    if equals and name in TASKS:
        return replace(TASKS[name], source=source, revision=revision or None)
    named = name if equals else path.stem if path.is_file() else path.resolve().name
    return Task(re.sub(r"\W+", "_", named), source, load_choices, domain=domain, revision=revision or None)


# ---- Rows ----------------------------------------------------------------------------------------------------------


def read_task(task: Task, splits: Sequence[str], prompting: Prompting) -> tuple[Dataset, str | None]:
    """(rows, commit) of a task; the commit is the one of the hub that was read, None of local files.

    Raises:
        QuestionError: rows that are no questions, that share keys or have no domain; or a split without any.
    """
    parts, commits = [], set()
    for split in splits:
        rows = task.load(task, split, prompting)
        if not Path(task.source).expanduser().exists():
            # `datasets` keeps what it read from the hub in a folder that is named after the commit.
            folders = [Path(file["filename"]).parts for file in rows.cache_files]
            commits |= {part for folder in folders for part in folder if re.fullmatch(r"[0-9a-f]{40}", part)}
        parts.append(with_columns(rows, {"key": _keys(task, split, rows)}))
    rows = concatenate_datasets(parts)
    keys = rows["key"][:]
    if len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})[:20]
        raise QuestionError(
            f"tasks={task.name!r}: several rows have the keys {twice}. Give every row a key of its own."
        )
    if task.domain is not None and task.name not in TASKS and task.domain not in rows.column_names:
        raise QuestionError(
            f"domain={task.domain!r} is no column of {task.source} ({', '.join(rows.column_names)}). Name one that "
            "is, or leave it out."
        )
    return rows, " ".join(sorted(commits)) or None


def _keys(task: Task, split: str, dataset: Dataset) -> list[str]:
    keys = []
    for number, row in enumerate(_text_columns(dataset)):
        own_key = next((str(row[name]) for name in ("key", "id") if row.get(name)), f"{split}-{number:06d}")
        try:
            keys.append(task.key.format(**{**row, "split": split, "number": number}) if task.key else own_key)
        except KeyError:  # a local copy without the benchmark's own columns
            keys.append(own_key)
    return keys


@cache  # says it once
def split_of(source: str) -> str:
    """The split of a path that is measured if none is named: "test", or the only one of a folder that has no other."""
    path = Path(source).expanduser()
    saved = path / "dataset_dict.json"
    splits = ["test"]
    if path.is_dir():
        # A folder without data says what is missing when it is read.
        with contextlib.suppress(FileNotFoundError):
            if saved.is_file():
                splits = json_object(saved.read_bytes(), str(saved)).get("splits") or splits
            else:
                splits = get_dataset_split_names(str(path))
    if len(splits) != 1 or splits == ["test"]:
        return "test"
    logger.warning("%s has no split but %r: its questions are measured.", path, splits[0])
    return str(splits[0])
