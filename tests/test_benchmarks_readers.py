"""benchmarks/readers.py: what is compared as the same, and a table of real files against a second reader."""

import json
from pathlib import Path

import pytest

from support.documents import at, make_pdf, make_zip
from support.programs import script

readers = script("readers")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("10^6 of H_2O", "106 of H2O"),
        ("the committee", "the commit-\ntee"),
        ("ﬁne", "FINE"),
        ("a\r\nb", "a\nb"),
        (r"\_name\_ a\|b", "_name_ a|b"),
        ("1^(e) soft\u00adware", "1e software"),
        (r"\frac{1}{2}", "{1}{2}"),
    ],
)
def test_what_two_readers_write_in_different_ways_is_the_same(ours: str, theirs: str) -> None:
    assert readers.counts(readers.plain(ours)) == readers.counts(readers.plain(theirs))


def test_numbers_at_a_line_end_keep_their_hyphen() -> None:
    assert readers.plain("1998-\n2003") == "1998-\n2003"


def test_words_count_as_often_as_they_come() -> None:
    wanted = readers.counts("the lamp and the oil")
    assert readers.share(wanted, readers.counts("the lamp and oil")) == 0.8
    assert readers.share(readers.counts("a b c", size=2), readers.counts("b c a", size=2)) == 0.5
    assert readers.share(readers.counts(""), wanted) == 1.0


def test_the_second_reader_of_mail_walks_all_its_text() -> None:
    report = (
        b"Subject: Bill\nDate: 1 May\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n\n"
        b"<style>p{}</style><p>The fee is 10.\n--b\nContent-Type: message/rfc822\n\nSubject: Inner\n\nIt was 9.\n--b\n"
        b"Content-Type: text/plain\nContent-Disposition: attachment\n\nnot 7\n--b--\n"
    )
    chosen, text = readers.read_second("mail", Path("a.eml"), report)
    assert chosen == "email (Python)"
    assert " ".join(text.split()) == "subject: bill date: 1 may the fee is 10. subject: inner it was 9."


def test_what_a_second_reader_leaves_out_is_known_from_the_source() -> None:
    book = make_zip({"a.xhtml": "<p>No <b>1</b>2</p><img alt='page 77'/>", "b.png": "99"})
    assert {"12", "1", "77"} <= set(readers.source_of("epub", book).replace("'", " ").split())
    assert "99" not in readers.source_of("epub", book)


def test_the_table_and_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf(at(72, 700, "The bill is 40 crowns."), at(72, 700, "Paid in 1904.")))
    (tmp_path / "b.pdf").write_bytes(make_pdf(""))
    (tmp_path / "c.xyz").write_text("no second reader")
    monkeypatch.setitem(readers.COMMANDS, "pdf", ("no-such-program {file}", "echo The bill is 41 crowns, paid in 1904"))
    assert readers.main([str(tmp_path), "--show", "3"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    (one,) = found["files"]
    assert (one["second"], one["pages"], one["words"], one["recall"]) == ("echo", 2, 8, 7 / 8)
    assert (one["numbers"], one["numbers_missing"], one["numbers_added"]) == (2, 1, 1)
    assert one["differences"] == ["- words: 41 1", "+ words: 40 1", "- numbers: 41 1", "+ numbers: 40 1"]
    assert any(line.startswith("| a.pdf |") and "| -1 +1 |" in line for line in shown)
    assert [line.split(":")[0] for line in found["refused"]] == ["b.pdf", "c.xyz"]
