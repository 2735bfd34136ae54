r"""Numbers with their units as the LaTeX package siunitx has them: \SI{9.81}{\metre\per\second\squared} is 9.81 m/s^2.

Digits are never touched: what stands between the braces is what is shown, `1.5e-3` as `1.5e-3`.
"""

import re

ONE = frozenset(("num", "si", "unit", "ang", "numlist"))
TWO = frozenset(("SI", "qty", "numrange", "SIlist", "qtylist"))
THREE = frozenset(("SIrange", "qtyrange"))
_PIECE = re.compile(r"\\([A-Za-z]+)|([^\\\s~]+)")
_PREFIXES = (
    "yocto y zepto z atto a femto f pico p nano n micro µ milli m centi c deci d deca da hecto h kilo k mega M giga G "
    "tera T peta P exa E zetta Z yotta Y"
)
_UNITS = (
    "metre m meter m second s gram g kilogram kg ampere A kelvin K mole mol candela cd hertz Hz newton N pascal Pa "
    "joule J watt W coulomb C volt V farad F ohm Ω siemens S weber Wb tesla T henry H lumen lm lux lx becquerel Bq "
    "gray Gy sievert Sv litre L liter L hour h minute min day d tonne t hectare ha bar bar bit bit byte B percent % "
    "celsius °C degreeCelsius °C degree ° arcminute ′ arcsecond ″ electronvolt eV decibel dB dalton Da"
)
_SIGNS = dict(zip(_UNITS.split()[::2], _UNITS.split()[1::2], strict=True))
_BEFORE = dict(zip(_PREFIXES.split()[::2], _PREFIXES.split()[1::2], strict=True))
_POWERS = {"squared": "^2", "cubed": "^3"}


def shown(name: str, *parts: str) -> str:
    """What a command with these arguments prints."""
    if name in ("si", "unit"):
        return unit(parts[0])
    if name in ("numlist", "SIlist", "qtylist"):
        text = ", ".join(part.strip() for part in parts[0].split(";"))
        return f"{text} {unit(parts[1])}" if parts[1:] else text
    if name == "ang":
        return "".join(value + sign for value, sign in zip(parts[0].split(";"), "°′″", strict=False) if value)
    if name in ("numrange", *THREE):
        text = f"{parts[0]} to {parts[1]}"
        return f"{text} {unit(parts[2])}" if parts[2:] else text
    sign = unit(parts[1]) if parts[1:] else ""
    return f"{parts[0].strip()}{'' if sign == '°' else ' '}{sign}".strip()


def unit(source: str) -> str:
    r"""`\kilo\metre\per\hour` as `km/h`; what is no name of a unit as it is."""
    written, following, before = "", "", ""
    for name, plain in _PIECE.findall(source):
        if name == "per":
            following = "/"
        elif name in _POWERS:
            written += _POWERS[name]
        elif name in _BEFORE:
            before += _BEFORE[name]
        else:
            between = following or (" " if written and name else "")
            written += between + before + (_SIGNS.get(name, name) if name else plain)
            following = before = ""
    return written
