"""Which encoding a text is in: what it says of itself, UTF-8 with damage, and the languages of the world as guessed."""

import random
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.matrix import some
from support.tongues import TONGUES, sentences
from uncomp_cli.asking.pipeline import gather_questions
from uncomp_cli.asking.request import Request
from uncomp_cli.documents.alphabets import likeliest_wide
from uncomp_cli.documents.encoding import check_encoding, decode
from uncomp_cli.errors import DocumentError, UsageError

_WEST, _CENTRAL = (
    "German French Spanish Portuguese Italian Swedish Danish Finnish",
    "Polish Czech Slovak Hungarian Croatian",
)
ENCODINGS = {
    "windows-1252": f"{_WEST} English",
    "iso-8859-1": _WEST,
    "iso-8859-15": "French",
    "windows-1250": _CENTRAL,
    "iso-8859-2": _CENTRAL,
    "windows-1254": "Turkish",
    "iso-8859-9": "Turkish",
    "windows-1257": "Lithuanian",
    "windows-1251": "Russian Ukrainian Bulgarian",
    "koi8-r": "Russian Bulgarian",
    "koi8-u": "Ukrainian",
    "iso-8859-5": "Russian",
    "cp866": "Russian",
    "windows-1253": "Greek",
    "iso-8859-7": "Greek",
    "windows-1255": "Hebrew",
    "windows-1256": "Arabic",
    "cp874": "Thai",
    "shift_jis": "Japanese",
    "euc-jp": "Japanese",
    "gb18030": "Chinese",
    "euc-kr": "Korean",
    "mac-roman": "German French",
    "cp850": "German French",
    "cp852": "Polish",
}
PAIRS = [(encoding, tongue) for encoding, tongues in ENCODINGS.items() for tongue in tongues.split()]


def test_scripts_of_a_page_say_nothing_of_its_language() -> None:
    words = "können: auswählen, bestätigen, erklären und während\n"
    raw = (words + "var o=a,e=o.a(e);" * 500).encode("windows-1252")
    assert decode(raw).text.startswith(words)


@pytest.mark.parametrize(("encoding", "tongue"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_language_is_read_in_its_old_encodings(encoding: str, tongue: str) -> None:
    wrong, seeds = [], some(6, 20)
    for seed in seeds:
        raw = sentences(tongue, words=(12, 40, 90)[seed % 3], seed=seed).encode(encoding, "ignore")
        found = decode(raw)
        if found.text != raw.decode(encoding):
            wrong.append((found.encoding, found.text[:40]))
        assert raw.isascii() or any("--encoding" in note for note in found.notes)
    assert len(wrong) <= 1, wrong  # a dozen words may be the same in two languages


@pytest.mark.parametrize("tongue", TONGUES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_known_without_a_mark(encoding: str, tongue: str) -> None:
    for seed in range(5):
        text = sentences(tongue, words=8 + 20 * seed, seed=seed)
        found = decode(text.encode(encoding))
        assert (found.text, found.encoding) == (text, encoding)
        assert any(encoding in note for note in found.notes)


@pytest.mark.parametrize("tongue", ["German", "Polish", "Russian", "Japanese", "English"])
def test_utf8_with_a_broken_byte_stays_utf8(tongue: str) -> None:
    for seed in range(20):
        raw = sentences(tongue, words=60, seed=seed).encode()
        at = 7 * seed
        while at and raw[at] & 0xC0 == 0x80:
            at -= 1
        found = decode(raw[:at] + b"\xff" + raw[at:])
        assert found.text == raw[:at].decode() + "\ufffd" + raw[at:].decode()
        assert ([str(loss) for loss in found.losses], found.encoding) == (["1 byte that is no utf-8"], "utf-8")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Café bill: 12 euros. Caf".encode() + b"\xc3", "Café bill: 12 euros. Caf\ufffd"),
        (b"plain words, and then one torn sign \xe2\x82", "plain words, and then one torn sign \ufffd"),
    ],
)
def test_a_torn_end_is_counted(raw: bytes, text: str) -> None:
    found = decode(raw)
    assert (found.text, found.encoding, sum(loss.count for loss in found.losses)) == (text, "utf-8", 1)


@pytest.mark.parametrize(
    ("raw", "text"), [(b"caf\xe9", "café"), (b"\x93Yes\x94, it\x92s \x801", "“Yes”, it’s €1"), (b"na\xefve", "naïve")]
)
def test_a_word_is_enough(raw: bytes, text: str) -> None:
    assert (decode(raw).text, decode(raw).encoding) == (text, "windows-1252")


def test_some_nul_bytes_are_left_out_and_counted() -> None:
    found = decode(b"a line of a log that somebody has cut off\0 " * 5 + b"by padding it." * 40)
    assert "\0" not in found.text
    assert [str(loss) for loss in found.losses] == ["5 NUL bytes"]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1))
def test_what_is_said_of_the_encoding_counts(text: str) -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-32"):
        found = decode(text.encode(encoding), encoding)
        assert (found.text, found.losses, found.notes) == (text, (), ())


def test_what_is_said_of_the_encoding_goes_before_what_is_likely() -> None:
    raw = sentences("Russian", words=40, seed=1).encode("koi8-r")
    assert decode(raw, "windows-1251").text == raw.decode("windows-1251")
    with pytest.raises(DocumentError) as caught:
        decode(raw, "utf-8")
    assert caught.value.message == "it is not valid utf-8"
    assert "--encoding" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("utf8x", "did you mean 'utf8'?"),
        ("windows-1259", "did you mean 'windows-12"),
        ("rot13", "did you mean"),
        ("?", "koi8-r"),
    ],
)
def test_an_unknown_encoding_is_refused(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_encoding(name)
    assert caught.value.message == f"encoding '{name}' is not known"
    assert hint in str(caught.value.hint)
    assert check_encoding("Latin-1") == "Latin-1"


@given(st.binary())
def test_any_bytes_are_text_or_refused(raw: bytes) -> None:
    with suppress(DocumentError):
        found = decode(raw)
        found.text.encode()
        assert "\r" not in found.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "koi8-r"])
def test_questions_are_decoded_as_documents_are(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "asked.txt"
    path.write_bytes("# где море?\r\n\r\nКто стоит на берегу реки и смотрит вдаль?\n".encode(encoding))

    def asked() -> Generator[Any, None, None]:
        found = yield from gather_questions(Request(questions=("Why?",), questions_file=path))
        assert found == ["Why?", "# где море?", "Кто стоит на берегу реки и смотрит вдаль?"]

    said = [*asked()]
    assert [event.text.startswith(f"{path}: its encoding is not said") for event in said] == [True] * len(said)
    assert bool(said) == (encoding in ("utf-16-le", "koi8-r"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        "合同金额为三百万元，自签订之日起生效。",
        "燈塔守衛每天晚上給燈加油。",
        "東京都の人口は約千四百万人です。",
        "등대지기는매일밤등불에기름을넣고안개가끼면",
        "Человек",
        "价格：100元。\n日期：2024年3月9日。",
    ],
)
def test_a_line_of_a_wide_encoding_is_known_without_a_mark(text: str, encoding: str) -> None:
    """Without a space or a line's end it has no NUL, or hardly one."""
    found = decode(text.encode(encoding))
    assert (found.text, found.encoding) == (text, encoding)
    assert encoding in found.notes[0]


def test_no_bytes_of_anything_else_are_taken_for_signs_of_east_asia() -> None:
    chance = random.Random(3)
    narrow = [pair for pair in PAIRS if not pair[0].startswith("utf")]
    for encoding, tongue in narrow:
        for seed in range(3):
            assert likeliest_wide(sentences(tongue, words=12, seed=seed).encode(encoding, "ignore")) is None
    assert not any(likeliest_wide(chance.randbytes(chance.choice((16, 20, 200)))) for _ in range(500))
