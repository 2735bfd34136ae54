"""How numbers are written for people: `7,512`, `8.1 MiB`, `4.9 %`, `17.3 s`, and the readout line made of them."""

from dataclasses import dataclass

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SEPARATOR = " · "


@dataclass(frozen=True, slots=True)
class Readout:
    """What one answer cost; None means unknown and is left out of the line."""

    prefill_tokens: int
    prefill_s: float
    ttft_s: float | None = None
    decode_tok_s: float | None = None
    kv_bytes: int | None = None
    kv_full_bytes: int | None = None
    peak_bytes: int | None = None
    attention_entropy: float | None = None
    context_tokens: int | None = None
    context_limit: int | None = None


def format_count(count: int) -> str:
    """`7512` → `7,512`."""
    return f"{count:,}"


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


def format_readout(readout: Readout) -> str:
    """`prefill 7,512 tok 17.3 s (434 tok/s) · first token … · decode … · KV … · peak … · entropy … · context …`."""
    parts = [
        _prefill_part(readout),
        None if readout.ttft_s is None else f"first token {format_decimal(readout.ttft_s)} s",
        None if readout.decode_tok_s is None else f"decode {format_decimal(readout.decode_tok_s)} tok/s",
        _kv_part(readout.kv_bytes, readout.kv_full_bytes),
        None if readout.peak_bytes is None else f"peak {format_bytes(readout.peak_bytes)}",
        None if readout.attention_entropy is None else f"entropy {readout.attention_entropy:.2f}",
        _context_part(readout),
    ]
    return _SEPARATOR.join(part for part in parts if part)


def _prefill_part(readout: Readout) -> str:
    rate = f" ({format_decimal(readout.prefill_tokens / readout.prefill_s)} tok/s)" if readout.prefill_s > 0 else ""
    return f"prefill {format_count(readout.prefill_tokens)} tok {format_decimal(readout.prefill_s)} s{rate}"


def _kv_part(kv_bytes: int | None, full_bytes: int | None) -> str | None:
    if kv_bytes is None:
        return None
    if not full_bytes:
        return f"KV {format_bytes(kv_bytes)}"
    exponent = _exponent(full_bytes)
    scaled = kv_bytes / 1024**exponent
    kept = format_decimal(scaled) if exponent and scaled >= 0.1 else format_bytes(kv_bytes)
    return f"KV {kept} of {format_bytes(full_bytes)} ({format_decimal(100 * kv_bytes / full_bytes)} %)"


def _context_part(readout: Readout) -> str | None:
    if readout.context_tokens is None:
        return None
    limit = "" if readout.context_limit is None else f"/{format_count(readout.context_limit)}"
    return f"context {format_count(readout.context_tokens)}{limit}"


def _exponent(num_bytes: int) -> int:
    exponent, scaled = 0, float(abs(num_bytes))
    while round(scaled, 1) >= 1024 and exponent < len(_UNITS) - 1:
        scaled /= 1024
        exponent += 1
    return exponent
