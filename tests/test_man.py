"""Man pages: as written by the generator, the same on every machine, and good roff."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import typer

from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cli import ask, chat
from uncomp_cli.cli.app import app
from uncomp_cli.config import ScorerConfig

ROOT = Path(__file__).parent.parent
GENERATOR = ROOT / "man" / "generate.py"
TEXT = tomllib.loads((ROOT / "man" / "text.toml").read_text(encoding="utf-8"))
ROOT_COMMAND: Any = typer.main.get_command(app)
PAGES = sorted((ROOT / "man").glob("*.[15]"))


def generate(*args: str, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    script = GENERATOR if directory is None else directory / "generate.py"
    return subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "man", tmp_path / "man"))


def test_pages_are_up_to_date() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_pages_depend_on_no_machine(copied: Path) -> None:
    before = {page.name: page.read_bytes() for page in copied.glob("*.[15]")}
    for page in copied.glob("*.[15]"):
        page.unlink()
    settings = {"HOME": "/nowhere", "COLUMNS": "33", "UNCOMP_PLAIN": "1", "UNCOMP_MODEL": "x", "LC_ALL": "C", "TZ": "Z"}
    assert generate(directory=copied, **settings).returncode == 0
    assert {page.name: page.read_bytes() for page in copied.glob("*.[15]")} == before


def test_drift_is_reported_and_mended(copied: Path) -> None:
    (copied / "uncomp.1").write_text("edited")
    (copied / "uncomp-gone.1").write_text("left over")
    (copied / "uncomp-model.1").unlink()
    done = generate("--check", directory=copied)
    assert done.returncode == 1
    assert "uncomp-gone.1, uncomp-model.1, uncomp.1" in done.stderr
    generate(directory=copied)
    assert generate("--check", directory=copied).returncode == 0
    assert not (copied / "uncomp-gone.1").exists()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff, a system program, is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_good_roff(page: Path) -> None:
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_wheel_installs_every_page_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {f"man/{page.name}": f"share/man/man{page.suffix[1:]}/{page.name}" for page in PAGES}


def test_hand_written_sections_are_there() -> None:
    text = (ROOT / "man" / "uncomp.1").read_text()
    for heading in ("EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"):
        assert f'.SH "{heading}"' in text


@pytest.mark.parametrize("owner", [Preset, ScorerConfig])
def test_the_preset_page_has_every_key_with_its_default(owner: type) -> None:
    page = (ROOT / "man" / "uncomp-preset.5").read_text()
    head, scorer = page.split('.SH "KEYS OF scorer"')
    entries = dict(re.findall(r"\.TP\n\\fB(\w+)\\fP\n(.*)", scorer if owner is ScorerConfig else head))
    described = [field for field in fields(owner) if field.metadata.get("in_file", True)]
    assert set(entries) - {"schema_version"} == {field.name for field in described}
    for field in described:
        if field.default is not MISSING:
            default = json.dumps(field.default).replace('"', "\\(dq")
            assert f"Default: {default}." in entries[field.name]


def test_a_key_that_nobody_knows_is_not_documented(copied: Path) -> None:
    path = copied / "text.toml"
    path.write_text(path.read_text().replace("[preset_file.scorer]", '[preset_file.scorer]\nnosuch = "x"'))
    done = generate(directory=copied)
    assert done.returncode != 0
    assert "ScorerConfig.nosuch" in done.stderr


def test_the_preset_pages_example_is_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(TEXT["preset_file"]["example"]["line"])
    assert str(load_preset(str(tmp_path / "mine.json")).budget) == "12.5%"


def documented_lines() -> list[str]:
    """Every command line that the README and the man pages show."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = [line for block in blocks for line in block.splitlines()]
    shown = [line for module in (ask, chat) for line, _ in module.BRIEF.examples]
    return lines + shown + [line for page in TEXT.values() for line, _ in page.get("examples", ())]


def calls(line: str) -> Iterator[list[str]]:
    """The arguments of every `uncomp` in a shell line: in a pipeline, behind `&&`, in `$(...)`."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from calls(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] | None = None
    for token in [*lexer, "|"]:
        if set(token) <= set("|&;()<>"):
            if call is not None:
                yield call
            call = None
        elif call is None and Path(token).name == "uncomp":
            call = []
        elif call is not None:
            call.append(token)


def parse(args: list[str]) -> None:
    """Read a command line with the real commands, and run nothing."""
    command = ROOT_COMMAND
    context = command.make_context("uncomp", list(args))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("line", [line for line in documented_lines() if "uncomp" in line])
def test_documented_command_lines_can_be_typed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNCOMP_")]:
        monkeypatch.delenv(name)
    found = list(calls(line))
    assert found
    for args in found:
        parse(args)


def test_a_wrong_example_is_found() -> None:
    (args,) = calls("cat x | uncomp chat --dry-run -b 20% | tail -1  # talk")
    assert args == ["chat", "--dry-run", "-b", "20%"]
    with pytest.raises(typer.TyperException, match="--dry-run"):
        parse(args)
    assert list(calls('$EDITOR "$(uncomp config path)"')) == [["config", "path"]]
