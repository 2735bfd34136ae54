"""What a hint names is there: every flag in the program's words is an option of each command that can say them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fpdf
import pytest
import typer

import uncomp_cli
from uncomp_cli.cli.app import COMMANDS, app, run
from uncomp_cli.cli.declare.tree import walk

PACKAGE = Path(uncomp_cli.__file__).parent
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
# What names programs that have flags of their own.
_OTHER = re.compile(r"uncomp [a-z]+|ocrmypdf|libreoffice|whisper|un(?:zstd|xz)|[bg]unzip2?")
GLOBAL = {"--plain", "--no-color", "--debug", "--version", "--help", "--help-all"}


def flags_of(command: object) -> set[str]:
    return {flag for param in getattr(command, "params", ()) for flag in (*param.opts, *param.secondary_opts)}


OPTIONS = {words[0]: flags_of(command) for words, command in walk(typer.main.get_command(app)) if len(words) == 1}
READERS = [name for name, flags in OPTIONS.items() if "--file" in flags]


@cache
def said(folder: Path) -> list[tuple[str, str]]:
    """The flags that strings of modules name, docstrings apart, and the strings."""
    return list(_said(folder))


def _said(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        tree = ast.parse(path.read_text())
        aside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                aside |= {id(part) for part in node.values}
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in aside:
                text = node.value
            else:
                continue
            yield from ((flag, text) for flag in _FLAG.findall(text) if not _OTHER.search(text))


def test_there_are_readers_of_documents() -> None:
    assert {"ask", "chat", "eval", "compare", "calibrate", "rope", "bench"} <= {*READERS}


@pytest.mark.parametrize("name", READERS)
def test_what_readers_of_documents_say_can_be_done_in_every_command_that_reads(name: str) -> None:
    """The readers do not know which command runs them."""
    missing = {flag: text for flag, text in said(PACKAGE / "documents") if flag not in OPTIONS[name]}
    assert not missing


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
def test_what_a_command_says_can_be_done_in_it(name: str, module: str) -> None:
    tree: Any = typer.main.get_command(app)
    known = GLOBAL | {flag for _, each in walk(tree.commands[name]) for flag in flags_of(each)}
    path = PACKAGE / "cli" / Path(*module.split("."))
    found = said(path if path.is_dir() else path.with_suffix(".py"))
    missing = {flag: text for flag, text in found if flag not in known}
    assert not missing


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["eval", "-t", "needle"], id="eval"),
        pytest.param(["bench"], id="bench"),
        pytest.param(["compare", "Who?"], id="compare"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in ("rope", "calibrate")),
    ],
)
def test_a_locked_document_is_opened_by_the_hint_itself(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong password is refused as a wrong one: it came through."""
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    pdf.add_page()
    pdf.cell(text="the key is under the mat")
    pdf.set_encryption(owner_password="owner", user_password="sesame")
    Path("locked.pdf").write_bytes(bytes(pdf.output()))
    assert run([*words, "-f", "locked.pdf"]) == 1
    *_, message, hint = capsys.readouterr().err.splitlines()
    assert "no password was given" in message
    flag = _FLAG.search(hint)
    assert flag is not None
    assert run([*words, "-f", "locked.pdf", flag[0], "wrong"]) == 1
    assert "the password given does not open it" in capsys.readouterr().err
