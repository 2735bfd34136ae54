"""The commands of a chat, in one table: what runs them, what /help says and what Tab offers all come from it."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from uncomp_cli.cli.chat import controls, history
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.cli.declare.completion import completing, preset_names
from uncomp_cli.errors import UsageError
from uncomp_cli.sessions.folder import session_names
from uncomp_cli.table import Table

_NAME = re.compile(r"/[A-Za-z_-]*")
_SPACE = re.compile(r"(?<!\\) ")
_SPECIAL = re.compile(r"[\s'\"\\]")
_ESCAPED = re.compile(r"\\(.)")
_KEYS = (
    ("Ctrl-C", "stop the answer and keep its text; at the prompt: clear what was typed, or leave"),
    ('"""', "begins and ends a message of several lines; Alt-Enter begins a new line"),
    ("Tab", "completes commands, settings, presets and paths"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, what it does in words and in fact, and what Tab offers for its argument's beginning."""

    name: str
    argument: str
    text: str
    run: Callable[[Talk, str], None]
    offers: Callable[[Talk, str], Sequence[str]] = lambda _talk, _begun: ()

    @property
    def usage(self) -> str:
        """`/file FILE…`."""
        return f"{self.name} {self.argument}".rstrip()


def help_lines(argument: str = "", *, width: int | None = None) -> list[str]:
    """What /help says, within `width` columns: all commands and keys, or one command."""
    commands = [_find("/" + argument.lstrip("/"))] if argument else COMMANDS.values()
    rows = [*((command.usage, command.text) for command in commands), *(() if argument else _KEYS)]
    return Table(("", ""), rows).lines(width)[1]


def is_command(text: str) -> bool:
    """Whether a typed text is a command; `/usr/bin is full` is none."""
    return bool(_NAME.fullmatch(text.split(maxsplit=1)[0])) if text.startswith("/") else False


def run_command(talk: Talk, text: str) -> None:
    """Run one. Raises UsageError for an unknown one, with the nearest."""
    name, *rest = text.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    command = _find(name)
    if argument and not command.argument:
        raise UsageError(f"{name} takes nothing behind it, not '{argument}'", hint=command.usage)
    command.run(talk, argument)


def _find(name: str) -> Command:
    if name.lower() in COMMANDS:
        return COMMANDS[name.lower()]
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    raise UsageError(f"unknown command {name}", hint=f"did you mean {near[0]}?" if near else "/help lists them")


def candidates(talk: Talk, line: str) -> list[str]:
    """What `line` may become: a command's name, or a command with its argument."""
    name, space, begun = line.partition(" ")
    if not space:
        return [f"{known} " if COMMANDS[known].argument else known for known in COMMANDS if known.startswith(name)]
    if name not in COMMANDS:
        return []
    return [f"{name} {offer}" for offer in COMMANDS[name].offers(talk, begun.lstrip())]


def _show_help(talk: Talk, argument: str) -> None:
    talk.tell(*help_lines(argument, width=talk.terminal.width("stderr")))


def _leave(_talk: Talk, _argument: str) -> None:
    raise EOFError


def _of(words: Callable[[], Iterable[str]]) -> Callable[[Talk, str], list[str]]:
    """Offers the words that go on with what was begun."""
    return lambda _talk, begun: completing(words)(begun)


def _paths(_talk: Talk, begun: str) -> list[str]:
    """The paths that the last word may become."""
    from uncomp_cli.ui.line_editor import paths_beginning

    *before, fragment = _SPACE.split(begun)
    found = paths_beginning(_ESCAPED.sub(r"\1", fragment))
    return [" ".join([*before, _SPECIAL.sub(r"\\\g<0>", path)]) for path in found]


def _talks(talk: Talk, begun: str) -> list[str]:
    """Sessions and files."""
    return [*(name for name in session_names() if name.startswith(begun)), *_paths(talk, begun)]


def _pages(talk: Talk, begun: str) -> list[str]:
    return [f"{page.path}:" for page in talk.chat.dialogue.pages() if page.path.startswith(begun)]


def _files(talk: Talk, begun: str) -> list[str]:
    return [page.path for page in talk.chat.dialogue.pages() if page.path.startswith(begun)]


def _pins(talk: Talk, begun: str) -> list[str]:
    return [word for word in ("all", *(pin.label for pin in talk.chat.dialogue.pins)) if word.startswith(begun)]


_TABLE = (
    Command("/help", "[COMMAND]", "what can be typed", _show_help, _of(lambda: COMMANDS)),
    Command("/file", "FILE…", "add documents to the next question, and read them now", history.add_files, _paths),
    Command("/files", "", "the documents of the conversation, and how much of each is kept", controls.list_files),
    Command(
        "/system",
        "[TEXT]",
        f"show the system prompt; with text after it, set it; {controls.OWN_PROMPT}: the model's own",
        controls.set_system,
        _of(lambda: [controls.OWN_PROMPT]),
    ),
    Command(
        "/set",
        "[NAME [VALUE]]",
        "show how answers are made, or set a value: /set temperature 0.7, /set recall off",
        controls.set_value,
        _of(controls.settable),
    ),
    Command(
        "/budget",
        "[AMOUNT]",
        "show the budget, or read the conversation again with another: 20%, 512, 64MiB, 2x, full",
        controls.set_budget,
        _of(lambda: ["2x", "full", "auto"]),
    ),
    Command(
        "/preset",
        "[NAME]",
        "show the presets, or read the conversation again with another",
        controls.set_preset,
        lambda _talk, begun: preset_names(begun),
    ),
    Command("/stats", "", "context, memory, preset and the latest readout", controls.show_stats),
    Command("/why", "", "what every layer and head keeps, and what was measured", controls.show_why),
    Command("/evidence", "", "the passages that the latest answer attended to", controls.show_evidence),
    Command("/pin", "[FILE:10-40]", "list the pins, or keep lines whatever the budget drops", controls.pin, _pages),
    Command("/unpin", "FILE:10-40", "give up a pin; all: every one", controls.unpin, _pins),
    Command("/save", "FILE", "write the conversation: .md to be read, .json to be loaded", history.save, _paths),
    Command("/load", "FILE", "go on with a .json file or a session", history.load, _talks),
    Command("/retry", "", "answer the latest question again, with another seed", history.retry),
    Command("/undo", "[N]", "take back the latest exchange, or documents without a question", history.undo),
    Command(
        "/forget", "[N|FILE]", "forget the oldest exchange, not its documents; or a document", history.forget, _files
    ),
    Command("/history", "[N]", "what was said, a line an exchange; one of them in full", history.show_history),
    Command("/copy", "", "put the latest answer into the clipboard", history.copy),
    Command("/edit", "[TEXT]", "write a message in $EDITOR and send it", history.edit),
    Command("/clear", "", "forget the conversation, keep the system prompt", history.clear),
    Command("/exit", "", "leave; Ctrl-D does the same", _leave),
)

COMMANDS: dict[str, Command] = {command.name: command for command in _TABLE}
