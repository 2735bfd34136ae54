"""A conversation as Markdown, to be read: what was said in order; of documents their names, not their texts."""

from collections.abc import Iterator

from uncomp_cli.cli.chat.said import spoken
from uncomp_cli.numerals import format_count
from uncomp_cli.sessions.transcript import Entry, Transcript

__all__ = ["to_markdown"]


def to_markdown(transcript: Transcript) -> str:
    """The whole text; ends in a newline."""
    return "\n\n".join(_blocks(transcript)) + "\n"


def _blocks(transcript: Transcript) -> Iterator[str]:
    budget = "" if transcript.budget is None else f", budget {transcript.budget}"
    yield "# Conversation"
    yield f"Model {transcript.model}, preset {transcript.preset}{budget}."
    if transcript.system is not None:
        yield "## System prompt"
        yield transcript.system
    for entry in transcript.entries:
        yield "## You" if entry.role == "user" else "## Answer"
        yield from _entry_blocks(entry)
    if transcript.pins:
        yield "## Pinned"
        yield "\n".join(f"- {pin.label}" for pin in transcript.pins)


def _entry_blocks(entry: Entry) -> Iterator[str]:
    for each in entry.attachments:
        length = format_count(each.last_char - each.first_char)
        yield f"Document {each.path}, {length} characters, SHA-256 {each.sha256}"
    yield spoken(entry).strip("\n")
    if entry.interrupted:
        yield "*[interrupted]*"
