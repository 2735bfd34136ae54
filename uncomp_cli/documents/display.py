"""What a spreadsheet shows of a number: Excel's number formats (ECMA-376 part 1, 18.8.31), in English.

A stored number has up to 17 digits, of which a sheet shows at most 15: 0.1 + 0.2 is 0.3. Whole numbers keep all their
digits, since ids are stored as numbers too. A date whose format is the reader's locale is shown as 2024-03-09. Colours,
fill characters and widths are nothing; a format that cannot be followed shows the number as it is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import cache, lru_cache
from math import isfinite

GENERAL = "General"
_DAY, _CLOCK = "yyyy-mm-dd", "h:mm"
BUILT_IN = {
    0: GENERAL, 1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 11: "0.00E+00", 12: "# ?/?",
    13: "# ??/??", 14: _DAY, 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM",
    20: _CLOCK, 21: "h:mm:ss", 22: f"{_DAY} {_CLOCK}", 37: "#,##0;-#,##0", 38: "#,##0;-#,##0",
    39: "#,##0.00;-#,##0.00", 40: "#,##0.00;-#,##0.00", 41: "#,##0", 42: "$#,##0", 43: "#,##0.00", 44: "$#,##0.00",
    45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0", 48: "##0.0E+0", 49: "@",
}  # fmt: skip
_BUILT_IN_DATES = range(27, 37)  # of East Asian locales

_TOKEN = re.compile(
    r'"[^"]*"?|\\.|_.|\*.|\[[^\]]*\]?|General|AM/PM|A/P|y+|m+|d+|h+|s+(?:\.0+)?|E[+-]|[0#?.,%@/]|.',
    re.IGNORECASE | re.DOTALL,
)
_ELAPSED = re.compile(r"\[([hms])+\]", re.IGNORECASE)
_CONDITION = re.compile(r"\[([<>=]{1,2})(-?\d+(?:\.\d+)?)\]")
_CURRENCY = re.compile(r"\[\$([^\]-]*)(?:-[^\]]*)?\]")
_COMPARE: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "=": lambda a, b: a == b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<>": lambda a, b: a != b,
}
_MONTHS = "January February March April May June July August September October November December"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_CONTEXT = Context(prec=400, rounding=ROUND_HALF_UP)
_PLACEHOLDERS = frozenset("0#?")
_DIGITS = frozenset("0#,.")
_SHAPE = re.compile(r"(?:#,##)?0(\.0*)?")
_WHOLE = re.compile(r"[-+]?\d+(?:\.0*)?")
_MOST_DIGITS = 15
_LATEST_SERIAL = 2_958_466  # the day after 9999-12-31

Section = tuple[str, ...]


def built_in(number: int) -> str:
    """The format that a number stands for where a file does not write it out."""
    return _DAY if number in _BUILT_IN_DATES else BUILT_IN.get(number, GENERAL)


@lru_cache(maxsize=2**16)
def display(stored: str, code: str, *, from_1904: bool = False) -> str:
    """What a cell of a number shows; "" where its format hides it."""
    if code == GENERAL:
        return general(stored)
    try:
        return _displayed(Decimal(general(stored)), code, from_1904)
    except (InvalidOperation, ValueError, OverflowError, ZeroDivisionError):
        return general(stored)


def general(stored: str) -> str:
    """A number as it is, without the noise of its last binary digits."""
    if _WHOLE.fullmatch(stored):
        return stored.partition(".")[0].removeprefix("+")
    try:
        number = float(stored)
    except ValueError:
        return stored
    if not isfinite(number):
        return stored
    if abs(number) < 1e15 and number == int(number):
        return str(int(number))
    shown = f"{number:.{_MOST_DIGITS}G}"
    # Small numbers are written out where that is short: 0.00001234, not 1.234E-05.
    return f"{Decimal(shown):f}" if "E-0" in shown and len(shown) < 12 else shown


def _displayed(number: Decimal, code: str, from_1904: bool) -> str:
    section, signed = _section_for(number, _sections(code))
    if section is None:
        return ""
    if _is_date(section):
        return _date(number, section, from_1904)
    return _number(number if signed else abs(number), section)


@cache
def _sections(code: str) -> tuple[tuple[str, ...], ...]:
    """The tokens of each section."""
    sections: list[list[str]] = [[]]
    for token in _TOKEN.findall(code):
        if token == ";":
            sections.append([])
        else:
            sections[-1].append(token)
    return tuple(map(tuple, sections[:4]))


@cache
def _has_conditions(sections: tuple[Section, ...]) -> bool:
    return any(_CONDITION.fullmatch(token) for section in sections for token in section[:3])


def _section_for(number: Decimal, sections: tuple[Section, ...]) -> tuple[Section | None, bool]:
    """The section that a number is shown by, and whether it shows its sign; None hides it."""
    if _has_conditions(sections):
        for section in sections:
            found = next(filter(None, map(_CONDITION.fullmatch, section[:3])), None)
            if found is None or _COMPARE[found[1]](number, Decimal(found[2])):
                return section, True
        return sections[-1], True
    numeric = sections[:3]
    if number < 0 and len(numeric) > 1:
        return numeric[1] or None, False
    if number == 0 and len(numeric) > 2:
        return numeric[2] or None, False
    return numeric[0] or None, True


@cache
def _is_date(section: Section) -> bool:
    return any(token[0].lower() in "ymdhs" or _ELAPSED.fullmatch(token) for token in section)


def _literal(token: str) -> str:
    """What a token that stands for no digit and no date shows."""
    if token[0] == '"':
        return token.strip('"')
    if token[0] == "\\":
        return token[1:]
    if token[0] == "[":
        found = _CURRENCY.fullmatch(token)
        return found[1] if found else ""
    return "" if token[0] in "_*" and len(token) > 1 else token


# --- numbers


@dataclass(frozen=True, slots=True)
class _Mask:
    """What nearly all formats are: digits and decimals of a fixed number between words."""

    before: str
    grouped: bool
    decimals: Decimal
    behind: str


@cache
def _mask(section: Section) -> _Mask | None:
    """The mask of a section that has one."""
    digits = "".join(token for token in section if token in _DIGITS)
    shape = _SHAPE.fullmatch(digits)
    places = [at for at, token in enumerate(section) if token in _DIGITS]
    if shape is None or places[-1] - places[0] != len(places) - 1 or any(map(_is_special, section)):
        return None
    before, behind = section[: places[0]], section[places[-1] + 1 :]
    decimals = Decimal(1).scaleb(-len(shape[1] or ".") + 1)
    return _Mask("".join(map(_literal, before)), "," in digits, decimals, "".join(map(_literal, behind)))


def _is_special(token: str) -> bool:
    return token[0] in "?@/Ee" or token.lower() == GENERAL.lower()


def _number(number: Decimal, section: Section) -> str:
    if mask := _mask(section):
        shifted = number.scaleb(2 * section.count("%"), _CONTEXT) if "%" in section else number
        rounded = abs(shifted).quantize(mask.decimals, context=_CONTEXT)
        sign = "-" if number < 0 and rounded else ""
        figures = f"{rounded:,f}" if mask.grouped else f"{rounded:f}"
        return f"{sign}{mask.before}{figures}{mask.behind}".strip()
    if GENERAL.lower() in (token.lower() for token in section) or "@" in section:
        return "".join(general(str(number)) if t.lower() in ("general", "@") else _literal(t) for t in section)
    number = _CONTEXT.multiply(number, Decimal(100) ** section.count("%"))
    if "/" in section and any("?" in token or token.isdigit() for token in section[section.index("/") :]):
        return _fraction(number, section)
    exponent = next((at for at, token in enumerate(section) if token[0] in "Ee" and len(token) == 2), None)
    if exponent is not None:
        return _scientific(number, section, exponent)
    return _fixed(number, section)


def _fixed(number: Decimal, section: Section) -> str:
    """Digits put in the places of a section, the last places first; thousands in groups where a comma asks for it."""
    places = [at for at, token in enumerate(section) if token in _PLACEHOLDERS]
    if not places:
        return "".join(map(_literal, section))
    point = next((at for at in range(places[0], len(section)) if section[at] == "."), len(section))
    last_whole = max((at for at in places if at < point), default=-1)
    commas = [at for at, token in enumerate(section) if token == ","]
    scaled = sum(at > places[-1] or (last_whole < at < point) for at in commas)
    decimals = [at for at in places if at > point]
    number = _CONTEXT.divide(number, Decimal(1000) ** scaled)
    rounded = abs(number).quantize(Decimal(1).scaleb(-len(decimals)), context=_CONTEXT)
    whole, _, rest = f"{rounded:f}".partition(".")
    grouped = any(places[0] < at < last_whole for at in commas)
    shown = {at: _literal(token) for at, token in enumerate(section) if token not in _PLACEHOLDERS and token != ","}
    shown |= _whole_digits(whole.lstrip("0"), [at for at in places if at < point], section, grouped=grouped)
    shown |= _decimal_digits(rest, decimals, section)
    if point < len(section) and not any(shown.get(at) for at in decimals):
        shown[point] = "." if decimals and any(section[at] == "0" for at in decimals) else ""
    sign = "-" if number < 0 and rounded else ""
    return (sign + "".join(shown[at] for at in sorted(shown))).strip()


def _whole_digits(digits: str, places: Sequence[int], section: Section, *, grouped: bool) -> dict[int, str]:
    """The whole part from the right; what has no place of its own stands in the first."""
    shown: dict[int, str] = {}
    least = len(places) - next((n for n, at in enumerate(places) if section[at] == "0"), len(places))
    digits = digits.rjust(least, "0")
    for back, at in enumerate(reversed(places)):
        end = len(digits) - back
        text = digits[max(end - 1, 0) : max(end, 0)] if back < len(places) - 1 else digits[: max(end, 0)]
        shown[at] = _grouped(text, back) if grouped else text
    return shown


def _grouped(text: str, behind: int) -> str:
    """Digits, with `behind` digits following them, with a comma behind every one that a multiple of three follow."""
    parts = [
        digit + ("," if (follow := behind + len(text) - 1 - at) and not follow % 3 else "")
        for at, digit in enumerate(text)
    ]
    return "".join(parts)


def _decimal_digits(digits: str, places: Sequence[int], section: Section) -> dict[int, str]:
    """The decimals; zeros at the end only where the format has one."""
    needed = max((n + 1 for n, at in enumerate(places) if section[at] == "0"), default=0)
    kept = digits[:needed] + digits[needed:].rstrip("0")
    return {at: kept[n : n + 1] for n, at in enumerate(places)}


def _scientific(number: Decimal, section: Section, exponent: int) -> str:
    mantissa, power_places = section[:exponent], [t for t in section[exponent + 1 :] if t in _PLACEHOLDERS]
    point = mantissa.index(".") if "." in mantissa else len(mantissa)
    whole = max(1, sum(token in _PLACEHOLDERS for token in mantissa[:point]))
    decimals = sum(token in _PLACEHOLDERS for token in mantissa[point:])
    power = number.adjusted() // whole * whole if number else 0
    scaled = _CONTEXT.scaleb(number, -power).quantize(Decimal(1).scaleb(-decimals), context=_CONTEXT)
    if abs(scaled) >= Decimal(10) ** whole:
        power += whole
        scaled = _CONTEXT.scaleb(number, -power).quantize(Decimal(1).scaleb(-decimals), context=_CONTEXT)
    sign = "-" if power < 0 else "+" if section[exponent][1] == "+" else ""
    tail = [t for t in section[exponent + 1 :] if t not in _PLACEHOLDERS]
    return f"{_fixed(scaled, mantissa)}E{sign}{abs(power):0{len(power_places)}}" + "".join(map(_literal, tail))


def _fraction(number: Decimal, section: Section) -> str:
    slash = section.index("/")
    below = [token for token in section[slash + 1 :] if token in _PLACEHOLDERS or token.isdigit()]
    fixed = "".join(token for token in below if token.isdigit() and token != "0")
    exact = Fraction(abs(number))
    has_whole = sum(token in _PLACEHOLDERS for token in section[:slash]) > len(below) or " " in section[:slash]
    whole = int(exact) if has_whole else 0
    rest = exact - whole
    near = Fraction(round(rest * int(fixed)), int(fixed)) if fixed else rest.limit_denominator(10 ** len(below) - 1)
    whole, near = (whole + 1, Fraction(0)) if has_whole and near == 1 else (whole, near)
    shown = f"{near.numerator}/{near.denominator}" if near or not has_whole else ""
    figures = " ".join(part for part in (str(whole) if whole or not shown else "", shown) if part)
    return ("-" if number < 0 else "") + figures


# --- dates and times


def _date(number: Decimal, section: Section, from_1904: bool) -> str:
    if not 0 <= number < _LATEST_SERIAL:
        raise ValueError(f"{number} is no date")
    milliseconds = int((number * 86_400_000).to_integral_value(ROUND_HALF_UP))
    if not any(token[0] in "sS" and "." in token for token in section):
        shows_seconds = any(token[0] in "sS" or token.lower() == "[ss]" for token in section)
        milliseconds = (milliseconds + 500 * shows_seconds) // 1000 * 1000
    moment = _epoch(number, from_1904) + timedelta(milliseconds=milliseconds)
    tokens = _minutes_marked(section)
    half_day = any(token.upper() in ("AM/PM", "A/P") for token in tokens)
    return "".join(_date_part(token, moment, milliseconds, half_day) for token in tokens).strip()


def _epoch(number: Decimal, from_1904: bool) -> datetime:
    """The day of serial 0. Until serial 60, a 29th February that 1900 did not have, days are counted one too low."""
    if from_1904:
        return datetime(1904, 1, 1)
    return datetime(1899, 12, 31) if number < 60 else datetime(1899, 12, 30)


@cache
def _minutes_marked(section: Section) -> Section:
    """The tokens, `m` as `n` where it means minutes: behind hours, or before seconds."""
    marked = list(section)
    clock = [at for at, token in enumerate(section) if token[0].lower() in "ymdhs" or _ELAPSED.fullmatch(token)]
    for before, at, after in zip([-1, *clock], clock, [*clock[1:], -1], strict=False):
        if section[at].lower() in ("m", "mm"):
            behind_hours = before >= 0 and section[before].lower().strip("[]")[0] == "h"
            before_seconds = after >= 0 and section[after].lower().strip("[]")[0] == "s"
            if behind_hours or before_seconds:
                marked[at] = "n" * len(section[at])
    return tuple(marked)


def _date_part(token: str, moment: datetime, milliseconds: int, half_day: bool) -> str:
    lower = token.lower()
    if _ELAPSED.fullmatch(token):
        unit_ms = {"h": 3_600_000, "m": 60_000, "s": 1000}[lower[1]]
        return f"{milliseconds // unit_ms:0{len(lower) - 2}}"
    if lower in ("am/pm", "a/p"):
        return token.split("/")[moment.hour >= 12]
    if lower[0] == "s":
        whole, _, rest = lower.partition(".")
        part = f".{moment.microsecond // 1000:03}"[: len(rest) + 1] if rest else ""
        return f"{moment.second:0{len(whole)}}{part}"
    if lower[0] == "h":
        return f"{(moment.hour % 12 or 12) if half_day else moment.hour:0{len(lower)}}"
    if lower[0] == "n":
        return f"{moment.minute:0{len(lower)}}"
    return _day_part(lower, moment) if lower[0] in "ymd" else _literal(token)


def _day_part(token: str, moment: datetime) -> str:
    if token[0] == "y":
        return f"{moment.year % 100:02}" if len(token) < 3 else f"{moment.year:04}"
    name = _MONTHS.split()[moment.month - 1] if token[0] == "m" else _DAYS.split()[moment.weekday()]
    number = moment.month if token[0] == "m" else moment.day
    if len(token) < 3:
        return f"{number:0{len(token)}}"
    return name[:3] if len(token) == 3 else name if len(token) == 4 else name[:1]
