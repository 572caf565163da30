"""A written question in the words in which it is read aloud, or the reason why it cannot be.

`spoken_form` gives what the published training set calls `prompt_for_tts` (the question with its blanks named and a
line `Option A: …` for each option: the text of the written twin), the same in words (what a voice is given), and
`prompt_for_tts_tn` (lower case, no punctuation: what a transcript is compared with). Written for English.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..data.schema import LETTERS, written_question
from ..errors import UnspeakableError
from .words import bare_words, put_into_words, spell

MAX_CHARACTERS = 2000
"""Of question and options together (the published building scripts drop what is longer)."""


# What is shown and not said. A reference is to a figure or a text that is elsewhere; the word alone is innocent.
_SEEN = r"(?:figure|graph|diagram|table|chart|image|picture|photograph|map|drawing|illustration)"
_THING = rf"(?:{_SEEN}|passage|excerpt|code)"
_ALONE = r"(?! of\b)(?=[\s,.;:?!)]|$)"  # not the table of elements
_KIND = r"(?:(?:bar|line|pie|data|flow|frequency|circle|weather|first|second) )?"
_SAYS = (
    r"(?:shows?|depicts?|illustrates?|lists|gives|presents|represents|displays|contains|summari[sz]es|compares|provides"
    r"|describes|indicates|suggests)"
)
_MARKED = r"(?:shaded|underlined|italici[sz]ed|highlighted|bold-?faced|circled)"
_PART = (
    r"(?:region|area|part|portion|section|circle|triangle|square|rectangle|words?|phrases?|sentences?|text|letters?)"
)
_REFERENCE = re.compile(
    rf"\b{_THING}s? (?:above|below|shown|on the (?:left|right)|attached)\b"
    rf"|\b(?:above|below|following|attached|shown) {_KIND}{_THING}s?\b"
    rf"|\b(?:this|the) {_KIND}{_THING} {_SAYS}\b"
    r"|\b(?:shown|see|in|from) (?:the )?(?:figure|fig\.?|table) ?\d"
    r"|(?-i:\b(?:Figure|Fig\.|Table|Diagram|Graph|Chart|Map|Illustration) ?(?:\d+|[B-HJ-Z])\b)"
    rf"|\b(?:according to|based on|refer(?:ring)? to|as seen in|shown (?:in|on|by)) (?:the|this) {_KIND}{_SEEN}{_ALONE}"
    rf"|\b(?:in|from|on) (?:the|this) {_KIND}(?:figure|graph|diagram|table|chart|picture|photograph|drawing),"
    rf"|\bin (?:the|this) {_KIND}{_SEEN}(?=[.?:;]|$| (?:is|are|shows?)\b)"
    rf"|(?:^|[.?!:]\s+)(?:please )?(?:use|using|study|examine|consult|look at|read|consider) (?:the|this) {_KIND}"
    rf"(?:{_SEEN}|passage|excerpt)(?=[,.:;?]|$| (?:to|and|for)\b)"
    rf"|\bthe {_MARKED} {_PART}\b|\b(?:pictured|depicted) (?:above|below|here)\b",
    re.IGNORECASE | re.MULTILINE,
)
# A passage that comes with the question can be read aloud with it: a reference counts where there is none before it.
_NO_PASSAGE = re.compile(
    r"\A.{0,200}?\b(?:according to|based on|refer(?:ring)? to|in|of|by|from) (?:the|this) (?:passage|excerpt)"
    r"(?! of\b)(?=[,.;:?!)]|$| (?:is|are|was|the|that|which|it|we)\b)",
    re.IGNORECASE | re.DOTALL,
)
_NOT_TEXT: list[tuple[str, re.Pattern]] = [
    ("code", re.compile(r"```|\bdef \w+\(|[)\]];\s*\n|=[^=;\n]*;\s*\n|\{[^{}]*;[^{}]*\}|<\w+>.*</\w+>", re.DOTALL)),
    ("table", re.compile(r"\|[^|\n]*\|[^\n]*\n[^|\n]*\|[^|\n]*\||\t[^\t\n]+\t|\\begin\{(?:tabular|array)")),
    ("reference", _REFERENCE),
    ("reference", _NO_PASSAGE),
    (
        "formula",
        re.compile(
            r"\\(?:begin|sum|int|lim|prod|matrix|partial|nabla|binom)\b|\$(?=[^$\n]*[\\^_])[^$\n]{60,}\$"
            r"|[∫∑∏∂∇∀∃∈∉⊂⊆∪∩⟨⟩]|(?:[A-Za-z0-9(){}\[\]]{0,3} ?[=+*/^×÷<>−-] ?){7,}"
        ),
    ),
]


@dataclass(frozen=True)
class SpokenForm:
    """A question as it is written and as it is said."""

    question_for_tts: str  # its blanks named
    options: list[str]  # without the labels that the data set wrote before them
    prompt_for_tts: str  # question and options as the written twin shows them
    words: str  # the same in words, with the punctuation that a voice needs
    prompt_for_tts_tn: str  # the same in lower case and without punctuation


def spoken_form(question: str, options: Sequence[str], *, max_characters: int = MAX_CHARACTERS) -> SpokenForm:
    """How a question is asked aloud.

    Args:
        question: without its options.
        options: in order; labels that the data set wrote before them (`A. `, `(B) `) are taken off.
        max_characters: of the written prompt.

    Raises:
        UnspeakableError: it has no text, shows a table, a figure, code or a long formula, is not in Latin script, is
            too long, or two of its options sound the same.
    """
    named = name_blanks(question.strip())
    bare = strip_labels(options)
    if not named or not bare or not all(bare):
        raise UnspeakableError("no text", f"question {question!r}, options {list(options)!r}")
    if len(bare) < 2:
        raise UnspeakableError("one option", f"{bare[0]!r} leaves nothing to choose")
    if len(bare) > len(LETTERS):
        raise UnspeakableError("too long", f"{len(bare)} options, and letters run from A to Z")
    prompt = written_question(named, bare)
    if len(prompt) > max_characters:
        raise UnspeakableError("too long", f"{len(prompt)} characters, the limit is {max_characters}")
    for reason, pattern in _NOT_TEXT:
        unspeakable = pattern.search("\n".join([named, *bare]))
        if unspeakable:
            raise UnspeakableError(reason, repr(unspeakable[0]))
    said = [put_into_words(option) for option in bare]
    if len({bare_words(text) for text in said}) < len(said):
        raise UnspeakableError("same options", f"{bare!r} sound like {said!r}")
    lines = [f"Option {letter}: {_end_sentence(text)}" for letter, text in zip(LETTERS, said, strict=False)]
    words = "\n".join([_end_sentence(put_into_words(named)), *lines])
    return SpokenForm(named, bare, prompt, words, bare_words(words))


def name_blanks(text: str) -> str:
    """Blanks (`__`) as words: "what" for the only one, "first blank", "second blank" and so on for several."""
    blanks = re.findall(r"_{2,}", text)
    ordinals = iter(spell(number, "ordinal") for number in range(1, len(blanks) + 1))
    named = re.sub(r"_{2,}", lambda _: " what " if len(blanks) == 1 else f" {next(ordinals)} blank ", text)
    return re.sub(r" +(?=[,.;:?!])", "", re.sub(r" {2,}", " ", named)).strip() if blanks else text


def strip_labels(options: Iterable[str]) -> list[str]:
    """Options, stripped, and without the letters that stand before them if every one has its own."""
    options = [option.strip() for option in options]
    labels = [re.match(rf"\(?{letter}[.):]\s+", option) for letter, option in zip(LETTERS, options, strict=False)]
    if len(labels) < len(options) or not all(labels):
        return options
    return [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]


def _end_sentence(text: str) -> str:
    """With a mark at its end, so that a voice pauses."""
    return text if text.endswith((".", "?", "!")) else text.rstrip(",;: ") + "."
