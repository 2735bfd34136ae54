"""`uncomp ask --evidence`: the passages that an answer looked at, with their shares and what was kept of them."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ask, records, start
from support.town import CODE, NAME, OTHER, QUESTION, town
from uncomp_cli.asking.readout import evidence_lines, evidence_warnings
from uncomp_cli.documents.places import Evidence

KEYS = ["path", "line_start", "line_end", "text", "attention_share", "kept_fraction", "place", "page_label"]
CITED = re.compile(r'  \S+:\d+(-\d+)? +\d+ % +\d+ %  "\S.*"')
ASKED = ("--max-new-tokens", "8", "-f", "notes.md")


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("notes.md").write_text("\n\n# Harbour\n\nThe harbour was quiet.\nThe lamps were lit.\n" * 4)
    Path("other.md").write_text("Another text, of one line.\n")


def cited(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("  ")]


def check(evidence: list[dict[str, Any]], path: str) -> None:
    """Passages are of the file as it is, and shares are shares."""
    lines = Path(path).read_text().split("\n")
    assert 1 <= len(evidence) <= 3
    for one in evidence:
        assert list(one) == KEYS
        assert one["path"] == path
        assert one["text"] == "\n".join(lines[one["line_start"] - 1 : one["line_end"]]).strip()
        assert 0 < one["attention_share"] <= 1
        assert 0 <= one["kept_fraction"] <= 1
    shares = [one["attention_share"] for one in evidence]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1 + 1e-6


@pytest.mark.parametrize("way", [[], ["--policy", "uniform"], ["--kv-bits", "8"], ["--constant-size"], ["-b", "full"]])
def test_evidence_does_not_change_the_answers(ask: Ask, way: list[str]) -> None:
    args = ["Where?", "-Q", "When was it?", "-b", "50%", "--json", *way]
    plain = records(ask(*args)[1])
    code, out, _ = ask(*args, "--evidence")
    assert code == 0
    found = records(out)
    for one, other in zip(found, plain, strict=True):
        assert one["answer"] == other["answer"]
        assert one["memory"]["kv_bytes"] == other["memory"]["kv_bytes"]
        assert other["evidence"] == []
        check(one["evidence"], "notes.md")
        if "full" in way:
            assert {passage["kept_fraction"] for passage in one["evidence"]} == {1.0}


def test_a_question_looks_at_the_same_alone_and_in_company(ask: Ask) -> None:
    """Its keys lie in the cache when it is alone, and wait beside it when it is not; one batch holds them as rows."""
    Path("beside.md").write_text(Path("notes.md").read_text())
    args = ["-b", "full", "--evidence", "--json"]
    alone = records(ask("Where was it?", *args)[1])[0]
    ways = (
        ["Who was that, and at what time?", "-Q", "Where was it?"],
        ["Who was that, and at what time?", "-Q", "Where was it?", "--kv-mem", "2MiB"],
        ["-f", "beside.md", "--each", "Where was it?"],
    )
    for way in ways:
        code, out, err = ask(*way, *args)
        assert code == 0, err
        beside = records(out)[-1]
        assert beside["answer"] == alone["answer"]
        for one, other in zip(beside["evidence"], alone["evidence"], strict=True):
            assert (one["line_start"], one["text"]) == (other["line_start"], other["text"])
            assert one["attention_share"] == pytest.approx(other["attention_share"], rel=1e-4)


def test_lines_follow_the_readout_also_when_quiet(ask: Ask) -> None:
    code, out, err = ask("Where?", "--evidence")
    assert code == 0
    readout, titles, *passages = err.splitlines()[-1 - len(cited(err)) :]
    assert " tok in " in readout
    assert titles.split() == ["PASSAGE", "ATTENTION", "KEPT", "TEXT"]
    assert [titles, *passages] == cited(err)
    assert 1 <= len(passages) <= 3
    assert all(CITED.fullmatch(line) for line in passages)
    code, again, quiet = ask("Where?", "--evidence", "-q")
    assert (code, again) == (0, out)
    shown = [line for line in quiet.splitlines() if not line.startswith("warning: the answer ended")]
    assert shown == [titles, *passages]


def test_with_each_a_document_is_its_own(ask: Ask) -> None:
    code, out, _ = ask("-f", "other.md", "--each", "Where?", "--evidence", "--json")
    assert code == 0
    for record, path in zip(records(out), ("notes.md", "other.md"), strict=True):
        check(record["evidence"], path)
    assert records(out)[1]["evidence"][0]["attention_share"] == pytest.approx(1)


def test_several_documents_are_told_apart(ask: Ask) -> None:
    Path("notes.md").write_text("One line.\n")
    code, out, _ = ask("-f", "other.md", "Where?", "--evidence", "--json", "-b", "full")
    assert code == 0
    (record,) = records(out)
    found = {(one["path"], one["line_start"], one["text"]) for one in record["evidence"]}
    assert found == {("notes.md", 1, "One line."), ("other.md", 1, "Another text, of one line.")}


def test_how_evidence_is_shown() -> None:
    found = [
        Evidence("handbook.md", 120, 121, "The badge is\n blue \x1b[31m and round", 0.344, 0.92),
        Evidence("a.md", 7, 7, "word " * 40, 0.09, 0.04),
    ]
    titles, first, second = evidence_lines(found)
    assert titles == "  PASSAGE              ATTENTION  KEPT   TEXT"
    assert first == '  handbook.md:120-121   34 %       92 %  "The badge is blue \x1b[31m and round"'
    assert second.startswith('  a.md:7                 9 %        4 %  "word word')
    assert second.endswith('word…"')
    assert len(second) < 120
    narrow = [*evidence_lines(found, width=60)]
    assert max(map(len, narrow)) <= 60
    assert narrow[:3] == [
        "  PASSAGE              ATTENTION  KEPT   TEXT",
        '  handbook.md:120-121   34 %       92 %  "The badge is blue',
        f'{"":41}\x1b[31m and round"',
    ]
    assert asdict(found[1]) == dict(zip(KEYS, ["a.md", 7, 7, "word " * 40, 0.09, 0.04, None, None], strict=True))
    (warning,) = evidence_warnings(found)
    assert warning.startswith("little is kept of a.md:7 (4 %): check the answer there")


def test_that_there_is_no_passage_to_show_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncomp_cli.asking.subject.find_evidence", lambda *_: [])
    Path("notes.md").write_text("A line of a text.")
    assert "no passage is shown: use a larger --budget" in ask("Where?", "--evidence")[2]
    assert "no passage" not in ask("Where?")[2]


def test_what_was_mostly_evicted_is_warned_of_and_recorded(ask: Ask) -> None:
    Path("notes.md").write_text("\n".join(f"Line {i} of a long text." for i in range(120)))
    code, out, err = ask("Where?", "--evidence", "--json", "-b", "6%", "--scorer", "random", "--policy", "uniform")
    assert code == 0
    (record,) = records(out)
    evicted = [one for one in record["evidence"] if one["kept_fraction"] < 0.1]
    assert evicted, record["evidence"]
    (warning,) = record["warnings"]
    places = [f"{one['path']}:{one['line_start']}" for one in evicted]
    assert all(warning.count(place) for place in places)
    assert warning.count(" %)") == len(evicted)
    assert f"warning: {warning}" in err


@pytest.mark.model
def test_the_line_that_answers_is_cited_first(default_model_dir: Path) -> None:
    assert default_model_dir.is_dir()
    args = ["ask", "--budget", "20%", "--max-new-tokens", "40", QUESTION, "-Q", OTHER, "--evidence", "--json"]
    code, out, _ = start(*args, stdin=town().encode()).finish()
    assert code == 0
    for record, fact in zip(records(out), (CODE, NAME), strict=True):
        assert fact in record["answer"]
        first = record["evidence"][0]
        assert first["path"] == "-"
        assert fact in first["text"]
        assert fact in town().split("\n")[first["line_start"] - 1]
        assert first["kept_fraction"] > 0.5
