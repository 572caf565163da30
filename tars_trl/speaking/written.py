"""The first stage of a build: written questions, split, put into words, and without what leaks.

Every question ends as a row or as an outcome `{"key", "reason", "detail"}` that says why it is none.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from ..data.questions import load_questions
from ..data.schema import SYSTEM_PROMPT, build_prompt
from ..errors import QuestionError, SettingError, UnspeakableError
from .near_duplicates import near_duplicates, question_text
from .settings import BuildSettings
from .speakable import spoken_form

Row = dict[str, Any]
Dropped = dict[str, str]
CORE = ("question", "options", "answer_index", "key")


def written_rows(settings: BuildSettings) -> tuple[dict[str, Dataset], dict[str, list[Dropped]]]:
    """Questions ready to be spoken, by split (`train`, and `test` if any are held out), and those that are not.

    The order of the source is kept. A training question that is nearly one of the held-out or guarded ones is dropped
    from training, whether or not the other can be spoken.

    Raises:
        QuestionError: the data set cannot be read as questions, or none is left in a split.
        SettingError: a column to keep is not there.
    """
    questions_of = {"train": _load(settings, settings.split)}
    if settings.held_out_split is not None:
        questions_of["test"] = _load(settings, settings.held_out_split)
    elif settings.held_out_share:
        # Drawn by the seed and the key alone, so that new questions move no old one.
        keys, questions = questions_of["train"]["key"], questions_of["train"]
        draws = np.array([random.Random(f"{settings.seed}/held out/{key}").random() for key in keys])
        for split, chosen in (("train", draws >= settings.held_out_share), ("test", draws < settings.held_out_share)):
            questions_of[split] = questions.select(np.flatnonzero(chosen))
    guarded = [_text(row) for row in questions_of.get("test", ())]
    for source, _, split in (name.partition("@") for name in settings.guard):
        further = load_questions(source, split or "test", audio_required=False, strict=False)
        guarded += [_text(row) for row in further.select_columns(["question", "options"])]
    rows: dict[str, Dataset] = {}
    dropped: dict[str, list[Dropped]] = {}
    for split, questions in questions_of.items():
        kept, dropped[split] = _put_rows_into_words(questions, settings)
        if split == "train":
            leaks = near_duplicates([_text(row) for row in kept], guarded, threshold=settings.duplicate_threshold)
            for number, (other, likeness) in leaks.items():
                detail = f"similarity {likeness:.2f} to {guarded[other]!r}"
                dropped[split].append({"key": kept[number]["key"], "reason": "held out", "detail": detail})
            kept = [row for number, row in enumerate(kept) if number not in leaks]
        if not kept:
            reasons = ", ".join(sorted({entry["reason"] for entry in dropped[split]}))
            raise QuestionError(
                f"Split {split!r} of {settings.dataset}: none of its {len(questions)} questions can be used "
                f"({reasons}). Give another data set, another share, or a higher max_characters or duplicate_threshold."
            )
        rows[split] = Dataset.from_list(kept, features=_features(questions, settings))
    return rows, dropped


def _text(row: Mapping[str, Any]) -> str:
    return question_text(row["question"], row["options"])


def _load(settings: BuildSettings, split: str) -> Dataset:
    questions = load_questions(
        str(settings.dataset),
        split,
        column_map=settings.columns,
        audio_required=False,
        strict=False,  # what has the same option twice is dropped, with its reason
        name=settings.subset,
        revision=settings.dataset_revision,
        limit=settings.limit,
        seed=settings.seed,
    )
    missing = [name for name in settings.keep_columns if name not in questions.column_names]
    if missing:
        raise SettingError(
            f"keep_columns={settings.keep_columns}: {settings.dataset} has the columns {questions.column_names}. "
            "Correct the names, or leave them out."
        )
    return questions.select_columns([*CORE, *(name for name in settings.keep_columns if name not in CORE)])


def _put_rows_into_words(questions: Dataset, settings: BuildSettings) -> tuple[list[Row], list[Dropped]]:
    system = SYSTEM_PROMPT if settings.system_prompt is None else settings.system_prompt
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row in questions.with_format(None):
        try:
            form = spoken_form(row["question"], row["options"], max_characters=settings.max_characters)
        except UnspeakableError as error:
            dropped.append({"key": row["key"], "reason": error.reason, "detail": str(error)})
        else:
            prompt = build_prompt(form.prompt_for_tts, system, settings.instruction)
            kept.append({**row, "prompt": prompt, **asdict(form)})
    return kept, dropped


def _features(questions: Dataset, settings: BuildSettings) -> Features:
    """Of the kept rows: those of the source, and the columns that are added."""
    text = Value("string")
    content = List({"type": text, "text": text}) if settings.instruction else text
    added = {"prompt": List({"role": text, "content": content})}
    added |= dict.fromkeys(("question_for_tts", "prompt_for_tts", "prompt_for_tts_tn", "words"), text)
    return Features({**questions.features, **added})
