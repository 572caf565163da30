"""What units are called: 5 kg, g/mol, dollars/kg, 70/min.

`name_unit` and `name_quotient` each replace one match of the pattern that stands above them.
"""

from __future__ import annotations

import re

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
TIMES = {"h": "hour", "hr": "hour", "sec": "second", "yr": "year"}
TIMES |= {name: name for name in ("second", "minute", "hour", "day", "week", "month", "year", "night")}
PER = TIMES | {name: name for name in ("liter", "litre", "gallon", "mole", "mile", "capita")}
_CLOCK = "sec|min|hr|hour|day|week|month|year"  # a pulse of 70/min
UNIT_NAMES = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_DENOMINATOR = "|".join(re.escape(unit) for unit in sorted(UNITS | PER, key=len, reverse=True))
UNIT = re.compile(rf"(?<![\d.,])({NUMBER})\s?({UNIT_NAMES})(?:\s?/\s?({_DENOMINATOR})([23]?))?(?![\w/\u2212-])")
_LABEL = re.compile(
    r"\b(?:section|sec\.|part|figure|table|room|class|type|grade|question|chapter|article|form|group|gate|no\.)\s*$",
    re.IGNORECASE,
)


def name_unit(match: re.Match) -> str:
    """5 g/mol -> 5 grams per mole; the J of "1924 J. Edgar Hoover" and the K of "Section 4 K" are none."""
    after = match.string[match.end() :]
    capital = len(match[2]) == 1 and match[2].isupper() and not match[3]
    if capital and (re.match(r"\.\s?[A-Z]", after) or _LABEL.search(match.string[: match.start()])):
        return match[0]
    name = UNITS[match[2]] if match[1] == "1" else _plural(UNITS[match[2]])
    return f"{match[1]} {name}{_denominator(match[3], match[4])}"


QUOTIENT = re.compile(
    rf"(?<![\w/.])({NUMBER}(?=\s?/\s?(?:{_CLOCK})\b)|{UNIT_NAMES}|dollars?|euros?|pounds?|cents)\s?/\s?"
    rf"({_DENOMINATOR})([23]?)(?![\w/])"
)


def name_quotient(match: re.Match) -> str:
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
    return f" per {(UNITS | PER)[key]}{power}" if key else ""
