"""From a completion to the option it chose. Two rules, which differ in what they forgive:

    strict      the `<answer>` element names a letter or the exact text of an option; everything else is no choice.
                This is what training rewards.
    voicebench  the multiple-choice rule of VoiceBench, for figures that can be compared with its leaderboard: looks
                for phrases such as "the answer is b" or " b." anywhere, letters A to D. It is fed with the answer text.

(The paper's extractor is a model: `tars_trl.evaluation.xfinder`.) Nothing is guessed unless voicebench is asked to, and
then from a seed. Completions may be of any length and hold anything: what is read here takes time linear in it.
"""

import random
import re
from collections.abc import Sequence

Completion = str | list[dict[str, str]]
"""Plain text, or the turns of a conversation."""

OPEN, CLOSE = "<answer>", "</answer>"
CHOICE = re.compile(r"(?:the answer is ?:? ?)?[(\[]?([a-z])[)\]]? ?[.!]?", re.IGNORECASE)
SENTENCE = re.compile(r"\s*The answer is [(\[]?[A-Z][)\]]?\.?\s*")


def completion_text(completion: Completion) -> str:
    """The text of a completion, whether it is plain text or a conversation."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def extract_strict(completion: str, options: list[str] | None = None) -> int | None:
    """Index of the option that the `<answer>` element names, by its letter or by its exact text; None if it does not.

    Nothing is guessed: no element, two elements that disagree, a letter inside a word, a letter beyond the options or
    any further wording is None. A letter names its option, also where it is another one's text: of the blood types
    ["B", "A", "AB", "O"], "The answer is B." is the second. A letter beyond the options may be an option's text: "O".

    Args:
        completion: the whole completion.
        options: texts of the options; without them any letter from A to Z counts and texts are not matched.
    """
    texts = None if options is None else [_plain(option) for option in options]
    choices = {_choice(answer, texts) for answer in set(_answers(completion))}
    return choices.pop() if len(choices) == 1 else None


def _answers(completion: str) -> list[str]:
    """What stands in the `<answer>` elements behind the last `</think>`: what is thought aloud is no answer."""
    answers, place = [], completion.rfind("</think>") + 1
    while (start := completion.find(OPEN, place)) >= 0 and (end := completion.find(CLOSE, start)) >= 0:
        answers.append(completion[start + len(OPEN) : end])
        place = end + len(CLOSE)
    return answers


def _choice(answer: str, texts: list[str] | None) -> int | None:
    match = CHOICE.fullmatch(" ".join(answer.split()))
    if match is not None and match[1].isascii():  # ignoring case, [a-z] also matches the Kelvin sign
        index = ord(match[1].upper()) - ord("A")
        if texts is None or index < len(texts):
            return index
    said = _plain(answer).removeprefix("the answer is").strip(" :")
    return texts.index(said) if texts and said and texts.count(said) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!")


def is_well_formed(completion: str) -> bool:
    """Whether the completion is exactly `<think>…</think><answer>The answer is X.</answer>` (paper: R_fmt)."""
    before, thought, between, said, after = (*re.split("</?think>|</?answer>", completion), *[""] * 5)[:5]
    right = re.findall("</?think>|</?answer>", completion) == ["<think>", "</think>", OPEN, CLOSE]
    return right and thought != "" and not (before + between + after).strip() and bool(SENTENCE.fullmatch(said))


def answer_text(completion: str) -> str:
    """What a completion gives as its answer: the last `<answer>` element, else all that follows the last `</think>`."""
    answers = _answers(completion)
    return (answers[-1] if answers else completion.rpartition("</think>")[2]).strip()


# ---- VoiceBench ----------------------------------------------------------------------------------------------------

# The rule of github.com/MatthewCYM/VoiceBench (src/evaluator/mcq.py at 5338154) in groups, earlier groups first: it
# searches lower-cased text for phrases around a letter, and within a phrase tries a, b, c, d in order. {} is the
# letter. Left out: its Chinese phrases. Where a text names several letters, the order within a group may differ from
# the benchmark's. Compared with its own code: the same on 5,000 generated answers in 26 usual wordings, among them
# the form that our prompt asks for.
_VOICEBENCH = (
    # Statements, where nothing has to follow the letter.
    r"answer is:? \*\*{}|the answer is '{}|the answer to the (?:question is:|multiple-choice question is) \*\*{}",
    *(r"{} is the best answer", r"the answer is {}", r"the correct answer is {}"),
    *(r"would (?:select|choose) {}", r"would (?:select|choose) option {}", r"is \"{}[\".]"),
    # Marked letters behind a verb.
    r"(?:is|be|as|with|suggests|is therefore option|be option|be to|corresponds to:\n-|is typically)"
    r":?(?: ?\n\n?)? ?(?:\*\*|\"){}(?:\*\*|[.,:)]| \()",
    r"(?:is|was|to|be) option \*\*{}|option \*\*{}[:*]|is likely (?:\*\*|\"){}(?:\*\*|\))|is:\s*\*\*{}[.):]?",
    r"would be {}",
    r"would be option {}|would be \({}\)|would be option \({}\)",
    r"is {},|is typically {}[,.]|i'd say {}\.",
    r"option {}[.:,]",
    r"the answer is:\n\*\*{}",
    r"is:? \(?{}[:.,)]",
    r"is (?:most )?likely \*\*{}[:,)]|is the \*\*{}\)",
    r":\s?\s?\n\n?{}[.),]",
    r"is option {},|\({}\) would be|\(option {}\)|answer is \({}\)|select option \"{}\"|is: {}",
    r"is (?:likely|option) '{}'|would be '{}'|(?:question is|known as|is) '{}[')]|question is {} \(",
    r"is:?\s*(?:\\[\(\[]|\}) ?(?:\\(?:boxed|text|textbf|mathbf)\{)*{}[ .:)}\\]|is:\s*{}:",
    # Anywhere.
    *(r" {}\.", r" {},", r" {}:", r" {}\)", r"\*\*{}\.", r"\*\*{}\)"),
    *(r"\"{}\.", r"\"{},", r"\"{}:", r"\({}\)", r"\"{}\""),
)
_VOICEBENCH_LETTERS = "abcd"


def extract_voicebench(completion: str, options: list[str] | None = None) -> int | None:
    """Index that VoiceBench's multiple-choice rule reads out of the answer text, None where it reads nothing.

    Forgiving, and meant for comparison only: "the answer is because …" reads as B.

    Args:
        completion: the whole completion; `answer_text` of it is searched.
        options: texts of the options; only their number is used. The benchmark knows four letters.
    """
    text = answer_text(completion).lower()
    letters = _VOICEBENCH_LETTERS[: len(options) if options is not None else None]
    for pattern in (*_VOICEBENCH, r"\A{}(?:\Z|[.,:)])"):
        for index, letter in enumerate(letters):
            if re.search(pattern.replace("{}", letter), text):
                return index
    return None


def voicebench_guess(key: str, options: Sequence[str], seed: int) -> int:
    """The random choice that VoiceBench makes where it reads nothing; here it depends on the seed and the question."""
    return random.Random(f"{seed}/{key}").randrange(min(len(options), len(_VOICEBENCH_LETTERS)))
