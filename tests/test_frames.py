"""How deep a token's road is: from the function of `uncomp ask` down to the one that attends, in a run of the command.

What parses the command line before (cli/app.py, cli/declare) is left out: other commands pass it too. The attention
function itself counts, or, where a token is one call of the library, the function that calls it.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import uncomp_cli
from support.native import fresh_library
from uncomp_cli.cli.app import run
from uncomp_cli.engine.forward import attention, decoder
from uncomp_cli.engine.forward.program import StepProgram

PACKAGE = Path(uncomp_cli.__file__).parent
MOST_FRAMES, MOST_FILES = 12, 7


def frames(last: tuple[str, str]) -> list[tuple[str, str]]:
    """(file, function) of our own frames that lead here, the outermost first, and the function that is replaced."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.append((str(path.relative_to(PACKAGE)), frame.f_code.co_name))
        frame = frame.f_back
    road = found[::-1]
    return [*road[road.index(("cli/ask.py", "ask")) :], last]


@pytest.fixture(params=[True, False], ids=["one call", "torch"])
def roads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[str, str]]]]:
    """The frames of every token's call of the library, or of every layer's of the attention function."""
    if request.param:
        fresh_library()
    found: list[list[tuple[str, str]]] = []
    attend: Callable[..., Any] = attention._attention_function
    run: Callable[..., Any] = StepProgram.run

    def noted(module: Any, query: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        if query.shape[2] == 1:
            assert not request.param
            found.append(frames(("engine/forward/attention.py", "_attention_function")))
        return attend(module, query, *args, **keywords)

    def noted_run(*args: Any) -> Any:
        found.append(frames(("engine/forward/program.py", "run")))
        return run(*args)

    monkeypatch.setattr(attention, "_attention_function", noted)
    monkeypatch.setattr(StepProgram, "run", noted_run)
    if not request.param:
        monkeypatch.setattr(decoder, "find", lambda: None)
    yield found
    monkeypatch.undo()
    attention.register()  # transformers would keep the one that notes


def test_a_token_passes_few_of_our_frames(
    roads: list[list[tuple[str, str]]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "notes.txt"
    document.write_text("The harbour was quiet. " * 20)
    assert run(["ask", "-m", str(tiny_model), "-f", str(document), "--max-new-tokens", "4", "Where?"]) == 0
    assert len(roads) >= 3
    assert max(map(len, roads)) <= MOST_FRAMES, roads[-1]
    assert max(len({file for file, _ in road}) for road in roads) <= MOST_FILES, roads[-1]
