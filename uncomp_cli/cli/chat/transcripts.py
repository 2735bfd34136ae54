"""A chat as a transcript, and back: --session, /save and /load.

The ids of an answer are taken over when they spell its text with this model's tokenizer; otherwise (another model, or
a file that was edited) the text itself is read.
"""

import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from uncomp_cli.cli.chat.chat_markdown import to_markdown
from uncomp_cli.cli.chat.chat_preset import CHAT_PRESET
from uncomp_cli.cli.chat.said import Dialogue, exchanges, papers_in, spoken
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.files import write_whole
from uncomp_cli.numerals import format_count
from uncomp_cli.sessions.folder import read_session
from uncomp_cli.sessions.transcript import Entry, Transcript

__all__ = ["load", "restore", "save", "transcript_of"]

_SUFFIXES = (".json", ".md")


def transcript_of(chat: Chat) -> Transcript:
    """All that is needed to go on another day; documents that wait for a question are not part of it."""
    dialogue = chat.dialogue
    return Transcript(
        model=chat.model_name,
        preset=chat.choice.name or CHAT_PRESET,
        budget=chat.choice.budget,
        system=dialogue.system,
        entries=tuple(dialogue.entries),
        pins=tuple(pin for pin in dialogue.pins if pin.entry < len(dialogue.entries)),
        sampling=asdict(chat.session.sampling),
        created=chat.created,
    )


def restore(chat: Chat, transcript: Transcript) -> None:
    """Take a transcript's conversation over, with its system prompt and pins; settings are the caller's business."""
    entries = [_known(entry, chat.loaded.tokenizer) for entry in transcript.entries]
    changed = sum(
        before.ids is not None and after.ids is None for before, after in zip(transcript.entries, entries, strict=True)
    )
    if changed:
        many = changed > 1
        answers = f"{format_count(changed)} answer{'s are' if many else ' is'} read as text"
        chat.say(f"{answers}: {'their' if many else 'its'} tokens are not this model's")
    papers = []
    if entries and entries[-1].role == "user":
        question = entries.pop()
        chat.draft, papers = spoken(question), papers_in(question)
        chat.say("the last question has no answer; /edit has it")
    pins = [pin for pin in transcript.pins if pin.entry < len(entries)]
    chat.dialogue = Dialogue(transcript.system, entries, papers, pins)
    chat.created = transcript.created


def _known(entry: Entry, tokenizer: Any) -> Entry:
    """The entry without ids that do not spell its text."""
    if entry.ids is None:
        return entry
    in_vocabulary = all(token < len(tokenizer) for token in entry.ids)
    spelled = str(tokenizer.decode(list(entry.ids), skip_special_tokens=True)) if in_vocabulary else None
    same = spelled is not None and spelled.rstrip("\ufffd").strip() == entry.text.rstrip("\ufffd").strip()
    return entry if same else replace(entry, ids=None)


def save(chat: Chat, argument: str) -> None:
    """Write the conversation to a file: .md to be read, .json to be loaded again."""
    path = _file_named(argument, "/save")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{path} ends in neither .md nor .json", hint=f"/save {path.stem or 'notes'}.md")
    if path.exists() and str(path.resolve()) not in chat.written:
        raise UsageError(f"{path} is there already, and this chat did not write it", hint="name another file")
    transcript = transcript_of(chat)
    text = transcript.to_json() if path.suffix.lower() == ".json" else to_markdown(transcript)
    try:
        write_whole(path, text.encode(errors="backslashreplace"), owner_only=True)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UncompError(message, hint="name another place; the conversation goes on") from error
    chat.written.add(str(path.resolve()))
    chat.say(f"{exchanges(len(chat.dialogue.exchanges))} written to {path}")


def load(chat: Chat, argument: str) -> None:
    """Go on with a conversation from a file that /save wrote, or from a session's name."""
    if not argument:
        raise UsageError("no file is named", hint="/load talk.json, or the name of a session")
    if chat.dialogue.entries or chat.dialogue.pending:
        raise UsageError("there is a conversation already", hint="/save it if it matters, then /clear, then /load")
    transcript = _read(argument)
    created = chat.created
    restore(chat, transcript)
    chat.created = created or chat.created
    chat.session.clear()
    chat.say(f"{exchanges(len(chat.dialogue.exchanges))} loaded: the next turn reads all of it")


def _read(argument: str) -> Transcript:
    if os.sep not in argument and not argument.endswith(_SUFFIXES):
        return read_session(argument)
    path = _file_named(argument, "/load")
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path} is no .json file", hint="/save FILE.json writes what /load reads")
    try:
        return Transcript.from_json(path.read_bytes())
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(message, hint="check the path: /load FILE.json") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


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
