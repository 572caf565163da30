"""Recordings of one's own: does a clip say what the written twin reads, the options above all?

A spoken twin hears nothing but its clip. One that asks without naming the options can be trained on, and nothing fails.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchaudio.functional import edit_distance

from ..data.audio import load_audio
from ..data.word_errors import normalized_words
from .recognition import Recognizer

MISHEARD = 1 / 3
"""Share of a text's letters that may differ in the transcript: recognisers misspell names (Sattern for Saturn)."""


@dataclass(frozen=True)
class Heard:
    """What a recogniser heard in one clip, and what of its question it did not."""

    key: str
    transcript: str
    question: bool
    """Whether the question is said."""
    missing: list[str]
    """The options that are not, in order."""

    @property
    def complete(self) -> bool:
        """Whether the clip says all that its written twin reads."""
        return self.question and not self.missing


def nearest(wanted: Sequence[str], heard: Sequence[str]) -> tuple[float, slice]:
    """The stretch of a transcript that is most like a text.

    Args:
        wanted: words of the text, as Whisper's English normaliser leaves them; one at least.
        heard: words of the transcript. A stretch has as many words as the text, or one more or less.

    Returns:
        the letters that differ over those of the text, and where the stretch is.
    """
    letters = " ".join(wanted)
    stretches = [
        slice(start, start + width)
        for width in range(max(1, len(wanted) - 1), len(wanted) + 2)
        for start in range(max(1, len(heard) - width + 1))
    ]
    edits = [edit_distance(letters, " ".join(heard[stretch])) for stretch in stretches]
    least = min(edits)
    return least / len(letters), stretches[edits.index(least)]


def compare_with_transcript(row: Mapping[str, Any], transcript: str) -> Heard:
    """What of a question a transcript lacks; its options are looked for in what is left without the question itself."""
    heard = normalized_words(transcript)
    share, stretch = nearest(normalized_words(row["question"]) or [""], heard)
    if share <= MISHEARD:
        del heard[stretch]
    options = {option: normalized_words(option) for option in row["options"]}
    missing = [option for option, words in options.items() if words and nearest(words, heard)[0] > MISHEARD]
    return Heard(row["key"], transcript, share <= MISHEARD, missing)


def check_recordings(rows: Iterable[Mapping[str, Any]], recogniser: Recognizer) -> Iterator[Heard]:
    """Listen to the clips of questions (rows of the schema), one after the other."""
    for row in rows:
        yield compare_with_transcript(row, recogniser.transcribe(load_audio(row["audio"])))
