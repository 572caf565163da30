"""What a hyphen, a dash or a slash between two things says: minus or to; over, per or or.

Each function replaces one match of the pattern that stands above it. Where the text around does not decide, the
question is refused: said wrongly, it would be another question.
"""

import re

from ..errors import UnspeakableError
from .formulas import LOGIC, refuse
from .units import NUMBER, PER, TIMES, UNIT_NAMES, UNITS

# ---- Hyphens and dashes --------------------------------------------------------------------------------------------

DASH = re.compile(
    rf"(?P<left>(?<![^\W_])(?<![.,$€£])[$€£]?(?:{NUMBER}|\.\d+)(?:{UNIT_NAMES}|[%°]|[A-Za-z])?|(?<![\w'])[A-Za-z]|[)\]])"
    r"(?P<dash>\s[-\u2013]\s|[-\u2013])"
    rf"(?=(?P<right>[$€£]?(?:{NUMBER}|\.\d+)|[A-Za-z](?![^\W_]|['-])|\((?=[\d(-]|[A-Za-z]\b)))"
)
DASH_LEFT = re.compile(r"\d-\s?\d|\d\s-\s\d|\d\u2013\d")  # what no rule takes for two numbers: the 5-7 of "3,5-7"
refuse_dash = refuse("formula", "may be a difference, a range or a number's part")
_OPERATORS = "=+*×÷/^<>≤≥≈±√\u2212·"
_NUMERIC = r"\s\d.()\[\]\u2013-"
_VARIABLE = r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])"
_TERMS = rf"(?:[{_NUMERIC}]|{_VARIABLE})*"
_ASKED = (
    r"\b(?:what is|what's|how much is|calculate|compute|evaluate|simplify|solve|find|subtract|value of|result of"
    r"|equals?|equal to|times|plus|minus)\b:?"
)
_ARITHMETIC_BEFORE = re.compile(rf"(?:[{_OPERATORS}]|{_ASKED}){_TERMS}$", re.IGNORECASE)
_ARITHMETIC_AFTER = re.compile(
    rf"{_TERMS}(?:[{_OPERATORS}]|\b(?:equals?|is equal|times(?! an?\b| (?:per|each|every|as|more|the|\w+er)\b)"
    r"|plus|minus|divided|multiplied)\b)"
)
_LOST_EXPONENT = re.compile(r"(?:[×*·]|\b[xX]|\btimes)\s*$")  # 3 × 10-5 was 3 × 10⁻⁵
_RANGE_BEFORE = re.compile(
    r"\b(?:pages?|pp?\.|chapters|verses|lines|ages?|aged|grades?|years?|weeks?|days?|months?|steps|sections|articles"
    r"|questions|items|levels|stages|from|between|range of|ranging|scale of|about|around|approximately)\s*$",
    re.IGNORECASE,
)
_RANGE_AFTER = re.compile(
    rf"\s?[%°]|\s?(?:{UNIT_NAMES})(?![\w/])"
    r"|[\s-](?:year|month|week|day|hour|minute|second|fold|percent|hundred|thousand|million|billion"
    r"|people|men|women|children|feet|mice|(?!(?:was|has|this|its|does|equals|times|plus|minus)\b)[a-z]{3,}s)\b"
)
_SCORE_BEFORE = re.compile(r"\b(?:vote of|voted|ruled|won|lost|score of)\s*$", re.IGNORECASE)
_SCORE_AFTER = re.compile(r"\s(?:vote|decision|majority|ruling|victory|win|loss)\b")


def replace_dash(match: re.Match) -> str:
    """7-4 -> 7−4 in arithmetic, 7 to 4 as a range or a score; a compound such as C-14 stays.

    Raises:
        UnspeakableError: two numbers, and neither is certain.
    """
    left, right, after = match["left"], match["right"], match.string[match.end("right") :]
    before, spaced = match.string[: match.start()], match["dash"] != match["dash"].strip()
    arithmetic = bool(_ARITHMETIC_BEFORE.search(before) or _ARITHMETIC_AFTER.match(after))
    numbers = [re.fullmatch(rf"[$€£]?({NUMBER}|\.\d+)(.*)", side) for side in (left, right)]
    if not all(numbers):
        if spaced and right in "aAI" and re.match(r"\s[a-z]{2,}", after):  # Vitamin C - a nutrient
            return f"{left}, "
        return f"{left}{_beside_letter(left, right, arithmetic or spaced, match)}"
    (low, suffix), (high, _) = ((float(number[1].replace(",", "")), number[2]) for number in numbers if number)
    single = not (re.search(r"[-\u2013]\s?$", before) or re.match(r"\s?[-\u2013]\s?\d", after))
    ranged = single and _is_range(match, low, high, suffix, before, after)
    lost = low == 10 and _LOST_EXPONENT.search(before)
    if arithmetic and not ranged and not lost:
        return f"{left}\u2212"
    if not arithmetic:
        if ranged or (single and match["dash"] == "\u2013"):
            moved = left[0] if left[0] in "$€£" and right[0] != left[0] else ""  # $10-20 -> 10 to $20
            return f"{left.removeprefix(moved)} to {moved}"
        if (spaced and low > high) or (suffix.isalpha() and suffix not in UNITS):
            return f"{left}\u2212"
    raise UnspeakableError("formula", f"{match[0] + right!r} may be a difference or a range")


def _beside_letter(left: str, right: str, arithmetic: bool, match: re.Match) -> str:
    """What stands for the dash where one side is a letter or a bracket."""
    brackets = left in ")]" or right == "("
    coefficient = len(left) > 1 and left[-1].isalpha()  # 2x-3, 2x-y
    if arithmetic or brackets or coefficient or (left.islower() and right[0].isdigit()):
        return "\u2212"
    if left[-1].isalpha() or right.isupper() or right == "d":  # C-14, x-y, 3-D
        return "-"
    if right in "xyznt":
        return "\u2212"
    raise UnspeakableError("formula", f"{match[0] + right!r} may be a difference or a name")


def _is_range(match: re.Match, low: float, high: float, suffix: str, before: str, after: str) -> bool:
    first, second = match["left"], match["right"]
    if re.match(r"\s?B\.?\s?C\b", after) or _SCORE_BEFORE.search(before) or _SCORE_AFTER.match(after):
        return True
    if re.fullmatch(r"1\d{3}|20\d\d", first) and re.fullmatch(r"\d\d|1\d{3}|20\d\d", second):  # 1914-18
        return high > (low % 100 if len(second) == 2 else low)
    if low >= high:
        return False
    same = (suffix in UNITS or suffix in ("%", "°")) and after.lstrip().startswith(suffix)
    return first[0] in "$€£" or same or bool(_RANGE_BEFORE.search(before) or _RANGE_AFTER.match(after))


# ---- Slashes -------------------------------------------------------------------------------------------------------

_TOKEN = r"[^\W_](?:[\w.'-]*\w)?"
SLASH = re.compile(rf"(?P<left>{_TOKEN}|[)\]])\s*[/\u2044]\s*(?=(?P<right>{_TOKEN}|\())")
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['-])*[^\W\d_]")
_OPERAND = re.compile(r"[\d.,]*(?:[^\W\d_][\u0391-\u03c9]?)?|[)\]]|d[A-Za-z]")  # 2, x, 2x, dy, Nα
_SPELLED = {"I/O", "A/C", "A/B", "A/D", "D/A", "P/E", "T/F", "M/F", "F/M", "R/W", "S/N"}
"""Capitals that are abbreviations; others may be a quotient of quantities."""
_MATHS = re.compile(
    r"[=<>+×÷]|\b(?:fraction|probability|value|simplif\w+|equals?|sum|product|multipl\w+|divid\w+)\b", re.I
)


def replace_slash(match: re.Match) -> str:
    """x/y -> x over y, miles/hour -> miles per hour, his/her -> his or her; a fraction such as 1/2 stays.

    Raises:
        UnspeakableError: a date, the line before a conclusion, or what is none of these.
    """
    left, right, after = match["left"], match["right"], match.string[match.end("right") :]
    before = match.string[: match.start()]
    if re.search(LOGIC, match.string) and not left.isdigit():
        raise UnspeakableError("formula", f"{match[0] + right!r} may be a quotient or the end of premises")
    arithmetic = _ARITHMETIC_BEFORE.search(before) or _ARITHMETIC_AFTER.match(after)
    if re.fullmatch("[A-Z]", left) and re.fullmatch("[A-Z]", right) and not arithmetic:
        if f"{left}/{right}" in _SPELLED:
            return f"{left} "
        raise UnspeakableError("formula", f"{match[0] + right!r} may be a quotient or an abbreviation")
    if right == "(":
        if _OPERAND.fullmatch(left) and re.match(rf"(?:[{_OPERATORS}{_NUMERIC}]|{_VARIABLE})*\)", after):
            return f"{left} over "
    elif re.fullmatch(r"\d+", left) and re.fullmatch(r"\d+", right):
        if not re.search(r"/\s*$", before) and not re.match(r"\s*/", after):
            return f"{left}{_between_numbers(left, right, before, after)}"
    elif right in PER and left not in TIMES:
        return f"{left} per "
    elif _OPERAND.fullmatch(left) and _OPERAND.fullmatch(right):
        return f"{left} over "
    elif right in UNITS and re.search(r"\d\s*$", before):  # 3 xy/mL
        raise UnspeakableError("formula", f"{match[0] + right!r} may be a quotient of units")
    elif all(_WORD.fullmatch(side) or side in ("I", "a", "A") for side in (left, right)) and not re.search(
        r"[×÷]\s?\d", after
    ):
        # I/me/my, a/an
        return f"{left} or "
    raise UnspeakableError("formula", f"{match[0] + right!r} may be a quotient, a date or a choice")


_AROUND_THE_CLOCK = re.compile(r"(?<!\bof)(?<!\bis)(?<!\bby)(?<!\bto)\s$")
_SEPTEMBER_BEFORE = re.compile(r"\b(?:the|post-?|pre-?|after|since|before|following)\s?$", re.IGNORECASE)
_SEPTEMBER_AFTER = re.compile(r"\s(?:attack|terror|commission|hijack|era|victim)", re.IGNORECASE)


def _between_numbers(left: str, right: str, before: str, after: str) -> str:
    """What stands for the slash of a fraction, and of the few pairs of numbers that are names.

    Raises:
        UnspeakableError: 9/11, if neither a day nor arithmetic is near.
    """
    pair, text = f"{left}/{right}", f"{before} {after}"
    if pair in ("50/50", "20/20"):
        return " "
    if pair == "24/7" and re.search(r"[a-z]\s$", before) and _AROUND_THE_CLOCK.search(before):
        return " "
    if pair == "9/11":
        if _SEPTEMBER_BEFORE.search(before) or _SEPTEMBER_AFTER.match(after):
            return " "
        if re.search("[a-z]", text) and not _MATHS.search(text):
            raise UnspeakableError("formula", "'9/11' may be a fraction or a day")
    return "/"
