"""Do two installed versions say the same? Twelve commands, standard output and JSON compared, times aside.

    python benchmarks/same_answers.py OLD NEW [--model smollm2-135m] [--only NAME …]

OLD and NEW are what starts each version, such as `old/.venv/bin/uncomp`, or in one word
`"env PYTHONPATH=old python -m uncomp_cli"`. Each runs in folders of its own, so that saved documents and sessions
start from nothing; only the models are shared. The last line of standard output is JSON; exit code 1 when anything
differs. Which JSON keys may differ, because they are times or memory of the moment, is said in `MOMENTARY`.
"""

import argparse
import difflib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/demo/lighthouse-handbook.md"
SAFE, WHO = "What is the combination of the stores safe?", "Who keeps the log?"
MOMENTARY = {"timing", "peak_bytes", "seconds", "load_s", "created"}


@dataclass(frozen=True)
class Command:
    """One or several command lines, run one after the other in one folder; `typed` goes to standard input."""

    name: str
    lines: tuple[tuple[str, ...], ...]
    typed: str = ""


def commands(document: str, long: str, halves: tuple[str, str]) -> tuple[Command, ...]:
    """The twelve: every way that a question takes through the program."""
    about = ("-f", document)
    new = ("--max-new-tokens", "24")
    return (
        Command("ask", (("ask", *about, SAFE, *new, "--json"),)),
        Command("each", (("ask", "-f", halves[0], "-f", halves[1], "--each", SAFE, "-Q", WHO, *new),)),
        Command("reuse", (
            ("ask", *about, SAFE, "--save-cache", "kept", *new, "--json"),
            ("ask", "--reuse", "kept", SAFE, "-Q", WHO, *new, "--json"),
        )),
        Command("chat", (("chat", *about, *new),), typed=f"{SAFE}\n/stats\n{WHO}\n/evidence\n/exit\n"),
        Command("evidence", (("ask", *about, SAFE, "--evidence", *new, "--json"),)),
        Command("questions", (("ask", *about, SAFE, "-Q", WHO, "--explain-budget", *new, "--json"),)),
        Command("kv-bits", (("ask", *about, SAFE, "-b", "5%", "--kv-bits", "8", *new, "--json"),)),
        Command("thin", (("ask", *about, SAFE, "--thin", "gather:after=8,keep=0.2", *new, "--json"),)),
        Command("chunk", (("ask", *about, SAFE, "--chunk", "1024", "--thin", "none", *new, "--json"),)),
        Command("rope", (("ask", "-f", long, SAFE, "--rope", "auto", *new, "--json"),)),
        Command("constant-size", (("ask", *about, SAFE, "--constant-size", "--max-new-tokens", "48", "--json"),)),
        Command("escalate", (("ask", *about, "Why is the sea green?", "-b", "2%", "--escalate", *new, "--json"),)),
    )  # fmt: skip


def run(start: Sequence[str], command: Command, model: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and comparable standard output of every line of a command."""
    homes = {name: str(folder / name) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")}
    environment = {**os.environ, **homes, "UNCOMP_CACHE_DIR": str(folder / "cache"), "COLUMNS": "100"}
    results = []
    for line in command.lines:
        done = subprocess.run(
            [*start, *line, "-m", model],
            input=command.typed,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        results.append((done.returncode, comparable(done.stdout)))
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
    return results


def comparable(output: str) -> str:
    """Standard output with every JSON object in it laid out, momentary keys left out."""
    return "\n".join(_comparable_line(line) for line in output.splitlines())


def _comparable_line(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return json.dumps(_without_moment(record), indent=1, sort_keys=True) if isinstance(record, dict) else line


def _without_moment(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_moment(each) for key, each in value.items() if key not in MOMENTARY}
    return [_without_moment(each) for each in value] if isinstance(value, list) else value


def differences(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> Iterator[str]:
    """What differs between two versions' results of one command."""
    for number, ((code, before), (other, after)) in enumerate(zip(old, new, strict=True), start=1):
        if code != other:
            yield f"line {number}: exit code {code}, now {other}"
        yield from difflib.unified_diff(before.splitlines(), after.splitlines(), "old", "new", lineterm="", n=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=shlex.split)
    parser.add_argument("new", type=shlex.split)
    parser.add_argument("--model", default="smollm2-135m", help="a model's name, or its directory")
    parser.add_argument("--only", action="append", help="the commands to run; repeatable")
    wanted = parser.parse_args()
    differing: dict[str, list[str]] = {}
    with TemporaryDirectory() as scratch:
        text = DOCUMENT.read_text(encoding="utf-8")
        halves, middle = (Path(scratch, "first.md"), Path(scratch, "second.md")), text.index("\n", len(text) // 2)
        halves[0].write_text(text[:middle])
        halves[1].write_text(text[middle:])
        Path(scratch, "long.md").write_text(text + "\n\n" + text.replace("4096217", "unknown"))
        todo = commands(str(DOCUMENT), str(Path(scratch, "long.md")), (str(halves[0]), str(halves[1])))
        for command in todo:
            if wanted.only and command.name not in wanted.only:
                continue
            results = []
            for version, start in (("old", wanted.old), ("new", wanted.new)):
                folder = Path(scratch, command.name, version)
                link_models(folder / "cache", wanted.model)
                results.append(run(start, command, wanted.model, folder))
            found = list(differences(*results))
            print(f"{command.name:14} {'differs' if found else 'the same'}, exit {[code for code, _ in results[1]]}")
            print("\n".join(f"    {line}" for line in found[:60]), end="\n" if found else "")
            sys.stdout.flush()
            if found:
                differing[command.name] = found
    print(json.dumps({"same": not differing, "differing": sorted(differing)}))
    return 1 if differing else 0


def link_models(cache: Path, model: str) -> None:
    """Let a fresh cache directory have the models of the user's own; saved documents are not shared."""
    from uncomp_cli.models.sources import cache_dir

    cache.mkdir(parents=True)
    models = cache_dir() / "models"
    if not Path(model).exists() and models.is_dir():
        (cache / "models").symlink_to(models)


if __name__ == "__main__":
    sys.exit(main())
