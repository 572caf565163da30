"""Near-duplicate questions. Two texts are as similar as their sets of word triples are (Jaccard: shared over all)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array

from .speakable import strip_labels
from .words import bare_words

SIZE = 3  # words of a shingle
BLOCK = 256  # texts that are compared with all the others at a time


def question_text(question: str, options: Iterable[str]) -> str:
    """What identifies a question whatever the order and the labels of its options: many differ in nothing but these."""
    return " ".join([question, *sorted(strip_labels(options), key=str.casefold)])


def shingles(text: str, size: int = SIZE) -> frozenset[str]:
    """Runs of `size` words, without case and punctuation; a shorter text as a whole, an empty one has none."""
    words = bare_words(text).split()
    runs = range(max(1, len(words) - size + 1)) if words else ()
    return frozenset(" ".join(words[start : start + size]) for start in runs)


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.5
) -> dict[int, tuple[int, float]]:
    """For each of N texts, such as training questions, the most similar of M others, where they are similar enough.

    Args:
        threshold: least Jaccard similarity of the word triples, above 0 and at most 1.

    Returns:
        {index of the text: (index of the other, similarity)}; the first of several equally similar ones.

    Raises:
        ValueError: a threshold that is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity lies above 0 and at most at 1. Give one, such as 0.5.")
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))
    sets = [[numbers[shingle] for shingle in shingles(text)] for text in (*texts, *others)]
    sizes = np.array([len(members) for members in sets])
    columns = np.array([number for members in sets for number in members], int)
    matrix = csr_array(
        (np.ones(len(columns)), columns, np.append(0, sizes.cumsum())), shape=(len(sets), len(numbers))
    )  # (N + M, shingles)
    ours, theirs = matrix[: len(texts)], matrix[len(texts) :].T.tocsr()
    duplicates = {}
    for start in range(0, len(texts) if len(others) else 0, BLOCK):
        shared = (ours[start : start + BLOCK] @ theirs).toarray()  # (block, M)
        rows = sizes[start : start + len(shared), None]
        similarity = shared / np.maximum(1, rows + sizes[len(texts) :] - shared)
        best = similarity.argmax(axis=1)
        for row in np.flatnonzero(similarity[np.arange(len(best)), best] >= threshold):
            duplicates[start + int(row)] = (int(best[row]), float(similarity[row, best[row]]))
    return duplicates
