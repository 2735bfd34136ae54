"""Commands that change how a chat answers: /system, /set, /budget and /preset.

`/set recall off` leaves evicted passages that a question points at as they are; `/set escalate on` asks again with a
larger budget what was answered unsurely; all else that can be set is sampling.

Another budget or preset is another way of compressing, so the conversation is read again at once from its kept text,
and what that cost is said. When it cannot be read so, all stays as it was.
"""

import difflib
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from uncomp_cli.cli.chat.chat_escalating import escalate
from uncomp_cli.cli.chat.chat_preset import PresetChoice, times
from uncomp_cli.cli.chat.room import hint_in_chat
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_seconds
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset

__all__ = [
    "OWN_PROMPT",
    "preset_line",
    "read_again",
    "set_budget",
    "set_preset",
    "set_sampling",
    "set_system",
    "settings",
]

OWN_PROMPT = "default"
_RECALL = "recall"
_ESCALATE = "escalate"
_SWITCH = {"on": True, "off": False}


def set_system(chat: Chat, text: str) -> None:
    """Show the system prompt, or set it."""
    dialogue = chat.dialogue
    if not text:
        chat.tell(dialogue.system if dialogue.system is not None else "the model's own system prompt is used")
        return
    dialogue.system = None if text == OWN_PROMPT else text
    done = "back to the model's own system prompt" if text == OWN_PROMPT else "system prompt set"
    chat.say(f"{done}: the next turn reads the conversation again")


def settings() -> list[str]:
    """What /set knows, as it is typed."""
    return [*(item.name.replace("_", "-") for item in fields(SamplingConfig)), _RECALL, _ESCALATE]


def set_sampling(chat: Chat, argument: str) -> None:
    """Show how answers are made, or set one of the values."""
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    name = name.lstrip("-").replace("_", "-")
    if name and name not in settings():
        near = difflib.get_close_matches(name, settings(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(settings())}"
        raise UsageError(f"unknown setting {name}", hint=hint)
    if value.strip() and name == _RECALL:
        chat.session.recalls = _switched(name, value.strip())
    elif value.strip() and name == _ESCALATE:
        escalate(chat, _switched(name, value.strip()))
    elif value.strip():
        chat.session.sampling = _with_value(chat.session.sampling, name, value.strip())
    for each in [name] if name else settings():
        chat.tell(f"{each:18} {_value_of(chat, each)}")


def _value_of(chat: Chat, name: str) -> object:
    switches = {_RECALL: chat.session.recalls, _ESCALATE: chat.escalates}
    if name in switches:
        return "on" if switches[name] else "off"
    return getattr(chat.session.sampling, name.replace("-", "_"))


def _switched(name: str, text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise UsageError(f"{name} is '{text}', not on or off", hint=f"/set {name} off")
    return _SWITCH[text.lower()]


def _with_value(sampling: SamplingConfig, name: str, text: str) -> SamplingConfig:
    key = name.replace("-", "_")
    kind = type(getattr(sampling, key))
    try:
        value = kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is '{text}', not {wanted}", hint=f"/set {name} {getattr(sampling, key)}") from error
    return replace(sampling, **{key: value})


def set_budget(chat: Chat, argument: str) -> None:
    """Show the budget, or compress the conversation to another one; `2x` doubles it."""
    if not argument:
        _tell_preset(chat)
        return
    # A preset that keeps everything has no budget, so the default one takes its place.
    name = None if chat.session.preset.policy == "full" else chat.choice.name
    _use(chat, replace(times(chat.choice, argument, now=chat.session.preset), name=name))


def set_preset(chat: Chat, argument: str) -> None:
    """Show the presets, or compress the conversation by another one."""
    if argument:
        _use(chat, PresetChoice(argument, seed=chat.choice.seed))
        return
    from uncomp_cli.budget.presets import list_presets

    _tell_preset(chat)
    for preset in list_presets():
        chat.tell(f"{preset.name:12} {preset.budget!s:>6}  {preset.description}")


def _tell_preset(chat: Chat) -> None:
    session = chat.session
    cap = "" if session.budget_bytes is None else f" of {format_bytes(session.budget_bytes)} that it may take now"
    chat.tell(f"{preset_line(session.preset)} · KV {format_bytes(session.kv_bytes)}{cap}")


def preset_line(preset: "Preset") -> str:
    """`preset unseen · budget 30%, at least 1,024 tokens · policy uncertain· scorer distinct`."""
    least = f", at least {format_count(preset.floor_tokens)} tokens" if preset.floor_tokens else ""
    scorer = "" if preset.policy == "full" else f" · scorer {preset.scorer.name}"
    return f"preset {preset.name} · budget {preset.budget}{least} · policy {preset.policy}{scorer}"


def _use(chat: Chat, choice: PresetChoice) -> None:
    """Take another preset and read the conversation with it; on failure the one before is back."""
    from uncomp_cli.models.identity import fingerprint

    session, before = chat.session, [chat.session.context]
    earlier, bytes_before = session.preset, session.kv_bytes
    preset, notes = choice.settled(fingerprint(chat.loaded))
    session.use(preset)
    try:  # once the reading has begun, there are not two caches
        read_again(chat, preset_line(preset), bytes_before=bytes_before, begun=before.clear)
    except Exception as error:
        if before:
            (session.context,) = before
        else:
            session.use(earlier)
        if not isinstance(error, DoesNotFitError):
            raise
        raise DoesNotFitError(error.message, hint=hint_in_chat(chat, error.hint)) from error
    named_anew, chat.choice = choice.name != chat.choice.name, choice
    for note in notes if named_anew else ():
        chat.say(note)


def read_again(chat: Chat, what: str, *, bytes_before: int = 0, begun: Callable[[], None] = lambda: None) -> None:
    """Read the conversation now, and say what it took; Ctrl-C leaves that to the next turn.

    `bytes_before` is what the cache took until now; `begun` is called when nothing was refused and the reading began.
    """
    session, newest = chat.session, chat.dialogue.waiting()
    if not chat.dialogue.entries and newest is None:
        chat.say(f"{what} · nothing has been said yet")
        return
    begun_s = time.perf_counter()
    try:
        for _ in watch_generation(session.reread(chat.messages(newest)), chat.terminal):
            begun()
    except KeyboardInterrupt:
        chat.say(f"{what} · stopped: the next turn reads the conversation")
        return
    before = f"{format_bytes(bytes_before)} → " if bytes_before else ""
    elapsed = format_seconds(time.perf_counter() - begun_s)
    chat.say(
        f"{what} · read {format_count(session.cached_tokens)} tokens in {elapsed} · "
        f"KV {before}{format_bytes(session.kv_bytes)}"
    )
