"""Children that read files: whatever a reader does, the file is refused in a sentence, and the next one is read."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from uncomp_cli.documents.cabinet import Cabinet
from uncomp_cli.documents.crew import Crew, line_of, text_of
from uncomp_cli.documents.formats import Format
from uncomp_cli.documents.intake import Source, Taken, Taking, take_all, take_file
from uncomp_cli.documents.text import NO_WISHES, Limits, Loss, Place, Text
from uncomp_cli.errors import DocumentError, DoesNotFitError, UncompError
from uncomp_cli.steps import Progress, Working, finished

HOSTILE = Format("support.hostile", (".hostile",))


def given(data: bytes) -> Callable[[int], Taking]:
    def take(_: int) -> Taking:
        yield from ()
        return data

    return take


@pytest.fixture(scope="module", autouse=True)
def _with_hostile_readers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def crew(_with_hostile_readers: None) -> Iterator[Crew]:
    with Crew() as made:
        yield made


@pytest.fixture(scope="module")
def hasty(_with_hostile_readers: None) -> Iterator[Crew]:
    """One that does not wait long: no other test may ask it, since a busy machine is late at anything."""
    with Crew(seconds=2) as made:
        yield made


@pytest.mark.parametrize(
    ("word", "kind", "said"),
    [
        ("fill", DoesNotFitError, "it takes more than 286 MiB of memory to read"),
        ("crash", DocumentError, "it ends the program that reads it (SIGSEGV), so it is damaged"),
        ("leave", DocumentError, "it ends the program that reads it (code 7), so it is damaged"),
        ("be full", DocumentError, "it ends the program that reads it (code 0), so it is damaged"),
        ("fail", DocumentError, "its reader fails (TypeError: no such thing), so it is damaged"),
    ],
)
def test_whatever_a_reader_does_is_one_refusal(crew: Crew, word: str, kind: type[UncompError], said: str) -> None:
    with pytest.raises(kind) as caught:
        crew.read(word.encode(), HOSTILE, NO_WISHES)
    assert (type(caught.value), caught.value.message) == (kind, said)
    assert caught.value.hint
    assert crew.read(b"next", HOSTILE, NO_WISHES) == Text("next")


def test_what_hangs_is_late_and_the_next_is_read(hasty: Crew) -> None:
    with pytest.raises(DoesNotFitError, match="it takes more than 2 seconds to read"):
        hasty.read(b"hang", HOSTILE, NO_WISHES)
    assert hasty.read(b"next", HOSTILE, NO_WISHES) == Text("next")


def test_a_reader_writes_no_file(crew: Crew) -> None:
    with pytest.raises(DocumentError, match="its reader fails"):
        crew.read(b"write", HOSTILE, NO_WISHES)


def test_a_reader_that_gets_on_is_not_late(hasty: Crew) -> None:
    heard: list[tuple[int, int]] = []
    wishes = replace(NO_WISHES, progress=lambda done, count: heard.append((done, count)))
    assert hasty.read(b"slow pages", HOSTILE, wishes) == Text("slow pages")
    assert heard == [(page, 8) for page in range(1, 9)]


def test_all_of_a_text_comes_back_and_all_wishes_arrive(crew: Crew) -> None:
    assert crew.read(b"whole", HOSTILE, NO_WISHES) == Text(
        "a\nb", (Place(1, "p1"), Place(2, "p2")), (Loss("pictures", 2, "p1"),), "koi8-r"
    )
    wishes = replace(NO_WISHES, password="pass word", encoding="koi8-r", limits=Limits(pages=3))
    assert crew.read(b"wishes", HOSTILE, wishes).text == "pass word koi8-r 3"
    assert crew.read(b"chatter", HOSTILE, NO_WISHES).text == "said nothing"
    assert crew.read(b"halves", HOSTILE, NO_WISHES).text == "\U0001f600 \ufffd."


def test_a_refusal_costs_no_child_and_one_that_has_grown_is_replaced(crew: Crew) -> None:
    crew.read(b"x", HOSTILE, NO_WISHES)
    before = [child.process for child in crew._children]
    with pytest.raises(DocumentError):
        crew.read(b"fail", HOSTILE, NO_WISHES)
    assert [child.process for child in crew._children] == before
    assert crew.read(b"grow", HOSTILE, NO_WISHES) == Text("grown")
    assert crew.read(b"next", HOSTILE, NO_WISHES) == Text("next")


def test_children_stay_and_are_as_many_as_cores(crew: Crew) -> None:
    asked = [crew.submit(partial(crew.read, f"file {number}".encode(), HOSTILE, NO_WISHES)) for number in range(40)]
    assert [each.result().text for each in asked] == [f"file {number}" for number in range(40)]
    assert len(crew._children) <= crew.size


def test_a_child_is_light_and_starts_soon(crew: Crew) -> None:
    with Crew() as fresh:
        begun_s = time.monotonic()
        fresh.read(b"x", HOSTILE, NO_WISHES)
        assert time.monotonic() - begun_s < 10  # 0.1 s on an idle machine; torch alone takes longer where it is slow
        process: Any = fresh._children[0].process
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert not any(name in maps for name in ("torch", "transformers", "numpy", "rich", "typer"))


def test_leaving_ends_what_hangs_at_once() -> None:
    begun_s = time.monotonic()
    with Crew(seconds=60) as left:
        waiting = left.submit(lambda: left.read(b"hang", HOSTILE, NO_WISHES))
        while not left._children or left._children[0].process is None:
            time.sleep(0.01)
        process: Any = left._children[0].process
    assert time.monotonic() - begun_s < 30
    assert waiting.exception() is not None
    assert process.poll() is not None


def source(path: Path, *, needed: bool = False) -> Source:
    return Source(path.name, lambda most: take_file(path, most), path.suffix, needed)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    for number in range(30):
        (tmp_path / f"{number:02}.{'html' if number % 3 else 'txt'}").write_text(f"<p>text {number}</p>")
    return [source(path) for path in sorted(tmp_path.iterdir())]


def test_many_files_come_in_order(sources: list[Source]) -> None:
    taken = finished(take_all(sources, NO_WISHES))
    assert [each.text.text.strip().removeprefix("<p>").removesuffix("</p>") for each in taken] == [
        f"text {number}" for number in range(30)
    ]


def test_nothing_is_read_behind_one_that_is_needed(sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 nothing")
    bad = source(tmp_path / "bad.pdf")
    *_, last = finished(take_all([sources[0], replace(bad, needed=True), *sources[1:]], NO_WISHES))
    assert isinstance(last, DocumentError)
    taken = finished(take_all([sources[0], bad, *sources[1:]], NO_WISHES))
    assert [isinstance(each, Taken) for each in taken] == [True, False, *[True] * 29]


def test_progress_is_told_by_files_and_by_pages(monkeypatch: pytest.MonkeyPatch, sources: list[Source]) -> None:
    monkeypatch.setattr("uncomp_cli.documents.intake.TELL_S", 0.0)
    many = [step for step in take_all(sources, NO_WISHES) if isinstance(step, Progress)]
    assert {step.label for step in many} == {"reading 30 files"}
    assert "files/s" in str(many[-1].rate)
    assert (many[-1].fraction or 0) > 0.5
    monkeypatch.setattr("uncomp_cli.documents.intake.TELL_S", 0.05)
    monkeypatch.setattr("uncomp_cli.documents.intake.format_of", lambda *_: HOSTILE)
    pages = [*take_all([Source("big.pdf", given(b"slow pages"))], NO_WISHES)]
    assert {step.label for step in pages} == {"reading big.pdf"}
    assert [step.fraction for step in pages if step.fraction] == sorted(
        step.fraction for step in pages if step.fraction
    )
    assert any("pages/s" in str(step.rate) for step in pages)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "."])
def test_what_is_no_file_is_refused(name: str) -> None:
    with pytest.raises((DocumentError, OSError)):
        finished(take_file(Path(name), 1000))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ipynb", ".srt", ".tex"])
def test_what_is_large_is_read_apart_and_what_is_small_here(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "read", lambda *_: Text("read apart"))
    monkeypatch.setattr("uncomp_cli.documents.intake.read_format", lambda *_: Text("read here"))
    small, large = finished(take_all([Source("x", given(b"{" * size), suffix) for size in (1000, 2**18)], NO_WISHES))
    assert isinstance(small, Taken)
    assert isinstance(large, Taken)
    assert (small.text.text, large.text.text) == ("read here", "read apart")


def test_an_endless_pipe_is_left_at_the_limit(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError), pipe.open("wb") as stream:
            while True:
                stream.write(bytes(2**16))

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(DoesNotFitError, match="more than 3 MiB"):
        finished(take_file(pipe, 3 * 2**20))
    writer.join()


def test_a_pipe_that_nobody_writes_into_is_said_to_be_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    steps = take_file(pipe, 1000)
    assert next(steps) == Working(f"waiting for {pipe}")
    writer = threading.Timer(0.2, lambda: pipe.write_bytes(b"late"))
    writer.start()
    assert next(steps) == Working(None)
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert ended.value.value == b"late"
    writer.join()


def test_interrupting_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncomp_cli.documents.intake.format_of", lambda *_: HOSTILE)
    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begun_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        finished(take_all([Source("x", given(b"hang"))], NO_WISHES))
    assert time.monotonic() - begun_s < 20


def test_a_text_that_was_slow_to_read_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("uncomp_cli.documents.intake.format_of", lambda *_: HOSTILE)
    cabinet = Cabinet(tmp_path / "texts", 10**6)
    wishes = replace(NO_WISHES, cabinet=cabinet)
    for asked, count in ((replace(wishes, password="lamp"), 0), (wishes, 1), (replace(wishes, encoding="koi8-r"), 2)):
        (taken,) = finished(take_all([Source("x", given(b"slow pages"))], asked))
        assert isinstance(taken, Taken)
        assert cabinet.size()[0] == count
    monkeypatch.setattr(Crew, "read", lambda *_: Text("read again"))
    (again,) = finished(take_all([Source("y", given(b"slow pages"))], wishes))
    assert again == taken
    for path in (tmp_path / "texts").iterdir():
        path.write_bytes(path.read_bytes().replace(b"slow", b"fast"))
    (anew,) = finished(take_all([Source("y", given(b"slow pages"))], wishes))
    assert isinstance(anew, Taken)
    assert anew.text.text == "read again"
    assert cabinet.size()[0] == 1  # the damaged one is gone


def test_all_of_a_text_is_kept() -> None:
    text = Text("a\nб \u2028", (Place(1, "p1"),), (Loss("pictures", 2, "p1"),), "koi8-r", ("a note",))
    assert text_of(line_of(text)) == text
    with pytest.raises(DocumentError):
        text_of(line_of(text)[:-9])


def test_a_cabinet_keeps_what_was_used_last(tmp_path: Path) -> None:
    cabinet = Cabinet(tmp_path / "texts", 500)
    for number in range(3):
        cabinet.keep(bytes(100), f"{number}")
        os.utime(next(path for path in cabinet.folder.iterdir() if path.stat().st_mtime > 10**6), (number, number))
    assert cabinet.find("0") == bytes(100)
    cabinet.keep(bytes(100), "3")
    assert [cabinet.find(f"{number}") is not None for number in range(4)] == [True, False, True, True]
    cabinet.keep(bytes(1000), "large")
    assert cabinet.find("large") is None
    assert {path.stat().st_mode & 0o777 for path in (cabinet.folder, *cabinet.folder.iterdir())} == {0o700, 0o600}
    assert cabinet.clear() == 3 * 165
    assert cabinet.size() == (0, 0)
    Cabinet(Path("/dev/null/no"), 400).keep(b"x", "nothing fails")
