"""`uncomp ask --save-cache` and `--reuse`: streams, JSON, what is said, what is refused and what a bad file does."""

import json
from pathlib import Path

import pytest

from support.commands import ENDLESS, Asker, start
from support.curves import risky
from support.tiny import make_tiny_model

TEXT = "".join(f"line {number}: the keeper wrote {number * 37 % 101} in the book.\n" for number in range(40))
OPTIONS = ("-p", "live", "--policy", "uniform", "--scorer", "distinct", "-b", "40%", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def ask(model: Path, tmp_path: Path) -> Asker:
    return Asker(model, tmp_path / "cache", OPTIONS)


def test_saved_by_name_and_asked_without_the_file(ask: Asker, document: Path) -> None:
    code, first, said = ask("-f", str(document), "--save-cache", "book", "who wrote?")
    assert code == 0
    entry = ask.shelf.find("book")
    assert entry.share.dtype_bytes == 4
    assert entry.share.of_16_bit == pytest.approx(2 * entry.file_bytes / entry.manifest.record.kv_full_bytes)
    assert f"saved book (budget 40%: {entry.share}," in said
    assert "--cache book answers from it" in said
    document.unlink()
    code, second, said = ask("--reuse", "book", "who wrote?")
    assert (code, second) == (0, first)
    assert "reused book (" in said
    assert "saved" not in said
    assert len(first.strip()) == 8


def test_json_tells_what_was_cached(ask: Asker, document: Path) -> None:
    ask("-f", str(document), "--save-cache", "book", "who wrote?")
    code, out, _ = ask("--reuse", entry_hash(ask), "--json", "-Q", "who wrote?", "-Q", "what?")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    context = ask.shelf.find("book").manifest.record.context_tokens
    assert [record["usage"]["cached_tokens"] for record in records] == [context, context]
    assert [record["question"] for record in records] == ["who wrote?", "what?"]
    assert records[0]["files"][0]["path"] == str(document)
    assert records[0]["compression"]["budget_requested"] == "40%"
    assert records[0]["compression"]["query_aware"] is False


def entry_hash(ask: Asker) -> str:
    return ask.shelf.find("book").key[:10]


def test_auto_reads_once_and_again_when_something_is_other(ask: Asker, document: Path) -> None:
    code, first, said = ask("-f", str(document), "--reuse", "auto", "who wrote?")
    assert code == 0
    assert "saved " in said
    code, second, said = ask("-f", str(document), "--reuse", "auto", "who wrote?")
    assert (code, second) == (0, first)
    assert "reused " in said
    assert len(ask.shelf.entries()) == 1
    _, _, said = ask("-f", str(document), "--reuse", "auto", "-b", "50%", "who wrote?")
    assert "saved " in said
    document.write_text(TEXT + "more")
    _, _, said = ask("-f", str(document), "--reuse", "auto", "who wrote?")
    assert "saved " in said
    assert len(ask.shelf.entries()) == 3


def test_a_damaged_cache_is_told_and_the_document_read_again(ask: Asker, document: Path) -> None:
    _, first, _ = ask("-f", str(document), "--reuse", "auto", "who wrote?")
    (entry,) = ask.shelf.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-7])
    code, second, said = ask("-f", str(document), "--reuse", "auto", "who wrote?")
    assert (code, second) == (0, first)
    assert f"warning: cache '{entry.name}' is damaged: it has" in said
    assert "the document is read again" in said
    (again,) = ask.shelf.entries()
    assert ask.shelf.verify(again) is None
    assert len(ask.shelf.corrupt()) == 1


def test_each_document_has_a_cache_of_its_own(ask: Asker, document: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT[200:])
    args = ("-f", str(document), "-f", str(other), "--each", "--reuse", "auto", "who wrote?")
    code, first, said = ask(*args)
    assert (code, said.count("saved ")) == (0, 2)
    code, second, said = ask(*args)
    assert (code, second, said.count("reused ")) == (0, first, 2)


def test_a_query_aware_scorer_gives_way_and_that_is_said(ask: Asker, document: Path) -> None:
    _, _, said = ask("-f", str(document), "--scorer", "window", "--save-cache", "book", "who wrote?")
    assert said.count("ranks tokens by the question (window)") == 1
    _, _, said = ask("--reuse", "book", "who wrote?")
    assert "ranks tokens by the question" not in said


def test_what_cannot_be_saved_takes_no_answer_away(ask: Asker, document: Path) -> None:
    _, expected, _ = ask("-f", str(document), "--save-cache", "book", "who wrote?")
    code, out, said = ask("-f", str(document), "--save-cache", "small", "--cache-size", "9KiB", "who wrote?")
    assert (code, out) == (3, expected)
    assert "error: the document is not saved: the cache 'small' has" in said
    assert [entry.name for entry in ask.shelf.entries()] == ["book"]


def test_evidence_and_pins(ask: Asker, document: Path) -> None:
    args = ("-f", str(document), "--pin", f"{document}:7", "--reuse", "auto", "--json", "--evidence", "who wrote?")
    (first, second) = (json.loads(ask(*args)[1]) for _ in range(2))
    assert first["evidence"]
    assert {passage["path"] for passage in first["evidence"]} == {str(document)}
    assert second["evidence"] == first["evidence"]
    assert second["usage"]["cached_tokens"] > 0


def test_one_question_that_does_not_fit_leaves_the_others(ask: Asker, document: Path) -> None:
    long = "why " * 2000
    code, out, said = ask("-f", str(document), "--reuse", "auto", "--json", "-Q", "who?", "-Q", long, "-Q", "what?")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert ["error" in record for record in records] == [False, True, False]
    assert "question 2 of 3: the prompt has" in said
    assert "the model was trained for" in ask("-f", str(document), "--reuse", "auto", long)[2]
    ask("-f", str(document), "--save-cache", "book", "who?")
    said = ask("--reuse", "book", "-Q", "who?", "-Q", long)[2]  # no document is there that could be cut
    assert "question 2 of 2: the question leaves no room for an answer" in said
    assert "hint: ask something shorter" in said


def test_how_a_saved_document_is_read_is_said(ask: Asker, document: Path) -> None:
    args = ("-f", str(document), "--chunk", "256", "--pin", f"{document}:7", "--reuse", "auto", "--json", "who wrote?")
    code, out, said = ask(*args)
    assert code == 0
    assert json.loads(out)["compression"]["chunk_tokens"] == 256
    lines = said.splitlines()
    (budget,) = [line for line in lines if line.startswith("budget 40% (live, uniform): ")]
    (chunks,) = [line for line in lines if line.startswith("reading 256 of ")]
    (pinned,) = [line for line in lines if line.startswith(f"pinned {document}:7: ")]
    (kept,) = [line for line in lines if line.startswith("saved ")]
    assert sorted([budget, chunks, pinned, kept], key=lines.index) == [budget, chunks, pinned, kept]
    assert "budget 40% (live, uniform): " not in ask(*args)[2]  # what is opened is not read


def test_pins_that_are_too_much_for_a_saved_document_are_named(ask: Asker, document: Path) -> None:
    args = ("-f", str(document), "--pin", f"{document}:1-40", "-b", "300KiB", "--save-cache", "book", "who wrote?")
    code, out, said = ask(*args)
    assert (code, out) == (3, "")
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.endswith(f" of them are pinned: {document}:1-40")


def test_a_document_is_named_where_it_falls_short(ask: Asker, document: Path, tmp_path: Path) -> None:
    preset = risky(tmp_path, 0.01)
    other = tmp_path / "other.txt"
    other.write_text(TEXT[200:])
    args = ("-f", str(document), "-f", str(other), "--each", "--reuse", "auto", "-p", preset, "--fail-under", "0.9")
    code, _, said = start("ask", "-m", str(ask.model), "--max-new-tokens", "8", *args, "who wrote?",
                          UNCOMP_CACHE_DIR=str(ask.folder)).finish()  # fmt: skip
    assert code == 5
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [line.removeprefix("error: ").split(": the answer is right")[0] for line in errors] == [
        str(document), str(other),
    ]  # fmt: skip


def test_one_document_that_cannot_be_read_is_told_of_each_question(ask: Asker, document: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(TEXT * 4)
    args = ("-f", str(long), "-f", str(document), "--each", "--reuse", "auto", "--json", "-Q", "who?", "-Q", "what?")
    code, out, said = ask(*args)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [("error" in record, record["files"][0]["path"]) for record in records] == [
        (True, str(long)), (True, str(long)), (False, str(document)), (False, str(document)),
    ]  # fmt: skip
    assert said.count("error: ") == 1


def test_ctrl_c_is_said_of_one_document_of_several(model: Path, ask: Asker, document: Path) -> None:
    args = ("-f", str(document), "--each", "--reuse", "auto", *ENDLESS, "--max-new-tokens", "2000", "who wrote?")
    running = start("ask", "-m", str(model), *OPTIONS, *args, UNCOMP_CACHE_DIR=str(ask.folder))
    running.wait_for_bytes("stdout")
    running.interrupt()
    code, out, said = running.finish()
    assert code == 130
    assert out.endswith("\n")
    assert "[interrupted]" in said.splitlines()


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Asker:
    """A cache directory with the cache `book`, and its document beside it."""
    asker = Asker(model, tmp_path_factory.mktemp("saved"), OPTIONS)
    (asker.folder / "book.txt").write_text(TEXT)
    assert asker("-f", str(asker.folder / "book.txt"), "--save-cache", "book", "who wrote?")[0] == 0
    return asker


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--save-cache", "a/b", "-f", "{}"), "'a/b' is no name of a saved cache"),
        (("--save-cache", "auto", "-f", "{}"), "'auto' stands for the content's hash"),
        (("--reuse", "bok"), "there is no saved cache 'bok'"),
        (("--reuse", "book", "-b", "50%"), "cache 'book' was saved with --budget 40%, not 50%"),
        (("--reuse", "book", "-p", "full"), "cache 'book' was saved with --preset live, not full"),
        (("--reuse", "book", "--kv-bits", "8"), "cache 'book' was saved with --kv-bits 16, not 8"),
        (("--reuse", "book", "-s", "be brief"), "was saved with the system prompt None, not 'be brief'"),
        (("--reuse", "book", "--pin", "book.txt:1"), "--pin is for documents that are read, and this one was"),
        (("--reuse", "book", "--constant-size"), "--constant-size forgets parts of the document"),
        (("--reuse", "book", "--thin", "gather:keep=0.3"), "--thin gather:keep=0.3 goes by the question"),
        (("--reuse", "book", "--dtype", "bfloat16"), "the number format was float32, not bfloat16"),
        (("--reuse", "book", "--cache-size", "lots"), "cache-size 'lots' is not an amount of disk space"),
        (("--save-cache", "x", "--each", "-f", "{}"), "--each reads several contexts, a name is of one"),
    ],
)
def test_refused(saved: Asker, args: tuple[str, ...], message: str) -> None:
    document = saved.folder / "book.txt"
    code, out, said = saved(*(arg.format(document) for arg in args), "who wrote?")
    assert (code, out) == (2, "")
    assert message in said


def test_a_cache_by_name_is_made_and_then_asked(ask: Asker, document: Path) -> None:
    code, first, said = ask("-f", str(document), "--cache", "book", "who wrote?")
    assert code == 0, said
    assert "; --cache book answers from it" in said
    code, again, said = ask("--cache", "book", "who wrote?")
    assert (code, again) == (0, first), said
    assert "reused book" in said
    assert ask("-f", str(document), "--cache", "book", "who wrote?")[1] == first
    assert "reused" in ask("-f", str(document), "--cache", "auto", "who wrote?")[2]
    document.write_text("Another text. " * 40)
    code, out, said = ask("-f", str(document), "--cache", "book", "who wrote?")
    assert (code, out) == (2, "")
    assert "was made from other text" in said
    assert "uncomp cache remove book" in said


def test_old_names_work_and_say_the_new_one(ask: Asker, document: Path) -> None:
    code, _, said = ask("-f", str(document), "--reuse", "auto", "--force", "--explain-budget", "who wrote?")
    assert code == 0, said
    for old, new in (("reuse", "--cache"), ("force", "--rope plain"), ("explain-budget", "--why")):
        assert f"--{old} is called {new} now; the old name will go" in said
    assert " layers x " in said
    assert " layers x " in ask("-f", str(document), "--why", "who wrote?")[2]


def test_a_text_that_is_read_twice_before_it_is_saved(ask: Asker, document: Path) -> None:
    twice = ("-f", str(document), "--scorer", "repeat", "--save-cache", "book")
    code, first, said = ask(*twice, "who wrote?")
    assert code == 0
    assert "read a second time" in said
    record = ask.shelf.find("book").manifest.record
    assert record.compression.scorer.name == "repeat"
    assert ask("--reuse", "book", "--scorer", "repeat", "who wrote?")[:2] == (0, first)
    code, _, said = ask("--reuse", "book", "who wrote?")  # of another scorer, as the options here say
    assert (code, "saved with --scorer repeat, not distinct" in said) == (2, True)
    code, _, said = ask(*twice[:-1], "all", "-b", "100%", "who wrote?")
    assert (code, "read a second time" in said) == (0, False)
