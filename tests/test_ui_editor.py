"""A text goes to the user's editor and comes back, or stays as it was."""

import os
from pathlib import Path

import pytest

from support.desk import PROMPT, Desks
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.ui.blocks import copy_text, edit_text
from uncomp_cli.ui.console import Terminal


def script(folder: Path, body: str) -> Path:
    """An editor: a shell script that is given the file."""
    path = folder / "editor with space"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


def test_the_text_as_it_was_left(desks: Desks, tmp_path: Path) -> None:
    body = 'test -t 0 && test -t 1 && stat -c %a "$2" && printf "and\\nmore\\n\\n" >> "$2" && echo "$2" > seen'
    editor = script(tmp_path, f'cd "{tmp_path}"; {body}')
    desk = desks.sit_down(VISUAL=f"'{editor}' --wait", EDITOR="false")
    desk.sees(PROMPT)
    desk.types("/edit begun\r")
    desk.sees("EDITED 'begun\\\\nand\\\\nmore\\\\n'")
    seen = Path((tmp_path / "seen").read_text().strip())
    assert not seen.exists()
    assert not seen.parent.exists()
    assert desk.says("goes on") == "goes on"


def test_ctrl_c_in_the_editor_is_the_editors(desks: Desks, tmp_path: Path) -> None:
    editor = script(tmp_path, "trap 'echo heard; echo late >> \"$1\"; exit 0' INT\necho ready\nwhile true; do :; done")
    desk = desks.sit_down(EDITOR=f"'{editor}'")
    desk.sees(PROMPT)
    desk.types("/edit begun\r")
    desk.sees("ready")
    desk.types("\x03")
    desk.sees("heard")
    desk.sees("EDITED 'begun\\\\nlate'")
    desk.leaves()


@pytest.mark.parametrize(
    ("editor", "told"),
    [
        ("false", r"the editor false ended with code 1; the text is as it was \| save the text"),
        ("/nowhere/editor", r"the editor /nowhere/editor cannot be run: No such file or directory \| set VISUAL"),
        ("'half", r"EDITOR is \"'half\": No closing quotation"),
        ('sh -c \'printf "\\377" > "$0"\'', "the editor left something that is not UTF-8 text"),
    ],
)
def test_an_editor_that_fails_is_told(desks: Desks, editor: str, told: str) -> None:
    desk = desks.sit_down(EDITOR=editor)
    desk.sees(PROMPT)
    desk.types("/edit begun\r")
    desk.sees(f"REFUSED {told}")
    desk.leaves()


@pytest.mark.parametrize(
    ("there", "taken"), [(["nano", "vi"], "nano"), (["vi", "nano", "sensible-editor"], "sensible-editor"), ([], None)]
)
def test_without_a_name_a_usual_editor_is_taken(desks: Desks, tmp_path: Path, there: list[str], taken: str) -> None:
    for name in there:
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} >> "$1"\n')
        (tmp_path / name).chmod(0o755)
    desk = desks.sit_down(VISUAL=" ", EDITOR="", PATH=str(tmp_path))
    desk.sees(PROMPT)
    desk.types("/edit begun\r")
    desk.sees(rf"EDITED 'begun\\n{taken}'" if taken else r"REFUSED no editor is named, and there is none of the usual")


def test_an_editor_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "true")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(UsageError, match="needs a terminal"):
            edit_text("begun", Terminal.detect())


def test_a_clipboard_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "xclip"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UncompError, match="nothing was copied: xclip failed"):
        copy_text("words", Terminal.detect(plain=True))
