"""Every failure is two lines on standard error and an exit code; tracebacks only with --debug."""

import errno
import os
import resource
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

import pytest

from uncomp_cli import errors
from uncomp_cli.cli.app import run
from uncomp_cli.models import catalog

FAILURES = [
    (errors.UncompError("it broke", hint="mend it"), 1, "error: it broke\nhint: mend it\n"),
    (errors.UsageError("bad\nvalue", hint="say 1"), 2, "error: bad value\nhint: say 1\n"),
    (errors.DoesNotFitError("9 of 8 tokens", hint="--truncate"), 3, "error: 9 of 8 tokens\nhint: --truncate\n"),
    (errors.OutOfMemoryError("no room"), 4, "error: no room\n"),
    (errors.ThresholdError("0.1 < 0.9"), 5, "error: 0.1 < 0.9\n"),
    (errors.ModelError("[red]x[/red] \x1b[2J"), 1, "error: [red]x[/red] [2J\n"),
]
MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 MiB"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(catalog, "list_models", fail)


@pytest.mark.parametrize(("error", "code", "lines"), FAILURES, ids=lambda value: type(value).__name__)
def test_errors_on_purpose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, lines: str
) -> None:
    fail_with(monkeypatch, error)
    assert run(["model", "list"]) == code
    assert capsys.readouterr() == ("", lines)


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_ran_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    fail_with(monkeypatch, error)
    assert run(["model", "list"]) == 4
    assert capsys.readouterr().err.startswith("error: out of memory\nhint: use a smaller --budget")


def test_a_full_disk_is_no_internal_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk/x"))
    assert run(["model", "list"]) == 1
    assert capsys.readouterr().err.startswith("error: disk/x: No space left on device\nhint: ")


@pytest.mark.parametrize("command", ["ask", "chat", "model list"])
def test_few_descriptors_are_enough_or_the_limit_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "notes.txt").write_text("The harbour was quiet.")
    (tmp_path / "typed.txt").write_text("hello\n")
    told = ["-m", str(tiny_model), "-f", str(tmp_path / "notes.txt"), "--max-new-tokens", "4", "-q"]
    args = {"ask": ["ask", *told, "Where?"], "chat": ["chat", *told], "model list": ["model", "list"]}[command]
    most, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    codes = []
    for free in (0, 1, 2, 3, 5, 8, 11):
        with (tmp_path / "typed.txt").open() as typed, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", typed)
            held = {int(each.name) for each in Path("/proc/self/fd").iterdir()}
            resource.setrlimit(resource.RLIMIT_NOFILE, ([n for n in range(most) if n not in held][free], allowed))
            try:
                codes.append(run(args))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, allowed))
        said = capsys.readouterr().err
        assert codes[-1] == 0 or (codes[-1] == 1 and "Too many open files" in said and "ulimit -n allows " in said), (
            said
        )
    assert codes == sorted(codes, reverse=True)
    assert codes[-1] == 0


@pytest.mark.parametrize("args", [["--debug", "model", "list"], ["model", "list", "--debug"]])
def test_a_defect_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    fail_with(monkeypatch, ValueError("oops"))
    assert run(["model", "list"]) == 1
    short = capsys.readouterr().err
    assert short.splitlines()[0] == "error: internal error: ValueError: oops"
    assert len(short.splitlines()) == 2
    assert "--debug" in short
    assert run(args) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("UNCOMP_DEBUG", "1")
    run(["model", "list"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert run(["model", "list"]) == 130


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["modle"], "no such command 'modle'", "did you mean 'model'?"),
        (["model", "pul"], "no such command 'pul'", "did you mean 'pull'?"),
        (["zzz"], "no such command 'zzz'", "`uncomp --help` shows what is possible"),
        (["model", "list", "--jsn"], "no such option: --jsn", "did you mean '--json'?"),
        (["model", "show"], "missing argument 'NAME'", "`uncomp model show --help` shows what is possible"),
        (["model", "list", "x"], "got unexpected extra argument(s) (x)", "`uncomp model list --help` shows"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], args: list[str], error: str, hint: str) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == f"error: {error}"
    assert err.splitlines()[1].startswith(f"hint: {hint}")
    assert len(err.splitlines()) == 2


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNCOMP_JSON", "perhaps")
    assert run(["model", "list"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: invalid value 'perhaps' for '--json'")
    assert hint == "hint: the value comes from the environment variable UNCOMP_JSON"


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model"]) == 2
    assert capsys.readouterr().err.startswith("Usage: uncomp model")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "uncomp 0.1.0\n"


def test_a_closed_pipe_is_quiet() -> None:
    script = "import sys; from uncomp_cli.cli.app import main; sys.argv[1:] = ['config', 'show', '--json']; main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("ask", "-f", "long.txt", "Who?"), 3),
        (("compare", "-f", "long.txt", "Who?", "-b", "20%"), 3),
        (("rope", "-f", "short.txt", "--tokens", "8k", "--kinds", "plain,yarn"), 2),
        (("eval", "-f", "short.txt", "-t", "needle/uuid", "--tokens", "2000"), 2),
        (("eval", "-t", "needle/uuid", "--tokens", "4090"), 3),
        (("calibrate", "-f", "short.txt", "-t", "needle/uuid", "--tokens", "2000", "-o", "."), 2),
        (("calibrate", "--tokens", "4090", "-o", "."), 3),
    ],
)
def test_what_a_tokenizer_can_say_no_to_loads_no_weights(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNCOMP_CONFIG", os.devnull)
    monkeypatch.setattr("uncomp_cli.models.loading.load_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    sentences = (f"Boat {number} came to the harbour when the lamps were lit." for number in range(400))
    Path("long.txt").write_text("\n\n".join(sentences))
    Path("short.txt").write_text("The harbour was quiet and the lamps were lit along the whole of the wall. " * 4)
    assert run([*command, "-m", str(tiny_model)]) == code
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("pull", "no such command 'pull'", "did you mean 'uncomp model pull'?"),
        ("list", "no such command 'list'", "did you mean 'uncomp model list' or 'uncomp preset list' or 'uncomp cache"),
        ("rm", "no such command 'rm'", "did you mean 'uncomp model remove' or 'uncomp preset remove' or"),
        ("run", "no such command 'run'", "did you mean 'uncomp chat'?"),
        ("help", "no such command 'help'", "did you mean 'uncomp --help'?"),
        ("model ls", "no such command 'ls'", "did you mean 'uncomp model list'?"),
        ("compare b.md bb.md what?", "no file or directory 'bb.md'", "did you mean 'b.md'?"),
        ("ask b.md b.md", "no question was given", "uncomp ask -f doc.txt"),
        ("ask Who signed it", "3 words stand where one", 'write the question in quotes: "Who signed it"'),
        ("ask b.md Who signed it", "3 words stand where one", 'write the question in quotes: -f b.md "Who signed it"'),
        (
            "ask b.md 'Who signed it?' 'And when?'",
            "2 questions stand where one belongs",
            "give each of them with -Q: -f b.md -Q 'Who signed it?' -Q 'And when?'",
        ),
        ("ask https://x.org/a.pdf Who?", "'https://x.org/a.pdf' is an address on the network", "fetch it first: curl"),
        ("ask b.md bb.md Who?", "no file or directory 'bb.md'", "did you mean 'b.md'?"),
        ("ask b.md", "the question 'b.md' is a file", 'uncomp ask -f b.md "What does it say about …?"'),
        (
            "ask -f https://x.org/a.pdf Who?",
            "'https://x.org/a.pdf' is an address on the network",
            "fetch it first: curl",
        ),
        ("ask -f B.MD Who?", "no file or directory 'B.MD'", "did you mean 'b.md'?"),
    ],
)
def test_a_slip_is_shown_the_right_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.md").write_text("The harbour was quiet.")
    assert run(shlex.split(line)) == 2
    error, told = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {message}")
    assert told.startswith(f"hint: {hint}")


class Pressed:
    """Ctrl-C while the command line is imported."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "uncomp_cli.cli.app":
            raise KeyboardInterrupt


def test_ctrl_c_before_the_program_is_there_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = entry_points(group="console_scripts", name="uncomp")
    monkeypatch.delitem(sys.modules, "uncomp_cli.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Pressed, *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        command.load()()
    assert left.value.code == 130
