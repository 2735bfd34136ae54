"""Commands that change what was said: /file, /retry, /undo, /forget, /edit, /clear, /save and /load."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from uncomp_cli.asking.dialogue import exchanges
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.documents.collection import DocumentSet, reading
from uncomp_cli.documents.text import Wishes
from uncomp_cli.errors import DoesNotFitError, LockedError, UsageError, require
from uncomp_cli.numerals import format_bytes, format_count
from uncomp_cli.sessions.folder import load_transcript, read_session
from uncomp_cli.sessions.transcript import Entry, Transcript
from uncomp_cli.ui.blocks import copy_text, edit_text
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import with_password
from uncomp_cli.ui.meter import show

_LARGE_BYTES = 2**26
_LINE = 80


def add_files(talk: Talk, argument: str) -> None:
    """Add documents to the next question, and read them now."""
    try:
        paths = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"{argument} is no list of files: {error}", hint='/file "my notes.txt"') from error
    if not paths:
        raise UsageError("no file is named", hint="/file notes.txt, a folder, or a glob such as docs/*.md")
    documents = read_files(paths, talk.terminal, talk.wishes, talk.include).documents
    new = talk.chat.unknown(documents)
    talk.show(talk.chat.add(documents))
    if not new:
        raise UsageError("nothing new was named", hint="/files lists the documents")


def read_files(paths: Sequence[str], terminal: Terminal, wishes: Wishes, include: Sequence[str] = ()) -> DocumentSet:
    """The documents at `paths`; what of several cannot be read is said, and raised where nothing is left."""
    if "-" in paths:
        raise UsageError("'-' names standard input, from which the questions come", hint="name a file")
    _check_sizes(paths)
    try:
        documents = show(reading(paths, include=include, patient=len(paths) > 1, wishes=wishes), terminal)
    except LockedError as error:
        return read_files(paths, terminal, with_password(error, wishes, terminal), include)
    for _, failure in documents.failures:
        if not documents.documents:
            raise failure
        terminal.warn(failure.message)
    for remark in documents.remarks:
        terminal.warn(remark.text, remark.more)
    return documents


def _check_sizes(paths: Sequence[str]) -> None:
    """Refuse a file that is larger than the memory that is free, before a byte of it is read."""
    for path in paths:
        size = _file_bytes(path)
        if size < _LARGE_BYTES:
            continue
        import torch

        from uncomp_cli.engine.spend.memory import free_bytes

        available = free_bytes(torch.device("cpu"))
        if size > available:
            message = f"{path} has {format_bytes(size)}, {format_bytes(available)} of memory are free"
            raise DoesNotFitError(message, hint="cut the part out that matters: head -c 100K FILE > part.txt")


def _file_bytes(path: str) -> int:
    """0 for what is no file: reading says what is wrong with it."""
    try:
        return Path(path).expanduser().stat().st_size
    except (OSError, RuntimeError, ValueError):
        return 0


def retry(talk: Talk, _: str) -> None:
    """Answer the latest question again, with another seed; the earlier answer stays when there is no new one."""
    before = talk.chat.dialogue.entries
    if before and talk.chat.session.sampling.temperature == 0:
        talk.say("temperature is 0, so the same answer is likely; /set temperature 0.7 makes it vary")
    try:
        talk.show(talk.chat.retry())
    finally:
        if before and talk.chat.dialogue.entries is before:
            talk.say("the earlier answer stays")


def undo(talk: Talk, argument: str) -> None:
    """Take back the latest exchanges, or the documents that were added behind them."""
    dialogue = talk.chat.dialogue
    if dialogue.pending and not argument:
        gone_documents = dialogue.drop_pending()
        talk.chat.forget_unsaid()
        talk.say(f"{', '.join(each.path for each in gone_documents)} taken out again")
        return
    gone = talk.chat.undo(_count(argument, "/undo"))
    names = _attached(gone)
    waits = f"; {names} for the next question, /undo again takes that out too" if names else ""
    talk.say(f"{_exchanges(gone)} taken back; /edit has the question again{waits}")


def forget(talk: Talk, argument: str) -> None:
    """Forget the oldest exchanges, whose documents stay, or a document, so that there is room."""
    dialogue, again = talk.chat.dialogue, "the next turn reads the conversation again"
    if argument and not argument.isdecimal():
        dialogue.drop_document(_one_word(argument))
        talk.say(f"{_one_word(argument)} forgotten: {again}")
    else:
        gone = dialogue.drop_first(_count(argument, "/forget"))
        names = _attached(gone)
        stays = f"; {names} stays, /forget FILE forgets it too" if names else ""
        talk.say(f"the oldest {_exchanges(gone)} forgotten: {again}{stays}")
    talk.chat.forget_unsaid()


def exchange_lines(exchange: list[Entry]) -> list[str]:
    """A question and what was answered, as they were written."""
    question, *answers = exchange
    said = (answer.text + (" [interrupted]" if answer.interrupted else "") for answer in answers)
    return "\n".join([f"> {question.spoken}", *said]).split("\n")


def show_history(talk: Talk, argument: str) -> None:
    """Every exchange in a line, or one of them in full."""
    found = talk.chat.dialogue.exchanges
    if argument:
        number = _count(argument, "/history")
        require(number <= len(found), f"there is no exchange {number}", hint=f"there are {exchanges(len(found))}")
        talk.tell(*exchange_lines(found[number - 1]))
        return
    for number, (question, *answers) in enumerate(found, start=1):
        said = " ".join(f"{question.spoken} → {''.join(each.text for each in answers)}".split())
        talk.tell(shorten(f"{number:>3}  {said}", _LINE, placeholder="…"))
    if not found:
        talk.tell("nothing has been said yet")


def copy(talk: Talk, _: str) -> None:
    """Put the latest answer into the clipboard."""
    answers = [entry.text for entry in talk.chat.dialogue.entries if entry.role == "assistant"]
    require(bool(answers), "there is no answer to copy", hint="type a question")
    copy_text(answers[-1], talk.terminal)
    talk.say(f"{format_count(len(answers[-1]))} characters copied")


def edit(talk: Talk, argument: str) -> None:
    """Write a message in the editor, from `argument` or the message that got no answer, and send it."""
    text = edit_text(argument or talk.chat.draft, talk.terminal).strip()
    if not text:
        talk.say("nothing was written, so nothing is sent")
        return
    for line in f"> {text}".split("\n"):
        talk.say(line)
    talk.ask(text)


def clear(talk: Talk, _: str) -> None:
    """Forget the conversation and its documents; system prompt, settings and preset stay."""
    talk.chat.clear()
    talk.say("the conversation is forgotten")


def _count(argument: str, command: str) -> int:
    """How many exchanges; one when nothing is said."""
    if not argument:
        return 1
    if not argument.isdecimal() or not 1 <= int(argument[:9]) <= 10**6:
        raise UsageError(f"'{argument}' is no number of exchanges", hint=f"{command}, or {command} 2")
    return int(argument)


def _exchanges(gone: list[list[Entry]]) -> str:
    return "exchange" if len(gone) == 1 else f"{format_count(len(gone))} exchanges"


def _attached(gone: list[list[Entry]]) -> str:
    """The names of the documents in these exchanges."""
    return ", ".join(each.path for exchange in gone for entry in exchange for each in entry.attachments)


def save(talk: Talk, argument: str) -> None:
    """Write the conversation to a file: .md to be read, .json to be loaded again."""
    path = _file_named(argument, "/save")
    talk.chat.save(path)
    talk.say(f"{exchanges(len(talk.chat.dialogue.exchanges))} written to {path}")


def load(talk: Talk, argument: str) -> None:
    """Go on with a conversation from a file that /save wrote, or from a session's name."""
    chat = talk.chat
    if not argument:
        raise UsageError("no file is named", hint="/load talk.json, or the name of a session")
    if chat.dialogue.entries or chat.dialogue.pending:
        raise UsageError("there is a conversation already", hint="/save it if it matters, then /clear, then /load")
    transcript, created = _read(argument), chat.created
    restore(talk, transcript)
    chat.created = created or chat.created
    chat.session.clear()
    talk.say(f"{exchanges(len(chat.dialogue.exchanges))} loaded: the next turn reads all of it")


def restore(talk: Talk, transcript: Transcript) -> None:
    """Take a transcript's conversation over, and say what is not as it was."""
    changed = talk.chat.restore(transcript)
    if changed:
        answers, their = ("answers are", "their") if changed > 1 else ("answer is", "its")
        talk.say(f"{format_count(changed)} {answers} read as text: {their} tokens are not this model's")
    if len(talk.chat.dialogue.entries) < len(transcript.entries):
        talk.say("the last question has no answer; /edit has it")


def _read(argument: str) -> Transcript:
    if os.sep not in argument and not argument.endswith((".json", ".md")):
        return read_session(argument)
    path = _file_named(argument, "/load")
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path} is no .json file", hint="/save FILE.json writes what /load reads")
    return load_transcript(path)


def _file_named(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError("no file is named", hint=f"{command} talk.json, or {command} talk.md")
    try:
        return Path(_one_word(argument)).expanduser()
    except RuntimeError as error:  # no home directory
        raise UsageError(f"{argument} cannot be found: {error}", hint="write the whole path") from error


def _one_word(argument: str) -> str:
    """The argument as a shell would take it; a name with spaces may also stand there as it is."""
    try:
        words = shlex.split(argument)
    except ValueError:
        return argument
    return words[0] if len(words) == 1 else argument
