"""`uncomp ask` answers: right ones from the default model, and figures that agree with each other."""

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.commands import last_object, start
from support.town import CODE, NAME, OTHER, QUESTION, town
from uncomp_cli.asking import pipeline
from uncomp_cli.asking.events import Event
from uncomp_cli.asking.material import describe_files, join_documents
from uncomp_cli.cli.app import run
from uncomp_cli.documents.collection import Document, DocumentSet
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.runnable import LoadedModel

FIELDS = {
    "schema_version": int, "model": dict, "question": str, "files": list, "answer": str, "finish_reason": str,
    "usage": dict, "timing": dict, "memory": dict, "compression": dict, "uncertainty": dict, "evidence": list,
    "warnings": list, "seed": int,
}  # fmt: skip
SUBFIELDS = {
    "model": {"id", "revision", "dtype", "device", "quantization", "weights_error", "rope"},
    "usage": {"prompt_tokens", "cached_tokens", "completion_tokens", "guessed_tokens", "accepted_tokens"},
    "timing": {"load_s", "prefill_s", "ttft_s", "prefill_tok_s", "decode_tok_s", "total_s"},
    "memory": {
        "weights_bytes", "kv_full_bytes", "kv_full_16_bit_bytes", "kv_bytes", "kept_fraction", "kept_of_16_bit",
        "peak_bytes",
    },
    "compression": {
        "policy", "preset", "scorer", "budget_requested", "budget_kept", "floor_tokens", "thinning",
        "hidden_kept_fraction", "chunk_tokens", "reread_tokens", "repeated_tokens", "query_aware", "kv_bits",
        "stands_out",
        "open_question",
    },
    "uncertainty": {
        "attention_entropy", "signs", "signal", "prompt_in_trained_length", "calibrated", "flagged", "word",
        "error_rate", "error_rate_interval",
    },
}  # fmt: skip

Answers = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("town.txt").write_text(town())


def at_once(model: LoadedModel) -> Generator[Event, None, LoadedModel]:
    """A model that need not be loaded."""
    yield from ()
    return model


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], default_model: LoadedModel) -> Answers:
    """Run `uncomp ask` in this process on the default model, whose trained length may be said to be shorter."""

    def run_ask(*args: str, trained_length: int = 8192) -> tuple[int, str, str]:
        spec = replace(default_model.spec, trained_length=trained_length)
        monkeypatch.setattr(pipeline, "load", lambda *_: at_once(replace(default_model, spec=spec)))
        # The model is everybody's, and keeps the products that it is first given.
        code = run(["ask", "-f", "town.txt", "--max-new-tokens", "40", "--matmul", "float32", *args])
        return code, *capsys.readouterr()

    return run_ask


@pytest.mark.model
def test_a_process_finds_the_number_in_a_fifth_of_the_cache(default_model_dir: Path) -> None:
    args = ["ask", "--budget", "20%", "--max-new-tokens", "40", "--json", QUESTION]
    code, out, _ = start(*args, stdin=town().encode()).finish()
    assert code == 0
    assert out.count("\n") == 1
    record = last_object(out)
    assert CODE in record["answer"]
    assert record["finish_reason"] == "stop"
    check_record(record, questions=1)


@pytest.mark.model
def test_two_questions_over_one_prefill(ask: Answers) -> None:
    code, out, _ = ask("--budget", "20%", "--json", QUESTION, "-Q", OTHER)
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert CODE in first["answer"]
    assert NAME in second["answer"]
    assert (first["question"], second["question"]) == (QUESTION, OTHER)
    assert first["usage"]["cached_tokens"] == 0
    assert 500 < second["usage"]["cached_tokens"] < second["usage"]["prompt_tokens"]
    assert second["timing"]["prefill_s"] == 0
    assert second["timing"]["ttft_s"] < first["timing"]["ttft_s"]
    for record in (first, second):
        check_record(record, questions=2)


@pytest.mark.model
def test_what_the_text_has_not_is_told_from_what_it_has(ask: Answers) -> None:
    Path("town.txt").write_text(town(64))
    code, out, err = ask("--json", "--fail-under", "0.5", QUESTION, "-Q", "Who is the bishop of Bergen?")
    found, absent = (json.loads(line)["uncertainty"] for line in out.splitlines())
    assert (found["word"], absent["word"]) == ("sure", "probably not in the document")
    assert found["error_rate"] < 0.5 < absent["error_rate"]
    assert (code, err.count("probably not in the document, so not known to reach --fail-under 0.5")) == (5, 1)


def check_record(record: dict[str, Any], *, questions: int) -> None:
    """Every field is there, and the figures agree."""
    assert {key: type(value) for key, value in record.items()} == FIELDS
    assert {key: set(record[key]) for key in SUBFIELDS} == SUBFIELDS
    usage, timing, memory = record["usage"], record["timing"], record["memory"]
    (file,) = record["files"]
    assert 550 < file["tokens"] < usage["prompt_tokens"] < file["tokens"] + 60
    assert file["truncated"] is False
    entry_bytes = 2 * 64 * 4  # a key and a value of 64 numbers in float32
    seen = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    assert memory["kv_full_bytes"] == 30 * 3 * seen * entry_bytes
    assert memory["kept_fraction"] == memory["kv_bytes"] / memory["kv_full_bytes"]
    assert memory["kept_of_16_bit"] == 2 * memory["kept_fraction"]
    assert 0.2 < memory["kept_fraction"] < (0.30 if questions == 1 else 0.40)
    assert memory["peak_bytes"] > memory["weights_bytes"] > 90e6
    load_s = 0.0 if usage["cached_tokens"] else timing["load_s"]
    assert timing["total_s"] == pytest.approx(
        load_s + timing["ttft_s"] + (usage["completion_tokens"] - 1) / timing["decode_tok_s"]
    )
    assert timing["ttft_s"] >= timing["prefill_s"]
    assert (record["compression"]["budget_requested"], record["compression"]["preset"]) == ("20%", "balanced")
    assert record["uncertainty"]["prompt_in_trained_length"] is True
    assert (record["warnings"], record["seed"], record["schema_version"]) == ([], 0, 1)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(("side", "found"), [("head", True), ("middle", False), ("tail", True)])
def test_what_is_cut_away_is_said_and_not_found(ask: Answers, side: str, found: bool) -> None:
    Path("town.txt").write_text(town(14))
    code, out, err = ask("--truncate", side, "-b", "full", "--json", QUESTION, trained_length=300)
    assert code == 0
    record = last_object(out)
    assert (CODE in record["answer"]) is found
    assert record["files"][0]["truncated"] is True
    assert record["usage"]["prompt_tokens"] == 300 - 40
    (warning,) = record["warnings"]
    assert f"warning: {warning}" in err
    assert warning.startswith(f"--truncate {side}: ")
    first, last = (int(number) for number in warning.rpartition("(")[2].rstrip(")").split(" to "))
    assert last - first == int(warning.split()[2])
    total = record["files"][0]["tokens"]
    assert {"head": first == 0, "middle": abs(first - (total - last)) <= 1, "tail": abs(last - total) <= 1}[side]


@pytest.mark.slow
@pytest.mark.model
def test_a_short_room_for_the_answer_is_said(ask: Answers) -> None:
    whole = json.loads(ask("-b", "full", "--json", "--dry-run", QUESTION)[1])["prompt_tokens"]
    code, out, err = ask("-b", "full", "--json", QUESTION, trained_length=whole + 5)
    record = last_object(out)
    assert code == 0
    assert record["finish_reason"] == "length"
    assert record["usage"]["completion_tokens"] == 5
    assert record["warnings"][0].startswith("the answer may have 5 tokens at most")
    assert f"warning: {record['warnings'][0]}\n" in err


@pytest.fixture
def ask_tiny(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run `uncomp ask --json` on the tiny model; the last object."""

    def run_ask(*args: str) -> dict[str, Any]:
        assert run(["ask", "-m", str(tiny_model), "--max-new-tokens", "20", "--json", *args]) == 0
        return last_object(capsys.readouterr().out)

    return run_ask


def test_sampling_is_reproducible(ask_tiny: Callable[..., dict[str, Any]]) -> None:
    args = ["-f", "town.txt", "Where?", "--temperature", "1.5"]
    seven = ask_tiny(*args, "--seed", "7")
    assert seven["answer"] == ask_tiny(*args, "--seed", "7")["answer"]
    assert seven["answer"] != ask_tiny(*args, "--seed", "8")["answer"]
    assert seven["seed"] == 7


def test_questions_from_a_file_and_the_command_line(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("asked.txt").write_bytes("\ufeffWhen?\n\n  \nWho?\n".encode())
    args = ["ask", "-m", str(tiny_model), "--max-new-tokens", "4", "--json", "-f", "town.txt"]
    assert run([*args, "Where?", "-Q", "Why?", "--questions", "asked.txt"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["Where?", "Why?", "When?", "Who?"]
    assert [record["usage"]["cached_tokens"] > 0 for record in records] == [False, True, True, True]


def test_a_question_is_answered_the_same_alone_and_in_company(ask_tiny: Callable[..., dict[str, Any]]) -> None:
    alone = ask_tiny("-f", "town.txt", "-b", "full", "Where was it?")
    beside = ask_tiny("-f", "town.txt", "-b", "full", "Who was that, and at what time?", "-Q", "Where was it?")
    assert beside["answer"] == alone["answer"]


def test_several_files(ask_tiny: Callable[..., dict[str, Any]]) -> None:
    Path("more").mkdir()
    for name in ("b.md", "a.txt", "c.dat"):
        (Path("more") / name).write_text(f"The {name} of it. " * 5)
    record = ask_tiny("-f", "more", "-f", "town.txt", "--include", "*.md", "--include", "a.*", "Where?")
    assert [file["path"] for file in record["files"]] == ["more/a.txt", "more/b.md", "town.txt"]
    assert all(len(file["sha256"]) == 64 for file in record["files"])
    headers = sum(len(file["path"]) + 3 for file in record["files"]) + 4  # a byte is a token: "[path]\n", and two gaps
    document = sum(file["tokens"] for file in record["files"]) + headers
    assert document < record["usage"]["prompt_tokens"] < document + 60


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (range(0, 9), [True, False, False]),
        (range(0, 20), [True, False, False]),  # ends in the heading of the second
        (range(0, 30), [True, True, False]),
        (range(14, 20), [False, False, False]),
        (range(55, 56), [False, False, True]),
        (range(0, 0), [False, False, False]),
    ],
)
def test_which_file_was_cut(tiny_model: Path, cut: range, expected: list[bool]) -> None:
    documents = DocumentSet(
        tuple(
            Document(name, text, "", None)
            for name, text in [("a", "A" * 10), ("b", "B" * 10), ("c", " " + "C" * 20 + "\n")]
        )
    )
    joined = join_documents(documents)
    assert joined == f"[a]\n{'A' * 10}\n\n[b]\n{'B' * 10}\n\n[c]\n{'C' * 20}"
    described = describe_files(documents, load_tokenizer(tiny_model), cut)
    assert [file["truncated"] for file in described] == expected
    assert [
        any(letter in "ABC" for letter in joined[cut.start : cut.stop] if letter == name) for name in "ABC"
    ] == expected
    assert [file["tokens"] for file in described] == [10, 10, 20]


def test_settings_stand_in_for_flags(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("settings.toml").write_text(f'model = "{tiny_model}"\n[ask]\ntruncate = "tail"\nmax-new-tokens = 4000\n')
    monkeypatch.setenv("UNCOMP_CONFIG", "settings.toml")
    monkeypatch.setenv("UNCOMP_ROPE", "linear:1.25")
    assert run(["ask", "-f", "town.txt", "--dry-run", "--json", "Where?"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["context_length"] == 5120
    assert record["prompt_tokens"] == 1120
    assert record["files"][0]["truncated"] is True


@pytest.mark.parametrize("args", [("--chunk", "200"), ("--scorer", "agreement")], ids=" ".join)
def test_a_plan_shows_the_peak_that_it_is_refused_by(
    args: tuple[str, ...], tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many bytes free it fits; with one less it is refused, or read in shorter chunks that need less."""
    asked = ["ask", "-f", "town.txt", "-m", str(tiny_model), "--dry-run", "--json", "-b", "25%", *args, "Where?"]
    assert run(asked) == 0
    peak = json.loads(capsys.readouterr().out)["expected_peak_bytes"]
    found = []
    for free in (peak, peak - 1):
        monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device, free=free: free)
        run(asked)
        found.append(json.loads(capsys.readouterr().out))
    assert (found[0]["fits"], found[0]["expected_peak_bytes"]) == (True, peak)
    assert not found[1]["fits"] or found[1]["expected_peak_bytes"] < peak


def test_a_plan_costs_no_weights(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(pipeline, "load", never)
    args = ["ask", "-f", "town.txt", "-m", str(tiny_model), "--dry-run", "-b", "25%", "Where?"]
    assert run(args) == 0
    out, _ = capsys.readouterr()
    table = {line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[1].strip() for line in out.splitlines()}
    assert run([*args, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert table["town.txt"] == f"{plan['files'][0]['tokens']:,} tokens"
    assert table["fits"] == "yes"
    assert table["trained length"] == "4,096"
    assert plan["fits"] is True
    assert plan["refusal"] is None
    assert plan["kv_full_bytes"] == plan["prompt_tokens"] * 4 * 2 * 16 * 2 * 4
    assert plan["kv_planned_bytes"] == pytest.approx(plan["kv_full_bytes"] / 4, rel=0.001)
    assert plan["weights_bytes"] < plan["expected_peak_bytes"] < plan["free_bytes"]
    monkeypatch.undo()
    monkeypatch.chdir(tiny_model.parent)
    Path("town.txt").write_text(town())
    assert run([*args[:5], "-b", "25%", "--max-new-tokens", "1", "--json", "Where?"]) == 0
    record = last_object(capsys.readouterr().out)
    assert record["usage"]["prompt_tokens"] == plan["prompt_tokens"]
    assert record["memory"]["weights_bytes"] == pytest.approx(plan["weights_bytes"], rel=0.01)
    assert record["memory"]["kv_full_bytes"] == plan["kv_full_bytes"]


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_a_plan_counts_what_quantizing_takes_beside_the_weights(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, method: str
) -> None:
    pytest.importorskip("bitsandbytes")
    args = ["ask", "-f", "town.txt", "-m", str(tiny_model), "--device", "cpu", "--dry-run", "--json", "Where?"]
    assert run([*args, "--quantize", method]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["expected_peak_bytes"] > plan["weights_bytes"] + 100 * 2**20
