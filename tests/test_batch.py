"""`uncomp batch`: manifests, results that outlive kills, rows that equal those of `ask`; slowly, with Ray, all."""

import json
import os
import pickle
import signal
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ask, records, run_here, two_lines
from support.programs import script
from uncomp_cli.asking.request import ModelChoice, PresetChoice, Request
from uncomp_cli.batch.cluster import Node, connected, crew_of, this_node
from uncomp_cli.batch.manifest import Entry, entries, source_of
from uncomp_cli.batch.results import Results
from uncomp_cli.batch.run import Batch, Summary, run, settings_of
from uncomp_cli.batch.worker import MOST_DEATHS, Asking, Attempts, Job, answer_all
from uncomp_cli.budget.amount import Budget
from uncomp_cli.config import LOCAL, CrewConfig, SamplingConfig
from uncomp_cli.documents.collection import Document, documents_of
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.steps import finished

ASKED = ("--max-new-tokens", "12")
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'uncomp[batch]'")
with_arrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed; ray[data] brings it")
SETTINGS = {"--budget": "10%", "--questions": ["Who?"]}


@pytest.fixture(autouse=True)
def here(alone: None) -> None:
    """Each test has an empty folder."""


def found(*inputs: str, include: Sequence[str] = ()) -> list[Entry]:
    return list(entries(inputs, include=include, skipped=Counter()))


def read(given: Sequence[Entry]) -> list[str]:
    """The texts of entries, or why there are none."""
    documents = documents_of([source_of(each) for each in given])
    return [each.text if isinstance(each, Document) else each.message for each in documents]


def test_files_folders_and_globs_are_found_in_order() -> None:
    for name in ("b.txt", "notes/deep/z.md", "notes/a.md", "notes/c.png", "notes/.hidden"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    skipped = Counter[str]()
    given = list(entries(["b.txt", "notes", "notes/*.md"], skipped=skipped))
    assert [each.name for each in given] == ["b.txt", "notes/a.md", "notes/deep/z.md", "notes/a.md"]
    assert read(given) == [each.name for each in given]
    assert skipped == {"hidden": 1, "suffix '.png' is that of a PNG image": 1}


def test_a_manifest_has_paths_and_texts() -> None:
    Path("a.txt").write_text("of a file")
    rows = [
        {"path": "a.txt"},
        {"path": "a.txt", "name": "again"},
        {"text": "of a row", "year": 1},
        {"text": "é", "name": "b"},
    ]
    Path("list.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    given = found("list.jsonl")
    assert [each.name for each in given] == ["a.txt", "again", "list.jsonl:5", "b"]
    assert read(given) == ["of a file", "of a file", "of a row", "é"]
    Path("list.jsonl").rename("[a].jsonl")
    assert len(found("[a].jsonl")) == 4
    assert [each.name for each in found("[[]a].jsonl")] == ["[a].jsonl"]


@pytest.mark.parametrize("out", ["in/out.jsonl", "in/deep/../out.parquet"])
def test_results_are_no_documents(out: str) -> None:
    Path("in/deep").mkdir(parents=True)
    Path("in/a.txt").write_text("text")
    with Results(Path(out), SETTINGS, resume=False) as results:
        results.add([line("in/a.txt")])
    if out.endswith(".parquet"):
        Path(out).touch()
    skipped = Counter[str]()
    given = Batch(("in",), Path(out), Request()).entries(skipped)
    assert ([each.name for each in given], skipped) == (["in/a.txt"], Counter())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not JSON: Expecting property name"),
        ("[1]", "line 2 is no object"),
        ('{"name": "a"}', "line 2 has neither path nor text"),
        ('{"path": "a", "text": "b"}', "line 2 has both path and text"),
        ('{"path": 3}', "line 2: path is 3"),
        ('{"path": "a", "name": ""}', 'line 2: name is ""'),
        ("\\xff", "line 2 is not JSON"),
    ],
)
def test_a_broken_line_is_named(line: str, reason: str) -> None:
    Path("list.jsonl").write_bytes(b'{"path": "a"}\n' + line.encode().replace(b"\\xff", b"\xff") + b'\n{"path": "c"}\n')
    with pytest.raises(UsageError) as caught:
        found("list.jsonl")
    assert f"list.jsonl: {reason}" in caught.value.message
    assert '{"path": ' in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "argument", "reason"),
    [
        (lambda: Path("empty").mkdir(), "empty", "nothing to read in 'empty': it is empty"),
        (lambda: None, "gone.txt", "no file or directory"),
        (lambda: Path("none.jsonl").touch(), "none.jsonl", "none.jsonl has no rows"),
        (lambda: None, "gone.jsonl", "gone.jsonl cannot be read: No such file"),
    ],
)
def test_where_nothing_is_that_is_said(make: Any, argument: str, reason: str) -> None:
    make()
    with pytest.raises(UsageError) as caught:
        found(argument)
    assert reason in caught.value.message


@with_arrow
def test_a_table_is_a_manifest() -> None:
    import pyarrow
    from pyarrow import parquet

    Path("a.txt").write_text("of a file")
    columns = {"name": ["x", "y", "z"], "path": [None, "a.txt", None], "text": ["first", None, "third"], "n": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), "list.parquet", row_group_size=2)
    given = found("list.parquet")
    assert [each.name for each in given] == ["x", "y", "z"]
    assert read(given) == ["first", "of a file", "third"]
    Path("bad.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UsageError, match=r"bad\.parquet cannot be read"):
        found("bad.parquet")


@pytest.mark.skipif(find_spec("fsspec") is None, reason="fsspec is not installed: pip install 'uncomp[batch]'")
def test_other_file_systems_are_read() -> None:
    import fsspec

    for name in ("b.txt", "a.txt"):
        with fsspec.open(f"memory://bucket/{name}", "w") as stream:
            stream.write(f"in {name}")
    whole, some = found("memory://bucket"), found("memory://bucket/a*")
    assert [each.name for each in whole] == ["memory:///bucket/a.txt", "memory:///bucket/b.txt"]
    assert some == whole[:1]
    assert read([*whole, Entry("x", "memory://bucket/x")])[:2] == ["in a.txt", "in b.txt"]
    assert "cannot be fetched" in read([Entry("x", "memory://bucket/x")])[0]
    with pytest.raises(UsageError, match="no file matches"):
        found("memory://bucket/z*")
    fsspec.register_implementation("nowhere", "not_there.Files", errtxt="Install not_there", clobber=True)
    with pytest.raises(UncompError, match="Install not_there") as caught:
        found("nowhere://bucket")
    assert caught.value.hint == "pip install not_there"


HOSTILE = (
    "a\x1b]0;title\x07.txt",
    "[bold]b[red].txt",
    "new\nline.txt",
    "delete\x7f.txt",
    "\u202etxt.c",
    'quo"te.txt',
    "\udcff.txt",
)


def test_hostile_names_are_rows_like_others() -> None:
    for name in HOSTILE:
        Path(os.fsdecode(os.fsencode(name))).write_text("text")
    given = found(".", include=("*",))
    assert len(given) == len(HOSTILE)
    assert read(given) == ["text"] * len(HOSTILE)
    with Results(Path("out.jsonl"), SETTINGS, resume=False) as results:
        lines = answer_all(Echo(), [Job(each.name, Document(each.name, "t", "")) for each in given], Attempts())
        results.add((line.name, line.data) for line in lines)
        results.finish()
    written = Path("out.jsonl").read_bytes()
    assert written.isascii()
    assert not any(code in written for code in (0x1B, 0x07, 0x7F))
    assert {row["name"] for row in rows()} == {each.name for each in given}


class Echo:
    """Answers with the text; some texts make it fail, or end its process, as far as a test can."""

    notes = ("said once",)

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def answer(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        self.asked.append([job.name for job in jobs])
        for job in jobs:
            text = getattr(job.document, "text", "")
            if text == "kill":
                raise KeyboardInterrupt  # as a kill: nothing that is to follow follows
            if text == "bug":
                raise ZeroDivisionError("of a bug")
            if text == "nan":
                return [{"name": each.name, "answers": [float("nan")]} for each in jobs]
        return [{"name": job.name, "answers": [{"answer": "yes"}]} for job in jobs]


def jobs(**texts: str) -> list[Job]:
    return [Job(name, Document(name, text, "")) for name, text in texts.items()]


def rows(out: str = "out.jsonl") -> list[dict[str, Any]]:
    return records(Path(out).read_text())


def line(name: str, **more: Any) -> tuple[str, bytes]:
    return name, json.dumps({"name": name, "answers": [], **more}).encode() + b"\n"


def test_rows_come_into_order_and_none_is_doubled() -> None:
    with Results(Path("out.jsonl"), SETTINGS, resume=False) as results:
        assert [results.wants(name, f"line {name}") for name in "cab"] == [None] * 3
        assert results.wants("a", "line 9") == "line a"
        results.add([line("c"), line("a")])
        assert results.counts == (3, 2)
        assert [name for name in "cabx" if results.take(name)] == ["b"]
        assert not results.take("b")
        with pytest.raises(UncompError, match="there is no row of 1 document: 'b'"):
            results.check_whole()
        results.add([line("b"), line("a", answers=["other"])])
        results.check_whole()
        assert [row["name"] for row in rows()] == ["c", "a", "b"]
        results.finish()
    assert rows() == [{"name": name, "answers": []} for name in "abc"]


@pytest.mark.parametrize("torn", [b"", b'{"name": "c", "ans', b'{"name": "c", "answers": []}'])
def test_a_killed_run_goes_on(torn: bytes) -> None:
    with Results(Path("out.jsonl"), SETTINGS, resume=True) as results:
        results.add([line("b"), line("a")])
    with Path("out.jsonl").open("ab") as stream:
        stream.write(torn)
    with Results(Path("out.jsonl"), SETTINGS, resume=True) as results:
        assert Path("out.jsonl").read_bytes() == line("b")[1] + line("a")[1]
        for name in "abc":
            results.wants(name, "")
        assert results.counts == (3, 2)
        assert [name for name in "abc" if results.take(name)] == ["c"]
        results.add([line("c")])
        results.finish()
    assert [row["name"] for row in rows()] == ["a", "b", "c"]


def refused(settings: dict[str, Any] = SETTINGS, *, resume: bool = True, out: str = "out.jsonl") -> UncompError:
    before = Path(out).read_bytes() if Path(out).is_file() else None
    with pytest.raises(UncompError) as caught:
        Results(Path(out), settings, resume=resume)
    assert before is None or Path(out).read_bytes() == before
    return caught.value


def test_rows_that_are_there_are_not_mixed_with_others() -> None:
    with Results(Path("out.jsonl"), SETTINGS, resume=False) as results:
        results.add([line("a")])
        assert "is being written by another uncomp batch" in refused().message
    error = refused({**SETTINGS, "--budget": "20%"})
    assert error.message == 'out.jsonl has rows of other settings: --budget "10%" there, "20%" now'
    assert error.exit_code == 2
    assert refused(resume=False).hint == "--resume goes on with them, or use another --out"
    Path("out.jsonl.settings").unlink()
    assert "out.jsonl.settings is not there" in refused().message
    Path("out.jsonl.settings").write_text("[]")
    assert refused().exit_code == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no row\n", "line 1 is no row"), (b'{"name": "a"}\n' * 2, "line 2 has a document again")],
)
def test_a_file_of_other_rows_is_refused(content: bytes, reason: str) -> None:
    with Results(Path("out.jsonl"), SETTINGS, resume=False) as results:
        results.add([line("a")])
    Path("out.jsonl").write_bytes(content)
    assert refused().message == f"out.jsonl: {reason}"


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("gone/out.jsonl", "gone/out.jsonl cannot be written: No such file or directory"),
        ("folder.jsonl", "folder.jsonl is not a regular file"),
        ("out.csv", "--out out.csv is neither .jsonl nor .parquet"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(out: str, reason: str) -> None:
    Path("folder.jsonl").mkdir()
    assert refused(out=out).message == reason


@with_arrow
def test_results_may_be_a_table() -> None:
    from pyarrow import parquet

    error = {"message": "no", "hint": "so"}
    with Results(Path("out.parquet"), SETTINGS, resume=False) as results:
        results.add([line("\udcff", error=error), line("a", answers=[{"answer": "x"}, {"error": error}])])
        results.finish()
    first, second = parquet.read_table("out.parquet").to_pylist()
    assert (first["name"], first["answers"], first["error"]) == ("a", ["x", None], None)
    assert (second["name"], second["error"], second["hint"]) == ("?", "no", "so")
    with Results(Path("out.parquet"), SETTINGS, resume=True) as results:
        assert not results.take("a")


def test_what_fails_beside_others_is_answered_alone() -> None:
    work, ledger = Echo(), Attempts()
    lines = answer_all(work, jobs(a="text", b="bug", c="nan", d="text"), ledger)
    made = [json.loads(each.data) for each in lines]
    assert [each.failed for each in lines] == [False, True, True, False]
    assert work.asked == [["a", "b", "c", "d"], ["a"], ["b"], ["c"], ["d"]]
    assert made[1]["error"]["message"] == "internal error: ZeroDivisionError: of a bug"
    assert made[3]["answers"] == [{"answer": "yes"}]
    answer_all(work, jobs(e="text", f="text"), ledger)
    assert ledger.begin(["a", "b", "c", "d", "e", "f"]) == 0


def test_what_ends_its_workers_becomes_a_failure() -> None:
    """A task comes back to the next worker, as Ray does it, until it is through; the ledger outlives them."""
    work, ledger = Echo(), Attempts()
    deaths, lines = 0, None
    while lines is None:
        try:
            lines = answer_all(work, jobs(a="text", b="kill", c="text", d="kill"), ledger)
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < 100
    assert deaths == 1 + 2 * (MOST_DEATHS - 1)
    assert [each.failed for each in lines] == [False, True, False, True]
    assert f"{MOST_DEATHS} workers" in json.loads(lines[1].data)["error"]["message"]


def test_rows_have_the_answers_of_ask(ask: Ask, tiny_model: Path) -> None:
    """Two questions of three documents at once, and of each by `ask`; what is no document is a row with the reason."""
    texts = {"a.txt": "harbour " * 30, "b.txt": "winter lantern " * 25, "c.txt": "bridge " * 4}
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("d.txt").write_bytes(b"\x00\x01\x02" * 50)
    request = Request(
        model=ModelChoice(name=str(tiny_model)),
        preset=PresetChoice(budget=Budget.parse("50%")),
        sampling=SamplingConfig(max_new_tokens=12),
    )
    given = found("a.txt", "b.txt", "d.txt", "c.txt")
    documents = documents_of([source_of(each) for each in given])
    read_jobs = [Job(each.name, document) for each, document in zip(given, documents, strict=True)]
    read_jobs = pickle.loads(pickle.dumps(read_jobs))
    work = Asking(pickle.loads(pickle.dumps(request)), ("Where?", "When was it?"))
    made = {each.name: json.loads(each.data) for each in answer_all(work, read_jobs, Attempts())}
    assert list(made) == ["a.txt", "b.txt", "d.txt", "c.txt"]
    assert made["d.txt"]["answers"] == []
    assert made["d.txt"]["error"]["message"]
    assert work.notes
    for name in texts:
        code, out, _ = ask("-f", name, "Where?", "-Q", "When was it?", "-b", "50%", "--json")
        assert code == 0
        for ours, theirs in zip(made[name]["answers"], records(out), strict=True):
            same = ("question", "answer", "finish_reason", "files", "usage", "compression", "seed", "warnings")
            assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_settings_are_named_by_their_flags() -> None:
    request = Request(model=ModelChoice("m", tokenizer=Path("t")), preset=PresetChoice("p", budget=Budget.parse("10%")))
    settings = settings_of(request, ["Who?"])
    assert json.loads(json.dumps(settings)) == settings
    wanted = {"--model": "m", "--preset": "p", "--budget": "10%", "--tokenizer": "t", "--questions": ["Who?"]}
    assert wanted.items() <= settings.items()
    _, out, _ = run_here("batch", "--help-all")
    flags = set(out.replace(",", " ").split())
    assert {key for key in settings if key not in flags and f"{key}/--no-{key[2:]}" not in flags} == set()


def test_actors_and_threads_are_no_more_than_cores() -> None:
    node = Node(9, 100)  # one is the reader's

    def size(*nodes: Node, needs_bytes: int = 1, **wanted: Any) -> tuple[int, int]:
        crew = crew_of(nodes, CrewConfig(**wanted), needs_bytes=needs_bytes)
        return crew.actors, crew.threads

    assert [size(node, needs_bytes=each) for each in (1, 30, 1000)] == [(8, 1), (3, 2), (1, 8)]
    assert [size(node, threads=4), size(node, node, threads=4)] == [(2, 4), (4, 4)]
    assert size(Node(9, 100, 2.0), gpus=0.5) == (4, 2)
    with pytest.raises(UsageError, match="9 actors of 1 thread would need 9 cores, and there are 8"):
        size(node, actors=9)
    with pytest.raises(UsageError, match="need 1, and there are 0") as caught:
        size(node, actors=1, gpus=1.0)
    assert caught.value.hint == "leave --gpus out"
    crew = crew_of([node], CrewConfig(), needs_bytes=1)
    few = [crew.shared(each) for each in (3, 20, 1000)]
    assert [(each.actors, each.batch_size) for each in few] == [(3, 1), (8, 3), (8, 16)]
    told = [Summary(documents=3, answered=3, failed=1, elapsed_s=each).line for each in (1.0, 90.0)]
    assert told == [f"3 documents: 2 answered ({pace}), 1 failed" for pace in ("3.0 a second", "30.0 s each")]


def test_mistakes_are_told_before_anything_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text("text")
    Path("none.txt").write_text("\n")
    assert "no document was named" in two_lines(run_here("batch", "--out", "o.jsonl", "-Q", "Who?")[2])[0]
    assert "name it: -Q" in two_lines(run_here("batch", "a.txt", "--out", "o.jsonl")[2])[1]
    assert "no place for the results" in two_lines(run_here("batch", "a.txt", "-Q", "Who?")[2])[0]
    monkeypatch.setattr("uncomp_cli.batch.cluster.find_spec", lambda name: None)
    code, _, err = run_here("batch", "a.txt", "-Q", "Who?", "--out", "o.jsonl")
    assert (code, two_lines(err)[1]) == (1, "pip install 'uncomp[batch]'")
    monkeypatch.setattr("uncomp_cli.batch.run.check_installed", lambda: None)
    message, _ = two_lines(run_here("batch", "a.txt", "--questions", "none.txt", "--out", "o.jsonl")[2])
    assert "no question was given: none.txt has none" in message
    Path("list.jsonl").write_text('{"path": "a.txt", "name": "x"}\n{"path": "b.txt", "name": "x"}\n')
    message, _ = two_lines(run_here("batch", "list.jsonl", "-Q", "Who?", "--out", "o.jsonl")[2])
    assert message == "line 2 of list.jsonl has the name 'x' that line 1 of list.jsonl has"
    assert list(Path().glob("o.*")) == []


def test_a_dry_run_says_what_it_would_take(tiny_model: Path) -> None:
    for number in range(40):
        Path(f"{number}.txt").write_text("harbour " * (number + 1))
    Path("0.txt").write_bytes(b"\x00\x01")
    code, out, err = run_here(
        "batch", ".", "7.txt", "-m", str(tiny_model), "-Q", "Who?", "--actors", "1", "--dry-run", "--json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert (record["documents"], record["sampled"], record["unreadable"], record["actors"]) == (40, 32, 1, 1)
    assert record["prompt_tokens"] > 40 * 8
    assert "0.txt: it is a binary file" in err
    assert (
        record["all_actors_peak_bytes"] == record["actor_peak_bytes"] > 100 * 2**20
    )  # the program's own, not the model's
    assert not Path("results.jsonl").exists()


def test_this_machine_has_what_its_control_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncomp_cli.engine.spend.memory._group_bytes", lambda *names: 77)
    assert this_node(1).free_bytes == 77


def test_a_dry_run_counts_the_gpus_of_this_machine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text("harbour")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    asked = ("batch", "a.txt", "-m", str(tiny_model), "--device", "cpu", "-Q", "Who?", "--dry-run", "--json")
    for args, share in (((), 1.0), (("--actors", "1", "--gpus", "0.5"), 0.5)):
        code, out, err = run_here(*asked, *args)
        assert code == 0, err
        record = json.loads(out)
        assert (record["actors"], record["gpus"]) == (1, share)
    said = run_here(*asked, "--actors", "1", "--gpus", "2")[2]
    assert "1 actor with 2 GPU each would need 2, and there are 1" in said


def whole(summary: Any, out: str, count: int) -> None:
    assert (summary.documents, summary.answered + summary.before) == (count, count)
    assert [row["name"] for row in rows(out)] == sorted({row["name"] for row in rows(out)})
    assert len(rows(out)) == count


@with_ray
@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # Ray's own, of itself
@pytest.mark.slow
def test_ray_answers_all_of_them_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What ends its worker is a failure, what cannot be read too; more come later; no other cluster is met."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    from ray import cloudpickle

    program = script("batch")
    cloudpickle.register_pickle_by_value(program)  # workers have no benchmarks/
    manifest = program.write_documents(Path("list.jsonl"), 60)
    with manifest.open("a") as stream:
        stream.write('{"name": "poison", "text": "end the worker"}\n{"path": "gone.txt"}\n')
    request, crew = Request(questions=("Who?",)), CrewConfig(actors=2)
    batch = Batch((str(manifest),), Path("out.jsonl"), request, resume=True, crew=crew, make=program.Waits(0.0))
    summary = finished(run(batch))
    whole(summary, "out.jsonl", 62)
    assert summary.failed == 2
    assert {row["name"] for row in rows() if "error" in row} == {"poison", "gone.txt"}
    with manifest.open("a") as stream:
        stream.write('{"name": "more", "text": "The code is 1"}\n')
    summary = finished(run(batch))
    whole(summary, "out.jsonl", 63)
    assert (summary.before, summary.answered) == (62, 1)
    assert capfd.readouterr() == ("", "")  # nothing of Ray's own


@with_ray
@pytest.mark.slow
def test_kills_lose_and_double_nothing() -> None:
    program = script("batch")
    parser = {"documents": 300, "seconds": 0.03, "workers": 3, "drivers": 1, "seed": 1}
    found = program.kills(type("Args", (), parser))
    assert (found["rows"], found["lost"], found["doubled"], found["wrong_or_failed"]) == (300, 0, 0, 0)
    assert (found["workers_killed"], found["drivers_killed"], found["in_order"]) == (3, 1, True)


@with_ray
@pytest.mark.slow
def test_the_command_answers_as_ask_does(ask: Ask, tiny_model: Path) -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(f"{name} " * 40)
    given = ("a.txt", "b.txt", "-m", str(tiny_model), "-Q", "Where?", "--max-new-tokens", "12", "--actors", "1")
    code, out, err = run_here("batch", *given, "--out", "out.jsonl")
    assert (code, out) == (0, ""), err
    assert "2 documents: 2 answered" in err
    for row in rows():
        assert row["answers"][0]["answer"] == records(ask("-f", row["name"], "Where?", "--json")[1])[0]["answer"]
    code, _, err = run_here("batch", *given, "--out", "out.jsonl", "--resume", "-b", "7%")
    assert code == 2
    assert '--budget null there, "7%" now' in err
    code, _, err = run_here("batch", "a.txt", "-m", "no/model", "-Q", "Where?", "--out", "other.jsonl")
    assert code != 0


@with_ray
def test_a_cluster_that_is_not_there_is_told_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        pytest.raises(UncompError, match="no Ray cluster can be joined there: Connection refused"),
        connected(f"127.0.0.1:{port}"),
    ):
        pass
    with pytest.raises(UsageError, match="is no address"), connected("nowhere"):
        pass


@with_ray
def test_this_machine_is_not_a_cluster_that_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError(f"asked for {given.get('address')}")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UncompError, match="asked for local"), connected(LOCAL):
        pass


@with_ray
def test_a_signal_while_ray_starts_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ray.init", init)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt), connected(LOCAL):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ray_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncomp_cli.batch.cluster.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UncompError, match="Ray is installed and cannot be loaded") as caught, connected(LOCAL):
        pass
    assert caught.value.hint == "pip install 'uncomp[batch]'"
