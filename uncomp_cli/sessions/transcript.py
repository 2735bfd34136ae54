"""A conversation as plain data: what was said, with which model and settings, what is pinned.

The file is JSON that can be read and edited: one line a setting, one line an entry. Texts that went to the model in
several pieces (a document, a question) are stored as these `parts`; an answer also has the ids of its own tokens.
As Markdown, to be read, it has of documents their names, not their texts.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, Self

from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.sessions.checked_json import list_of, object_of, parse_object, scalar, text, text_or_null, truth, whole

SCHEMA_VERSION = 1

_SAMPLING = {item.name: type(item.default) for item in fields(SamplingConfig)}
_ROLES = ("user", "assistant")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A document inside of an entry: `text[first_char:last_char]`, read from a file with this sha256."""

    path: str
    sha256: str
    first_char: int
    last_char: int


@dataclass(frozen=True, slots=True)
class Pin:
    """What is never evicted: `entries[entry].text[first_char:last_char]`; `label` is what the user called it."""

    entry: int
    first_char: int
    last_char: int
    label: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What was said by one side. `parts` joined are `text`; `ids` are the tokens of an answer, if they are known.

    `interrupted`: the answer was stopped, and what had come of it was kept.
    """

    role: Literal["user", "assistant"]
    text: str
    parts: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None
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
    entries: tuple[Entry, ...] = ()
    pins: tuple[Pin, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    updated: str = ""

    def __post_init__(self) -> None:
        for place, said in (
            ("system", self.system or ""),
            *((f"entries[{i}]", e.text) for i, e in enumerate(self.entries)),
        ):
            if _LONE_SURROGATE.search(said):  # no tokenizer takes it
                raise UsageError(
                    f"{place} has half a character in its text", hint="mend the place, or move the file away"
                )
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
        version = data.pop("schema_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
            newer = type(version) is int and version > SCHEMA_VERSION
            hint = "update uncomp" if newer else f'write "schema_version": {SCHEMA_VERSION} if it is a session'
            raise UsageError(f"schema_version is {version!r}, this uncomp reads {SCHEMA_VERSION}", hint=hint)
        return cls(**_read_object(data, "", cls))


def _read_attachment(data: Any, place: str) -> Attachment:
    return Attachment(**_read_object(data, place, Attachment))


def _read_pin(data: Any, place: str) -> Pin:
    return Pin(**_read_object(data, place, Pin))


def _read_entry(data: Any, place: str) -> Entry:
    """An entry has either `text` or `parts`, so that the two cannot differ."""
    if isinstance(data, dict) and "parts" in data:
        if "text" in data:
            raise UsageError(f"{place} has both text and parts", hint="keep one of them")
        data = {**data, "text": "".join(list_of(data["parts"], f"{place}.parts", text))}
    found = _read_object(data, place, Entry)
    try:
        return Entry(**found)
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", hint=error.hint) from error


def _read_role(data: Any, place: str) -> str:
    if data not in _ROLES:
        raise UsageError(f"{place} is {data!r}", hint=f"it must be {' or '.join(_ROLES)}")
    return text(data, place)


def _read_ids(data: Any, place: str) -> tuple[int, ...] | None:
    return None if data is None else list_of(data, place, whole)


def _read_sampling(data: Any, place: str) -> dict[str, Any]:
    found = object_of(data, place, _SAMPLING, ())
    numbers: dict[str, Any] = {key: scalar(value, f"{place}.{key}", _SAMPLING[key]) for key, value in found.items()}
    SamplingConfig(**numbers)
    return numbers


def _read_moment(data: Any, place: str) -> str:
    moment = text(data, place)
    try:
        return moment and datetime.fromisoformat(moment).isoformat()
    except ValueError as error:
        raise UsageError(
            f"{place} is '{moment}'", hint="it must be a time such as 2026-01-31T12:00:00+00:00"
        ) from error


_READERS: dict[type, dict[str, Callable[[Any, str], Any]]] = {
    Attachment: {"path": text, "sha256": text, "first_char": whole, "last_char": whole},
    Pin: {"entry": whole, "first_char": whole, "last_char": whole, "label": text},
    Entry: {
        "role": _read_role,
        "text": text,
        "parts": lambda data, place: list_of(data, place, text),
        "ids": _read_ids,
        "interrupted": truth,
        "attachments": lambda data, place: list_of(data, place, _read_attachment),
    },
    Transcript: {
        "model": text,
        "preset": text,
        "budget": text_or_null,
        "system": text_or_null,
        "entries": lambda data, place: list_of(data, place, _read_entry),
        "pins": lambda data, place: list_of(data, place, _read_pin),
        "sampling": _read_sampling,
        "created": _read_moment,
        "updated": _read_moment,
    },
}


def _read_object(data: Any, place: str, target: Any) -> dict[str, Any]:
    """The arguments for the dataclass `target`; what has a default may be missing."""
    readers = _READERS[target]
    required = [f.name for f in fields(target) if f.default is MISSING and f.default_factory is MISSING]
    found = object_of(data, place, readers, required)
    return {key: readers[key](value, f"{place}.{key}" if place else key) for key, value in found.items()}


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
