"""English text in the words in which it is said: numbers, units, formulas, symbols, abbreviations.

Numbers are spelled by num2words; the rest is a list of rules that are applied in order. What no rule turns into words
is refused, not guessed.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from ..errors import UnspeakableError
from .formulas import CALLS, DOUBTS, FORMULAS, PRODUCTS, refuse, say_latex_fraction, where
from .marks import DASH, DASH_LEFT, SLASH, refuse_dash, replace_dash, replace_slash
from .units import (
    COMPOUND,
    DENOMINATORS,
    HYPHENED,
    INVERSE,
    NOUN,
    NUMBER,
    QUOTIENT,
    UNIT,
    name_compound_unit,
    name_hyphened_unit,
    name_inverse_units,
    name_quotient,
    name_unit,
)


def bare_words(text: str) -> str:
    """Lower case, without punctuation, one space between words; apostrophes inside words stay."""
    bare = re.sub(r"(?<![a-z])'|'(?![a-z])|[^\w\s']|_", " ", text.lower())
    return " ".join(bare.split())


def put_into_words(text: str) -> str:
    """Numbers, units, formulas, symbols and abbreviations in words.

    Raises:
        UnspeakableError: something is left that no voice can say: a LaTeX command, an unknown symbol, another script.
    """
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _NUMBERS:
        text = re.sub(pattern, replacement, text)
    text = " ".join(text.split())
    text = re.sub(r"\s+([,.;:?!]|'s\b)", r"\1", text)
    text = re.sub(r"(?<=\w)-\s+(?=(?:and|or|to|versus)\b(?!-))", " ", text)  # intra- and extraorally
    text = re.sub(r"(?<=\w)\s?-\s?(?=\w)", "-", text)
    text = re.sub(r"([,;:])[,.;:]*(?=[,;:])|,(?=[.?!])", "", text).strip(" ,;")
    sign = re.search(r"(?<![\w'])-\w+", text)
    if sign:
        raise UnspeakableError("formula", f"{sign[0]!r} in {text!r} may be a sign or half a word")
    left = re.search(r"[^a-zA-Z\u00c0-\u024f\s,.;:?!'\u0300-\u036f-]", text)
    if left:
        latin = unicodedata.category(left[0]).startswith("S") or left[0].isascii()
        raise UnspeakableError("formula" if latin else "script", f"{left[0]!r} in {text!r}")
    if not re.search(r"[a-zA-Z]", text):
        raise UnspeakableError("no text", f"{text!r} holds no word")
    return text


def spell(number: int | str, kind: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ImportError as error:
        raise ImportError(
            f"{number!r} has to be said in words, and num2words is not installed. Bring it with: "
            "pip install 'num2words>=0.5.13'"
        ) from error
    return num2words(number, to=kind).replace(",", "")


def _say_number(match: re.Match) -> str:
    """1,234.50 -> one thousand two hundred and thirty-four point five zero; a year as years are read.

    Four digits are a year but for what is counted or calculated: 2019 meters, 1500 + 12.
    """
    whole, _, decimals = match[0].replace(",", "").partition(".")
    whole = whole or "0"
    if len(whole) > 15 or (len(whole) > 1 and whole[0] == "0"):
        said = " ".join(spell(int(digit)) for digit in whole)
    elif re.fullmatch(_year_after(match.string[: match.start()]), match[0]) and not _is_counted(match):
        said = spell(int(whole), "year")
    else:
        said = spell(int(whole))
    tail = " ".join(spell(int(digit)) for digit in decimals)
    return f" {said} point {tail} " if tail else f" {said} "


def _year_after(before: str) -> str:
    """Any four digits are a year after "in", but for 1000 to 1009."""
    return r"1[1-9]\d\d|20\d\d" + (r"|10[1-9]\d|2[1-9]\d\d" if re.search(r"\b(?:[Ii]n|since|year) $", before) else "")


_COUNTED = re.compile(
    r"\s*(?:percent\b|%|[-+=×÷*/^<>≤≥\u2212](?!\w*-))|(?:\s+|-)(?:"
    + "|".join(sorted({f"{name.split()[0]}s?" for name in DENOMINATORS.values()} | {"feet"}))
    + r"|people|men|women|children|dollars|euros|pounds|cents|calories|points|times|copies|votes|words|thousand|million"
    r"|billion|plus|minus|times|equals|over|divided)\b"
)
_COUNTED_BEFORE = re.compile(r"(?:[+=×÷*^<>≤≥≈\u2212]|\b(?:plus|minus|times|equals))\s*$")
_DATED_BEFORE = re.compile(
    r"\b(?:in|since|by|of|until|till|before|after|during|circa|early|late|mid|year|spring|summer|autumn|fall|winter"
    r"|January|February|March|April|May|June|July|August|September|October|November|December)[\s,-]+(?:\w+, )?$",
    re.IGNORECASE,
)
_COUNTED_NOUN = re.compile(r"\s(?!(?:was|has|is|does|this|its|as|thus|perhaps|always|versus)\b)[a-z]{3,}s\b")


def _is_counted(match: re.Match) -> bool:
    before, after = match.string[: match.start()], match.string[match.end() :]
    if _COUNTED.match(after) or _COUNTED_BEFORE.search(before):
        return True
    if re.search(r"\bof $", before) and (match[0] < "1900" or match[0].endswith("00")):  # a school of 1650 students
        return bool(_COUNTED_NOUN.match(after)) and not re.search(r"\bthe \w+ of $", before)
    return bool(_COUNTED_NOUN.match(after)) and not _DATED_BEFORE.search(before)


def _say_decade(match: re.Match) -> str:
    """1990s -> nineteen nineties."""
    said = spell(int(match[1]), "year")
    return f" {said[:-1]}ies " if said.endswith("y") else f" {said}s "


def _say_clock(match: re.Match) -> str:
    hours, minutes = int(match[1]), int(match[2])
    if minutes == 0:
        half = re.match(r"\s?[ap]\.?\s?m\b", match.string[match.end() :], re.IGNORECASE)
        return f" {spell(hours)} " if half else f" {spell(hours)} o'clock "
    return f" {spell(hours)} {'oh ' if minutes < 10 else ''}{spell(minutes)} "


_DETERMINER = re.compile(
    r"\b(?:an?|the|his|her|its|their|my|our|your|this|that|each|every|another)\s(?:[a-z]+(?:ed|al|ld|ew|re)\s)?$",
    re.IGNORECASE,
)


def _say_money(match: re.Match) -> str:
    """$1.50 -> 1 dollar and 50 cents; a $5 fee -> a 5 dollar fee."""
    name = {"$": "dollar", "€": "euro", "£": "pound"}[match[1]]
    amount, _, cents = match[2].partition(".")
    if len(cents) != 2 or match[3]:
        attribute = _DETERMINER.search(match.string[: match.start()]) and NOUN.match(match.string[match.end() :])
        one = (match[2] == "1" and not match[3]) or attribute
        return f"{match[2]}{' ' + match[3] if match[3] else ''} {name if one else name + 's'}"
    small = ("penny", "pence") if name == "pound" else ("cent", "cents")
    said = [f"{amount} {name if amount == '1' else name + 's'}"] if amount != "0" or not int(cents) else []
    return " and ".join([*said, *([f"{int(cents)} {small[int(cents) != 1]}"] if int(cents) else [])])


_SCORE = re.compile(r"\b(?:grade|score[ds]?|rated|rating|strength|pain)\b[^.,;:]{0,30}$", re.IGNORECASE)


def _say_fraction(match: re.Match) -> str:
    """3/4 -> three quarters, 5/6 -> five sixths; 120/80 is no part, and over; a score is out of its most."""
    halves = {"2": ("half", "halves"), "3": ("third", "thirds"), "4": ("quarter", "quarters")}
    over, under = match[1], match[2]
    if _SCORE.search(match.string[: match.start()]):
        return f" {over} out of {under} "
    if under in halves and int(over) < 10:
        return f" {over} {halves[under][int(over) != 1]} "
    if int(over) < int(under) <= 20 and under != "1":
        return f" {over} {spell(int(under), 'ordinal')}{'s' * (int(over) != 1)} "
    return f" {over} over {under} "


def _say_power(match: re.Match) -> str:
    exponent = match[1].strip("{}()")
    named = {"2": "squared", "3": "cubed"}.get(exponent)
    pause = "," * bool(re.match(r"\s?[-+\u2212]", match.string[match.end() :]))  # 2^9 - 1
    return f" {named} " if named else f" to the power of {exponent.replace('-', 'minus ')}{pause} "


def _replace_all(entries: dict[str, str], before: str = "", after: str = "") -> tuple[str, Callable]:
    """A rule that replaces every key by its value."""
    keys = "|".join(re.escape(key) for key in sorted(entries, key=len, reverse=True))
    return f"{before}({keys}){after}", lambda match: entries[match[1]]


ABBREVIATIONS = {
    **{"e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "cf.": "compare"},
    **{"approx.": "approximately", "ca.": "circa", "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz"},
    **{
        "Prof.": "Professor",
        "Jr.": "Junior",
        "Sr.": "Senior",
        "St.": "Saint",
        "U.S.": "U S",
        "U.K.": "U K",
        "Fig.": "Figure",
    },
    **{"and/or": "and or", "s/he": "she or he", "w/o": "without", "N/A": "not applicable", "n/a": "not applicable"},
}
SYMBOLS = {
    **{"=": "equals", "≠": "is not equal to", "<": "is less than", ">": "is greater than", "+": "plus"},
    **{"≤": "is at most", "≥": "is at least", "≈": "is about", "±": "plus or minus", "×": "times", "÷": "divided by"},
    **{"−": "minus", "→": "leads to", "∞": "infinity", "√": "the square root of", "%": "percent", "&": "and"},
    **{"@": "at", "#": "number", "§": "section", "°": "degrees", "·": "times", "∴": "therefore", "′": "prime"},
    **{"∧": "and", "∨": "or", "⊃": "implies", "≡": "is equivalent to"},
}
GREEK = {chr(code): unicodedata.name(chr(code)).split()[-1].lower() for code in (*range(945, 962), *range(963, 970))}
GREEK |= {name.upper(): word for name, word in GREEK.items() if name.upper() not in "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"}
GREEK |= {"λ": "lambda", "Λ": "lambda", "µ": "mu"}  # Unicode says LAMDA; µ is the sign before units
_LATEX = {
    **{r"\times": "×", r"\cdot": "×", r"\div": "÷", r"\pm": "±", r"\leq": "≤", r"\geq": "≥", r"\neq": "≠"},
    **{r"\le": "≤", r"\ge": "≥", r"\approx": "≈", r"\infty": "∞", r"\%": "%", r"\$": "$", r"\rightarrow": "→"},
    **{r"\left": "", r"\right": "", r"\,": " ", r"\;": " ", r"\degree": "°", r"\circ": "°"},
    **{rf"\{word}": f" {word} " for word in GREEK.values()},
}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8"}
_ONES = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
_NUMERALS = [tens + ones for tens in ("", "X", "XX") for ones in _ONES][1:]
_ROMAN = {name: str(number) for number, name in enumerate(_NUMERALS, 1) if len(name) > 1 and name not in ("IV", "XX")}
_RULER = (
    r"\b((?:Louis|Henry|George|Edward|Richard|Charles|James|William|Wilhelm|Elizabeth|Mary|Philip|Napoleon|Frederick"
    r"|Nicholas|Alexander|Catherine|Peter|Ivan|Pius|John Paul|Benedict|Leo|Innocent|Gregory|Urban|Ferdinand|Ramses"
    r"|(?:[Pp]ope|[Kk]ing|[Qq]ueen|[Ee]mperor|[TC]s?[az]r) [A-Z][a-z]+) )"
)
_LISTED = r"\bIII?\b|\bIV? only\b"
_PLACED = r"\b((?:[Ww]ar|[Tt]ype|[Pp]hase|[Pp]art|[Aa]rticle|[Tt]itle|[Aa]ct|[Cc]hapter|[Ss]tage|[Cc]lass) )"

_MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_MONTHS = {name: name for name in _MONTH_NAMES} | {name[:3]: name for name in _MONTH_NAMES} | {"Sept": "September"}
_MONTH = f"({'|'.join(sorted(_MONTHS, key=len, reverse=True))})\\b"

# In this order: what a later rule would take apart comes first.
_RULES: list[tuple[Any, Any]] = [
    ("\u00c2(?=[\u00a0-\u00bf])", ""),
    ("\x80[\x98\x99]", "'"),  # what is left of UTF-8 that was read as another encoding, in MMLU for one
    ("\x80[\x93\x94]", ", "),
    *FORMULAS,
    *DOUBTS,
    ("[\x80-\x9f\u200b-\u200f\ufeff]|(?:^|(?<=\\s))\u2022(?=\\s)", " "),
    ("[\u2018\u2019\u02bc]", "'"),
    ("[\u201c\u201d\u00ab\u00bb\"`]|\\*\\*|''", " "),
    ("\u2026|\\.{3,}", ", "),
    ("[\u2010\u2011]", "-"),
    ("\u2012|(?<=\\d)[\u2014\u2015](?=\\d)", "\u2013"),
    (r"(?<![\w%°)\]])\u2013(?=\w)", "−"),
    (r"(?<=[^\W\d])\u2013(?=\w)|(?<=\w)\u2013(?=[^\W\d])", "-"),  # test–retest
    ("\\s*[\u2014\u2015]\\s*|(?<=[a-z,])\\s?--\\s?(?=[a-z])", ", "),
    # $…$ around mathematics, not the prices $5 and $6
    (r"(?<!\\)\$((?=[^$\n]*[\\^_=+])[^$\n]+|[^$\s]{1,15})\$(?!\d)", r" \1 "),
    (r"\\[()\[\]]", " "),
    (r"\^\s?\{?\\circ\}?", "°"),
    (r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", r"\1"),
    (r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", say_latex_fraction),
    (r"\\sqrt\{([^{}]*)\}", r"√ \1"),
    (r"((?<=[\d)])\s?|(?<=\b[a-z]))√", " × √"),
    _replace_all(_LATEX, after=r"(?![a-z])"),
    *CALLS,
    PRODUCTS,
    (INVERSE, name_inverse_units),
    (f"([{_SUPERSCRIPTS}]+)(?=[\u207a\u207b])", r" \1"),  # the charge of an ion
    (
        f"(\u207b?)([{_SUPERSCRIPTS}]+)(?![\u207a\u207b])",
        lambda match: "^" + "-" * len(match[1]) + unicodedata.normalize("NFKC", match[2]),
    ),
    (r"\^(-?\d+)(?=[^\W\d_])", r"^{\1}"),  # r²h
    (f"(\\d?)\\s?([{''.join(_VULGAR)}])", lambda match: f"{match[1]}{' and' if match[1] else ''} {_VULGAR[match[2]]}"),
    _replace_all(ABBREVIATIONS, before=r"(?<![\w.])", after=r"(?!\w)"),
    (HYPHENED, name_hyphened_unit),
    (rf"\b([0-3]?\d)-{_MONTH}", lambda match: f"{_MONTHS[match[2]]} {spell(int(match[1]), 'ordinal')}"),
    (
        rf"(?<![\d.,/-])(?<!\ba )\b(?:the )?([12]?\d|3[01]) ({'|'.join(_MONTH_NAMES)})\b",  # 4 July
        lambda match: f"the {spell(int(match[1]), 'ordinal')} of {match[2]}",
    ),
    (DASH, replace_dash),
    (DASH_LEFT, refuse_dash),
    # profit = revenue - cost; Freud - the father
    (r"(?<=[\w)\]])\s-\s(?=[\w(\[])", where(r"[=+×÷*]", "\u2212", ", ")),
    (r"\s\u2013\s", ", "),
    (
        rf"{_RULER}({'|'.join(_NUMERALS)})\b(?! (?:am|was|have|had|will|would|think|did)\b)",  # Louis XIV
        lambda match: f"{match[1]}the {spell(_NUMERALS.index(match[2]) + 1, 'ordinal')}",
    ),
    (_PLACED + r"(IV|V|I)\b", lambda match: match[1] + {"I": "1", "IV": "4", "V": "5"}[match[2]]),
    (r"\bIV\b", where(_LISTED, "4")),  # I and IV only
    (r"\bI(?=[,.;:)]|\s(?:and|or|only)\b)", where(_LISTED, "1")),
    _replace_all(_ROMAN, before=r"\b", after=r"\b"),
    (rf"[$€£]\s?{NUMBER}-?(?=[A-Za-z])(?!-(?:thousand|million|billion))", refuse("formula", "may be many amounts")),
    (rf"([$€£])\s?({NUMBER})(?:\s(thousand|million|billion|trillion)\b)?", _say_money),
    (r"\b(\d{3}0)'?s\b", _say_decade),
    (r"(?<!for )(?<!after )(?<!every )(?<!takes )(?<!take )(?<![=\d.] )(?<![=\d.,])'?\b([2-9]0)'?s\b", _say_decade),
    (COMPOUND, name_compound_unit),
    (UNIT, name_unit),
    (QUOTIENT, name_quotient),
    (SLASH, replace_slash),
    (r"\^\s?(\{[^{}]*\}|\([^()]*\)|-?\w+)", _say_power),
    (r"_\{?(\w+)\}?", r" \1 "),
    (  # H2O
        r"\b(?=[A-Za-z]*\d)(?:[A-Z][a-z]?\d*){2,}\b",
        lambda match: " ".join(re.findall(r"[A-Z][a-z]?|\d+", match[0])),
    ),
    (r"\bln\b(?=\s?[\w(])", "natural log"),
    _replace_all({letter: f" {word} " for letter, word in GREEK.items()}),
]  # fmt: skip
_NUMBERS: list[tuple[Any, Any]] = [
    (r"\b(\d+)(?:st|nd|rd|th)\b", lambda match: f" {spell(int(match[1]), 'ordinal')} "),
    (
        rf"\b{_MONTH}\.? ([12]?\d|3[01])(?=[,.;:?!)]|(?<!May \d)(?<!March \d)\s[a-z]|\s?$)(?![.,:]\d)",
        lambda match: f"{_MONTHS[match[1]]} {spell(int(match[2]), 'ordinal')}",
    ),
    (r"\b(1?\d|2[0-3]):([0-5]\d)(?!\d)", _say_clock),
    (r"\b(\d{1,3}) (?=\d{1,2}[/\u2044]\d)", r"\1 and "),  # 2 1/2
    (r"\b(\d+)[/\u2044](\d+)\b", _say_fraction),
    (r"(?<=[\d)])\s*\*\s*(?=[\d(A-Za-z])|(?<=\w)\s\*\s(?=\w)", " times "),
    (r"(?<=\d)\s?[xX]\s?(?=\d)", " times "),
    (r"~\s?(?=\d)", " about "),
    (r"[~\u00ac]\s?(?=[A-Za-z(])", " not "),
    (r"(?<![\w-])-(?=\.?\d|[a-z]\b|[(√])|(?<=[=+×(,\[{<>≤≥≠])\s?-\s*(?=[\w.(√])", " minus "),
    _replace_all({symbol: f" {words} " for symbol, words in SYMBOLS.items()}),
    (rf"{NUMBER}|\.\d+", _say_number),
    (r"[()\[\]|\n]+", ", "),
    (r"(?<!\w)[*_]|[*_](?!\w)|[{}~]|\s-+\s", " "),
]
