"""From a completion to the option it chose."""

import re

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
CHOICE = re.compile(r"(?:the\s+answer\s+is\s*:?\s*)?[\(\[]?([a-z])[\)\]]?\s*[.!]?", re.IGNORECASE)
FORMAT = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)+</think>\s*"
    r"<answer>\s*The answer is [\(\[]?[A-Z][\)\]]?\.?\s*</answer>\s*",
    re.DOTALL,
)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!")


def extract_strict(completion: str, options: list[str] | None = None) -> int | None:
    """Index of the option that the `<answer>` element names, by its letter or by its exact text; None if it does not.

    Nothing is guessed: no element, two elements that disagree, a letter inside a word, a letter beyond the options or
    any further wording is None.

    Args:
        completion: the whole completion.
        options: texts of the options; without them any letter from A to Z counts and texts are not matched.
    """
    # What is thought aloud is no answer: only what follows the last </think> counts.
    answers = {_choice(answer, options) for answer in ANSWER.findall(completion.rpartition("</think>")[2])}
    return answers.pop() if len(answers) == 1 else None


def _choice(answer: str, options: list[str] | None) -> int | None:
    answer = answer.strip()
    plain = _plain(answer)
    texts = [_plain(option) for option in options or []]
    said = plain.removeprefix("the answer is").strip(" :")
    if texts.count(said) == 1:
        return texts.index(said)
    match = CHOICE.fullmatch(answer)
    if match is None:
        return None
    index = ord(match[1].upper()) - ord("A")
    return index if options is None or index < len(options) else None


def is_well_formed(completion: str) -> bool:
    """Whether the completion is exactly `<think>…</think><answer>The answer is X.</answer>` (paper: R_fmt)."""
    return FORMAT.fullmatch(completion) is not None
