"""The demo's questions: sums of three digits as spoken multiple choice, with the thoughts that lead to the letter.

"three plus four minus two? A six, B five, C nine, D one." Twenty-one number words and two operations: small enough
to learn on a CPU, and yet hearing, computing and looking up the letter are three different things to get right.
Expressions are split once, by seed, so that no part shares a sum with another, not even with other options.
"""

import itertools
import random
from dataclasses import dataclass

from tars_trl.data.prompts import written_prompt
from tars_trl.data.schema import build_prompt

NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
WORDS = {1: "plus", -1: "minus"}
Expression = tuple[tuple[int, int, int], tuple[int, int]]
"""Terms and signs, +1 or -1."""
LETTERS = "ABCD"
SYSTEM_PROMPT = "Think, then answer."
SPLIT_SIZES = {"test": 300, "train": 480, "dev": 100}  # the rest, "sft", builds the model


@dataclass(frozen=True)
class Question:
    """One sum and its four options; `answer_index` is the place of the right one."""

    terms: tuple[int, int, int]
    signs: tuple[int, int]  # +1 or -1
    options: tuple[int, int, int, int]

    @property
    def result(self) -> int:
        return value(self.terms, self.signs)

    @property
    def answer_index(self) -> int:
        return self.options.index(self.result)

    @property
    def expression(self) -> str:
        a, b, c = (NUMBERS[term] for term in self.terms)
        return f"{a} {WORDS[self.signs[0]]} {b} {WORDS[self.signs[1]]} {c}"

    def written(self) -> str:
        """The question as it is read and, word for word, spoken."""
        options = ", ".join(f"{letter} {NUMBERS[n]}" for letter, n in zip(LETTERS, self.options, strict=True))
        return f"{self.expression.capitalize()}? {options}."

    def work(self) -> str:
        """The sum, one step after the other."""
        a, b, c = self.terms
        middle = value((a, b), self.signs)
        first = f"{NUMBERS[a]} {WORDS[self.signs[0]]} {NUMBERS[b]} is {NUMBERS[middle]}."
        return f"{first} {NUMBERS[middle]} {WORDS[self.signs[1]]} {NUMBERS[c]} is {NUMBERS[self.result]}."

    def check(self) -> str:
        """Every option, and whether it is the result."""
        options = zip(LETTERS, self.options, strict=True)
        return " ".join(f"{letter} {NUMBERS[n]} {'yes' if n == self.result else 'no'}" for letter, n in options) + "."

    def completion(self, work: bool = True) -> str:
        """The whole reply; without `work` the thought jumps from the sum to the options."""
        thought = " ".join([f"{self.expression}.", *([self.work()] if work else []), self.check()])
        return f"<think>{thought}</think><answer>The answer is {LETTERS[self.answer_index]}.</answer>"


def value(terms: tuple[int, ...], signs: tuple[int, int]) -> int:
    """Of a sum, or of its first two terms."""
    return terms[0] + sum(sign * term for sign, term in zip(signs, terms[1:], strict=False))


def expressions() -> list[Expression]:
    """Every sum of three digits from 1 to 9 that never leaves 0 to 20."""
    every = itertools.product(itertools.product(range(1, 10), repeat=3), itertools.product((1, -1), repeat=2))
    return [(terms, signs) for terms, signs in every if value(terms[:2], signs) >= 0 <= value(terms, signs) <= 20]


def split_expressions(seed: int = 0) -> dict[str, list[Expression]]:
    """Expressions by part ("test", "train", "dev", "sft"), disjoint."""
    shuffled = expressions()
    random.Random(seed).shuffle(shuffled)
    remaining = iter(shuffled)
    parts = {name: list(itertools.islice(remaining, size)) for name, size in SPLIT_SIZES.items()}
    return {**parts, "sft": list(remaining)}


def draw_question(expression: Expression, rng: random.Random) -> Question:
    """Add three wrong options to a sum: two near the result, one from anywhere, in random order."""
    terms, signs = expression
    result = value(terms, signs)
    near = [n for n in range(max(0, result - 3), min(20, result + 3) + 1) if n != result]
    wrong = rng.sample(near, 2)
    wrong.append(rng.choice([n for n in range(21) if n != result and n not in wrong]))
    options = [result, *wrong]
    rng.shuffle(options)
    return Question(terms, signs, tuple(options))


def messages(question: Question) -> list[dict]:
    """The conversation in its written form, every content a list of parts."""
    return written_prompt(build_prompt(question.written(), SYSTEM_PROMPT))
