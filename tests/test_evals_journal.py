"""A journal of results, whatever its kind: resumed, torn, refused, locked, killed with SIGKILL, and on a full disk."""

import json
import os
import resource
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from support.commands import fork_server
from uncomp_cli.calibrate.observation import ANSWERS, RiskLine
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.journal import Journal, read_journal, set_aside
from uncomp_cli.evals.rope.cells import CELLS, NeedleCell, TextCell
from uncomp_cli.evals.tables.outcome import OUTCOMES, Outcome

SETTINGS = {"model": "smollm2-135m", "tokens": (1800,), "seed": 7}


def _outcome(index: int, *, setting: str = "uniform/window 20%", **metrics: float) -> Outcome:
    return Outcome(
        "needle/uuid", index, "aware", setting, "uniform/window", "20%", 1800, 0.5, 0.2, 4096,
        metrics or {"nll": 0.25, "exact": 1.0}, [[0.5, 1.0]], " 1234\u2028é",
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def _written(path: Path, count: int = 3) -> bytes:
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        results.append([_outcome(index) for index in range(count)])
    return path.read_bytes()


def test_a_new_file_has_the_header_and_one_line_an_outcome(path: Path) -> None:
    lines = _written(path).decode().splitlines()
    assert json.loads(lines[0]) == {
        "schema_version": 1,
        "kind": "uncomp eval",
        "settings": {"model": "smollm2-135m", "tokens": [1800], "seed": 7},
    }
    assert [Outcome(**json.loads(line)) for line in lines[1:]] == [_outcome(index) for index in range(3)]


def test_the_header_is_there_before_any_outcome(path: Path) -> None:
    with Journal.open(path, OUTCOMES, SETTINGS):
        assert path.read_bytes().count(b"\n") == 1


def test_resuming_finds_what_was_done_and_appends_behind_it(path: Path) -> None:
    _written(path)
    with Journal.open(path, OUTCOMES, dict(reversed(SETTINGS.items()))) as results:
        assert results.records == [_outcome(index) for index in range(3)]
        assert list(results.done) == [_outcome(index).key for index in range(3)]
        results.append([_outcome(3)])
        assert _outcome(3).key in results.done
    settings, outcomes = read_journal(path, OUTCOMES)
    assert settings == {"model": "smollm2-135m", "tokens": [1800], "seed": 7}
    assert outcomes == [_outcome(index) for index in range(4)]


def test_an_outcome_is_written_once_only(path: Path) -> None:
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        results.append([_outcome(0)])
        for batch in ([_outcome(0)], [_outcome(1), _outcome(1)]):
            with pytest.raises(ValueError, match="once only"):
                results.append(batch)
    assert len(read_journal(path, OUTCOMES)[1]) == 1


def test_other_settings_are_refused_with_both_values_and_the_file_stays(path: Path) -> None:
    before = _written(path)
    with pytest.raises(UsageError) as refusal:
        Journal.open(path, OUTCOMES, {"model": "smollm2-135m", "tokens": [1800, 4000], "dtype": "bfloat16"})
    assert str(path) in refusal.value.message
    assert "tokens [1800] there, [1800, 4000] now" in refusal.value.message
    assert "seed 7 there, not set now" in refusal.value.message
    assert 'dtype not set there, "bfloat16" now' in refusal.value.message
    assert "model" not in refusal.value.message.replace(str(path), "")
    assert "--out" in str(refusal.value.hint)
    assert "--fresh" in str(refusal.value.hint)
    assert path.read_bytes() == before


@pytest.mark.parametrize("tail", [b'{"subtask": "nee', b'{"subtask": "nee\n', b"\0\0\0\0\n", b"\xff\xfe", b"\n"])
def test_a_torn_last_line_is_cut_off(path: Path, tail: bytes) -> None:
    whole = _written(path)
    path.write_bytes(whole + tail)
    assert len(read_journal(path, OUTCOMES)[1]) == 3
    assert path.read_bytes() == whole + tail  # reading changes nothing
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        assert len(results.records) == 3
        assert path.read_bytes() == whole
        results.append([_outcome(3)])
    assert len(read_journal(path, OUTCOMES)[1]) == 4


def test_a_last_line_without_its_newline_was_not_finished(path: Path) -> None:
    whole = _written(path)
    path.write_bytes(whole[:-1])
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        assert [outcome.index for outcome in results.records] == [0, 1]
        results.append([_outcome(2)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 1, 20, 41, 60, -1])
def test_a_run_killed_within_its_header_starts_anew(path: Path, length: int) -> None:
    with Journal.open(path, OUTCOMES, SETTINGS):
        header = path.read_bytes()
    path.write_bytes(header[:length])
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        assert results.records == []
    assert path.read_bytes() == header


@pytest.mark.parametrize("broken", [b'{"subtask": "nee', b"", b"[1]", b'{"subtask": "x"}', b"NaN"])
def test_a_broken_line_in_the_middle_is_named(path: Path, broken: bytes) -> None:
    lines = _written(path).split(b"\n")
    lines[2] = broken
    path.write_bytes(b"\n".join(lines))
    for act in (lambda: read_journal(path, OUTCOMES), lambda: Journal.open(path, OUTCOMES, SETTINGS)):
        with pytest.raises(UncompError, match=r"run\.jsonl: line 3 is not a result"):
            act()
    assert path.read_bytes() == b"\n".join(lines)


def test_lines_with_wrong_fields_or_given_twice_are_named(path: Path) -> None:
    header, first, *_ = _written(path).splitlines(keepends=True)
    record = json.loads(first)
    for line in ({**record, "tokens": "many"}, {**record, "metrics": {"nll": "low"}}, {**record, "newer": 1}):
        path.write_bytes(header + json.dumps(line).encode() + b"\n")
        with pytest.raises(UncompError, match="line 2 is not a result"):
            read_journal(path, OUTCOMES)
    path.write_bytes(header + first + first)
    with pytest.raises(UncompError, match="line 3 repeats line 2"):
        read_journal(path, OUTCOMES)


@pytest.mark.parametrize(
    "content", [b"My thesis.\n", b"My thesis", b'{"kind": "other"}\n', b"\x89PNG\r\n\x1a\n\0", b"[]\n"]
)
def test_a_file_of_another_kind_is_refused_and_not_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = path.stat()
    for act in (
        lambda: Journal.open(path, OUTCOMES, SETTINGS),
        lambda: read_journal(path, OUTCOMES),
        lambda: set_aside(path, OUTCOMES),
    ):
        with pytest.raises(UsageError, match="is not a results file"):
            act()
    assert path.read_bytes() == content
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert list(path.parent.iterdir()) == [path]


def test_another_schema_is_refused_and_can_be_set_aside(path: Path) -> None:
    path.write_bytes(_written(path).replace(b'"schema_version": 1', b'"schema_version": 2'))
    with pytest.raises(UsageError, match="schema version 2; this uncomp reads 1"):
        Journal.open(path, OUTCOMES, SETTINGS)
    assert set_aside(path, OUTCOMES) is not None


def test_places_that_cannot_be_written_or_read_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UncompError, match="cannot be written: No such file") as caught:
        Journal.open(tmp_path / "missing" / "run.jsonl", OUTCOMES, SETTINGS)
    assert caught.value.hint == f"make its directory first: mkdir -p {tmp_path / 'missing'}"
    with pytest.raises(UncompError, match="cannot be written: Is a directory"):
        Journal.open(tmp_path, OUTCOMES, SETTINGS)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_journal(tmp_path / "run.jsonl", OUTCOMES)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for act in (lambda: Journal.open(pipe, OUTCOMES, SETTINGS), lambda: set_aside(pipe, OUTCOMES)):
        with pytest.raises(UsageError, match="not a regular file"):
            act()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_named_and_not_written(path: Path, value: float) -> None:
    before = _written(path)
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        with pytest.raises(UncompError, match=rf"uniform/window 20% on needle/uuid 9 .*: nll {value}"):
            results.append([_outcome(8), _outcome(9, nll=value)])
        assert len(results.done) == 3
    assert path.read_bytes() == before


def test_two_runs_cannot_write_one_file(path: Path) -> None:
    with Journal.open(path, OUTCOMES, SETTINGS) as results:
        for act in (lambda: Journal.open(path, OUTCOMES, SETTINGS), lambda: set_aside(path, OUTCOMES)):
            with pytest.raises(UncompError, match="being written by another") as refusal:
                act()
            assert "--out" in str(refusal.value.hint)
        results.append([_outcome(0)])
    assert len(read_journal(path, OUTCOMES)[1]) == 1
    _written_again = Journal.open(path, OUTCOMES, SETTINGS)
    _written_again.close()
    _written_again.close()


def test_setting_aside_keeps_every_older_file(path: Path) -> None:
    assert set_aside(path, OUTCOMES) is None
    contents = []
    for count in (1, 2, 3):
        contents.append(_written(path, count))
        assert set_aside(path, OUTCOMES) == path.with_name(f"run.{count}.jsonl")
    assert not path.exists()
    assert [path.with_name(f"run.{count}.jsonl").read_bytes() for count in (1, 2, 3)] == contents


def _write_on(path: Path, said: Connection) -> None:
    """Append for ever, and say each index that was written."""
    with Journal.open(path, OUTCOMES, {"seed": 1}) as results:
        for index in range(len(results.records) // 2, 1_000_000):
            batch = [
                Outcome(
                    "needle/uuid", index, "aware", name, name, "20%", 1800, 0.5, 0.2, 4096, {"nll": 0.1},
                    [[0.5] * 9] * 30,
                )
                for name in ("full", "window")
            ]  # fmt: skip
            results.append([outcome for outcome in batch if outcome.key not in results.done])
            said.send(index)


def _write_until_killed(path: Path, *, lines: int, grace_s: float) -> int:
    """Let a child append until it has said `lines` times that a batch was written; the last index that it named."""
    heard, said = fork_server().Pipe(duplex=False)
    child = fork_server().Process(target=_write_on, args=(path, said))
    child.start()
    said.close()
    last = [heard.recv() for _ in range(lines)][-1]
    time.sleep(grace_s)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    while heard.poll():
        try:
            last = heard.recv()
        except EOFError:
            break
    return int(last)


def test_a_run_killed_in_mid_write_loses_nothing_and_doubles_nothing(path: Path) -> None:
    for grace_s in (0.0, 0.013, 0.021):
        last = _write_until_killed(path, lines=20, grace_s=grace_s)
        with Journal.open(path, OUTCOMES, {"seed": 1}) as results:
            written = {(outcome.index, outcome.setting) for outcome in results.records}
            assert len(written) == len(results.records)
            promised = {(index, name) for index in range(last + 1) for name in ("full", "window")}
            assert promised <= written
            assert len(written - promised) <= 2  # at most the batch that was written and not yet announced


def _fill_the_disk(path: Path, said: Connection) -> None:
    """Write until a limit on the file's size, and say what that was like."""

    def outcome(index: int) -> Outcome:
        return Outcome("needle/uuid", index, "aware", "full", "full", "full", 1800, 0.5, 1.0, 4096, answer="x" * 300)

    with Journal.open(path, OUTCOMES, {"seed": 1}) as results:
        results.append([outcome(0)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 700, resource.RLIM_INFINITY))
        try:
            results.append([outcome(index) for index in range(1, 5)])
        except UncompError as error:
            said.send((error.message, len(results.done), path.read_bytes().count(b"\n")))
        results.append([outcome(1)])


def test_a_full_disk_leaves_no_part_of_a_batch(path: Path) -> None:
    heard, said = fork_server().Pipe(duplex=False)
    child = fork_server().Process(target=_fill_the_disk, args=(path, said))
    child.start()
    child.join()
    assert (child.exitcode, heard.poll()) == (0, True)
    assert heard.recv() == (f"{path} cannot be written: No space left on device", 1, 2)
    with Journal.open(path, OUTCOMES, {"seed": 1}) as results:
        assert [outcome.index for outcome in results.records] == [0, 1]


# Cells of `uncomp rope`

TINY = {"model": "tiny", "seed": 7}
TEXT = TextCell("yarn:2", 2048, [(513, 2.5)], {"1024": [[[0.5, 0.5]]]}, 512, 4096, 1.5)


def needle(index: int, nll: float = 0.25) -> NeedleCell:
    return NeedleCell("yarn:2", 2048, 0.5, index, nll, 1.0, " 1\u2028é", 0.5, 3.0, None, [[0.5]], 4096, 1.0, 2.0)


@pytest.fixture
def rope(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    with Journal.open(path, CELLS, TINY) as results:
        results.append([TEXT, needle(0)])
    return path


def test_cells_come_back_as_they_were(rope: Path) -> None:
    settings, cells = read_journal(rope, CELLS)
    assert settings == TINY
    text, first = cells
    assert first == needle(0)
    assert isinstance(text, TextCell)
    assert (text.patterns, [tuple(pair) for pair in text.losses]) == (TEXT.patterns, TEXT.losses)


def test_a_torn_cell_is_cut_off_and_it_is_missing(rope: Path) -> None:
    whole = rope.read_bytes()
    rope.write_bytes(whole + b'{"cell": "needle", "arm"')
    assert len(read_journal(rope, CELLS)[1]) == 2
    with Journal.open(rope, CELLS, TINY) as results:
        assert results.done.keys() == {TEXT.key, needle(0).key}
        results.append([needle(1)])
    assert [json.loads(line).get("index") for line in rope.read_bytes().splitlines()[1:]] == [None, 0, 1]
    assert rope.read_bytes().startswith(whole)


def test_a_header_of_cells_that_was_never_finished_is_written_anew(rope: Path) -> None:
    rope.write_bytes(rope.read_bytes()[:20])
    with Journal.open(rope, CELLS, TINY) as results:
        assert results.records == []
    assert read_journal(rope, CELLS) == (TINY, [])


@pytest.mark.parametrize(
    "line",
    [b'{"cell": "other"}\n', b'{"cell": "needle", "arm": "plain"}\n', b"[]\n", b"no json\n"],
)
def test_a_broken_cell_in_the_middle_is_named_and_nothing_is_changed(rope: Path, line: bytes) -> None:
    header, *cells = rope.read_bytes().splitlines(keepends=True)
    rope.write_bytes(header + line + b"".join(cells))
    before = rope.read_bytes()
    with pytest.raises(UncompError, match="line 2"):
        Journal.open(rope, CELLS, TINY)
    assert rope.read_bytes() == before


def test_other_settings_and_other_files_than_cells_are_refused_and_stay(rope: Path) -> None:
    before = rope.read_bytes()
    with pytest.raises(UsageError, match="seed 7 there, 8 now"):
        Journal.open(rope, CELLS, {**TINY, "seed": 8})
    assert rope.read_bytes() == before
    rope.write_text("a letter\n")
    with pytest.raises(UsageError, match="not a results file of uncomp rope"):
        Journal.open(rope, CELLS, TINY)
    assert rope.read_text() == "a letter\n"


def test_cells_in_use_are_refused(rope: Path) -> None:
    with Journal.open(rope, CELLS, TINY), pytest.raises(UncompError, match="another uncomp rope"):
        Journal.open(rope, CELLS, TINY)


def test_a_cell_whose_score_is_no_number_is_not_written(rope: Path) -> None:
    before = rope.read_bytes()
    with Journal.open(rope, CELLS, TINY) as results, pytest.raises(UncompError, match="no number"):
        results.append([needle(2, nll=float("nan"))])
    assert rope.read_bytes() == before


# Answers of `uncomp calibrate --risk`

LINE = RiskLine("a", "needle/uuid", 400, None, True, False, " 12", {})
PRESET = {"rope": "repack", "preset": {"name": "mine", "scorer": {"window": 32, "pooling": "mean"}}}


def test_of_settings_within_settings_only_what_differs_is_told(path: Path) -> None:
    Journal.open(path, ANSWERS, PRESET).close()
    now = {"rope": "repack", "preset": {"name": "mine", "scorer": {"window": 16, "pooling": "mean"}}}
    with pytest.raises(UsageError) as refusal:
        Journal.open(path, ANSWERS, now)
    assert refusal.value.message == f"{path} holds results of other settings: preset.scorer.window 32 there, 16 now"


@pytest.mark.parametrize(("more", "less"), [({"newer": 1}, ""), ({}, "wrong")])
def test_an_answer_with_other_fields_is_named(path: Path, more: dict[str, object], less: str) -> None:
    Journal.open(path, ANSWERS, PRESET).close()
    line = {key: value for key, value in {**ANSWERS.plain(LINE), **more}.items() if key != less}
    with path.open("ab") as stream:
        stream.write(json.dumps(line).encode() + b"\n")
    with pytest.raises(UncompError, match="line 2 is not a result"):
        Journal.open(path, ANSWERS, PRESET)


def test_whatever_lies_in_a_place_of_ours_is_set_aside_whole(path: Path) -> None:
    path.write_bytes(b"My thesis.\n")
    assert set_aside(path, ANSWERS, whatever=True) == path.with_name("run.1.jsonl")
    assert path.with_name("run.1.jsonl").read_bytes() == b"My thesis.\n"
    assert not path.exists()


def test_a_journal_of_one_kind_is_none_of_another(path: Path) -> None:
    before = _written(path)
    with pytest.raises(UsageError, match="is not a results file of uncomp rope"):
        Journal.open(path, CELLS, SETTINGS)
    with pytest.raises(UsageError, match="is not a results file of uncomp calibrate"):
        read_journal(path, ANSWERS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("settings", ["[]", '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "[" * 500 + "]" * 500 + "}"])
def test_settings_that_are_none_are_refused(path: Path, settings: str) -> None:
    path.write_text(f'{{"schema_version": 1, "kind": "uncomp eval", "settings": {settings}}}\n')
    with pytest.raises(UsageError, match="settings") as caught:
        read_journal(path, OUTCOMES)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", -1), ("tokens", 10**400), ("regime", "both"), ("kept_fraction", 1e300), ("metrics", {"nll": None}),
        ("coverage_by_head", [[0.5], "x"]), ("depth", "0"), ("answer", 1), ("kv_bytes", True),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(path: Path, field: str, value: object) -> None:
    header, line, *_ = _written(path).splitlines()
    path.write_bytes(header + b"\n" + json.dumps({**json.loads(line), field: value}).encode() + b"\n")
    with pytest.raises(UncompError, match=f"line 2 is not a result: {field}"):
        read_journal(path, OUTCOMES)


def test_a_pipe_is_no_results_file(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is not a regular file"):
        read_journal(path, OUTCOMES)


def test_answers_with_other_signs_are_none(path: Path) -> None:
    with pytest.raises(UsageError, match="has other signs than"):
        replace(LINE, signs={"attention": 0.5})
