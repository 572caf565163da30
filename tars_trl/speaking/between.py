"""What a hyphen, a dash or a slash between two things says: minus or to; over, per or or. And what units are called.

Each function replaces one match of the pattern that stands above it. Where the text around does not decide, the
question is refused: said wrongly, it would be another question.
"""

from __future__ import annotations

import re

from ..errors import UnspeakableError

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
UNITS = {  # without "in": after a number it is nearly always the preposition
    **{"km/h": "kilometer per hour", "m/s": "meter per second", "mph": "mile per hour", "g/mL": "gram per milliliter"},
    **{"km": "kilometer", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer", "m": "meter", "ft": "foot"},
    **{"kg": "kilogram", "mg": "milligram", "g": "gram", "lb": "pound", "lbs": "pound", "oz": "ounce"},
    **{
        "mL": "milliliter",
        "ml": "milliliter",
        "L": "liter",
        "l": "liter",
        "s": "second",
        "ms": "millisecond",
        "min": "minute",
    },
    **{"Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "W": "watt", "kW": "kilowatt", "V": "volt"},
    **{"J": "joule", "kJ": "kilojoule", "N": "newton", "Pa": "pascal", "kPa": "kilopascal", "atm": "atmosphere"},
    **{"°C": "degree Celsius", "°F": "degree Fahrenheit", "K": "kelvin", "mol": "mole", "mmol": "millimole"},
}
_TIMES = {"h": "hour", "hr": "hour", "sec": "second", "yr": "year"}
_TIMES |= {name: name for name in ("second", "minute", "hour", "day", "week", "month", "year", "night")}
_PER = _TIMES | {name: name for name in ("liter", "litre", "gallon", "mole", "mile", "capita")}
_CLOCK = "sec|min|hr|hour|day|week|month|year"  # a pulse of 70/min
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_DENOMINATOR = "|".join(re.escape(unit) for unit in sorted(UNITS | _PER, key=len, reverse=True))


# ---- Units ---------------------------------------------------------------------------------------------------------

UNIT = re.compile(rf"(?<![\d.,])({NUMBER})\s?({_UNIT})(?:\s?/\s?({_DENOMINATOR})([23]?))?(?![\w/\u2212-])")
_LABEL = re.compile(
    r"\b(?:section|sec\.|part|figure|table|room|class|type|grade|question|chapter|article|form|group|gate|no\.)\s*$",
    re.IGNORECASE,
)


def unit(match: re.Match) -> str:
    """5 g/mol -> 5 grams per mole; the J of "1924 J. Edgar Hoover" and the K of "Section 4 K" are none."""
    after = match.string[match.end() :]
    capital = len(match[2]) == 1 and match[2].isupper() and not match[3]
    if capital and (re.match(r"\.\s?[A-Z]", after) or _LABEL.search(match.string[: match.start()])):
        return match[0]
    name = UNITS[match[2]] if match[1] == "1" else _plural(UNITS[match[2]])
    return f"{match[1]} {name}{_denominator(match[3], match[4])}"


PAIR = re.compile(
    rf"(?<![\w/.])({NUMBER}(?=\s?/\s?(?:{_CLOCK})\b)|{_UNIT}|dollars?|euros?|pounds?|cents)\s?/\s?"
    rf"({_DENOMINATOR})([23]?)(?![\w/])"
)


def unit_pair(match: re.Match) -> str:
    """g/mol -> grams per mole, dollars/kg -> dollars per kilogram, 70/min -> 70 per minute.

    Two single letters may be variables, but for m/s.
    """
    if len(match[1]) == len(match[2]) == 1 and (match[1], match[2]) != ("m", "s"):
        return match[0]
    return (_plural(UNITS[match[1]]) if match[1] in UNITS else match[1]) + _denominator(match[2], match[3])


def _plural(name: str) -> str:
    first, *rest = name.split(" ")
    return " ".join([{"foot": "feet", "hertz": "hertz"}.get(first, first + "s"), *rest])


def _denominator(key: str | None, exponent: str | None) -> str:
    power = {"2": " squared", "3": " cubed"}.get(exponent or "", "")
    return f" per {(UNITS | _PER)[key]}{power}" if key else ""


# ---- Hyphens and dashes --------------------------------------------------------------------------------------------

DASH = re.compile(
    rf"(?P<left>(?<![^\W_])(?<![.,$€£])[$€£]?(?:{NUMBER}|\.\d+)(?:{_UNIT}|[%°]|[A-Za-z])?|(?<![\w'])[A-Za-z]|[)\]])"
    r"(?P<dash>\s[-\u2013]\s|[-\u2013])"
    rf"(?=(?P<right>[$€£]?(?:{NUMBER}|\.\d+)|[A-Za-z](?![^\W_]|['-])|\((?=[\d(-]|[A-Za-z]\b)))"
)
LEFT_OVER = re.compile(r"\d-\s?\d|\d\s-\s\d|\d\u2013\d")
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
    rf"{_TERMS}(?:[{_OPERATORS}]|\b(?:equals?|is equal|times|plus|minus|divided|multiplied)\b)"
)
_LOST_EXPONENT = re.compile(r"(?:[×*·]|\b[xX]|\btimes)\s*$")  # 3 × 10-5 was 3 × 10⁻⁵
_RANGE_BEFORE = re.compile(
    r"\b(?:pages?|pp?\.|chapters|verses|lines|ages?|aged|grades?|years?|weeks?|days?|months?|steps|sections|articles"
    r"|questions|items|levels|stages|from|between|range of|ranging|scale of|about|around|approximately)\s*$",
    re.IGNORECASE,
)
_RANGE_AFTER = re.compile(
    rf"\s?[%°]|\s?(?:{_UNIT})(?![\w/])"
    r"|[\s-](?:year|month|week|day|hour|minute|second|fold|percent|hundred|thousand|million|billion"
    r"|people|men|women|children|feet|mice|(?!(?:was|has|this|its|does|equals|times|plus|minus)\b)[a-z]{3,}s)\b"
)
_SCORE_BEFORE = re.compile(r"\b(?:vote of|voted|ruled|won|lost|score of)\s*$", re.IGNORECASE)
_SCORE_AFTER = re.compile(r"\s(?:vote|decision|majority|ruling|victory|win|loss)\b")


def dash(match: re.Match) -> str:
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
        return f"{left}{_with_letter(left, right, arithmetic or spaced, match)}"
    (low, suffix), (high, _) = ((float(number[1].replace(",", "")), number[2]) for number in numbers if number)
    single = not (re.search(r"[-\u2013]\s?$", before) or re.match(r"\s?[-\u2013]\s?\d", after))
    ranged = single and _ranged(match, low, high, suffix, before, after)
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


def _with_letter(left: str, right: str, arithmetic: bool, match: re.Match) -> str:
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


def _ranged(match: re.Match, low: float, high: float, suffix: str, before: str, after: str) -> bool:
    first, second = match["left"], match["right"]
    if re.match(r"\s?B\.?\s?C\b", after) or _SCORE_BEFORE.search(before) or _SCORE_AFTER.match(after):
        return True
    if re.fullmatch(r"1\d{3}|20\d\d", first) and re.fullmatch(r"\d\d|1\d{3}|20\d\d", second):  # 1914-18
        return high > (low % 100 if len(second) == 2 else low)
    if low >= high:
        return False
    same = (suffix in UNITS or suffix in ("%", "°")) and after.lstrip().startswith(suffix)
    return first[0] in "$€£" or same or bool(_RANGE_BEFORE.search(before) or _RANGE_AFTER.match(after))


def left_over(match: re.Match) -> str:
    """Refuse what `dash` could not take for two numbers: the 5-7 of "3,5-7"."""
    raise UnspeakableError("formula", f"{match[0]!r} may be a difference, a range or a number's part")


def between_words(match: re.Match) -> str:
    """Freud - the father -> Freud, the father; profit = revenue - cost is a difference."""
    return "\u2212" if re.search(r"[=+×÷*]", match.string) else ", "


# ---- Slashes -------------------------------------------------------------------------------------------------------

_TOKEN = r"[^\W_](?:[\w.'-]*\w)?"
SLASH = re.compile(rf"(?P<left>{_TOKEN}|[)\]])\s*[/\u2044]\s*(?=(?P<right>{_TOKEN}|\())")
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['-])*[^\W\d_]")
_OPERAND = re.compile(r"[\d.,]*[^\W\d_]?|[)\]]|d[a-z]")  # 2, x, 2x, dy


def slash(match: re.Match) -> str:
    """x/y -> x over y, miles/hour -> miles per hour, his/her -> his or her; a fraction such as 1/2 stays.

    Raises:
        UnspeakableError: a date, or what is none of these.
    """
    left, right, after = match["left"], match["right"], match.string[match.end("right") :]
    if right == "(":
        if _OPERAND.fullmatch(left) and re.match(rf"(?:[{_OPERATORS}{_NUMERIC}]|{_VARIABLE})*\)", after):
            return f"{left} over "
    elif re.fullmatch(r"\d+", left) and re.fullmatch(r"\d+", right):
        if not re.search(r"/\s*$", match.string[: match.start()]) and not re.match(r"\s*/", after):
            return f"{left}/"
    elif right in _PER and left.removesuffix("s") not in _TIMES:
        return f"{left} per "
    elif _OPERAND.fullmatch(left) and _OPERAND.fullmatch(right):
        return f"{left} over "
    elif all(_WORD.fullmatch(side) or side in ("I", "a", "A") for side in (left, right)):  # I/me/my, a/an
        return f"{left} or "
    raise UnspeakableError("formula", f"{match[0] + right!r} may be a quotient, a date or a choice")
