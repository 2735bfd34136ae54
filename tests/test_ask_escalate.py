"""`uncomp ask --escalate`: flagged answers are asked again with more; what stays, what it cost, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ask, records, two_lines
from support.curves import curve_up_to, risky, seen
from support.tiny import scaled_model
from uncomp_cli.asking.doubts import Risk, Try, best_of, escalation_record, wider
from uncomp_cli.asking.subject import Reader
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cli.app import run
from uncomp_cli.errors import DoesNotFitError

BUDGETS = ["10%", "20%", "40%", "80%", "full"]
ASKED = ("-f", "town.txt", "--max-new-tokens", "8", "--escalate")


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("town.txt").write_text("The harbour was quiet and the lamps were lit. " * 30)
    Path("hill.txt").write_text("A garden on the hill, and a bridge of stone. " * 25)


def entropies(record: dict[str, Any]) -> list[float]:
    return [each["attention_entropy"] for each in record["escalation"]]


def test_a_flagged_answer_is_asked_again_up_to_full(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    tries = record["escalation"]
    assert [each["budget"] for each in tries] == BUDGETS
    assert [each["flagged"] for each in tries] == [True] * 5
    sizes = [each["kv_bytes"] for each in tries]
    assert sizes == sorted(sizes)
    assert all(each["seconds"] > 0 for each in tries)
    least = tries[-1]  # all have one rate: the one with most kept
    assert record["uncertainty"]["attention_entropy"] == least["attention_entropy"]
    assert record["compression"]["budget_requested"] == least["budget"]
    assert record["memory"]["kv_bytes"] == least["kv_bytes"]
    assert [line.split(" · ")[0] for line in err.splitlines() if line.startswith("try ")] == [
        f"try {number}: budget {budget}" for number, budget in enumerate(BUDGETS, start=1)
    ]


def test_the_first_answer_that_is_not_flagged_stays(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask("-p", risky(Path(), 0.01), "--json", "Where?")
    found = entropies(records(out)[0])
    later = [(entropy, number) for number, entropy in enumerate(found) if number > 0 and entropy < found[0]]
    best, at = min(later)
    top = (best + min(entropy for number, entropy in enumerate(found) if number != at)) / 2
    preset = risky(Path(), top)
    code, out, err = ask("-p", preset, "--json", "--fail-under", "0.8", "Where?")
    assert code == 0, err
    (record,) = records(out)
    assert [each["flagged"] for each in record["escalation"]] == [True] * at + [False]
    assert record["uncertainty"]["flagged"] is False
    assert record["warnings"] == []
    code, answer, err = ask("-p", preset, "Where?")
    assert (code, answer) == (0, record["answer"] + "\n")
    assert err.splitlines().count("--escalate: an answer is written when it is final") == 1
    assert run(["ask", "-m", record["model"]["id"], "-f", "town.txt", "--max-new-tokens", "8", "-p", preset,
                "-b", BUDGETS[at], "Where?"]) == 0  # fmt: skip
    assert capsys.readouterr().out == answer


def test_an_answer_that_is_not_flagged_is_asked_once(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 5.0), "--json", "Where?")
    assert code == 0, err
    assert [each["flagged"] for each in records(out)[0]["escalation"]] == [False]
    assert "try " not in err


def test_under_the_threshold_after_all_tries(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), "--fail-under", "0.9", "Where?")
    assert code == 5
    assert len(out) == 9
    assert err.count("error: ") == 1


def test_questions_and_documents_keep_their_order(ask: Ask) -> None:
    args = ["-f", "hill.txt", "--each", "-p", risky(Path(), 0.01), "Where?", "-Q", "When was the lantern lit?"]
    code, out, err = ask(*args, "--json")
    assert code == 0, err
    found = records(out)
    assert [(each["files"][0]["path"], each["question"]) for each in found] == [
        (name, question) for name in ("town.txt", "hill.txt") for question in ("Where?", "When was the lantern lit?")
    ]
    assert all([each["budget"] for each in record["escalation"]] == BUDGETS for record in found)
    code, out, err = ask(*args)
    assert code == 0, err
    assert out == "\n".join(each["answer"] + "\n" for each in found)
    lines = err.splitlines()
    assert any(line.startswith("town.txt: question 2: try 5: budget full") for line in lines)
    assert sum(": budget 10% (" in line for line in lines) == 2  # what is read again is not announced again
    titles = [
        f"{name}: {question}"
        for name in ("town.txt", "hill.txt")
        for question in ("Where?", "When was the lantern lit?")
    ]
    assert [line for line in lines if line in titles] == titles


def test_what_is_refused_leaves_the_answer_there_is(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise DoesNotFitError("needs about 9 MiB beside the weights, 1 MiB are free", hint="use a smaller --budget")

    monkeypatch.setattr(Reader, "read", _after_first(Reader.read, too_large))
    code, out, err = ask("-p", risky(Path(), 0.01), "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    assert [each["budget"] for each in record["escalation"]] == ["10%"]
    said = "warning: budget 20% was not tried: needs about 9 MiB beside the weights, 1 MiB are free"
    assert said in err.splitlines()


def test_ctrl_c_while_asking_again_keeps_the_answer_there_is(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "read", _after_first(Reader.read, pressed))
    code, out, err = ask("-p", risky(Path(), 0.01), "Where?")
    assert code == 130
    assert len(out) == 9
    assert " · entropy " in err


def _after_first(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Do `first` once, and `then` from there on."""
    called: list[int] = []

    def read(*args: Any) -> Any:
        called.append(1)
        return (first if len(called) == 1 else then)(*args)

    return read


def test_evidence_and_the_account_of_the_budget_are_those_of_the_answer_that_stays(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), "--evidence", "--explain-budget", "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    spent = sum(each["bytes"] for each in record["budget"]["layers"])
    assert spent == pytest.approx(record["memory"]["kv_bytes"], rel=0.05)
    assert record["evidence"]
    full = record["compression"]["budget_requested"] == "full"
    assert all(each["kept_fraction"] == 1 for each in record["evidence"]) == full


def test_a_re_packed_document_is_asked_again_with_what_the_trained_length_holds(ask: Ask, tiny_model: Path) -> None:
    Path("long.txt").write_text("The harbour was quiet and the lamps were lit. " * 30)
    model = scaled_model(tiny_model, 1536, rope_type="default")
    preset = risky(Path(), 0.01, rope="repack")
    code, out, err = ask("-m", model, "-f", "long.txt", "--rope", "repack:2", "-p", preset, "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    sizes = [each["kv_bytes"] for each in record["escalation"]]
    assert len(sizes) > 2
    assert all(fewer < more for fewer, more in pairwise(sizes[:-1]))
    assert max(sizes) < record["memory"]["kv_full_bytes"]
    assert record["model"]["rope"].startswith("repack")


@pytest.mark.parametrize("flag", [["--save-cache", "town"], ["--reuse", "auto"]])
def test_a_saved_document_has_one_budget(ask: Ask, flag: list[str]) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), *flag, "Where?")
    assert (code, out) == (2, "")
    assert two_lines(err)[0].startswith("--escalate reads the document again with larger budgets")


@pytest.mark.parametrize(
    ("budget", "twice"),
    [("10%", "20%"), ("12.5%", "25%"), ("50%", "full"), ("512", "1024"), ("256MiB", "512MiB"), ("0.3 GiB", "0.6 GiB"),
     ("full", None), ("auto", None)],
)  # fmt: skip
def test_twice_a_budget(budget: str, twice: str | None) -> None:
    live = replace(load_preset("live"), budget=Budget.parse(budget), floor_tokens=300)
    more = wider(live)
    assert (None if more is None else str(more.budget)) == twice
    if more is not None:
        assert (more.floor_tokens, more.policy) == ((0, "full") if twice == "full" else (600, live.policy))


def test_which_answer_stays() -> None:
    def tried(entropy: float) -> Try:
        return Try(Budget.parse("10%"), 100, 1.0, Risk(seen(entropy), curve_up_to(0.3)))

    assert best_of([tried(0.5), tried(0.2)]) == 1
    assert best_of([tried(0.5), tried(0.4), tried(0.6)]) == 2  # all of one rate: the one with most kept
    assert best_of([tried(0.2), tried(0.6)]) == 0
    assert [each["flagged"] for each in escalation_record([tried(0.5), tried(0.2)])] == [True, False]
