"""What clients send and are sent: OpenAI's chat completions and completions, read strictly, and uncomp's own fields.

    messages    system, user and assistant, the last one a user's; a user's parts may be text, or files (base64)
    own fields  preset, budget, kv_bits, thin, cache (a saved document), evidence, top_k, min_p, repetition_penalty

A field that is unknown is refused by its name, and so is one that asks for what is not there (tools, several choices);
none is ignored silently. Texts of clients are data: no words of theirs become control tokens, and none names a file.
"""

import base64
import binascii
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from uncomp_cli.asking.events import Done
from uncomp_cli.asking.request import AUTOMATIC, PresetChoice, Request, check_text
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import is_preset_file
from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.schema import Among, Some, inside, parse_object, read, shortened, shown

ALL_KEPT = "full"
"""The preset for what has no document: a conversation is kept whole."""
_MOST_STOPS, _LONGEST_STOP = 4, 256
_MOST_VALUES = 2**20
"""Of a body; texts have as many commas, more is a list of nothing: JSON takes twenty times its size in memory then."""
T = TypeVar("T", SamplingConfig, PresetChoice)
_ROLES = ("system", "developer", "user", "assistant")
_OF_FILES = ("filename", "file_data")
_NOT_HERE = {
    "n": (None, 1),
    "logprobs": (None, False),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
"""Fields that ask for what there is not, and the values of them that ask for nothing."""
_NO_MATTER = (
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "service_tier",
)
"""Fields that a client may send and that change no answer."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """The fields of a request that are known; None is not given."""

    model: str
    messages: list[Any] | None = None
    prompt: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Some | None = None
    max_completion_tokens: Some | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Any = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    preset: str | None = None
    budget: Any = None
    kv_bits: Annotated[int, Among((16, 8, 4))] | None = None
    thin: str | None = None
    cache: str | None = None
    evidence: bool | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A document that came with a message."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for: a request of the road that `ask` takes, and how it is answered."""

    request: Request
    files: tuple[File, ...] = ()
    stop: tuple[str, ...] = ()
    streams: bool = False
    with_usage: bool = False

    @property
    def num_bytes(self) -> int:
        """Of the documents that came with it."""
        return sum(len(file.data) for file in self.files)


def parse(body: bytes, usual: Request, *, plain: bool) -> Wanted:
    """A request's JSON; `usual` has what it does not say. Raises UsageError naming the field."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UsageError(f"the body has more than {_MOST_VALUES:,} values", hint="send long texts as files, in base64")
    with inside("the body", hint="send the fields of a request, as a JSON object"):
        data = parse_object(body)
    for name, harmless in _NOT_HERE.items():
        if name in data and data[name] not in harmless:
            raise UsageError(f"{name} is {shown(data[name])}, which is not on offer", hint=f"leave {name} out")
    fields = read(Body, {key: value for key, value in data.items() if key not in {*_NOT_HERE, *_NO_MATTER}})
    if fields.model != (model := usual.model.name):
        raise UnknownModelError(f"the model is {shown(fields.model)}, and {model} is served", hint="see GET /v1/models")
    return _wanted(fields, usual, plain=plain)


class UnknownModelError(UsageError):
    """A model that this server does not have."""


def _wanted(body: Body, usual: Request, *, plain: bool) -> Wanted:
    """What the fields come to."""
    system, files, said = _prompted(body) if plain else _said(body)
    if body.cache == AUTOMATIC:
        raise UsageError("cache auto names no saved document", hint="name one, as `uncomp cache list` does")
    request = replace(
        usual,
        questions=(said[-1][1],),
        earlier=tuple(said[:-1]),
        system=usual.system if system is None else system,
        sampling=_sampling(body, usual.sampling),
        preset=_choice(body, usual.preset, has_text=bool(files or body.cache)),
        reuse=body.cache,
        evidence=bool(body.evidence),
        as_json=True,
        plain=plain,
    )
    options = body.stream_options or StreamOptions()
    return Wanted(request, tuple(files), _stops(body.stop), bool(body.stream), options.include_usage)


def _prompted(body: Body) -> tuple[str | None, list[File], list[Any]]:
    """The text that is to go on."""
    if body.messages is not None or not isinstance(body.prompt, str) or not body.prompt.strip():
        raise UsageError("prompt is no text", hint='send {"prompt": "Once upon a time"}; messages go to /v1/chat')
    if body.cache is not None:
        raise UsageError("cache is for questions", hint="send messages to /v1/chat/completions")
    check_text(body.prompt, "prompt")
    return None, [], [("user", body.prompt)]


def _said(body: Body) -> tuple[str | None, list[File], list[Any]]:
    """The system prompt, the files of all messages, and what users and assistant said, in turn."""
    if body.prompt is not None or not body.messages:
        raise UsageError("messages is empty", hint='send {"messages": [{"role": "user", "content": "…"}]}')
    system, files, said = list[str](), list[File](), list[tuple[str, str]]()
    for number, message in enumerate(body.messages):
        role, text = _message(message, f"messages[{number}]", files)
        if role in ("system", "developer"):
            system.append(text)
        elif said and said[-1][0] == role:  # one after another: one message
            said[-1] = (role, f"{said[-1][1]}\n\n{text}".strip())
        else:
            said.append((role, text))
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise UsageError("the conversation must begin and end with a user's message", hint="order messages anew")
    if not said[-1][1].strip():
        raise UsageError("the last message asks nothing", hint="send a text with the file")
    return "\n\n".join(system) if system else None, files, said


def _message(message: Any, place: str, files: list[File]) -> tuple[str, str]:
    """Role and text of a message; its files go to `files`."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise UsageError(f"{place}.role is none of {', '.join(_ROLES)}", hint="name who says it")
    _check_keys(message, ("role", "content", "name"), place)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise UsageError(f"{place}.content is neither text nor a list of parts", hint='send "content": "…"')
    texts = []
    for number, part in enumerate(parts):
        where = f"{place}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            _check_keys(part, ("type", "text"), where)
            check_text(part["text"], where)
            texts.append(part["text"])
        elif kind in ("file", "input_file") and message["role"] == "user":
            given = {key: value for key, value in part.items() if key != "type"}
            _check_keys(given, ("file",) if "file" in given else _OF_FILES, where)
            files.append(_file(given.get("file", given), where))
        else:
            raise UsageError(f"{where} is neither text nor a file", hint="send parts of type text or file")
    return message["role"], "\n\n".join(texts)


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    """Raise UsageError for one that is not known and says something: clients send back all that an answer has."""
    unknown = next((key for key, value in given.items() if key not in known and value not in (None, "", [], {})), None)
    if unknown is not None:
        raise UsageError(f"{place}.{shortened(unknown)} is an unknown key", hint=f"known keys: {', '.join(known)}")


def _file(data: Any, place: str) -> File:
    """A file's name and bytes, which come as base64, or as a data URL of it."""
    given = data if isinstance(data, dict) else {}
    name, encoded = given.get("filename", "document.txt"), given.get("file_data")
    if not isinstance(encoded, str) or not isinstance(name, str):
        raise UsageError(f"{place}.file has no file_data", hint="send filename, and file_data in base64")
    _check_keys(given, _OF_FILES, f"{place}.file")
    check_text(name, f"{place}.file.filename")
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        return File(PurePath(name.replace("\\", "/")).name or "document.txt", base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{place}.file.file_data is not base64", hint="encode the file's bytes in base64") from error


def _sampling(body: Body, usual: SamplingConfig) -> SamplingConfig:
    return _with(
        usual,
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
    )


def _choice(body: Body, usual: PresetChoice, *, has_text: bool) -> PresetChoice:
    """What is kept; without a document everything, unless something is named."""
    if body.preset is None and body.budget is None and usual.name is None and not has_text:
        return replace(usual, name=ALL_KEPT)
    if body.preset is not None and is_preset_file(body.preset):
        raise UsageError(f"preset {shown(body.preset)} is no name", hint="name one, as `uncomp preset list` does")
    budget = None if body.budget is None else Budget.parse(str(body.budget))
    return _with(usual, name=body.preset, budget=budget, kv_bits=body.kv_bits, thinning=body.thin)


def _with(usual: T, **given: Any) -> T:
    """`usual` with what is given."""
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def _stops(given: Any) -> tuple[str, ...]:
    """Texts at which an answer ends."""
    stops = [] if given is None else [given] if isinstance(given, str) else given
    usable = isinstance(stops, list) and all(isinstance(each, str) and 0 < len(each) <= _LONGEST_STOP for each in stops)
    if not usable or len(stops) > _MOST_STOPS:
        hint = f"send a text of at most {_LONGEST_STOP} characters, or up to {_MOST_STOPS} of them"
        raise UsageError(f"stop is {shown(given)}", hint=hint)
    return tuple(stops)


class Stops:
    """Lets a text through up to the first of `stops`; what may become one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held = stops, ""
        self.met = False

    def push(self, text: str) -> str:
        """What is certain to come before any of them."""
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.met, self._held = True, self._held[: min(ends)]
            return self.rest()
        begun = [size for stop in self._stops for size in range(1, len(stop)) if self._held.endswith(stop[:size])]
        cut = len(self._held) - max(begun, default=0)
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def rest(self) -> str:
        """What was held back, at the end."""
        told, self._held = self._held, ""
        return told


class Replies:
    """The JSON objects of one answer, whole or piece by piece."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted, self._chat = wanted, not wanted.request.plain
        kind = "chat.completion" if self._chat else "text_completion"
        self._kind = f"{kind}.chunk" if self._chat and wanted.streams else kind
        prefix = "chatcmpl" if self._chat else "cmpl"
        name = wanted.request.model.name
        self._known = {"id": f"{prefix}-{uuid4().hex}", "created": int(time.time()), "model": name}

    def whole(self, done: Done, text: str) -> dict[str, Any]:
        """The answer at once."""
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {**self._object([self._choice(said, _finish_reason(done))]), **_account(done)}

    def piece(self, text: str, *, first: bool) -> dict[str, Any]:
        """What comes next of it."""
        role = {"role": "assistant"} if first else {}
        return self._object(
            [self._choice({"delta": {**role, "content": text}} if self._chat else {"text": text}, None)]
        )

    def last(self, done: Done) -> Iterator[dict[str, Any]]:
        """That it is over, and, when that was asked for, what it took."""
        yield self._object([self._choice({"delta": {}} if self._chat else {"text": ""}, _finish_reason(done))])
        if self._wanted.with_usage:
            yield {**self._object([]), **_account(done)}

    def _object(self, choices: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self._known, "object": self._kind, "choices": choices}

    def _choice(self, said: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _finish_reason(done: Done) -> Literal["stop", "length"]:
    """Why an answer ended, in OpenAI's words; one that went in circles was cut off."""
    return "length" if done.stats.finish_reason in ("length", "loop") else "stop"


def _account(done: Done) -> dict[str, Any]:
    """Tokens, those of them that had been read before, and what of the cache was kept; and uncomp's own record."""
    stats = done.stats
    usage = {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
        "kv_bytes": stats.kv_bytes,
        "kv_full_bytes": stats.kv_full_bytes,
    }
    return {"usage": usage, "uncomp": done.record()}
