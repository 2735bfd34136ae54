"""`uncomp ask` with several questions: one that does not fit or fails is told in its turn, and the others go on."""

import re
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ask, records
from support.tiny import TRAINED_LENGTH
from uncomp_cli.engine.write.writer import TextStream, Writer

LONG = "y" * TRAINED_LENGTH
ASKED = ("-f", "notes.txt", "--max-new-tokens", "6", "-b", "full")


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("notes.txt").write_text("The harbour was quiet. " * 20)
    Path("more.txt").write_text("The lamps were lit. " * 20)


def errors(err: str) -> list[str]:
    return [line.partition(": the prompt has")[0] for line in err.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_question_that_does_not_fit_is_told_in_its_turn(ask: Ask, place: int) -> None:
    questions = ["Where?", "When was it?"]
    alone = records(ask(questions[0], "-Q", questions[1], "--json")[1])
    asked = [*questions[:place], LONG, *questions[place:]]
    code, out, err = ask(asked[0], "-Q", asked[1], "-Q", asked[2], "--json")
    assert code == 3
    found = records(out)
    assert [record["question"] for record in found] == asked
    assert [record["answer"] for record in found if "answer" in record] == [record["answer"] for record in alone]
    failed = found[place]
    assert list(failed) == ["schema_version", "question", "error"]
    assert failed["error"]["exit_code"] == 3
    assert failed["error"]["message"].endswith("tokens, the model was trained for 4,096")
    assert "--rope" in failed["error"]["hint"]
    assert errors(err) == [f"error: question {place + 1} of 3"]


def test_answers_stay_apart_on_standard_output(ask: Ask) -> None:
    code, out, err = ask("Where?", "-Q", LONG, "-Q", "When?")
    assert code == 3
    assert re.fullmatch(r"[a-z]{6}\n\n[a-z]{6}\n", out)
    assert err.index("question 1 of 3: Where?") < err.index("error: question 2 of 3") < err.index("question 3 of 3")


def test_when_no_question_fits_nothing_is_said_of_questions(ask: Ask) -> None:
    Path("notes.txt").write_text("x" * TRAINED_LENGTH)
    code, out, err = ask("Where?", "-Q", "When?", "--json")
    assert (code, out) == (3, "")
    assert errors(err) == ["error"]


def test_each_file_has_its_own_failures(ask: Ask) -> None:
    Path("more.txt").write_text("x" * (TRAINED_LENGTH - 200))
    question = "y" * 400
    code, out, err = ask("-f", "more.txt", "--each", "Where?", "-Q", question, "--json")
    assert code == 3
    found = [(record["files"][0]["path"], record["question"], "answer" in record) for record in records(out)]
    assert found == [
        ("notes.txt", "Where?", True),
        ("notes.txt", question, True),
        ("more.txt", "Where?", True),
        ("more.txt", question, False),
    ]
    assert errors(err) == ["error: more.txt: question 2 of 2"]


@pytest.mark.parametrize("json_mode", [True, False])
def test_memory_that_runs_out_while_answering(ask: Ask, monkeypatch: pytest.MonkeyPatch, json_mode: bool) -> None:
    """The answer that was being shown is lost; the others are written one by one."""
    advance, calls = Writer._decode, []

    def fail(self: Writer) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return advance(self)

    expected = records(ask("Where?", "-Q", "When?", "-Q", "Who was that?", "--json")[1])
    monkeypatch.setattr(Writer, "_decode", fail)
    code, out, err = ask("Where?", "-Q", "When?", "-Q", "Who was that?", *(["--json"] if json_mode else []))
    assert code == 4
    assert errors(err) == ["error: question 1 of 3: out of memory"]
    if json_mode:
        first, *others = records(out)
        assert (first["question"], first["error"]["exit_code"]) == ("Where?", 4)
        assert [record["answer"] for record in others] == [record["answer"] for record in expected[1:]]
    else:
        assert out == "\n\n".join([expected[0]["answer"][:3], *(record["answer"] for record in expected[1:])]) + "\n"


def test_a_defect_of_our_own_ends_the_run(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Writer) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Writer, "_decode", fail)
    code, out, err = ask("Where?", "-Q", "When?", "--json")
    assert (code, out) == (1, "")
    assert "internal error: ZeroDivisionError" in err


def test_thoughts_are_shown_when_that_is_wanted_and_never_in_the_answer(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = ["<thi", "nk>so, ", "hm", "</think>\n", "\nA", "da"]

    def scripted(stream: TextStream, _: int) -> str:
        stream.__dict__["at"] = stream.__dict__.get("at", -1) + 1
        return pieces[stream.__dict__["at"]]

    monkeypatch.setattr(TextStream, "push", scripted)
    code, out, err = ask("Who?", "-Q", "Whose?")
    assert (code, out) == (0, "Ada\n\nAda\n")
    assert "hm" not in err
    code, out, err = ask("Who?", "--show-thinking")
    assert (code, out) == (0, "Ada\n")
    assert "so, hm\n" in err
    (record,) = records(ask("Who?", "--json")[1])
    assert record["answer"] == "Ada"
