"""What reaches the two streams, through real pseudo-terminals and real pipes."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from support.screen import ESCAPE, screen

SCRIPT = """
import sys, time
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.steps import PullStep, pulled
from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import Display, loading, show
terminal = Terminal.detect(plain="--plain" in sys.argv)
if "--quiet" in sys.argv:
    import dataclasses
    terminal = dataclasses.replace(terminal, quiet=True)
"""
GENERATE = """
def engine():
    for layer in range(1, 5):
        time.sleep(0.05)
        yield PrefillStep(layer, 4, 7512, layer * 1.0, 1000)
    for index, text in enumerate(["Fo", "ur", "\\x1b[31m\\t7\\n"]):
        time.sleep(0.15)
        yield DecodeStep(0, index, 1, text, None, (index + 1) / 10, 8 * 2**20)
with Display(terminal) as display:
    for step in engine():
        display.show(step)
        if isinstance(step, DecodeStep):
            with display.aside(step.text):
                terminal.write_answer(step.text)
"""


@dataclass(frozen=True)
class Ran:
    stdout: str
    stderr: str
    ahead_s: float


def run_script(body: str, *args: str, stdout_tty: bool, stderr_tty: bool, **environment: str) -> Ran:
    """Run with each stream on its own pseudo-terminal or pipe; `ahead_s` is from the first output to the end."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    pairs = [pty.openpty() if tty else os.pipe() for tty in (stdout_tty, stderr_tty)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + body, *args], stdin=subprocess.DEVNULL, stdout=pairs[0][1], stderr=pairs[1][1],
        env={**inherited, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )  # fmt: skip
    for _, writer in pairs:
        os.close(writer)
    texts, ahead_s = _drain([reader for reader, _ in pairs])
    assert process.wait(timeout=60) == 0, texts[1]
    return Ran(texts[0].replace("\r\n", "\n"), texts[1].replace("\r\n", "\n"), ahead_s)


def _drain(readers: list[int]) -> tuple[list[str], float]:
    chunks: dict[int, bytes] = dict.fromkeys(readers, b"")
    first_s, still_open = 0.0, list(readers)
    while still_open:
        for reader in select.select(still_open, [], [], 60)[0]:
            try:
                data = os.read(reader, 65536)
            except OSError:  # a pseudo-terminal says so when the other side is gone
                data = b""
            if not data:
                still_open.remove(reader)
                os.close(reader)
            first_s = first_s or time.monotonic()
            chunks[reader] += data
    return [chunks[reader].decode() for reader in readers], time.monotonic() - first_s


def test_on_a_terminal_the_bar_is_gone_before_the_answer() -> None:
    ran = run_script(GENERATE, stdout_tty=True, stderr_tty=True)
    assert "prefill 7,512 tok" in ran.stderr
    assert "1,878 tok/s" in ran.stderr
    assert ran.stderr.index("prefill 7,512 tok") < ran.stderr.index("10.0 tok/s · 1 tok · KV 8.0 MiB")
    assert screen(ran.stderr) == ""
    assert ran.stdout == "Four[31m\t7\n"


def test_an_answer_in_a_pipe_is_byte_clean_and_the_pace_shows_on_the_terminal() -> None:
    ran = run_script(GENERATE, stdout_tty=False, stderr_tty=True)
    assert ran.stdout == "Four\x1b[31m\t7\n"
    assert "10.0 tok/s · 1 tok · KV 8.0 MiB" in ran.stderr
    assert screen(ran.stderr) == ""


@pytest.mark.parametrize("args", [(), ("--quiet",)])
def test_off_terminal_no_escape_is_written(args: tuple[str, ...]) -> None:
    ran = run_script(GENERATE, *args, stdout_tty=False, stderr_tty=False)
    assert ran.stdout == "Four\x1b[31m\t7\n"
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("args", "environment"), [(("--plain",), {}), ((), {"TERM": "dumb"}), (("--quiet",), {})], ids=str
)
def test_plain_dumb_and_quiet_terminals_see_no_escape(args: tuple[str, ...], environment: dict[str, str]) -> None:
    body = GENERATE + "terminal.warn('careful')\nwith loading(terminal, 'loading model'): pass\n"
    ran = run_script(body, *args, stdout_tty=True, stderr_tty=True, **environment)
    visible = re.sub(r"\x1b\[[0-9;]*m", "", ran.stderr) if "--quiet" in args else ran.stderr
    assert ESCAPE not in visible
    assert visible == ("warning: careful\n" if "--quiet" in args else "warning: careful\nloading model\n")


def test_no_color_moves_the_cursor_but_colours_nothing() -> None:
    body = (
        GENERATE
        + "terminal.error('[bold]x[/bold]', hint='y')\nterminal.write_table(Table(['A'], [['[red]b[/red]']]))\n"
    )
    ran = run_script(body, stdout_tty=True, stderr_tty=True, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*m", ran.stdout + ran.stderr)
    assert ran.stderr.endswith("error: [bold]x[/bold]\nhint: y\n")
    assert "[red]b[/red]" in ran.stdout


def test_colour_is_only_on_the_label() -> None:
    ran = run_script("terminal.error('it \\x1b]0;title\\x07broke')", stdout_tty=True, stderr_tty=True)
    assert ran.stderr == "\x1b[1;31merror:\x1b[0m it ]0;titlebroke\n"


def test_a_table_in_a_pipe_cuts_nothing() -> None:
    long = "x" * 300
    body = f"terminal.write_table(Table(['NAME', 'B'], [['{long}', 'a\\nb'], ['y', '2']]))"
    ran = run_script(body, stdout_tty=False, stderr_tty=False)
    assert ran.stdout.splitlines() == ["NAME" + " " * 298 + "B", f"{long}  a b", "y" + " " * 301 + "2"]


def test_a_table_on_a_terminal_cuts_nothing() -> None:
    ran = run_script(f"terminal.write_table(Table(['NAME'], [['{'x' * 300}']]))", stdout_tty=True, stderr_tty=True)
    assert ran.stdout.count("x") == 300


@pytest.mark.parametrize("tty", [True, False])
def test_loading_says_so_at_once(tty: bool) -> None:
    ran = run_script("with loading(terminal, 'loading [m]…'): time.sleep(1)", stdout_tty=tty, stderr_tty=tty)
    assert "loading [m]…" in ran.stderr
    assert ran.ahead_s > 0.2  # who reads may be late on a busy machine
    if tty:
        assert screen(ran.stderr) == ""


def test_loading_says_how_far_it_is() -> None:
    body = """
from uncomp_cli.steps import Working
done = [0]
def far():
    done[0] += 1
    return f"{done[0]} of 513 MiB"
def steps():
    yield Working("loading m\x1b]0;x\x07", far)
    while done[0] < 5:
        time.sleep(0.01)
    yield Working(None)
show(steps(), terminal)
"""
    ran = run_script(body, stdout_tty=True, stderr_tty=True)
    assert len(set(re.findall(r"loading m\]0;x (\d+) of 513 MiB", ran.stderr))) > 2
    assert screen(ran.stderr) == ""


def test_a_pull_shows_its_stages() -> None:
    body = """
steps = [PullStep("download", 1, 4), PullStep("download", 4, 4), PullStep("verify", 0, None), PullStep("save", 0, 0)]
def slowly():
    for step in steps:
        time.sleep(0.15)
        yield step
show(pulled(slowly()), terminal)
"""
    ran = run_script(body, stdout_tty=False, stderr_tty=True)
    assert "download" in ran.stderr
    assert "verify" in ran.stderr
    assert screen(ran.stderr) == ""


def test_stopping_early_erases_the_bar() -> None:
    body = """
def engine():
    yield PrefillStep(1, 4, 100, 1.0, 1)
    raise KeyboardInterrupt
try:
    show(engine(), terminal)
except KeyboardInterrupt:
    terminal.note("stopped")
"""
    ran = run_script(body, stdout_tty=True, stderr_tty=True)
    assert screen(ran.stderr).endswith("stopped")
    assert "prefill" not in screen(ran.stderr)
