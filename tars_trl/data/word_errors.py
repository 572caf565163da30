"""Word errors between two texts, after Whisper's English normaliser."""

from functools import cache
from typing import Any

from torchaudio.functional import edit_distance


@cache
def _normalizer() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    # Whisper's list of British spellings is a file of its checkpoints, not of transformers: "colour" counts as an error
    # against "color". LibriSpeech and our synthetic speech are American throughout.
    return EnglishTextNormalizer({})


def normalized_words(text: str) -> list[str]:
    """The words of a text as Whisper's English normaliser leaves them: no case, punctuation or filler, 3 for three."""
    return _normalizer()(text).split()


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Word edits between two normalised texts, and the number of words of the reference.

    The word error rate of a corpus is the sum of the first over the sum of the second; it can exceed 1.
    """
    words = normalized_words(reference)
    return edit_distance(words, normalized_words(hypothesis)), len(words)


def names_reference(reference: str, hypothesis: str) -> bool:
    """Whether the words of the reference stand in the hypothesis, in a row, after normalisation; an empty one never."""
    wanted, heard = normalized_words(reference), normalized_words(hypothesis)
    width = len(wanted)
    return width > 0 and any(heard[start : start + width] == wanted for start in range(len(heard) - width + 1))
