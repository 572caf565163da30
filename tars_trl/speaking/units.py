"""What units are called: 5 kg, 12-cm, mg/kg/day, J mol-1 K-1, dollars/kg, 70/min.

Each function replaces one match of the pattern that stands above it.
"""

import re

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_BASES = {  # unit: its name, and the prefixes in use
    **{"g": ("gram", "kmµnp"), "m": ("meter", "kcmµn"), "L": ("liter", "mcdµn")},
    **{"l": ("liter", "mcdµ"), "s": ("second", "mµn"), "Hz": ("hertz", "kMG")},
    **{"W": ("watt", "kMG"), "V": ("volt", "km"), "A": ("ampere", "mµ")},
    **{"F": ("farad", "µnp"), "C": ("coulomb", "µn"), "J": ("joule", "kM")},
    **{"N": ("newton", "kµ"), "Pa": ("pascal", "kM"), "eV": ("electronvolt", "kMG")},
    **{"cal": ("calorie", "k"), "mol": ("mole", "mµnp"), "M": ("molar", "mµn")},
    **{"Ω": ("ohm", "kM"), "Eq": ("equivalent", "m"), "atm": ("atmosphere", "")},
    **{"T": ("tesla", "mµ")},
}
_PREFIXES = {"k": "kilo", "c": "centi", "m": "milli", "d": "deci", "µ": "micro", "n": "nano", "p": "pico"}
_PREFIXES |= {"M": "mega", "G": "giga"}
_LETTERS = {"A", "T", "F", "C", "M", "Eq"}  # no units by themselves: 3 A and 25 C may be anything
UNITS = {base: name for base, (name, _) in _BASES.items() if base not in _LETTERS}
for _base, (_name, _prefixes) in _BASES.items():
    UNITS |= {prefix + _base: _PREFIXES[prefix] + _name for prefix in _prefixes}
UNITS |= {"\u03bc" + unit[1:]: name for unit, name in UNITS.items() if unit[0] == "µ"}  # the Greek letter, not the sign
UNITS |= {  # without "in": after a number it is nearly always the preposition
    **{"mph": "mile per hour", "rpm": "revolution per minute", "ft": "foot", "mi": "mile", "yd": "yard"},
    **{"lb": "pound", "lbs": "pound", "oz": "ounce", "mcg": "microgram", "mcL": "microliter", "uL": "microliter"},
    **{"mm Hg": "millimeter of mercury", "mmHg": "millimeter of mercury", "min": "minute", "hr": "hour", "h": "hour"},
    **{"kWh": "kilowatt-hour", "dB": "decibel", "bpm": "beat per minute", "tbsp": "tablespoon", "tsp": "teaspoon"},
    **{"kB": "kilobyte", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte"},
    **{
        "°C": "degree Celsius",
        "°F": "degree Fahrenheit",
        "rad": "radian",
        "K": "kelvin",
        "U": "unit",
        "IU": "international unit",
    },
}
TIMES = {"h": "hour", "hr": "hour", "sec": "second", "yr": "year"}
TIMES |= {name: name for name in ("second", "minute", "hour", "day", "week", "month", "year", "night")}
PER = TIMES | {name: name for name in ("liter", "litre", "gallon", "mole", "mile", "capita", "dose", "cell")}
DENOMINATORS = UNITS | PER
_POWERS = {"2": " squared", "3": " cubed", "²": " squared", "³": " cubed"}


def _any_of(names: set[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))


UNIT_NAMES = _any_of(set(UNITS) - {"h"})
_SPACED = rf"\s?(?:{UNIT_NAMES})|\sh"  # 4 h; 2h is twice h
_OVER = rf"\s?/\s?(?:{_any_of(set(DENOMINATORS))})(?:\^?[23]|[²³])?"
_CLOCK = "sec|min|hr|hour|day|week|month|year"  # a pulse of 70/min
_COUNTED = "mm3|mm³|mm\\^3|µL|μL|mcL|uL|mL|dL|L"  # 5,000/mm3
UNIT = re.compile(rf"(?<![\d.,])({NUMBER})({_SPACED})(\^?[23²³](?!\d))?((?:{_OVER})*)(?![\w/\u2212-])")
_LABEL = re.compile(
    r"\b(?:section|sec\.|part|figure|table|room|class|type|grade|question|chapter|article|form|group|gate|no\.)\s*$",
    re.IGNORECASE,
)
_ORBITAL = re.compile(r"\s(?:orbital|electron|sub-?shell|shell|state)|,?\s(?:and\s)?[2-7][spdf]")
_ARTICLE = re.compile(r"\b(?:an?|one|each|every|this|that|another)\s$", re.IGNORECASE)
_DEVICE = re.compile(
    r"\s(?:batter(?:y|ies)|(?:light )?bulbs?|resistors?|capacitors?|cells?\b(?! per)|tablets?|flasks?)\b"
)
NOUN = re.compile(
    r"\s(?!(?:to|for|in|of|on|at|per|and|or|from|by|as|with|into|when|if|than|but|who|which|that|was|were|is|are|has"
    r"|had|would|will|plus|worth|more|less|each|every|away|above|below|long|high|wide|tall|deep|old)\b)[a-z]{2,}"
)


def name_unit(match: re.Match) -> str:
    """5 g/mol -> 5 grams per mole; the J of "1924 J. Edgar Hoover" and the K of "Section 4 K" are none."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    key = match[2].strip()
    if len(key) == 1 and not match[4]:
        if key == "U":  # 120 U/L is one, and 5 U S dollars are not
            return match[0]
        if key.isupper() and (
            (re.match(r"\.\s?[A-Z]", after) and re.fullmatch(r"1\d{3}|20\d\d", match[1])) or _LABEL.search(before)
        ):
            return match[0]
        if match[2] == key and (re.match(r"\s?[-+*=(^]", after) or re.search(r"[-+*=(^]\s?$", before)):
            return match[0]  # 2m + 3n
        if match[2] == "s" and _ORBITAL.match(after):  # the 1s orbital
            return match[0]
    power = (match[3] or "").removeprefix("^")
    if power in ("2", "3") and not key.endswith(("m", "ft", "s", "mi")):  # 9 V2 is no area
        return match[0]
    alone = (
        match[1] == "1" or _DEVICE.match(after) or (_ARTICLE.search(before) and NOUN.match(after))
    )  # a 2 liter flask
    name = UNITS[key] if alone else _plural(UNITS[key])
    return f"{match[1]} {name}{_POWERS.get(power, '')}{_name_denominators(match[4])}"


COMPOUND = re.compile(
    rf"(?<![\d.,])({NUMBER})\s?(J|eV|N|kN|W|kW|L|kg|C|Pa)(?:\s?[·⋅]\s?|\s)(s|m|atm|h)((?:{_OVER})*)(?![\w/])"
)


def name_compound_unit(match: re.Match) -> str:
    """3 J s -> 3 joule seconds, 0.5 kg m/s -> 0.5 kilogram meters per second."""
    first = UNITS.get(match[2]) or _BASES[match[2]][0]
    return f"{match[1]} {first} {_plural(DENOMINATORS[match[3]])}{_name_denominators(match[4])}"


HYPHENED = re.compile(
    rf"(?<![\w.,=+*/^-])({NUMBER})-({_any_of(set(UNITS) - {'K', 'h', 'C', 'M', 'A', 'F'})})(?![\w/°-])"
)


def name_hyphened_unit(match: re.Match) -> str:
    """12-cm -> 12-centimeter; the m of an equation may be a variable."""
    if len(match[2]) == 1 and re.search("[=+]", match.string):
        return match[0]
    return f"{match[1]}-{UNITS[match[2]]}"


_POWER = r"(?:\^?\{?[-\u2212\u2013]([123])\}?|\u207b([¹²³]))"
_FACTOR = rf"\s?[·⋅*]?\s?\b({_any_of(set(DENOMINATORS) | {'M'})}){_POWER}(?![\w])"
_SOME_FACTOR = re.sub(r"(?<!\\)\((?!\?)", "(?:", _FACTOR)  # without its groups
INVERSE = re.compile(
    rf"(?<![A-Za-z])({NUMBER}\s?|(?:{UNIT_NAMES})[23]?|M|[a-z]{{4,}}(?=(?:{_SOME_FACTOR}){{2}}))((?:{_FACTOR})+)"
)


def name_inverse_units(match: re.Match) -> str:
    """8.49 J mol-1 K-1 -> 8.49 J per mole per kelvin."""
    names = [
        f" per {(DENOMINATORS | {'M': 'molar'})[unit]}{_POWERS.get(low or '123'['¹²³'.index(high)], '')}"
        for unit, low, high in re.findall(_FACTOR, match[2])
    ]
    left = re.sub(r"(?<=[A-Za-z])[23]$", lambda power: _POWERS[power[0]], match[1].rstrip())
    if len(left) > 1 and left in UNITS and not re.search(r"\d\s?$", match.string[: match.start()]):
        left = _plural(UNITS[left])  # the mol L-1 s-1 of an option that is a unit
    return left + "".join(names)


QUOTIENT = re.compile(
    rf"(?<![\w/.])({NUMBER}(?=\s?/\s?(?:(?:{_CLOCK})\b|(?:{_COUNTED})(?!\w)))|{UNIT_NAMES}|[a-z]{{3,}}(?=\s?/\s?[a-zµ\u03bc]{{2}}))"
    rf"((?:{_OVER})+)(?![\w/])"
)


def name_quotient(match: re.Match) -> str:
    """g/mol -> grams per mole, dollars/kg -> dollars per kilogram, 70/min -> 70 per minute.

    Two single letters may be variables, but for m/s.
    """
    under = match[2].replace("/", "").strip()
    if match[1] in TIMES:  # month/year
        return match[0]
    if len(match[1]) == len(under) == 1 and (match[1], under) not in (("m", "s"), ("U", "L")):
        return match[0]
    return (_plural(UNITS[match[1]]) if match[1] in UNITS else match[1]) + _name_denominators(match[2])


def _plural(name: str) -> str:
    first, space, rest = name.partition(" ")
    if not first.endswith(("molar", "hertz")):
        first = "feet" if first == "foot" else first + "s"
    return first + space + rest


def _name_denominators(text: str) -> str:
    """/kg/day -> per kilogram per day."""
    names = ""
    for part in text.split("/")[1:]:
        unit, power = re.fullmatch(r"\s*(.+?)\^?([23²³])?\s*", part).groups()  # type: ignore[union-attr]
        names += f" per {DENOMINATORS[unit]}{_POWERS.get(power or '', '')}"
    return names
