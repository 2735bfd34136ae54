"""What is said once on a machine: to a person at a terminal, and to nobody else."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from support.commands import start
from uncomp_cli.asking import startup
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.cli.declare.advice import advise_calibration, advise_model
from uncomp_cli.engine.spend import fitting
from uncomp_cli.errors import OutOfMemoryError
from uncomp_cli.models.footprint import Footprint
from uncomp_cli.ui.console import Terminal


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A person at a terminal who was told nothing yet, with 3 GiB free."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 3 * 2**30)
    plain = replace(Terminal.detect(), stderr=io.StringIO(), stdout=io.StringIO(), stderr_is_terminal=True)
    return replace(plain, colour=False, quiet=False)


def test_the_default_model_is_a_demonstration_once(terminal: Terminal) -> None:
    for other in (replace(terminal, quiet=True), replace(terminal, stderr_is_terminal=False)):
        advise_model(other, "smollm2-135m")
        assert other.stderr.getvalue() == ""
    advise_model(terminal, "qwen3-4b")
    assert terminal.stderr.getvalue() == ""
    for _ in range(2):
        advise_model(terminal, "smollm2-135m")
    assert " ".join(terminal.stderr.getvalue().split()) == (
        "smollm2-135m is a demonstration model; the best known that fits here: uncomp model pull qwen3-4b, "
        "then -m qwen3-4b"
    )


def record(preset: str, *, model: str = "qwen3-4b") -> dict[str, dict[str, object]]:
    return {"model": {"id": model}, "timing": {"prefill_tok_s": 100.0}, "compression": {"preset": preset}}


def test_calibration_is_proposed_once_a_model_with_its_time(terminal: Terminal) -> None:
    """Ten samples of 2,000 tokens, forth and back, at 100 tokens a second."""
    advise_calibration(terminal, "qwen3-4b", record("balanced"))
    assert terminal.stderr.getvalue() == ""
    for model in ("qwen3-4b", "qwen3-4b", "other"):
        advise_calibration(terminal, model, record("live", model=model))
    told = " ".join(terminal.stderr.getvalue().split()).split("no preset was measured on this model; ")
    assert [each.strip() for each in told[1:]] == [
        f"uncomp calibrate -m {model} makes one in about 10 min" for model in ("qwen3-4b", "other")
    ]


def test_an_answer_ends_with_the_proposal(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The harbour was quiet and the lamps were lit. " * 20)
    args = ("ask", "-m", str(tiny_model), "-f", str(tmp_path / "notes.txt"), "--max-new-tokens", "4", "Who?")
    own = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("STATE", "DATA")}  # no preset of another run
    told = [start(*args, stderr="tty", **own).finish()[2] for _ in range(2)]
    assert ["uncomp calibrate -m" in each for each in told] == [True, False]


def test_too_large_weights_name_the_known_model_that_fits(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device: 2**30)
    monkeypatch.setattr("uncomp_cli.models.footprint.footprint", lambda *_, **__: Footprint(None, 2**40))
    with pytest.raises(OutOfMemoryError, match=r"need 1\.0 TiB, 1\.0 GiB are free") as caught:
        startup.weigh(ModelChoice(str(tiny_model)), tiny_model)
    assert "--model llama3.2-1b" in str(caught.value.hint)


@pytest.mark.parametrize(("dtype", "first"), [("auto", ""), ("bfloat16", "--dtype auto, or ")])
def test_nothing_makes_a_files_blocks_smaller(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, first: str
) -> None:
    monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device: 2**30)
    monkeypatch.setattr("uncomp_cli.models.footprint.footprint", lambda *_, **__: Footprint(None, 2**40))
    monkeypatch.setattr("uncomp_cli.models.footprint.has_blocks", lambda path: True)
    with pytest.raises(OutOfMemoryError) as caught:
        startup.weigh(ModelChoice(str(tiny_model), dtype=dtype), tiny_model)
    assert caught.value.hint == f"use {first}the best known model that fits: --model llama3.2-1b"
