"""How numbers are written for people, and by them: `7,512`, `8.1 MiB`, `4.9 %`, `17.3 s`."""

import re

_COUNT = re.compile(r"(?P<number>\d{1,3}(?:,\d{3}){1,5}|\d{1,18}(?:\.\d{1,3})?)\s*(?P<thousands>k?)", re.ASCII)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_count(text: str) -> int | None:
    """`7512`, `7,512`, `32k` (32 · 1024); None for what is no whole number."""
    match = _COUNT.fullmatch(text.strip().lower())
    count = float(match["number"].replace(",", "")) * (1024 if match["thousands"] else 1) if match else -1.0
    return int(count) if match and count == int(count) else None


def format_count(count: int, noun: str = "") -> str:
    """`7512` → `7,512`; with a noun, whose plural has an s, `1 token`, `7,512 tokens`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if noun else f"{count:,}"


def format_decimal(value: float) -> str:
    """One decimal below a hundred, none from there on: `8.1`, `17.3`, `434`."""
    return f"{value:,.1f}" if round(abs(value), 1) < 100 else f"{value:,.0f}"


def format_bytes(num_bytes: int) -> str:
    """Binary units: `512 B`, `8.1 MiB`, `165 MiB`, `1.1 GiB`."""
    exponent = _exponent(num_bytes)
    return f"{num_bytes} B" if exponent == 0 else f"{format_decimal(num_bytes / 1024**exponent)} {_UNITS[exponent]}"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `17.3 s`, `2:05` from two minutes, `1:02:05` from an hour."""
    if seconds < 120:
        return f"{format_decimal(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_part(part_bytes: int, full_bytes: int) -> str:
    """`8.1 of 165 MiB`."""
    exponent = _exponent(full_bytes)
    scaled = part_bytes / 1024**exponent
    part = format_decimal(scaled) if exponent and scaled >= 0.1 else format_bytes(part_bytes)
    return f"{part} of {format_bytes(full_bytes)}"


def format_value(key: str, value: object) -> str:
    """A value of a JSON record for people: `yes`, `8.1 MiB` where its key says bytes, `7,512`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_bytes(value) if "bytes" in key else format_count(value)
    return "unknown" if value is None else str(value)


def _exponent(num_bytes: int) -> int:
    exponent, scaled = 0, float(abs(num_bytes))
    while round(scaled, 1) >= 1024 and exponent < len(_UNITS) - 1:
        scaled /= 1024
        exponent += 1
    return exponent
