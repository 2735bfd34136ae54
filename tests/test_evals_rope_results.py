"""The results file of `uncomp rope`: continued, torn, broken, of other settings, in use."""

import json
from pathlib import Path

import pytest

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.rope.cells import NeedleCell, TextCell
from uncomp_cli.evals.rope.rope_results import RopeResults, read_rope_results

SETTINGS = {"model": "tiny", "seed": 7}
TEXT = TextCell("yarn:2", 2048, [(513, 2.5)], {"1024": [[[0.5, 0.5]]]}, 512, 4096, 1.5)


def needle(index: int, nll: float = 0.25) -> NeedleCell:
    return NeedleCell("yarn:2", 2048, 0.5, index, nll, 1.0, " 1\u2028é", 0.5, 3.0, None, [[0.5]], 4096, 1.0, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "r.jsonl"
    with RopeResults.open(path, SETTINGS) as results:
        results.append(TEXT)
        results.append(needle(0))
    return path


def test_cells_come_back_as_they_were(path: Path) -> None:
    settings, cells = read_rope_results(path)
    assert settings == SETTINGS
    text, first = cells
    assert first == needle(0)
    assert isinstance(text, TextCell)
    assert (text.patterns, [tuple(pair) for pair in text.losses]) == (TEXT.patterns, TEXT.losses)


def test_a_torn_line_is_cut_off_and_its_cell_is_missing(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"cell": "needle", "arm"')
    assert len(read_rope_results(path)[1]) == 2
    with RopeResults.open(path, SETTINGS) as results:
        assert results.done == {TEXT.key, needle(0).key}
        results.append(needle(1))
    assert [json.loads(line).get("index") for line in path.read_bytes().splitlines()[1:]] == [None, 0, 1]
    assert path.read_bytes().startswith(whole)


def test_a_header_that_was_never_finished_is_written_anew(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])
    with RopeResults.open(path, SETTINGS) as results:
        assert results.cells == []
    assert read_rope_results(path) == (SETTINGS, [])


@pytest.mark.parametrize(
    "line",
    [b'{"cell": "other"}\n', b'{"cell": "needle", "arm": "plain"}\n', b"[]\n", b"no json\n"],
)
def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(path: Path, line: bytes) -> None:
    header, *cells = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + line + b"".join(cells))
    before = path.read_bytes()
    with pytest.raises(UncompError, match="line 2"):
        RopeResults.open(path, SETTINGS)
    assert path.read_bytes() == before


def test_other_settings_and_other_files_are_refused_and_stay(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError, match="seed 7 there, 8 now"):
        RopeResults.open(path, {**SETTINGS, "seed": 8})
    assert path.read_bytes() == before
    path.write_text("a letter\n")
    with pytest.raises(UsageError, match="not a results file of uncomp rope"):
        RopeResults.open(path, SETTINGS)
    assert path.read_text() == "a letter\n"


def test_a_file_in_use_is_refused(path: Path) -> None:
    with RopeResults.open(path, SETTINGS), pytest.raises(UncompError, match="another uncomp rope"):
        RopeResults.open(path, SETTINGS)


def test_a_score_that_is_no_number_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    with RopeResults.open(path, SETTINGS) as results, pytest.raises(UncompError, match="no number"):
        results.append(needle(2, nll=float("nan")))
    assert path.read_bytes() == before
