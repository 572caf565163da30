"""A written question in the words in which it is read aloud, or the reason why it cannot be.

`spoken_form` gives what the published training set calls `prompt_for_tts` (the question with its blanks named and a
line `Option A: …` for each option: the text of the written twin), the same in words (what a voice is given), and
`prompt_for_tts_tn` (lower case, no punctuation: what a transcript is compared with). Written for English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .schema import LETTERS, written_question
from .words import Unspeakable, in_words, plain, spelled

MAX_CHARACTERS = 2000
"""Of question and options together (the published building scripts drop what is longer)."""


# What is shown and not said. A reference is to a figure or a text that is elsewhere; the word alone is innocent.
_THING = r"(?:figure|graph|diagram|table|chart|image|picture|photograph|map|drawing|passage|excerpt|code|illustration)"
_SHOWN: dict[str, re.Pattern] = {
    "code": re.compile(r"```|\bdef \w+\(|[)\]];\s*\n|=[^=;\n]*;\s*\n|\{[^{}]*;[^{}]*\}|<\w+>.*</\w+>", re.DOTALL),
    "table": re.compile(r"\|[^|\n]*\|[^\n]*\n[^|\n]*\|[^|\n]*\||\t[^\t\n]+\t|\\begin\{(?:tabular|array)"),
    "reference": re.compile(
        rf"\b{_THING}s? (?:above|below|shown|on the (?:left|right)|attached)\b"
        rf"|\b(?:above|below|following|attached|shown) {_THING}s?\b"
        rf"|\b(?:this|the) {_THING} (?:shows|depicts|illustrates)\b"
        r"|\b(?:shown|see|in|from) (?:the )?(?:figure|fig\.?|table) ?\d",
        re.IGNORECASE,
    ),
    "formula": re.compile(
        r"\\(?:begin|sum|int|lim|prod|matrix|partial|nabla|binom)\b|\$(?=[^$\n]*[\\^_])[^$\n]{60,}\$|[∫∑∏∂∇∀∃∈∉⊂⊆∪∩⟨⟩]"
        r"|(?:[A-Za-z0-9(){}\[\]]{0,3} ?[=+*/^×÷<>−-] ?){7,}"
    ),
}


@dataclass(frozen=True)
class SpokenForm:
    """A question as it is written and as it is said."""

    question_for_tts: str
    """The question, its blanks named."""
    prompt_for_tts: str
    """Question and options as the written twin shows them."""
    words: str
    """The same in words, with the punctuation that a voice needs."""
    prompt_for_tts_tn: str
    """The same in lower case and without punctuation."""


def spoken_form(question: str, options: Sequence[str], *, max_characters: int = MAX_CHARACTERS) -> SpokenForm:
    """How a question is asked aloud.

    Args:
        question: without its options.
        options: in order; labels that the data set wrote before them (`A. `, `(B) `) are taken off.
        max_characters: of the written prompt.

    Raises:
        Unspeakable: it has no text, shows a table, a figure, code or a long formula, is not in Latin script, is too
            long, or two of its options sound the same.
    """
    named = name_blanks(question.strip())
    bare = without_labels([option.strip() for option in options])
    if not named or not bare or not all(bare):
        raise Unspeakable("no text", f"question {question!r}, options {list(options)!r}")
    if len(bare) > len(LETTERS):
        raise Unspeakable("too long", f"{len(bare)} options, and letters run from A to Z")
    prompt = written_question(named, bare)
    if len(prompt) > max_characters:
        raise Unspeakable("too long", f"{len(prompt)} characters, the limit is {max_characters}")
    for reason, pattern in _SHOWN.items():
        found = pattern.search("\n".join([named, *bare]))
        if found:
            raise Unspeakable(reason, repr(found[0]))
    said = [in_words(option) for option in bare]
    if len({plain(text) for text in said}) < len(said):
        raise Unspeakable("same options", f"{bare!r} sound like {said!r}")
    lines = [f"Option {letter}: {_closed(text)}" for letter, text in zip(LETTERS, said, strict=False)]
    words = "\n".join([_closed(in_words(named)), *lines])
    return SpokenForm(named, prompt, words, plain(words))


def name_blanks(text: str) -> str:
    """Blanks (`__`) as words: "what" for the only one, "first blank", "second blank" and so on for several."""
    blanks = re.findall(r"_{2,}", text)
    ordinals = iter(spelled(number, "ordinal") for number in range(1, len(blanks) + 1))
    named = re.sub(r"_{2,}", lambda _: " what " if len(blanks) == 1 else f" {next(ordinals)} blank ", text)
    return re.sub(r" +(?=[,.;:?!])", "", re.sub(r" {2,}", " ", named)).strip() if blanks else text


def without_labels(options: list[str]) -> list[str]:
    """Options without the letters that stand before them, if every one has its own."""
    labels = [re.match(rf"\(?{letter}[.):]\s+", option) for letter, option in zip(LETTERS, options, strict=False)]
    if len(labels) < len(options) or not all(labels):
        return options
    return [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]


def _closed(text: str) -> str:
    """With a mark at its end, so that a voice pauses."""
    return text if text.endswith((".", "?", "!")) else text.rstrip(",;: ") + "."
