"""`uncomp ask --pin`: lines that are kept in every head, counted in the budget, refused when they are not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import two_lines
from uncomp_cli.asking.material import resolve
from uncomp_cli.asking.request import Pin, parse_pin
from uncomp_cli.cli.app import run
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import UsageError

Ask = Callable[..., tuple[int, str, str]]
LINES = [f"Line {i} says the harbour was quiet." for i in range(1, 31)]


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("notes.md").write_text("\n" + "\n".join(LINES[1:]) + "\n")  # the first line is blank
    Path("other.md").write_text("Another text.\n" * 10)


@pytest.fixture
def ask(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run_ask(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["ask", "-m", str(tiny_model), "--max-new-tokens", "4", "-f", "notes.md", *args, "Where?"])
        return code, *capsys.readouterr()

    return run_ask


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """The contexts that are asked, so that a test can look into their caches."""
    asked: list[Context] = []
    answer = Engine.asked

    def remembered(self: Engine, context: Context, **keywords: Any) -> Any:
        asked.append(context)
        return answer(self, context, **keywords)

    monkeypatch.setattr(Engine, "asked", remembered)
    return asked


def held(context: Context, text: str) -> list[bool]:
    """For every head whether it holds all of `text`, a token a character."""
    prompt = context.prompt
    begin = "\n".join(LINES[1:]).index(text)
    wanted = {i for i, (at, _) in enumerate(prompt.context.offsets.tolist()) if begin <= at < begin + len(text)}
    assert len(wanted) == len(text)
    cache = context.cache
    heads = [cache.layer(i).head(g)[2].tolist() for i in range(len(cache.layers)) for g in range(cache.num_kv_heads)]
    return [wanted <= set(positions) for positions in heads]


@pytest.mark.parametrize("way", [[], ["--chunk", "256"], ["--thin", "gather:after=1,keep=0.3"], ["--kv-bits", "8"]])
def test_pinned_lines_are_in_every_head_and_the_budget_is_kept(
    ask: Ask, contexts: list[Context], way: list[str]
) -> None:
    args = ["-b", "25%", "--policy", "uniform", "--json", *way]
    pinned = "\n".join(LINES[9:12])
    code, plain, _ = ask(*args)
    assert code == 0
    assert not all(held(contexts[-1], pinned))
    code, out, err = ask(*args, "--pin", "notes.md:10-12")
    assert code == 0
    assert all(held(contexts[-1], pinned))
    assert f"pinned notes.md:10-12: {len(pinned)} tokens in every head" in err
    kept, before = (json.loads(text)["memory"]["kv_bytes"] for text in (out, plain))
    assert kept == pytest.approx(before, rel=0.02)


def test_lines_are_counted_as_in_the_file(ask: Ask, contexts: list[Context]) -> None:
    code, _, err = ask("-b", "20%", "--pin", "./notes.md:2", "--pin", "notes.md:30")
    assert code == 0
    assert f"pinned notes.md:2, notes.md:30: {len(LINES[1]) + len(LINES[29])} tokens in every head" in err
    assert all(held(contexts[-1], LINES[1]))
    assert all(held(contexts[-1], LINES[29]))


def test_a_budget_too_small_for_the_pins_keeps_them(ask: Ask, contexts: list[Context]) -> None:
    code, _, err = ask("-b", "100", "--pin", "notes.md:5-20")
    assert code == 0
    assert "budget 100 is less than is always kept (template, system prompt, question, what is pinned): " in err
    assert all(held(contexts[-1], "\n".join(LINES[4:20])))


def test_bytes_too_few_for_the_pins_name_them(ask: Ask) -> None:
    small = ["-b", "150KiB", "--pin", "notes.md:5-20"]
    code, out, err = ask(*small)
    assert (code, out) == (3, "")
    message, hint = two_lines("\n".join(line for line in err.splitlines() if line.startswith(("error", "hint"))) + "\n")
    tokens = len("\n".join(LINES[4:20]))
    assert message.endswith(f"{tokens} of them are pinned: notes.md:5-20")
    assert message.startswith("the budget keeps ")
    assert hint.startswith("pin fewer lines, or use a larger --budget ")
    code, out, err = ask(*small, "--dry-run", "--json")
    assert code == 3
    assert json.loads(out)["refusal"] == message
    assert json.loads(out)["pinned_tokens"] == tokens


def test_a_refusal_that_pins_have_nothing_to_do_with(ask: Ask) -> None:
    code, _, err = ask("-b", "10KiB", "--pin", "notes.md:2")
    assert code == 3
    assert "of them are pinned" not in err


def test_what_is_pinned_is_not_cut_away(ask: Ask) -> None:
    Path("notes.md").write_text("\n".join(LINES) + "\n" + "word " * 900)
    code, out, err = ask("--truncate", "head", "--pin", "notes.md:2-3")
    assert (code, out) == (3, "")
    assert f"--truncate head would cut away {len(LINES[1]) + 1 + len(LINES[2])} of" in err
    assert ask("--truncate", "tail", "--pin", "notes.md:2-3", "-b", "50%")[0] == 0


def test_with_each_a_pin_is_its_own_documents(ask: Ask) -> None:
    code, _, err = ask("-f", "other.md", "--each", "-b", "50%", "--pin", "other.md:2")
    assert code == 0
    assert [line for line in err.splitlines() if "pinned" in line] == [
        "other.md: pinned other.md:2: 13 tokens in every head"
    ]


@pytest.mark.parametrize(
    ("pin", "message", "hint"),
    [
        ("notes.md", "--pin 'notes.md' names no lines of a file", "write --pin FILE:10-40, or --pin FILE:p3"),
        ("notes.md:x", "notes.md has lines 1 to 30, not x", "write notes.md:1-30"),
        ("notes.md:29-31", "notes.md has lines 1 to 30, not 29-31", "write notes.md:29-30"),
        ("notes.md:12-10", "notes.md has lines 1 to 30, not 12-10", "write notes.md:10-12"),
        ("notes.md:0", "notes.md has lines 1 to 30, not 0", "write notes.md:1"),
        ("note.md:1", "no document 'note.md' was read", "did you mean 'notes.md'?"),
    ],
)
def test_wrong_pins_are_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], pin: str, message: str, hint: str
) -> None:
    assert run(["ask", "-m", "no-such-model", "-f", "notes.md", "--pin", pin, "Where?"]) == 2
    assert two_lines(capsys.readouterr().err) == (message, hint)


def test_how_a_document_is_named() -> None:
    paths = ["docs/a.md", "docs/b.md", "old/b.md", "-"]
    named = ["docs/a.md:1", "./docs/a.md:2", "a.md:3", "b.md:4", "-:5-6"]
    found = resolve([parse_pin(text) for text in named], paths)
    assert [str(pin) for pin in found] == ["docs/a.md:1", "docs/a.md:2", "docs/a.md:3", "b.md:4", "-:5-6"]
    assert parse_pin("C:\\notes.md:7") == Pin("C:\\notes.md", "7")
    with pytest.raises(UsageError):
        parse_pin(":3")
