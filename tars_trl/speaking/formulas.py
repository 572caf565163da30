"""How formulas are said: functions, ratios, ions, comparisons, feet and inches.

`FORMULAS` are rules that are applied in order, before numbers, units and symbols are named.
"""

import re
from collections.abc import Callable
from typing import Any

from ..errors import UnspeakableError

LOGIC = "[\u2228\u2283\u2261~\u00ac\u2022]"
_FUNCTIONS = {"sin": "sine", "cos": "cosine", "tan": "tangent", "ln": "natural log", "log": "log", "exp": "exp"}
_FUNCTIONS |= {"var": "variance", "Var": "variance", "cov": "covariance", "Cov": "covariance", "E": "E"}
CALL = re.compile(
    r"(?<![A-Za-z])(?:(sin|cos|tan|ln|exp|log(?=\()|[Vv]ar(?=\()|[Cc]ov(?=\()|E(?=\([A-Z]))\s?"
    r"|([fghFGP])(['\u2032]?)(?:\s(?=\([a-z]\)))?|([b-zA-HJ-Z])(['\u2032]?)(?=\([tnxyz]\)))\(([^()]*)\)"
)


def say_call(match: re.Match) -> str:
    """f(x) -> f of x; f(x + 1) -> f of, x + 1,: a pause is what is left of brackets."""
    name = _FUNCTIONS.get(match[1], match[1]) or match[2] or match[4]
    prime = " prime" if match[3] or match[5] else ""
    argument = match[6].strip()
    simple = re.fullmatch(r"[-\u2212]?[\w.\u03b1-\u03c9]*|\w+(?: prime)? of [\w ]+", argument)
    return f"{name}{prime} of {argument} " if simple else f"{name}{prime} of, {argument}, "


def say_latex_fraction(match: re.Match) -> str:
    """A sum above or below the line is kept together by pauses."""
    over, under = (f"({part})" if re.search(r"\S\s?[-+\u2212]", part) else part for part in match.groups())
    return f"{over} over {under}"


_RATIO_BEFORE = re.compile(r"\b(?:ratio|proportion|odds|dilut\w+|scale|mix\w*|split|cross\w*)\b[^.?!]{0,40}$", re.I)
_RATIO_AFTER = re.compile(r"\s(?:ratio|odds|proportion|mixture|dilution|solution|phenotyp\w+|genotyp\w+|split)\b", re.I)
_VERSE_BEFORE = re.compile(
    r"\b(?:Genesis|Exodus|Leviticus|Psalms?|Proverbs|Isaiah|Matthew|Mark|Luke|John|Acts|Romans|Corinthians|Galatians"
    r"|Qur'?an|Koran|Surah?)\s$"
)
RATIO = re.compile(r"(?<![\w:.])(\d+(?:\.\d+)?)((?:\s?:\s?\d+(?:\.\d+)?)+)(?![\w:])")


def say_ratio(match: re.Match) -> str:
    """3:2 -> 3 to 2, 9:3:3:1 -> 9 to 3 to 3 to 1; 3:05 stays, as a time.

    Raises:
        UnspeakableError: a time with seconds, a year with a page.
    """
    near = _RATIO_BEFORE.search(match.string[: match.start()]) or _RATIO_AFTER.match(match.string[match.end() :])
    if not near and re.fullmatch(r"(?:1?\d|2[0-3]):[0-5]\d", match[0]):
        return match[0]
    if _VERSE_BEFORE.search(match.string[: match.start()]):
        return match[0].replace(":", " ")
    if not near and re.fullmatch(r"\d{1,2}:[0-5]\d:[0-5]\d|(?:1[5-9]|20)\d\d:\d+", match[0]):
        raise UnspeakableError("formula", f"{match[0]!r} may be a time, a page or a ratio")
    return match[1] + match[2].replace(" ", "").replace(":", " to ")


def _say_charge(match: re.Match) -> str:
    """SO4^2- -> SO4 2 minus."""
    return f"{match[1]} {match[2]} {'plus' if match[3] == '+' else 'minus'} "


def _say_sides(match: re.Match) -> str:
    """4 x 3-cm -> 4 by 3-cm; with an equation or powers of ten it is a product."""
    sides = re.findall(r"[\d.]+", match[0])
    if "=" in match.string or any(float(side) >= 1000 or side in ("10", "100") for side in sides):
        return match[0]
    return re.sub(r"\s?[xX×]\s?", " by ", match[0])


def where(near: str, then: str, otherwise: str = r"\g<0>") -> Callable[[re.Match], str]:
    """A replacement that depends on what stands anywhere in the text."""
    return lambda match: match.expand(then if re.search(near, match.string) else otherwise)


def _say_between_bars(match: re.Match) -> str:
    """|x - 2| -> the absolute value of x - 2; of groups and sets it may be the number of elements."""
    inside = match[0][1:-1]
    if re.search("[A-Z|]", inside) or not re.search(r"\w", inside):
        raise UnspeakableError("formula", f"{match[0]!r} may be an absolute value or a number of elements")
    summed = re.search("[-+\u2212]", inside[1:])
    return f"the absolute value of, {inside}, " if summed else f"the absolute value of {inside}"


def refuse(reason: str, why: str) -> Callable[[re.Match], str]:
    """A replacement that refuses what is matched, and says why."""

    def replacement(match: re.Match) -> str:
        raise UnspeakableError(reason, f"{match[0]!r} {why}")

    return replacement


LOST_EXPONENT = refuse("formula", "may have lost an exponent")  # 9.3 x 1013 was 9.3 x 10¹³
_LENGTH = r"(?:cm|mm|m|km|ft|in|inch|inches|feet|foot|yd|yards?|meters?|miles?|mi)"
_SIDE = r"\d+(?:\.\d+)?"
_BIG = r"\d{1,3}(?:,\d{3})+"
_END = r"(?=[\s,.;:?!)\]]|$)"
_BETWEEN_STATEMENTS = "(\\b[A-Z][a-z]?|[)\\]])\\s?{}\\s?(?=[~\u00ac(\\[]|[A-Z][a-z]?\\b)"
FORMULAS: list[tuple[Any, Any]] = [
    ("(\\d)['\u2032\u2019][\u2013-](\\d)['\u2032\u2019]", r"\1 prime to \2 prime"),  # a strand's ends
    ("(?<=\\d)\\s?['\u2032\u2019]\\s?(\\d\\d?(?:\\.\\d+)?)\\s?(?:[\"\u2033\u201d]|'')", r" feet \1 inches"),
    (r"(\d)\s?(?:ft|foot|feet)\.?,?\s(\d{1,2}(?:\.\d+)?)\s?in\b(?:\.(?=\s[a-z]))?", r"\1 feet \2 inches"),
    (r"\b1 feet (?=[\d.]+ inches)", "1 foot "),
    (r"(?<= (?:feet|foot) 1 inch)es", ""),
    (r"(\d)\s?(?:([CF])°|o([CF])\b)", r"\1 °\2\3"),
    ("(\u0394 ?[A-Z]|\\bE)°(?! ?[CFK]\\b)", r"\1 standard"),
    (r"([$€£]\s?[\d,]+)\.\s(\d\d)(?!\d)", r"\1.\2"),
    (r"(?<=[a-z])(?=\d{1,2}:\d\d)", " "),
    (r"<--?(?=\s)", "←"),
    (r"<=(?!>)", "≤"),
    (r"(?<!<)>=", "≥"),
    (r"!=", "≠"),
    (r"(?<![<-])--?>", "→"),
    (r"\b([a-zA-Z])\s?:\s?(\([^()]*\)|[^\s:,()]{1,6})\s?→\s?", r"\1 from \2 to "),
    ("([\u03c0\u03c3\u03b4])\\*(?=\\s(?!\\s?[\\d(])|[,.;:)\\]]|$)", r"\1 star"),
    ("(?<=[\\dxyzn)])\\s?\u2014\\s?(?=\\d)", where(r"[=<>\u2264\u2265]", "\u2212")),  # 2x — 1 < 10
    (r"\b([A-Z][A-Za-z\d()\[\]]*)\^\{?(\d?)([-+\u2212])\}?(?!\s?[\d(]|\w)", _say_charge),
    (rf"\b([A-Z][A-Za-z]*\d?[A-Z]?O\d)([23])([-\u2212]){_END}", _say_charge),
    (rf"\b([A-Z][a-z]?)([1-4])([-\u2212]){_END}", _say_charge),
    (rf"\b(Cl|Br|OH|NO[23]|HCO3|CN|SCN|MnO4|ClO\d?|HSO4|H2PO4|CH3COO)()([-\u2212]){_END}", _say_charge),
    ("(?<=[\\d)\\]])\\s?\u2022\\s?(?=[\\d(])", " × "),
    (_BETWEEN_STATEMENTS.format("\u2022"), r"\1 and "),
    (_BETWEEN_STATEMENTS.format("\u00b7"), where(LOGIC, r"\1 and ", r"\1 times ")),
    (r"(?<![\d.])\d(?:\.\d+)?\s?[xX×]\s?10(?:(?!00?\b)\d\d?(?![\d.,])|[\u2212\u2013]\d)", LOST_EXPONENT),
    (rf"(?<![\w.]){_SIDE}\s?[xX×]\s?{_SIDE}(?:\s?[xX×]\s?{_SIDE})?(?=[\s-]?{_LENGTH}\b)", _say_sides),
    # The x of 2x (5x4) is a sign where the same text multiplies numbers with it, and else a variable.
    (r"(?<=\))\s?[xX]\s?(?=\()|(?<=\d)[xX]\s?(?=\(\d)", where(r"\d\s?[xX]\s?\d|\)\s?[xX]\s?\(", " times ")),
    (r"\[([A-Za-z])\](?=[a-z]{2})|(?<=[a-z]{2})\[(s|e?d|n|ing|er|ly)\](?!\w)", r"\1\2"),  # attack[ed]
    (r"(?<=\s)\[([a-z][a-z' -]{0,40})\](?=[\s,.;])", r"\1"),
    (r"\b([A-Z]):([A-Z])\b", r"\1 to \2"),
    (rf"(?<![\d/])({_BIG}|\d+)\s?/\s?({_BIG})(?![\d/])|({_BIG})\s?/\s?(\d+)(?![\d/])", r"\1\3 over \2\4"),
    (r"(?<=\d)\s%\s(?=\d)", " mod "),
    (r"(?<=\b[A-Za-z])\s[x×]\s(?=\d)", " by "),
    (r"(\d)\s?in\.(?=\s*(?:$|[,;)]))", r"\1 inches"),
    (r"\b([35])['\u2019](?=[\s)\]-])(?!\s(?:tall|wide|high|long|deep|by))", r"\1 prime"),
    (r"(?<=\d)['\u2019](?=\s(?:tall|wide|high|long|deep|by)\b)", " feet"),
    (r"\bP\(([^()|]+)\|([^()|]+)\)", r"P(\1 given \2)"),
    (r"\|[^\s|](?:[^|\n]{0,12}[^\s|])?\|", _say_between_bars),
    (r"~(?=\s?(?:=|is\b|on\b))", refuse("formula", "is the name of a relation here")),
    (r"\b[01]{4}(?:\s[01]{4})+\b", lambda match: ", ".join(map(" ".join, match[0].split()))),  # 1001 0011
    (r"(?<=[a-z]{2})\((e?s)\)", r"\1"),  # subtest(s)
    (r"(\b[A-Z]_?\d+)\s[x×]\s(?=[A-Z]_?\d)", r"\1 cross "),
    (r"(\d)\s?[x×]\s?(?=\d+[\s-](?:[a-z]+[\s-])?(?:matri|table|grid|column|vector|board|square))", r"\1 by "),
    (r"\bsqrt\s?\(([\w.]+)\)", "√ \\1"),
    ("\u03c7(?:2|\u00b2|\\^2)", "\u03c7 squared"),
    (r"(?<=\w)\[\d*:[\d:]*\]", refuse("code", "is a slice")),
    (RATIO, say_ratio),
    (r"\bc\.\s?(?=\d{3,4}\b)", "circa "),
    (r"=\s?\?(?=\s*[\w(])", "= what"),
]  # fmt: skip
CALLS: list[tuple[Any, Any]] = [
    *[(CALL, say_call)] * 3,  # from within: f(g(x))
    (
        r"(?<![A-Za-z])(?:sin|cos|tan)(?=\s?[\u00b2\u00b3^\u03b1-\u03c9]|\s\d*[xyzt]\b)",  # no moral one
        lambda match: _FUNCTIONS[match[0]],
    ),
    (r" {2,}", " "),
]

_SMALL = "[\u00b2\u00b3\u00b9\u2070-\u2079]"
_DOUBTFUL = [
    r"\d\s?--\s?[\d(]|<[-=]+>|<\s?[-\u2013]\s?>",  # 5--3, A <-> B
    rf"[d\u2202](?:{_SMALL}|\^\d)\w|{_SMALL}\s?√",  # d²y/dx², ³√8
    rf"(?<![\w)\]}}|.%°′'\"\u207b]){_SMALL}+(?![\u207a\u207b])|(?:^|[\s(,])\^\{{?\d+\}}?[A-Z]",  # ¹⁴C
    r"\^\s?[-\u2212]?(?:\d+[A-Za-z]|[A-Za-z]+\d|[A-Za-z]{2,}\b)",  # e^2x
    r"\^\{?[-\u2212]?\w+\}?\s?\^",  # 2^3^2
    r"(?<![\w/.-])\d+-\d+\s?/\s?\d",  # 2-1/2 inches
    r"\d[eE][-+\u2212]?\d",  # 2.5e6
    r"\d['\u2033\u00b4]|(?:[0-246-9]|\d\d)\u2032|(?<![A-Za-z'])[A-Za-z]'(?![A-Za-z(])",  # 30' x 40', y'
    r"(?<![A-Za-z])[A-Za-z]\)?(?:''|\u2033)",  # f''(x)
    r'\A(?:[^"]*"[^"]*")*[^"]*\d"',  # a 6" pipe: the quotation mark closes no quotation
    r"(?<![\w.])(?:\d+|[a-z])!|[\d)]!",  # n!
    r"/\s?(?:mol|k?g|m|s)(?:\s?[·⋅*-]\s?|\s)(?:K|°?C|s)\b|(?<!\d )\bL atm\b",  # J/mol·K
    r"\d\s?/\s?(?:L|s|h|K|m|g)\b",  # 10^9/L
    r":\s?√|(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]\d)|\d{16,}(?=[a-z])",  # 1:2:√3, 1 000 000
    r"(?:[)\]]\d?|\d|\b[A-Z][a-z]?|\de)[-\u2212](?=[,.;:?!)]|\s|$)(?!\s?(?:and|or|to)\b)(?!\s[\d(]|\s\w\b)",  # Rh-
    r"(?<![=+×(,<>≤≥])\s-(?=[A-Za-z][A-Za-z]\b|[A-Z]\b|(?:sin|cos|tan|log|exp|sqrt)\b)",  # is -RT
    r"\blog_?\{?\d|[A-Z]#|(?<![a-z] \d )(?<![a-z] \d)\|",
    "[\u00c2\u00c3][\u0080-\u00bf]|&[a-z]|&[^\\s\\w]|(?<=[a-z])\\.\\d|\u00d2|[.,\\w]\u00d3(?!\\w)",  # typos
    r"=\s?\d[\d.]*\u2013\d|\[\[|\],?\s?\[|\)[A-Za-z]\(|(?<!\\)\bsqrt\b|[a-z]-\d:",  # N=70–75, [[1, 2]]
    r"[≤≥](?=\s?[),])|\b(?:relation|order|symbol|sign) [<>≤≥]",  # a relation that is named, not stated
    r"[A-Za-z]{2,}\([A-Za-z]{2,}\(",  # Pop(Push(Stack))
    r"[$€£]\s?[\d.,]+\s[MBK]\b|\d[A-Z]\s?[Ω\u2126]|[A-Z][a-z]?\d?\s\d+H2O\b",  # $250 M, 4R Ω, MgSO4 7H2O
    r"\d\s?N\s(?:[A-Z]|solution)",  # 3 N HCl: normal, no newtons
    r"(?<![\w.])\d*[a-z]{1,2}[23](?=\s?[-+=\u2212])|[-+=\u2212]\s?\d*[a-z]{1,2}[23]\b",  # x2 + y2 = r2
]
DOUBTS: list[tuple[Any, Any]] = [("|".join(_DOUBTFUL), refuse("formula", "may be read in more than one way"))]
PRODUCTS = (
    r"\)\s?\((?=[\w\u2212-])|(?<![A-Za-z])[\da-z]\((?=[\w\u2212-])",  # (2)(3), x(x + 1), Article 5(3)
    refuse("formula", "may be a product or a part"),
)
