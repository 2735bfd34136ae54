"""Write the man pages from Typer's own command tree and the hand-written parts in text.toml.

    python man/generate.py            write man/*.1 and man/*.5
    python man/generate.py --check    exit with 1 when a page on disk is not what would be written

One page for each command and one for the program; a group's page covers its subcommands; one page for the preset file,
from the fields of its dataclasses. The pages depend on nothing but these and text.toml: no dates, no terminal width, no
environment, no home directory.
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import typer

from uncomp_cli import __version__
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.budget.presets import SCHEMA_VERSION, Preset
from uncomp_cli.cli.app import app
from uncomp_cli.config import ScorerConfig
from uncomp_cli.uncertainty.error_rates import Absence, RiskCurve

HERE = Path(__file__).parent
_FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def pages() -> dict[str, str]:
    """File name → roff, for every page."""
    root: Any = typer.main.get_command(app)
    text = tomllib.loads((HERE / "text.toml").read_text(encoding="utf-8"))
    names = ["uncomp", *(f"uncomp-{name}" for name in root.commands)]
    commands = [root, *root.commands.values()]
    written = {f"{name}.1": _page(name, command, text, names) for name, command in zip(names, commands, strict=True)}
    written["uncomp-preset.5"] = _preset_page(text["preset_file"])
    return {name: "\n".join(lines) + "\n" for name, lines in written.items()}


def _page(name: str, command: Any, text: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    words = name.replace("-", " ")
    summary = _first_sentence(command)
    yield from _opening(name, summary, section="1", manual="User Commands")
    yield '.SH "SYNOPSIS"'
    yield from _synopsis(words, command)
    yield '.SH "DESCRIPTION"'
    yield from _paragraphs(text.get(name, {}).get("description") or command.help or "")
    yield from _body(name, command)
    yield from _closing(name, text, names)


def _opening(name: str, summary: str, *, section: str, manual: str) -> Iterator[str]:
    yield '.\\" Written by man/generate.py; do not edit.'
    yield f'.TH "{_escape(name.upper())}" "{section}" "" "uncomp {__version__}" "{manual}"'
    yield from (".nh", ".ad l")
    yield from ('.SH "NAME"', f"{_escape(name)} \\- {_escape(summary)}")


def _preset_page(text: Mapping[str, Any]) -> Iterator[str]:
    """The format of preset files; text.toml must have a meaning for every field, and for nothing else."""
    yield from _opening("uncomp-preset", text["summary"], section="5", manual="File Formats")
    yield '.SH "DESCRIPTION"'
    yield from _paragraphs(text["description"])
    yield '.SH "KEYS"'
    yield from _entry("\\fBschema_version\\fP", f"Integer, {SCHEMA_VERSION}. Needed.", text["keys"]["schema_version"])
    yield from _fields(Preset, {key: text["keys"][key] for key in text["keys"] if key != "schema_version"})
    yield '.SH "KEYS OF scorer"'
    yield from _fields(ScorerConfig, text["scorer"])
    yield from ('.SH "EXAMPLES"', ".PP", ".RS 4", ".nf", _escape(text["example"]["line"]), ".fi", ".RE")
    yield '.SH "SEE ALSO"'
    yield from (".BR uncomp\\-preset (1) ,", ".BR uncomp\\-ask (1) ,", ".BR uncomp (1)")


def _fields(owner: type, meanings: Mapping[str, str]) -> Iterator[str]:
    """An entry for every field of a dataclass: type, default, meaning."""
    described: tuple[Field[Any], ...] = tuple(item for item in fields(owner) if item.metadata.get("in_file", True))
    for name in {field.name for field in described} ^ set(meanings):
        raise KeyError(f"{owner.__name__}.{name}: man/text.toml and the dataclass differ")
    for field in described:
        needed = field.default is MISSING and field.default_factory is MISSING
        plain = "" if field.default is MISSING else f" Default: {json.dumps(field.default)}."
        default = " Needed." if needed else plain
        yield from _entry(
            f"\\fB{_escape(field.name)}\\fP", f"{_type_words(field.type)}.{default}", meanings[field.name]
        )


def _type_words(kind: Any) -> str:
    """A field's type as JSON calls it; of a literal, its values."""
    choices = getattr(kind, "__args__", ())
    if kind == str | None:
        return "String or null"
    if {QualityPoint, RiskCurve} & {*choices}:
        return "List of objects"
    if kind == Absence | None:
        return "Object or null"
    if choices:
        return f"One of {', '.join(json.dumps(choice) for choice in choices)}"
    return _TYPE_WORDS[kind]


_TYPE_WORDS: dict[Any, str] = {
    str: "String",
    Budget: "String",
    int: "Integer",
    float: "Number",
    bool: "True or false",
    ScorerConfig: "Object, which may be left out",
}


def _body(name: str, command: Any) -> Iterator[str]:
    """Options, and below a group its commands: in full, or on the root page as references to their pages."""
    yield from _options(command, heading=".SH")
    children = getattr(command, "commands", {})
    if not children:
        return
    yield '.SH "COMMANDS"'
    for child_name, child in children.items():
        if name == "uncomp":
            yield from _entry(f"\\fBuncomp\\-{_escape(child_name)}\\fP(1)", _first_sentence(child))
        else:
            words = f"{name.replace('-', ' ')} {child_name}"
            yield f'.SS "{_escape(words)}"'
            yield from _synopsis(words, child)
            yield ".PP"
            yield from _paragraphs(child.help or "")
            yield from _options(child, heading=None)


def _closing(name: str, text: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    yield '.SH "EXIT STATUS"'
    for code, meaning in text["exit_status"].items():
        yield from _entry(f"\\fB{code}\\fP", meaning)
    if name == "uncomp":
        yield '.SH "ENVIRONMENT"'
        yield from _paragraphs(
            "An option whose entry names a variable, UNCOMP_ and its name in capitals, can be set by it and in the "
            "configuration file; a flag comes before the variable, the variable before the file, the file before the "
            "default. Besides:"
        )
        yield from _definitions(text["environment"])
        yield '.SH "FILES"'
        yield from _definitions(text["files"])
    examples = text.get(name, {}).get("examples", [])
    if examples:
        yield '.SH "EXAMPLES"'
    for line, meaning in examples:
        yield from (".PP", _escape(meaning), ".PP", ".RS 4", ".nf", _escape(line), ".fi", ".RE")
    yield '.SH "SEE ALSO"'
    others = [f".BR {_escape(other)} (1)" for other in names if other != name]
    others += [".BR uncomp\\-preset (5)"] if name in ("uncomp", "uncomp-ask", "uncomp-preset") else []
    yield " ,\n".join(others)


def _synopsis(words: str, command: Any) -> Iterator[str]:
    pieces = ["[\\fIOPTIONS\\fP]"]
    if getattr(command, "commands", None):
        pieces.append("\\fICOMMAND\\fP [\\fIARGS\\fP]")
    for param in command.params:
        if param.param_type_name == "argument":
            metavar = f"\\fI{_escape(_metavar(param))}\\fP{'...' if param.nargs == -1 else ''}"
            pieces.append(metavar if param.required else f"[{metavar}]")
    yield f"\\fB{_escape(words)}\\fP {' '.join(pieces)}"


def _options(command: Any, *, heading: str | None) -> Iterator[str]:
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if not param.hidden:
            title = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            panels.setdefault(title, []).append(param)
    if panels and heading:
        yield f'{heading} "OPTIONS"'
    for title, params in panels.items():
        if heading and len(panels) > 1:
            yield f'.SS "{_escape(title)}"'
        for param in params:
            yield from _entry(_signature(param), param.help or "", *_facts(param))


def _signature(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"\\fI{_escape(_metavar(param))}\\fP"
    flags = sorted([*param.opts, *param.secondary_opts], key=lambda flag: (flag.startswith("--"), flag))
    bold = ", ".join(f"\\fB{_escape(flag)}\\fP" for flag in flags)
    return bold if param.is_flag else f"{bold} \\fI{_escape(_metavar(param))}\\fP"


def _metavar(param: Any) -> str:
    choices = param.type_descriptor.choices
    if param.metavar or not choices:
        return str(param.metavar or param.name.upper().replace("_", "-"))
    return "|".join(str(getattr(choice, "value", choice)) for choice in choices)


def _facts(param: Any) -> Iterator[str]:
    """What the tree knows about a parameter beyond its help text."""
    if isinstance(param.show_default, str):
        yield f"Default: {param.show_default}."
    elif param.show_default and not getattr(param, "is_flag", False) and _is_plain(param.default):
        yield f"Default: {param.default}."
    if isinstance(param.envvar, str):
        several = ", several values separated as in PATH" if param.multiple else ""
        yield f"Variable: {param.envvar}{several}."


def _is_plain(default: object) -> bool:
    return isinstance(default, (str, int, float)) and default != ""


def _entry(term: str, *sentences: str) -> Iterator[str]:
    yield from (".TP", term)
    yield _markup(" ".join(sentence for sentence in sentences if sentence))


def _definitions(entries: Mapping[str, str]) -> Iterator[str]:
    for term, meaning in entries.items():
        yield from _entry(f"\\fB{_escape(term)}\\fP", meaning)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _markup(" ".join(paragraph.split()))


def _first_sentence(command: Any) -> str:
    help_text = " ".join((command.help or "").split())
    sentence = re.split(r"(?<=[.:;])\s", help_text)[0].rstrip(".:;")
    return sentence[:1].lower() + sentence[1:]


def _markup(text: str) -> str:
    """Running text: flags and `code` in bold."""
    parts = re.split(r"`([^`]*)`", text)
    plain = (_FLAG.sub(lambda flag: f"\\fB{flag[0]}\\fP", _escape(part, hyphens=False)) for part in parts[::2])
    code = (f"\\fB{_escape(part)}\\fP" for part in parts[1::2])
    merged = [next(code) if index % 2 else next(plain) for index in range(len(parts))]
    return re.sub(r"(?<!\\)-(?=[\w-])", r"\\-", "".join(merged))


def _escape(text: str, *, hyphens: bool = True) -> str:
    """Text for roff: backslashes, leading control characters, hyphens that must stay hyphens, non-ASCII letters."""
    safe = text.replace("\\", "\\e")
    safe = safe.replace("-", "\\-") if hyphens else safe
    safe = re.sub(r"^([.'])", r"\\&\1", safe, flags=re.MULTILINE).replace('"', "\\(dq").replace("~", "\\(ti")
    return "".join(letter if ord(letter) < 128 else f"\\[u{ord(letter):04X}]" for letter in safe)


def drifted(written: Mapping[str, str]) -> list[str]:
    """Names of pages that are missing, different or left over."""
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.[15]")}
    return sorted(name for name in {*on_disk, *written} if on_disk.get(name) != written.get(name))


def main(args: list[str]) -> int:
    """Write the pages, or check them."""
    written = pages()
    stale = drifted(written)
    if args == ["--check"]:
        if stale:
            print(f"man pages out of date: {', '.join(stale)}\nhint: make man", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in written:
            (HERE / name).write_text(written[name], encoding="utf-8")
        else:
            (HERE / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
