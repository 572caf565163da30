"""Near-duplicate questions, exactly and without comparing all pairs.

Two texts are as similar as their sets of word triples are (Jaccard: shared over all). With triples ordered from the
rarest to the most frequent, two sets of similarity t or more share one among their first `len - ceil(t * len) + 1`
(the prefix filter of set joins), so that only questions which meet in an index over these few are compared.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .speakable import strip_labels
from .words import bare_words

SIZE = 3  # words of a shingle


def question_text(question: str, options: Iterable[str]) -> str:
    """What identifies a question whatever the order and the labels of its options: many differ in nothing but these."""
    return " ".join([question, *sorted(strip_labels(options), key=str.casefold)])


def shingles(text: str, size: int = SIZE) -> frozenset[str]:
    """Runs of `size` words, without case and punctuation; a shorter text as a whole, an empty one has none."""
    words = bare_words(text).split()
    if not words:
        return frozenset()
    return frozenset(" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1)))


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.5
) -> dict[int, tuple[int, float]]:
    """For each text the most similar of the others, where they are similar enough.

    Args:
        texts: N texts, such as training questions.
        others: M texts, such as held-out questions.
        threshold: least Jaccard similarity of the word triples, above 0 and at most 1.

    Returns:
        {index of the text: (index of the other, similarity)}; the first of several equally similar ones.

    Raises:
        ValueError: a threshold that is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity lies above 0 and at most at 1. Give one, such as 0.5.")
    ours, theirs = [shingles(text) for text in texts], [shingles(text) for text in others]
    frequency = Counter(shingle for found in (*ours, *theirs) for shingle in found)
    index: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(theirs):
        for shingle in _prefix(found, frequency, threshold):
            index[shingle].append(number)
    duplicates = {}
    for number, found in enumerate(ours):
        met = sorted({other for shingle in _prefix(found, frequency, threshold) for other in index.get(shingle, ())})
        scored = [(len(found & theirs[other]) / len(found | theirs[other]), -other) for other in met]
        if scored and max(scored)[0] >= threshold:
            similarity, other = max(scored)
            duplicates[number] = (-other, similarity)
    return duplicates


def _prefix(found: frozenset[str], frequency: Counter[str], threshold: float) -> list[str]:
    rarest = sorted(found, key=lambda shingle: (frequency[shingle], shingle))
    # Rounded first: 0.6 * 5 is 3.0000000000000004 for no reason but binary fractions.
    return rarest[: len(found) - math.ceil(round(threshold * len(found), 9)) + 1]
