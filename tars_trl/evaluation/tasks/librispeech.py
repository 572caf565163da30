"""LibriSpeech: transcription, scored by word error rate after Whisper's English normaliser.

The TARS authors' copy (`yuantuo666/LIBRISPEECH-test_hf_format.v1`) and the original (`openslr/librispeech_asr`).
Columns: audio, text, and id or key. The released code averages each recording's rate, capped at 1; here edits and words
are summed over the corpus, as is usual.
"""

from __future__ import annotations

from functools import partial

from datasets import Dataset, concatenate_datasets

from ...errors import QuestionError
from .base import LoadOptions, Task, raw_rows, recording_prompt, with_columns

SYSTEM = "You are a speech recognition model."
INSTRUCTION = "Transcribe the audio clip into text."


def load_librispeech(options: LoadOptions, subset: str | None = None) -> Dataset:
    """The recordings, `reference` being what is said."""
    return concatenate_datasets([_converted(dataset, split, options) for split, dataset in raw_rows(options, subset)])


def _converted(dataset: Dataset, split: str, options: LoadOptions) -> Dataset:
    if not {"audio", "text"} <= set(dataset.column_names):
        raise QuestionError(
            f"{options.source}, split {split!r}: a transcription task needs the columns audio and text, it has "
            f"{dataset.column_names}. Rename them."
        )
    names = [name for name in ("key", "id", "text") if name in dataset.column_names]
    rows = list(dataset.select_columns(names).with_format(None))
    keys = [str(row.get("key") or row.get("id") or f"{split}-{number:06d}") for number, row in enumerate(rows)]
    prompt = recording_prompt(options, SYSTEM, INSTRUCTION)
    return with_columns(
        dataset, {"key": keys, "prompt": [prompt] * len(rows), "reference": [row["text"] for row in rows]}
    )


_CHANGES = "1: system prompt and instruction of the released code; corpus word error rate."

LIBRISPEECH = Task(
    "librispeech",
    1,
    _CHANGES,
    "yuantuo666/LIBRISPEECH-test_hf_format.v1",
    load_librispeech,
    ("train",),
    kind="transcript",
    modalities=("speech",),
)
LIBRISPEECH_CLEAN = Task(
    "librispeech_clean",
    1,
    _CHANGES,
    "openslr/librispeech_asr",
    partial(load_librispeech, subset="clean"),
    kind="transcript",
    modalities=("speech",),
)
LIBRISPEECH_OTHER = Task(
    "librispeech_other",
    1,
    _CHANGES,
    "openslr/librispeech_asr",
    partial(load_librispeech, subset="other"),
    kind="transcript",
    modalities=("speech",),
)
