"""A conversation as plain data: what was said, with which model and settings, what is pinned.

The file is JSON that can be read and edited: one line a setting, one line an entry. Texts that went to the model in
several pieces (a document, a question) are stored as these `parts`; an answer also has the ids of its own tokens.
As Markdown, to be read, it has of documents their names, not their texts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, Self

from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.schema import Count, parse_object, read, shown, take_version, text, value_of

SCHEMA_VERSION = 1

_ROLES = ("user", "assistant")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A document inside of an entry: `text[first_char:last_char]`, read from a file with this sha256.

    `places` are (first line, name) of its pages and the like, `losses` (what, how many, where) what was left out of it.
    """

    path: str
    sha256: str
    first_char: Count
    last_char: Count
    places: tuple[tuple[Count, str], ...] = ()
    losses: tuple[tuple[str, Count, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pin:
    """What is never evicted: `entries[entry].text[first_char:last_char]`; `label` is what the user called it."""

    entry: Count
    first_char: Count
    last_char: Count
    label: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What was said by one side. `parts` joined are `text`; `ids` are the tokens of an answer, if they are known.

    `interrupted`: the answer was stopped, and what had come of it was kept.
    """

    role: Literal["user", "assistant"]
    text: str
    parts: tuple[str, ...] = ()
    ids: tuple[Count, ...] | None = None
    interrupted: bool = False
    attachments: tuple[Attachment, ...] = ()

    def __post_init__(self) -> None:
        if self.parts and "".join(self.parts) != self.text:
            raise UsageError("the parts of an entry are not its text", hint="parts joined must be the text")
        for attachment in self.attachments:
            _check_range(attachment, self.text, attachment.path)

    @property
    def spoken(self) -> str:
        """What the user typed of a question: without the documents in front of it."""
        return self.parts[-1] if self.attachments and len(self.parts) > 1 else self.text


def _read_entries(data: Any, place: str) -> tuple[Entry, ...]:
    """An entry has either `text` or `parts`, so that the two cannot differ."""
    places = (f"{place}[{index}]" for index in range(len(value_of(list[Any], data, place))))
    return tuple(read(Entry, _with_text(item, at), at) for item, at in zip(data, places, strict=True))


def _with_text(data: Any, place: str) -> Any:
    if not isinstance(data, dict) or "parts" not in data:
        return data
    if "text" in data:
        raise UsageError(f"{place} has both text and parts", hint="keep one of them")
    return {**data, "text": "".join(value_of(tuple[str, ...], data["parts"], f"{place}.parts"))}


def _read_sampling(data: Any, place: str) -> dict[str, Any]:
    sampling = read(SamplingConfig, data, place)
    return {key: getattr(sampling, key) for key in data}


def _read_moment(data: Any, place: str) -> str:
    moment = text(data, place)
    try:
        return moment and datetime.fromisoformat(moment).isoformat()
    except ValueError as error:
        hint = "it must be a time such as 2026-01-31T12:00:00+00:00"
        raise UsageError(f"{place} is {shown(moment)}", hint=hint) from error


@dataclass(frozen=True, slots=True)
class Transcript:
    """A session. `budget` is in the user's own unit (None: the preset's), `sampling` has SamplingConfig's fields.

    Entries alternate, the first is a user's; the system prompt is none of them. `created` and `updated` are times in
    ISO 8601, "" until the first save. Raises UsageError when made of what does not belong together.
    """

    model: str
    preset: str
    budget: str | None = None
    system: str | None = None
    entries: tuple[Entry, ...] = field(default=(), metadata={"read": _read_entries})
    pins: tuple[Pin, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict, metadata={"read": _read_sampling})
    created: str = field(default="", metadata={"read": _read_moment})
    updated: str = field(default="", metadata={"read": _read_moment})

    def __post_init__(self) -> None:
        said = {"system": self.system or "", **{f"entries[{i}]": each.text for i, each in enumerate(self.entries)}}
        for place, words in said.items():
            if _LONE_SURROGATE.search(words):  # no tokenizer takes it
                hint = "mend the place, or move the file away"
                raise UsageError(f"{place} has half a character in its text", hint=hint)
        for index, entry in enumerate(self.entries):
            if entry.role != _ROLES[index % 2]:
                hint = "user and assistant take turns, and the user begins"
                raise UsageError(f"entries[{index}].role is '{entry.role}'", hint=hint)
        for index, pin in enumerate(self.pins):
            if pin.entry >= len(self.entries):
                raise UsageError(f"pins[{index}].entry is {pin.entry}", hint=f"there are {len(self.entries)} entries")
            _check_range(pin, self.entries[pin.entry].text, f"pins[{index}]")
        _read_sampling(self.sampling, "sampling")

    def saved_at(self, moment: str) -> Self:
        """The same, updated at this time, and created then if never before."""
        return replace(self, created=self.created or moment, updated=moment)

    def to_json(self) -> str:
        """The text of the file, UTF-8 throughout; `from_json` gives an equal transcript."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "preset": self.preset,
            "budget": self.budget,
            "created": self.created,
            "updated": self.updated,
            "system": self.system,
            "sampling": dict(self.sampling),
        }
        lines = [f'  "{key}": {_dump(value)}' for key, value in head.items()]
        lines.append(_dump_list("pins", [_plain(pin) for pin in self.pins]))
        lines.append(_dump_list("entries", [_plain_entry(entry) for entry in self.entries]))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def to_markdown(self) -> str:
        """What was said, in order; ends in a newline."""
        return "\n\n".join(_blocks(self)) + "\n"

    @classmethod
    def from_json(cls, source: str | bytes) -> Self:
        """The inverse; raises UsageError that names the key and the value that cannot be used."""
        data = parse_object(source)
        take_version(data, SCHEMA_VERSION, again=f'write "schema_version": {SCHEMA_VERSION} if it is a session')
        return read(cls, data)


def _check_range(part: Attachment | Pin, whole_text: str, where: str) -> None:
    if not 0 <= part.first_char <= part.last_char <= len(whole_text):
        message = f"{where} is at characters {part.first_char} to {part.last_char} of {len(whole_text)}"
        raise UsageError(message, hint="first_char <= last_char <= the length of the text must hold")


def _plain(item: Any) -> dict[str, Any]:
    """A flat dataclass without the values that are its defaults."""
    return {f.name: value for f in fields(item) if (value := getattr(item, f.name)) != f.default}


def _plain_entry(entry: Entry) -> dict[str, Any]:
    left_out = "text" if entry.parts else "parts"
    plain = {key: value for key, value in _plain(entry).items() if key != left_out}
    if entry.attachments:
        plain["attachments"] = [_plain(attachment) for attachment in entry.attachments]
    return plain


def _dump_list(key: str, items: list[dict[str, Any]]) -> str:
    lines = ",\n".join(f"    {_dump(item)}" for item in items)
    return f'  "{key}": [\n{lines}\n  ]' if items else f'  "{key}": []'


def _dump(value: Any) -> str:
    """JSON on one line. Half a surrogate pair (a byte of a file name that is no UTF-8) is escaped."""
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", plain)


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
    yield entry.spoken.strip("\n")
    if entry.interrupted:
        yield "*[interrupted]*"
