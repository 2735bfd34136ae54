"""Numbers as people read them, and the readout line to the letter."""

import pytest

from uncomp_cli.numerals import Readout, format_bytes, format_count, format_decimal, format_readout, format_seconds

MIB = 2**20


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (int(8.1 * MIB), "8.1 MiB"), (165 * MIB, "165 MiB"),
        (int(1.1 * 2**30), "1.1 GiB"), (1024 * MIB - 1, "1.0 GiB"), (2**50, "1,024 TiB"),
    ],
)  # fmt: skip
def test_bytes(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0"), (99.94, "99.9"), (99.96, "100"), (4340, "4,340")])
def test_decimals(value: float, text: str) -> None:
    assert format_decimal(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (119, "119 s"), (125, "2:05"), (3725, "1:02:05"), (3599.7, "1:00:00")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_count() -> None:
    assert format_count(7512) == "7,512"


def test_readout_as_in_the_contract() -> None:
    readout = Readout(
        prefill_tokens=7512, prefill_s=17.3, ttft_s=17.4, decode_tok_s=14.2, kv_bytes=int(8.1 * MIB),
        kv_full_bytes=165 * MIB, peak_bytes=int(1.1 * 2**30), context_tokens=7600, context_limit=8192,
    )  # fmt: skip
    assert format_readout(readout) == (
        "prefill 7,512 tok 17.3 s (434 tok/s) · first token 17.4 s · decode 14.2 tok/s"
        " · KV 8.1 of 165 MiB (4.9 %) · peak 1.1 GiB · context 7,600/8,192"
    )


def test_the_entropy_of_watched_heads_is_a_field() -> None:
    line = format_readout(Readout(prefill_tokens=1, prefill_s=0.0, attention_entropy=0.3149, context_tokens=9))
    assert line == "prefill 1 tok 0.0 s · entropy 0.31 · context 9"


def test_readout_leaves_out_what_is_unknown() -> None:
    assert format_readout(Readout(prefill_tokens=0, prefill_s=0.0)) == "prefill 0 tok 0.0 s"


@pytest.mark.parametrize(
    ("kept", "full", "text"),
    [
        (165 * MIB, 165 * MIB, "KV 165 of 165 MiB (100 %)"),
        (20 * 1024, 165 * MIB, "KV 20.0 KiB of 165 MiB (0.0 %)"),
        (100, 200, "KV 100 B of 200 B (50.0 %)"),
        (2**30, None, "KV 1.0 GiB"),
    ],
)
def test_cache_bytes(kept: int, full: int | None, text: str) -> None:
    line = format_readout(Readout(prefill_tokens=1, prefill_s=1.0, kv_bytes=kept, kv_full_bytes=full))
    assert line.endswith(text)
