"""`uncomp ask` with several answers at once: in order, file by file, with what fails told and the rest kept."""

import re
from pathlib import Path
from typing import Any

import pytest

from support.commands import ENDLESS, Ask, Running, records, start
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.write.writer import Writer

FILES = {"first.txt": "harbour ", "second.txt": "winter lantern ", "third.txt": "bridge of stone "}
ASKED = ("--max-new-tokens", "12")


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    for name, words in FILES.items():
        Path(name).write_text(words * 30)


def all_files(*more: str) -> list[str]:
    return [part for name in (*FILES, *more) for part in ("-f", name)]


def test_each_file_is_a_context_of_its_own(ask: Ask) -> None:
    code, out, _ = ask(*all_files(), "--each", "Where?", "-Q", "When was it?", "--json")
    assert code == 0
    found = records(out)
    assert [(r["files"][0]["path"], r["question"]) for r in found] == [
        (name, question) for name in FILES for question in ("Where?", "When was it?")
    ]
    assert [len(r["files"]) for r in found] == [1] * 6
    for name in FILES:
        code, out, _ = ask("-f", name, "Where?", "-Q", "When was it?", "--json")
        assert code == 0
        own = [r for r in found if r["files"][0]["path"] == name]
        for beside, by_itself in zip(own, records(out), strict=True):
            assert beside["answer"] == by_itself["answer"]
            assert beside["files"] == by_itself["files"]
            assert beside["usage"] == by_itself["usage"]
            assert beside["compression"] == by_itself["compression"]
    timing = [r["timing"] for r in found]
    assert [t["prefill_s"] > 0 for t in timing] == [True, False] * 3
    waited = [t["total_s"] - t["ttft_s"] - 11 / t["decode_tok_s"] for t in timing]
    assert waited == pytest.approx([timing[0]["load_s"], 0, 0, 0, 0, 0], abs=1e-6)


def test_each_file_is_introduced(ask: Ask) -> None:
    code, out, err = ask(*all_files(), "--each", "Where?")
    assert code == 0
    assert re.fullmatch(r"[a-z]{12}\n\n[a-z]{12}\n\n[a-z]{12}\n", out)
    lines = err.splitlines()
    assert [line for line in lines if line.endswith(": Where?")] == [f"{name}: Where?" for name in FILES]
    assert [line.split(": budget")[0] for line in lines if ": budget" in line] == list(FILES)
    assert sum(" tok in " in line for line in lines) == 3


def test_a_file_that_does_not_fit_is_told_and_the_others_go_on(ask: Ask) -> None:
    Path("long.txt").write_text("word " * 900)
    code, out, err = ask("-f", "long.txt", *all_files(), "--each", "Where?", "--json")
    assert code == 3
    assert [r["files"][0]["path"] for r in records(out)] == ["long.txt", *FILES]
    assert [list(r) for r in records(out) if "answer" not in r] == [["schema_version", "question", "files", "error"]]
    assert re.search(r"^error: long\.txt: the prompt has 4,5\d\d tokens", err, re.MULTILINE)
    code, out, err = ask(*all_files("long.txt"), "--each", "Where?")
    assert code == 3
    assert out.count("\n\n") == 2
    assert err.index("third.txt: Where?") < err.index("error: long.txt")


def test_memory_that_runs_out_for_one_file(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Reader._hold

    def fail(self: Reader, *args: Any) -> None:
        if len(self.planned.prompt.context) > 450:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        hold(self, *args)

    monkeypatch.setattr(Reader, "_hold", fail)
    code, out, err = ask(*all_files(), "--each", "-b", "full", "--thin", "none", "Where?", "--json")
    assert code == 4
    assert [(r["files"][0]["path"], "answer" in r) for r in records(out)] == [
        ("first.txt", True),
        ("second.txt", False),
        ("third.txt", False),
    ]
    told = [line for line in err.splitlines() if line.startswith("error")]
    assert [line.split(":")[1] for line in told] == [" second.txt", " third.txt"]
    assert all("memory" in line for line in told)


def test_memory_that_runs_out_while_answering(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, calls = Writer._decode, []

    def fail(self: Writer) -> Any:
        calls.append(0)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return advance(self)

    monkeypatch.setattr(Writer, "_decode", fail)
    code, out, err = ask(*all_files(), "--each", "Where?")
    assert code == 4
    assert re.fullmatch(r"[a-z]{5}\n\n[a-z]{12}\n\n[a-z]{12}\n", out)  # the others are answered one by one
    assert [line for line in err.splitlines() if line.startswith("error")] == ["error: first.txt: out of memory"]


@pytest.mark.parametrize("mode", ["", "--each"])
def test_a_bound_on_the_cache_changes_no_answer(ask: Ask, mode: str) -> None:
    args = [*all_files(), "Where?", "-Q", "When?", "-Q", "Who was that?", "--json", "-b", "full", *mode.split()]
    code, out, _ = ask(*args)
    assert code == 0
    free = records(out)
    for bound in ("1800KiB", "2200KiB", "3MiB"):
        code, out, err = ask(*args, "--kv-mem", bound)
        assert code == 0, err
        assert [r["answer"] for r in records(out)] == [r["answer"] for r in free]
        assert all(r["memory"]["kv_bytes"] <= _bytes(bound) for r in records(out))


def _bytes(text: str) -> int:
    return int(text[:-3]) * {"KiB": 2**10, "MiB": 2**20}[text[-3:]]


def test_a_chunk_is_said_and_recorded(ask: Ask) -> None:
    args = [*all_files(), "Where?", "-b", "50%", "--json"]
    code, out, err = ask(*args, "--chunk", "200")
    assert code == 0
    (record,) = records(out)
    assert record["compression"]["chunk_tokens"] == 200
    assert re.search(r"^reading 200 of 1,\d\d\d tokens at a time \(\d chunks\)$", err, re.MULTILINE)
    code, out, err = ask(*args)
    assert records(out)[0]["compression"]["chunk_tokens"] is None
    assert "at a time" not in err


def test_a_cache_of_constant_size(ask: Ask) -> None:
    args = [*all_files(), "Where?", "-Q", "When?", "-b", "5%", "--json", "--max-new-tokens", "300"]
    grown = records(ask(*args, "--kv-mem", "4MiB")[1])
    code, out, err = ask(*args, "--constant-size")
    assert code == 0, err
    held = records(out)
    assert [r["usage"]["completion_tokens"] for r in held] == [300, 300]
    for constant, growing in zip(held, grown, strict=True):
        assert constant["memory"]["kv_bytes"] < growing["memory"]["kv_bytes"]
        assert constant["answer"][:60] == growing["answer"][:60]


def test_thinning_is_recorded(ask: Ask) -> None:
    args = [*all_files(), "Where?", "-b", "50%", "--json"]
    code, out, _ = ask(*args, "--thin", "gather:after=2,keep=0.5")
    assert code == 0
    compression = records(out)[0]["compression"]
    assert compression["thinning"] == "gather:after=2,keep=0.5"
    assert compression["hidden_kept_fraction"] == pytest.approx(0.75, abs=0.02)
    plain = records(ask(*args, "--thin", "none")[1])[0]["compression"]
    assert (plain["thinning"], plain["hidden_kept_fraction"]) == ("none", 1.0)


def test_a_plan_for_each_file(ask: Ask) -> None:
    Path("long.txt").write_text("word " * 900)
    code, out, err = ask(*all_files("long.txt"), "--each", "--dry-run", "--json", "Where?")
    assert code == 3
    assert [(r["files"][0]["path"], r["fits"]) for r in records(out)] == [
        ("first.txt", True), ("second.txt", True), ("third.txt", True), ("long.txt", False),
    ]  # fmt: skip
    assert err.count("error: ") == 1
    code, out, _ = ask(*all_files(), "--dry-run", "--json", "--chunk", "200", "Where?")
    (record,) = records(out)
    assert (code, record["chunk_tokens"]) == (0, 200)


def test_the_first_answer_streams_while_the_others_are_written(tiny_model: Path, long_lived: list[Running]) -> None:
    args = ["-m", str(tiny_model), "-f", "first.txt", "Where?", "-Q", "When?", *ENDLESS, "--max-new-tokens", "3500"]
    running = start("ask", *args)
    long_lived.append(running)
    running.wait_for_bytes("stdout")
    running.interrupt()
    code, out, err = running.finish()
    assert code == 130
    first, second = out.split("\n\n")
    assert 0 < len(first) <= 3400
    assert abs(len(first) - len(second.rstrip("\n"))) <= 1
    assert err.count("[interrupted]\n") == 2


def test_ctrl_c_keeps_the_answers_that_were_finished(tiny_model: Path, long_lived: list[Running]) -> None:
    """With room for one row, the first is finished when the second is interrupted, and the third never begins."""
    Path("short.txt").write_text("The harbour was quiet. " * 150)  # leaves about 500 tokens for an answer
    args = ["-m", str(tiny_model), "-f", "short.txt", "-b", "full", "--json", "--kv-mem", "4200KiB"]
    running = start("ask", *args, "Where?", "-Q", "When?", "-Q", "Who?", *ENDLESS, "--max-new-tokens", "300")
    long_lived.append(running)
    running.wait_for("stdout", "Where?")
    running.interrupt()
    code, out, _ = running.finish()
    assert code == 130
    assert [(r["question"], r["finish_reason"]) for r in records(out)] in (
        [("Where?", "length")], [("Where?", "length"), ("When?", "interrupted")],
    )  # fmt: skip
