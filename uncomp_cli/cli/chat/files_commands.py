"""Documents in a chat: /file adds and reads them ahead of the question, /files lists them.

A file that cannot fit is refused before it is tokenized: of a long text only a beginning is counted. What was said
before stays as it is when a document is refused or its reading is stopped.
"""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.cli.chat.chat_places import pages
from uncomp_cli.cli.chat.room import hint_in_chat
from uncomp_cli.cli.chat.said import paper_of
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.documents.collection import DocumentSet, read_documents
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.documents.collection import Document

__all__ = ["add_files", "list_files", "read_files", "take_documents", "unknown"]

_LARGE_BYTES = 2**26
_CHARS_TO_COUNT = 16
"""Characters a token of the context that are counted at most: what has more tokens than that is long for sure."""


def add_files(chat: Chat, argument: str) -> None:
    """Add documents to the next question, and read them now."""
    try:
        paths = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"{argument} is no list of files: {error}", hint='/file "my notes.txt"') from error
    if not paths:
        raise UsageError("no file is named", hint="/file notes.txt, a folder, or a glob such as docs/*.md")
    documents = unknown(chat, read_files(paths, chat.terminal))
    if not documents:
        raise UsageError("nothing new was named", hint="/files lists the documents")
    take_documents(chat, documents)


def read_files(paths: Sequence[str], terminal: Terminal) -> DocumentSet:
    """The documents at `paths`; what is left out in a folder is said."""
    if "-" in paths:
        raise UsageError("'-' names standard input, from which the questions come", hint="name a file")
    _check_sizes(paths)
    documents = read_documents([str(Path(path).expanduser()) for path in paths])
    for path, reason in documents.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return documents


def take_documents(chat: Chat, new: "Sequence[Document]") -> None:
    """Read documents behind the conversation; a question about them follows. Ctrl-C takes them out again."""
    _check_length(chat, new)
    before = list(chat.dialogue.pending)
    names = ", ".join(document.path for document in new)
    chat.dialogue.pending += [paper_of(document) for document in new]
    try:
        _read_ahead(chat, names)
    except KeyboardInterrupt:
        chat.dialogue.pending = before
        chat.say(f"stopped: {names} was not added")
    except Exception as error:
        chat.dialogue.pending = before
        if not isinstance(error, DoesNotFitError):
            raise
        raise DoesNotFitError(error.message, hint=hint_in_chat(chat, error.hint)) from error


def unknown(chat: Chat, documents: DocumentSet) -> "list[Document]":
    """Those that are not part of the conversation yet; the others are told."""
    known = {page.sha256 for page in pages(chat.dialogue)}
    for document in documents.documents:
        if document.sha256 in known:
            chat.say(f"{document.path} is part of the conversation already")
    return [document for document in documents.documents if document.sha256 not in known]


def _read_ahead(chat: Chat, names: str) -> None:
    session, begun = chat.session, time.perf_counter()
    before = session.cached_tokens
    for _ in watch_generation(session.read_ahead(chat.messages(chat.dialogue.waiting())), chat.terminal):
        pass
    tokens = format_count(max(0, session.cached_tokens - before))
    elapsed = format_seconds(time.perf_counter() - begun)
    kept = f"KV {format_bytes(session.kv_bytes)}"
    chat.say(f"{names}: {tokens} tokens read in {elapsed} · {kept} · the next question may be about it")


def list_files(chat: Chat, _: str) -> None:
    """The documents of the conversation: where, how long, and how much of them is kept."""
    from uncomp_cli.engine.tokens.prompt import count_tokens

    found = pages(chat.dialogue)
    if not found:
        chat.tell("no document is part of the conversation; /file FILE adds one")
        return
    kept = _kept_shares(chat)
    for page in found:
        lines = format_count(len(page.lines))
        tokens = format_count(count_tokens(chat.loaded.tokenizer, page.text))
        waits = " · waits for a question" if page.entry == len(chat.dialogue.entries) else ""
        share = "" if page.path not in kept else f" · kept {format_decimal(100 * kept[page.path])} %"
        chat.tell(f"{page.path} · turn {page.entry // 2 + 1} · {lines} lines · {tokens} tokens{share}{waits}")


def _kept_shares(chat: Chat) -> dict[str, float]:
    """The share of its keys and values that every document has left; of those that were read."""
    from uncomp_cli.cli.chat.inspection import places_of

    places = places_of(chat)
    if places is None:
        return {}
    survival: list[float] = chat.session.survival().tolist()
    shares: dict[str, list[float]] = {}
    for passage in places.passages():
        shares.setdefault(passage.path, []).extend(survival[token] for token in passage.tokens if token < len(survival))
    return {path: sum(values) / len(values) for path, values in shares.items() if values}


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


def _check_length(chat: Chat, documents: "Sequence[Document]") -> None:
    """Refuse documents that are longer than the whole context, without tokenizing all of them."""
    from uncomp_cli.engine.tokens.prompt import count_tokens

    limit = chat.loaded.spec.trained_length
    for document in documents:
        if len(document.text) <= _CHARS_TO_COUNT * limit:
            continue
        begun = document.text[: _CHARS_TO_COUNT * limit]
        tokens = count_tokens(chat.loaded.tokenizer, begun)
        if tokens > limit:
            share = format_decimal(100 * len(begun) / len(document.text))
            raise DoesNotFitError(
                f"the first {share} % of {document.path} has {format_count(tokens)} tokens already, "
                f"the context holds {format_count(limit)}",
                hint="add the part that matters, or leave and come back with a larger --context",
            )
