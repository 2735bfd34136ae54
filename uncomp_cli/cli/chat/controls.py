"""Commands that change how a chat answers: /system, /set, /budget and /preset.

`/set recall off` leaves evicted passages that a question points at as they are; `/set escalate on` asks again with a
larger budget what was answered unsurely; all else that can be set is sampling. Another budget or preset is another way
of compressing, so the conversation is read again at once from its kept text, and what that cost is said.
"""

import difflib
from dataclasses import fields, replace

from uncomp_cli.asking.doubts import HELD_BACK
from uncomp_cli.asking.preset_choice import CHAT_CHOICE, preset_line, times
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_bytes

OWN_PROMPT = "default"
_SWITCHES = ("recall", "escalate")
_SWITCHED = {"on": True, "off": False}


def set_system(talk: Talk, text: str) -> None:
    """Show the system prompt, or set it."""
    dialogue = talk.chat.dialogue
    if not text:
        talk.tell(dialogue.system if dialogue.system is not None else "the model's own system prompt is used")
        return
    dialogue.system = None if text == OWN_PROMPT else text
    done = "back to the model's own system prompt" if text == OWN_PROMPT else "system prompt set"
    talk.say(f"{done}: the next turn reads the conversation again")


def settable() -> list[str]:
    """What /set knows, as it is typed."""
    return [*(item.name.replace("_", "-") for item in fields(SamplingConfig)), *_SWITCHES]


def set_value(talk: Talk, argument: str) -> None:
    """Show how answers are made, or set one of the values."""
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    name, text = name.lstrip("-").replace("_", "-"), text.strip()
    if name and name not in settable():
        near = difflib.get_close_matches(name, settable(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(settable())}"
        raise UsageError(f"unknown setting {name}", hint=hint)
    if text:
        value = _switched(name, text) if name in _SWITCHES else _number(talk.chat.session.sampling, name, text)
        talk.chat.set(**{name.replace("-", "_"): value})
        if name == "escalate" and value:
            talk.say(HELD_BACK)
    for each in [name] if name else settable():
        talk.tell(f"{each:18} {_shown(talk, each)}")


def _shown(talk: Talk, name: str) -> object:
    switches = {"recall": talk.chat.session.recalls, "escalate": talk.chat.escalates}
    if name in switches:
        return "on" if switches[name] else "off"
    return getattr(talk.chat.session.sampling, name.replace("-", "_"))


def _switched(name: str, text: str) -> bool:
    if text.lower() not in _SWITCHED:
        raise UsageError(f"{name} is '{text}', not on or off", hint=f"/set {name} off")
    return _SWITCHED[text.lower()]


def _number(sampling: SamplingConfig, name: str, text: str) -> int | float:
    now: int | float = getattr(sampling, name.replace("-", "_"))
    try:
        return type(now)(text)
    except ValueError as error:
        wanted = "a whole number" if isinstance(now, int) else "a number"
        raise UsageError(f"{name} is '{text}', not {wanted}", hint=f"/set {name} {now}") from error


def set_budget(talk: Talk, argument: str) -> None:
    """Show the budget, or compress the conversation to another one; `2x` doubles it."""
    chat = talk.chat
    if not argument:
        _tell_preset(talk)
        return
    # A preset that keeps everything has no budget, so the default one takes its place.
    name = None if chat.session.preset.policy == "full" else chat.choice.name
    talk.show(chat.use(replace(times(chat.choice, argument, now=chat.session.preset), name=name)))


def set_preset(talk: Talk, argument: str) -> None:
    """Show the presets, or compress the conversation by another one."""
    if argument:
        talk.show(talk.chat.use(replace(CHAT_CHOICE, name=argument, seed=talk.chat.choice.seed)))
        return
    from uncomp_cli.budget.presets import list_presets

    _tell_preset(talk)
    for preset in list_presets():
        talk.tell(f"{preset.name:12} {preset.budget!s:>6}  {preset.description}")


def _tell_preset(talk: Talk) -> None:
    session = talk.chat.session
    cap = format_bytes(session.budget_bytes)
    talk.tell(f"{preset_line(session.preset)} · KV {format_bytes(session.kv_bytes)} of {cap} that it may take now")
