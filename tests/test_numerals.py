"""Numbers as people read them."""

import pytest

from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds, parse_count
from uncomp_cli.share import Share

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


def test_counts() -> None:
    assert [format_count(7512), format_count(0, "token"), format_count(1, "token")] == ["7,512", "0 tokens", "1 token"]


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


@pytest.mark.parametrize(
    ("kept", "full", "text"),
    [
        (165 * MIB, 165 * MIB, "165 of 165 MiB (100 %)"),
        (int(8.1 * MIB), 165 * MIB, "8.1 of 165 MiB (4.9 %)"),
        (20 * 1024, 165 * MIB, "20.0 KiB of 165 MiB (0.0 %)"),
        (100, 200, "100 B of 200 B (50.0 %)"),
    ],
)
def test_a_part_of_all_bytes(kept: int, full: int, text: str) -> None:
    assert str(Share(kept, full)) == Share(kept, full).whole == text


def test_a_part_of_wider_numbers_is_told_of_16_bits_too() -> None:
    share = Share(int(8.1 * MIB), 165 * MIB, dtype_bytes=4)
    assert str(share) == "8.1 of 82.5 MiB in 16 bits (9.8 %)"
    assert share.whole == "8.1 of 82.5 MiB in 16 bits (9.8 %, 4.9 % of float32)"
    assert (share.of_16_bit, share.full_16_bit_bytes) == (2 * share.of_run, 165 * MIB // 2)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("512", 512), (" 7,512 ", 7512), ("2k", 2048), ("1.5K", 1536), ("32 k", 32768), ("1.3k", None),
        ("1.5", None), ("-1", None), ("", None), ("k", None), ("7,51", None), ("1e3", None), ("²", None),
    ],
)  # fmt: skip
def test_a_count_as_it_is_typed(text: str, count: int | None) -> None:
    assert parse_count(text) == count
