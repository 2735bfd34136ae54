"""The results file: resumed, torn, refused, locked, killed with SIGKILL, and on a full disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.results import ResultsFile, read_results, set_aside

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
    with ResultsFile.open(path, SETTINGS) as results:
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
    with ResultsFile.open(path, SETTINGS):
        assert path.read_bytes().count(b"\n") == 1


def test_resuming_finds_what_was_done_and_appends_behind_it(path: Path) -> None:
    _written(path)
    with ResultsFile.open(path, dict(reversed(SETTINGS.items()))) as results:
        assert results.outcomes == [_outcome(index) for index in range(3)]
        assert results.done == {("needle/uuid", 1800, index, "aware", "uniform/window 20%") for index in range(3)}
        results.append([_outcome(3)])
        assert _outcome(3).key in results.done
    settings, outcomes = read_results(path)
    assert settings == {"model": "smollm2-135m", "tokens": [1800], "seed": 7}
    assert outcomes == [_outcome(index) for index in range(4)]


def test_an_outcome_is_written_once_only(path: Path) -> None:
    with ResultsFile.open(path, SETTINGS) as results:
        results.append([_outcome(0)])
        for batch in ([_outcome(0)], [_outcome(1), _outcome(1)]):
            with pytest.raises(ValueError, match="once only"):
                results.append(batch)
    assert len(read_results(path)[1]) == 1


def test_other_settings_are_refused_with_both_values_and_the_file_stays(path: Path) -> None:
    before = _written(path)
    with pytest.raises(UsageError) as refusal:
        ResultsFile.open(path, {"model": "smollm2-135m", "tokens": [1800, 4000], "dtype": "bfloat16"})
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
    assert len(read_results(path)[1]) == 3
    assert path.read_bytes() == whole + tail  # reading changes nothing
    with ResultsFile.open(path, SETTINGS) as results:
        assert len(results.outcomes) == 3
        assert path.read_bytes() == whole
        results.append([_outcome(3)])
    assert len(read_results(path)[1]) == 4


def test_a_last_line_without_its_newline_was_not_finished(path: Path) -> None:
    whole = _written(path)
    path.write_bytes(whole[:-1])
    with ResultsFile.open(path, SETTINGS) as results:
        assert [outcome.index for outcome in results.outcomes] == [0, 1]
        results.append([_outcome(2)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 1, 20, 41, 60, -1])
def test_a_run_killed_within_its_header_starts_anew(path: Path, length: int) -> None:
    with ResultsFile.open(path, SETTINGS):
        header = path.read_bytes()
    path.write_bytes(header[:length])
    with ResultsFile.open(path, SETTINGS) as results:
        assert results.outcomes == []
    assert path.read_bytes() == header


@pytest.mark.parametrize("broken", [b'{"subtask": "nee', b"", b"[1]", b'{"subtask": "x"}', b"NaN"])
def test_a_broken_line_in_the_middle_is_named(path: Path, broken: bytes) -> None:
    lines = _written(path).split(b"\n")
    lines[2] = broken
    path.write_bytes(b"\n".join(lines))
    for act in (lambda: read_results(path), lambda: ResultsFile.open(path, SETTINGS)):
        with pytest.raises(UncompError, match=r"run\.jsonl: line 3 is not a result"):
            act()
    assert path.read_bytes() == b"\n".join(lines)


def test_lines_with_wrong_fields_or_given_twice_are_named(path: Path) -> None:
    header, first, *_ = _written(path).splitlines(keepends=True)
    record = json.loads(first)
    for line in ({**record, "tokens": "many"}, {**record, "metrics": {"nll": "low"}}, {**record, "newer": 1}):
        path.write_bytes(header + json.dumps(line).encode() + b"\n")
        with pytest.raises(UncompError, match="line 2 is not a result"):
            read_results(path)
    path.write_bytes(header + first + first)
    with pytest.raises(UncompError, match="line 3 repeats line 2"):
        read_results(path)


@pytest.mark.parametrize(
    "content", [b"My thesis.\n", b"My thesis", b'{"kind": "other"}\n', b"\x89PNG\r\n\x1a\n\0", b"[]\n"]
)
def test_a_file_of_another_kind_is_refused_and_not_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = path.stat()
    for act in (lambda: ResultsFile.open(path, SETTINGS), lambda: read_results(path), lambda: set_aside(path)):
        with pytest.raises(UsageError, match="is not a results file"):
            act()
    assert path.read_bytes() == content
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert list(path.parent.iterdir()) == [path]


def test_another_schema_is_refused_and_can_be_set_aside(path: Path) -> None:
    path.write_bytes(_written(path).replace(b'"schema_version": 1', b'"schema_version": 2'))
    with pytest.raises(UsageError, match="schema version 2; this uncomp reads 1"):
        ResultsFile.open(path, SETTINGS)
    assert set_aside(path) is not None


def test_places_that_cannot_be_written_or_read_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UncompError, match="cannot be written: No such file"):
        ResultsFile.open(tmp_path / "missing" / "run.jsonl", SETTINGS)
    with pytest.raises(UncompError, match="cannot be written: Is a directory"):
        ResultsFile.open(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_results(tmp_path / "run.jsonl")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for act in (lambda: ResultsFile.open(pipe, SETTINGS), lambda: set_aside(pipe)):
        with pytest.raises(UsageError, match="not a regular file"):
            act()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_named_and_not_written(path: Path, value: float) -> None:
    before = _written(path)
    with ResultsFile.open(path, SETTINGS) as results:
        with pytest.raises(UncompError, match=rf"uniform/window 20% on needle/uuid 9 .*: nll {value}"):
            results.append([_outcome(8), _outcome(9, nll=value)])
        assert len(results.done) == 3
    assert path.read_bytes() == before


def test_two_runs_cannot_write_one_file(path: Path) -> None:
    with ResultsFile.open(path, SETTINGS) as results:
        for act in (lambda: ResultsFile.open(path, SETTINGS), lambda: set_aside(path)):
            with pytest.raises(UncompError, match="being written by another") as refusal:
                act()
            assert "--out" in str(refusal.value.hint)
        results.append([_outcome(0)])
    assert len(read_results(path)[1]) == 1
    _written_again = ResultsFile.open(path, SETTINGS)
    _written_again.close()
    _written_again.close()


def test_setting_aside_keeps_every_older_file(path: Path) -> None:
    assert set_aside(path) is None
    contents = []
    for count in (1, 2, 3):
        contents.append(_written(path, count))
        assert set_aside(path) == path.with_name(f"run.{count}.jsonl")
    assert not path.exists()
    assert [path.with_name(f"run.{count}.jsonl").read_bytes() for count in (1, 2, 3)] == contents


_WRITER = """
import sys
from pathlib import Path
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.results import ResultsFile

with ResultsFile.open(Path(sys.argv[1]), {"seed": 1}) as results:
    for index in range(len(results.outcomes) // 2, 1_000_000):
        batch = [Outcome("needle/uuid", index, "aware", name, name, "20%", 1800, 0.5, 0.2, 4096, {"nll": 0.1},
                         [[0.5] * 9] * 30) for name in ("full", "window")]
        results.append([outcome for outcome in batch if outcome.key not in results.done])
        print(index, flush=True)
"""


def _write_until_killed(path: Path, *, lines: int, grace_s: float) -> int:
    """Let a child append until it has said `lines` times that a batch was written; the last index that it named."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(lines)]
        time.sleep(grace_s)
        child.send_signal(signal.SIGKILL)
        said += map(int, filter(str.strip, child.stdout.read().splitlines()))
    assert child.returncode == -signal.SIGKILL
    return said[-1]


def test_a_run_killed_in_mid_write_loses_nothing_and_doubles_nothing(path: Path) -> None:
    for grace_s in (0.0, 0.013, 0.021):
        last = _write_until_killed(path, lines=20, grace_s=grace_s)
        with ResultsFile.open(path, {"seed": 1}) as results:
            written = {(outcome.index, outcome.setting) for outcome in results.outcomes}
            assert len(written) == len(results.outcomes)
            promised = {(index, name) for index in range(last + 1) for name in ("full", "window")}
            assert promised <= written
            assert len(written - promised) <= 2  # at most the batch that was written and not yet announced


_FULL_DISK = """
import resource, sys
from pathlib import Path
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.results import ResultsFile

def outcome(index):
    return Outcome("needle/uuid", index, "aware", "full", "full", "full", 1800, 0.5, 1.0, 4096, answer="x" * 300)

path = Path(sys.argv[1])
with ResultsFile.open(path, {"seed": 1}) as results:
    results.append([outcome(0)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 700, resource.RLIM_INFINITY))
    try:
        results.append([outcome(index) for index in range(1, 5)])
    except UncompError as error:
        print(error.message, len(results.done), path.read_bytes().count(b"\\n"))
    results.append([outcome(1)])
"""


def test_a_full_disk_leaves_no_part_of_a_batch(path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == f"{path} cannot be written: No space left on device 1 2"
    with ResultsFile.open(path, {"seed": 1}) as results:
        assert [outcome.index for outcome in results.outcomes] == [0, 1]
