"""`uncomp ask --ranks`: processes that share a model answer as one does, and end as one does."""

import os
import re
import signal
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import psutil
import pytest
import torch

from support.commands import ENDLESS, Running, last_object, run_here, start, two_lines
from support.curves import risky
from support.gguf_files import tiny_llama, write_gguf
from uncomp_cli.asking.request import ModelChoice, Request
from uncomp_cli.asking.team import Team
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, ModelError, UncompError
from uncomp_cli.models.ranks import Ranks, environment_of

TEXT = b"The harbour was quiet and the lamps were lit. " * 40
LONG = [*ENDLESS, "--max-new-tokens", "2000"]


def ask(model: Path, *args: str) -> list[str]:
    return ["ask", "Where?", "-m", str(model), *args]


def followers_of(running: Running) -> list[psutil.Process]:
    """The other processes of a command line that runs, which must be one."""
    found = [
        child for child in psutil.Process(running.process.pid).children() if "follower" in " ".join(child.cmdline())
    ]
    assert len(found) == 1
    return found


def are_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_a_piped_document_is_answered_as_by_one_process(tiny_model: Path) -> None:
    wanted = ["--max-new-tokens", "24", "--json", "--evidence", "-p", "live", "--budget", "60%"]
    expected = last_object(start(*ask(tiny_model, *wanted), stdin=TEXT).finish()[1])
    code, out, err = start(*ask(tiny_model, *wanted, "--ranks", "2"), stdin=TEXT).finish()
    assert code == 0, err
    assert out.count("\n") == 1
    assert err.count("starting 2 processes") == 1
    assert "error" not in err
    found = last_object(out)
    for key in ("answer", "files", "usage", "compression", "uncertainty"):
        assert found[key] == expected[key] or key == "usage"
    assert [each["line_start"] for each in found["evidence"]] == [each["line_start"] for each in expected["evidence"]]
    assert found["memory"]["kv_full_bytes"] == expected["memory"]["kv_full_bytes"]
    assert found["memory"]["kv_bytes"] == pytest.approx(expected["memory"]["kv_bytes"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "hangs"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)])
def test_a_signal_ends_all_and_keeps_what_was_said(
    number: int, code: int, hangs: bool, tiny_model: Path, long_lived: list[Running]
) -> None:
    running = start(*ask(tiny_model, "--ranks", "2", "--evidence", *LONG), stdin=TEXT)
    long_lived.append(running)
    running.wait_for_bytes("stdout")
    others = followers_of(running)
    if hangs:
        others[0].suspend()
        sleep(0.5)  # until the command waits for it, inside torch
    os.kill(running.process.pid, number)
    ended, out, err = running.finish()
    assert (ended, out[-1]) == (code, "\n")
    assert "[interrupted]" in err
    assert "no evidence and no account of the bytes" in err
    assert "error" not in err
    assert are_gone(others)


@pytest.mark.slow
def test_who_is_killed_leaves_nothing_behind(tiny_model: Path, tmp_path: Path, long_lived: list[Running]) -> None:
    running = start(*ask(tiny_model, "--ranks", "2", *LONG), stdin=TEXT, TMPDIR=str(tmp_path))
    long_lived.append(running)
    running.wait_for_bytes("stdout")
    others = followers_of(running)
    assert list(tmp_path.glob("uncomp-*"))
    running.process.kill()
    assert are_gone(others)
    assert not list(tmp_path.glob("uncomp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting 2 processes", ""])
def test_a_follower_that_is_killed_ends_all_with_one_error(
    when: str, tiny_model: Path, long_lived: list[Running]
) -> None:
    running = start(*ask(tiny_model, "-Q", "When?", "--ranks", "2", *LONG), stdin=TEXT)
    long_lived.append(running)
    if when:
        running.wait_for("stderr", when)
        wait_for_follower(running)
    else:
        running.wait_for_bytes("stdout")
    followers_of(running)[0].kill()
    code, _, err = running.finish()
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        "error: process 2 of 2 was ended by SIGKILL"
    ]


def wait_for_follower(running: Running) -> None:
    process = psutil.Process(running.process.pid)
    while not any("follower" in " ".join(child.cmdline()) for child in process.children()):
        assert process.is_running()


def team_of(line: bytes, code: int) -> Team:
    """A team whose one follower says a line and ends so."""
    request = Request(model=ModelChoice(ranks=2))
    team = Team(request, DocumentSet(()), ())
    child = SimpleNamespace(hear=lambda: line, process=SimpleNamespace(wait=lambda: code))
    team._listen(1, child)
    return team


def test_what_failed_first_is_told() -> None:
    told = b'{"message": "out of memory", "hint": "use less", "exit_code": 4}\n'
    lost = RuntimeError("Connection closed by peer")
    first = team_of(told, 1)._first(lost)
    assert isinstance(first, UncompError)
    assert (first.message, first.hint, first.exit_code) == ("process 2 of 2: out of memory", "use less", 4)
    assert "ended by SIGKILL" in str(team_of(b"", -9)._first(ModelError("cannot be read: connection closed")))
    refused = DoesNotFitError("too long")
    assert team_of(told, 1)._first(refused) is refused
    assert team_of(b"", 0)._first(lost) is lost


def test_who_is_gone_before_all_have_met_is_not_waited_for() -> None:
    team = team_of(b"", -9)
    with pytest.raises(UncompError, match=r"process 2 of 2 was ended by SIGKILL"):
        team._join(lambda: sleep(2))


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--ranks", "3"], "the 2 KV heads of .* cannot be dealt out to 3 ranks", "use 2 ranks"),
        (["--ranks", "2", "--quantize", "int8"], "only weights in Hugging Face format.*--quantize is int8", "without"),
        (["--ranks", "2", "--weights", "q8"], "only weights in Hugging Face format.*--weights q8", "without"),
        (["--ranks", "2", "--cache", "auto"], "--cache keeps what one process has read", "leave one of them out"),
        (["--ranks", "2", "--device", "cuda:1"], "--ranks 2 and --device cuda:1: .* all ranks run on the CPU", "leave"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(
    options: list[str], message: str, hint: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, out, err = run_here(*ask(tiny_model, *options), stdin=TEXT)
    said, advice = two_lines(err)
    assert (code in (1, 2), out) == (True, "")
    assert re.search(message, said)
    assert hint in advice


def test_a_gguf_file_is_refused(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    code, _, err = run_here(*ask(model), stdin=TEXT, UNCOMP_RANKS="2", UNCOMP_CACHE_DIR=str(tmp_path / "cache"))
    assert code == 2
    assert re.search("only weights in Hugging Face format.* is a GGUF file", two_lines(err)[0])


def test_every_rank_has_a_gpu_of_its_own(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment_of(1) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert environment_of(1) == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for options, why in ((["--ranks", "4"], "--ranks 4 needs as many GPUs, and this machine has 2"),
                         (["--ranks", "2", "--device", "cpu"], "each rank takes a GPU of its own")):  # fmt: skip
        assert why in two_lines(run_here(*ask(tiny_model, *options), stdin=TEXT)[2])[0]


def test_gpus_hold_together_what_each_has_beside_what_each_needs() -> None:
    assert Ranks(0, 4).room(100, beside_bytes=20) == 4 * 80 + 20  # as one memory in which 20 are counted once
    assert Ranks(0, 2).room(100, beside_bytes=200) == 100
    assert Ranks().room(100, beside_bytes=20) == 100


@pytest.mark.slow
def test_what_is_uncertain_is_asked_again_alike(tiny_model: Path, tmp_path: Path) -> None:
    wanted = ["--max-new-tokens", "8", "--escalate", "--why", "--json", "-p", risky(tmp_path, 0.01)]
    found = [
        last_object(start(*ask(tiny_model, *wanted, *more), stdin=TEXT).finish()[1]) for more in ([], ["--ranks", "2"])
    ]
    tries = [each["escalation"] for each in found]
    assert len(tries[0]) == 5
    for first, second in zip(*tries, strict=True):
        assert second["attention_entropy"] == pytest.approx(first["attention_entropy"], rel=1e-4)
        assert second["kv_bytes"] == pytest.approx(first["kv_bytes"], rel=0.05)
        assert second["budget"] == first["budget"]
    assert found[1]["answer"] == found[0]["answer"]
