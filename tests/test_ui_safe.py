"""Text that is not ours cannot act on a terminal, whatever prints it; and our own lines break between words alone."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.asking.events import Noted, Warned
from uncomp_cli.cli.app import run
from uncomp_cli.cli.declare.completion import completing
from uncomp_cli.cli.declare.failures import show_failure
from uncomp_cli.errors import UsageError
from uncomp_cli.steps import Progress, Working
from uncomp_cli.table import Table, bound, columns_of, wrapped
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.heatmap import HeatMap, write_heat_map
from uncomp_cli.ui.meter import Display, loading, show

OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r\x1b\[2K|\r")
"""What we draw with: colours, moves and erased lines; none of it sets a title or a clipboard."""
ATTACKS = (
    "\x1b[2J", "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x07", "\x1b]8;;http://x\x1b\\", "\x9b31m", "\x9d0;x\x9c",
    "\x90q\x9c", "\r", "\b\b", "\x7f", "\u202etxt.exe", "\u2066a\u2069", "\u2028", "\x85", "[red]x[/red]", "[link=http://x]y[/link]",
    "\udc9b31m", "\x00",
)  # fmt: skip
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def terminal(*, animated: bool = True, tty: bool = True, width: int = 100) -> Terminal:
    return Terminal(
        stdout=io.StringIO(), stderr=io.StringIO(), stdout_is_terminal=tty, stderr_is_terminal=tty, colour=False,
        animated=animated and tty,
    )  # fmt: skip


def written(out: Terminal) -> str:
    assert isinstance(out.stdout, io.StringIO)
    assert isinstance(out.stderr, io.StringIO)
    return out.stdout.getvalue() + out.stderr.getvalue()


def drawn(out: Terminal, step: Any) -> None:
    with Display(out) as display:
        display.show(step)


def waited(out: Terminal, name: str) -> None:
    with loading(out, f"loading {name}"):
        pass


def failed(out: Terminal, name: str) -> None:
    try:
        raise UsageError(f"file {name} is not there", hint=f"use {name}")
    except UsageError as error:
        show_failure(error, replace(out, debug=True))


def told(out: Terminal, name: str) -> None:
    def steps() -> Any:
        yield Noted(f"note {name}")
        yield Warned(f"warning {name}")

    show(steps(), out, tell=lambda event: None)


PRINTERS: dict[str, Callable[[Terminal, str], object]] = {
    "note": lambda out, name: out.note(f"note {name}"),
    "warn": lambda out, name: out.warn(f"warning {name}"),
    "error": lambda out, name: out.error(f"file {name} is missing", hint=f"use {name}"),
    "line": lambda out, name: out.write_line(f"{name}: valid"),
    "table": lambda out, name: out.write_tables([Table((f"A {name}", "B"), [(name, "1")], f"of {name}", [name])]),
    "wide table": lambda out, name: out.write_table(Table(("A", name), [(name, name)]), wide=True),
    "csv": lambda out, name: out.write_csv(["a", "b"], [[name, 1.5]]),
    "json": lambda out, name: out.write_json({name: [name]}),
    "pace": lambda out, name: out.overwrite(f"decode {name}"),
    "bar": lambda out, name: drawn(out, Progress(f"prefill {name}", 0.5, f"{name} tok/s", 1.0)),
    "bar without an end": lambda out, name: drawn(out, Progress(name, None, None, 1.0)),
    "working": lambda out, name: drawn(out, Working(f"reading {name}")),
    "loading": waited,
    "failure": failed,
    "events": told,
    "heat map": lambda out, name: write_heat_map(HeatMap(name, name, name, ((1.0, 2.0),)), out),
}


def is_harmless(text: str, *, lines: bool = True) -> bool:
    return DANGEROUS.search(OURS.sub("", text)) is None and "\x1b]" not in text


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("animated", [True, False])
def test_a_name_cannot_act_on_the_terminal(printer: str, animated: bool) -> None:
    for attack in ATTACKS:
        out = terminal(animated=animated)
        PRINTERS[printer](out, f"model{attack}name")
        assert is_harmless(written(out)), (printer, attack, written(out))
        if written(out) and "[" in attack and "\x1b" not in attack:
            assert attack in written(out).replace("\n", "") or printer == "pace"  # markup is text


@given(st.text(st.characters(codec=None), max_size=30), st.sampled_from(sorted(PRINTERS)), st.booleans())
def test_no_text_acts_on_the_terminal(name: str, printer: str, tty: bool) -> None:
    out = terminal(tty=tty)
    PRINTERS[printer](out, name)
    assert is_harmless(written(out))


ENDS = ("\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\u202e", "\u2067")


@given(
    st.lists(st.sampled_from([*ENDS, "a", "b ", "error: all is lost", "漢"]), max_size=8).map("".join),
    st.sampled_from(sorted(PRINTERS)),
    st.booleans(),
)
def test_a_name_stays_on_its_line(name: str, printer: str, tty: bool) -> None:
    """No name can imitate a line of ours: there are as many as with a name that is a word."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "2000")
        shown = []
        for given_name in (f"model{name}", "model"):
            out = terminal(tty=tty, animated=False)
            PRINTERS[printer](out, given_name)
            shown.append(written(out).splitlines())
    if printer != "failure":  # its traceback is what Python says
        assert len(shown[0]) == len(shown[1])
        assert not any(line.startswith("error: all is lost") for line in shown[0])


def test_an_answer_is_clean_on_a_terminal_and_whole_in_a_pipe() -> None:
    text = "a\x1b]52;c;eA==\x07\u202e\tb\n"
    for tty in (True, False):
        out = terminal(tty=tty)
        out.write_answer(text)
        assert written(out) == (strip_controls(text) if tty else text)


def test_json_says_the_same_though_nothing_in_it_acts() -> None:
    out, record = terminal(), {"answer": "a\x9b31m\x7f\u202e\x1b]0;x\x07 é 漢"}
    out.write_json(record)
    assert json.loads(written(out)) == record
    assert "é 漢" in written(out)


def test_a_command_line_that_is_wrong_is_told_without_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ["model", "show", "x\x1b]0;owned\x07"],
        ["ask", "-f", "no\x1b[2J\u202e.txt", "who?"],
        ["\x1b]52;c;x\x07"],
    ):
        assert run(args) != 0
        assert is_harmless("".join(capsys.readouterr()))


def test_no_name_that_acts_is_offered_as_a_completion() -> None:
    names = ["model", *(f"model{attack}" for attack in ATTACKS)]
    assert completing(lambda: names)("mo") == ["model", "model[red]x[/red]", "model[link=http://x]y[/link]"]


WORDS = st.lists(
    st.sampled_from(["the", "machine", "8.1 GiB", "12 %", "1,397 tok", "uniform/window", "漢字", "0.13 (-8.3 …2.1)"]),
    min_size=1, max_size=40,
)  # fmt: skip


@given(WORDS, st.integers(40, 200))
def test_lines_break_between_words_and_lose_nothing(words: list[str], width: int) -> None:
    lines = wrapped(" ".join(words), width)
    assert " ".join(lines).split() == " ".join(words).split()
    assert all(columns_of(line) <= width for line in lines)
    assert not any(re.match(r"(GiB|%|tok)\b", line) for line in lines)  # a number keeps its unit


@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(40, 200))
def test_tables_break_between_words_at_any_width(cells: list[list[list[str]]], width: int) -> None:
    rows = [[" ".join(words[:4]) for words in row] for row in cells]
    heads, lines = Table(("SETTING", "KEPT", "MATCH"), rows).lines(width)
    assert all(columns_of(line) <= width for line in heads + lines)
    shown = " ".join(lines).split()
    for word in (word for row in rows for cell in row for word in cell.split()):
        assert word in shown


def test_a_table_has_four_forms_from_wide_to_narrow() -> None:
    table = Table(
        ("SETTING", "KEPT", "MATCH"), [("uniform/window-of-many-words 20%", "20.1 %", f"84.2 % {bound('(-8.3 -2.1)')}")]
    )
    assert table.lines(80)[1] == ["uniform/window-of-many-words 20%  20.1 %  84.2 % (-8.3 -2.1)"]
    assert table.lines(52)[1] == ["uniform/window-of-many-words  20.1 %  84.2 %", f"20%{'':35}(-8.3 -2.1)"]
    assert table.lines(40)[1] == ["uniform/window-of-many-words 20%", "  20.1 %  84.2 % (-8.3 -2.1)"]
    assert table.lines(20) == (
        [],
        ["uniform/window-of-many-words", "20%", "  KEPT   20.1 %", "  MATCH  84.2 %", f"{'':9}(-8.3 -2.1)"],
    )
    assert table.lines(None) == table.lines(200)
    assert table.record() == [{"SETTING": table.rows[0][0], "KEPT": "20.1 %", "MATCH": "84.2 % (-8.3 -2.1)"}]


def test_notes_fit_the_terminal_they_are_shown_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the prompt has 12,345 tokens, of which 8.1 MiB (10 %) are kept in the cache of this model, as asked for"
    for width in range(40, 201):
        monkeypatch.setenv("COLUMNS", str(width))
        out = terminal(animated=False)
        out.note(text)
        out.warn(text)
        out.error(text, hint=text)
        out.write_line(text)
        lines = written(out).splitlines()
        assert max(map(len, lines)) <= width
        assert written(out).split() == f"{text} {text} warning: {text} error: {text} hint: {text}".split()
        assert not any(line.startswith(("%", "MiB")) for line in lines)
    piped = terminal(tty=False)
    piped.note(text)
    assert written(piped) == f"{text}\n"


def test_a_pace_that_is_too_long_loses_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = terminal()
    out.overwrite("decode 14.2 tok/s · 31 tok · KV 8.1 MiB · entropy 0.41")
    assert written(out).endswith("decode 14.2 tok/s · 31 tok · KV 8.1 MiB"[:39])


def test_a_table_becomes_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(tty=False)
    out.write_csv(["setting", "kept"], [["uniform, 20%", 0.201], ['a "b"', None]])
    rows = list(csv.reader(io.StringIO(written(out))))
    assert rows == [["setting", "kept"], ["uniform, 20%", "0.201"], ['a "b"', ""]]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_bar_shows_whole_words_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = terminal()
    label = "ruler/niah_multikey_1 12 of 100, 12,345 tokens"
    with Display(out) as display:
        for done in range(3):
            display.show(Progress(label, done / 3, f"{done} of 3", 12.0 * done))
        drawn_lines = OURS.sub("\n", written(out)).splitlines()
    shown = [line.split() for line in drawn_lines if line.strip()]
    assert shown
    known = {*label.split(), "0", "1", "2", "of", "3", "0%", "33%", "67%", "·", "24.0", "12.0", "6.0", "s", "left"}
    assert all(word in known or set(word) <= set("━╸╺ ") for line in shown for word in line)
