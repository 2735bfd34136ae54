"""Commands that change how a chat answers, and that show what is kept and why.

`/set recall off` leaves evicted passages that a question points at as they are; `/set escalate on` asks again with a
larger budget what was answered unsurely; `/set lookup off` guesses nothing; all else that can be set is sampling.
Another budget or preset is another way of compressing, so the conversation is read again at once from its kept text,
and what that cost is said.
"""

import difflib
from dataclasses import fields, replace

from uncomp_cli.asking.account import budget_lines
from uncomp_cli.asking.doubts import held_back
from uncomp_cli.asking.readout import evidence_lines, evidence_warnings
from uncomp_cli.asking.request import CHAT_CHOICE, preset_line, times
from uncomp_cli.cli.chat.talk import Talk, as_commands
from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, parse_count
from uncomp_cli.share import Share

OWN_PROMPT = "default"
_SWITCHES = ("lookup", "recall", "escalate")
_SWITCHED = {"on": True, "off": False}


def set_system(talk: Talk, text: str) -> None:
    """Show the system prompt, or set it."""
    dialogue = talk.chat.dialogue
    if not text:
        own = "the model's own system prompt is used"
        talk.tell(*(own if dialogue.system is None else dialogue.system).split("\n"))
        return
    dialogue.system = None if text == OWN_PROMPT else text
    done = "back to the model's own system prompt" if text == OWN_PROMPT else "system prompt set"
    talk.chat.forget_unsaid()
    talk.say(f"{done}: the next turn reads the conversation again")


def settable() -> list[str]:
    """What /set knows, as it is typed."""
    numbers = (item.name.replace("_", "-") for item in fields(SamplingConfig))
    return [*(name for name in numbers if name not in _SWITCHES), *_SWITCHES]


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
            for line in held_back(talk.chat.session.preset):
                talk.say(line)
    for each in [name] if name else settable():
        talk.tell(f"{each:18} {_shown(talk, each)}")


def _shown(talk: Talk, name: str) -> object:
    sampling = talk.chat.session.sampling
    switches = {"lookup": sampling.lookup, "recall": talk.chat.session.recalls, "escalate": talk.chat.escalates}
    if name in switches:
        return "on" if switches[name] else "off"
    return getattr(sampling, name.replace("-", "_"))


def _switched(name: str, text: str) -> bool:
    if text.lower() not in _SWITCHED:
        raise UsageError(f"{name} is '{text}', not on or off", hint=f"/set {name} off")
    return _SWITCHED[text.lower()]


def _number(sampling: SamplingConfig, name: str, text: str) -> int | float:
    now: int | float = getattr(sampling, name.replace("-", "_"))
    if isinstance(now, int):
        count = parse_count(text)
        if count is None:
            raise UsageError(f"{name} is '{text}', not a whole number", hint=f"/set {name} {now}")
        return count
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{name} is '{text}', not a number", hint=f"/set {name} {now}") from error


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


_GAUGE = 20


def status_line(talk: Talk) -> str:
    """`context 1,204/8,192 (15 %) · KV 8.1 of 40 MiB · 14.2 tok/s · unseen 30%`."""
    session, stats = talk.chat.session, talk.chat.session.stats
    speed = None if stats is None else stats.decode_tok_s
    waiting = len(talk.chat.dialogue.pending)
    parts = [
        _context(talk),
        f"KV {format_bytes(session.kv_bytes)}",
        None if speed is None else f"{format_decimal(speed)} tok/s",
        f"{session.preset.name} {session.preset.budget}",
        None if not waiting else f"{format_count(waiting, 'document')} for the next question",
    ]
    return " · ".join(part for part in parts if part)


def list_files(talk: Talk, _: str) -> None:
    """The documents of the conversation: where, how long, and how much of them is kept."""
    from uncomp_cli.engine.tokens.prompt import count_tokens

    chat = talk.chat
    found, kept = chat.dialogue.pages(), chat.kept_shares()
    if not found:
        talk.tell("no document is part of the conversation; /file FILE adds one")
    for page in found:
        lines = format_count(len(page.lines), "line")
        tokens = format_count(count_tokens(chat.loaded.tokenizer, page.text), "token")
        waits = " · waits for a question" if page.entry == len(chat.dialogue.entries) else ""
        share = "" if page.path not in kept else f" · kept {format_decimal(100 * kept[page.path])} %"
        lost = f" · left out {', '.join(map(str, page.losses))}" if page.losses else ""
        talk.tell(f"{page.path} · turn {page.entry // 2 + 1} · {lines} · {tokens}{share}{waits}{lost}")


def show_stats(talk: Talk, _: str) -> None:
    """Turns, a gauge of the context, what the cache takes, how it is compressed, and the latest readout."""
    session, dialogue, loaded = talk.chat.session, talk.chat.dialogue, talk.chat.loaded
    turns = f"{format_count(len(dialogue.exchanges), 'turn')} ({dialogue.interrupted} interrupted)"
    talk.tell(f"{turns} · {_context(talk)} {_gauge(session.cached_tokens / loaded.spec.trained_length)}")
    talk.tell(f"{_held(talk)} · weights {format_bytes(loaded.weights_bytes)}")
    talk.tell(preset_line(session.preset))
    if talk.chat.latest is not None:
        talk.tell(talk.chat.latest.readout(verbose=True))


def _context(talk: Talk) -> str:
    used, limit = talk.chat.session.cached_tokens, talk.chat.loaded.spec.trained_length
    return f"context {format_count(used)}/{format_count(limit)} ({format_decimal(100 * used / limit)} %)"


def _gauge(share: float) -> str:
    full = min(_GAUGE, round(_GAUGE * share))
    return f"[{'█' * full}{'·' * (_GAUGE - full)}]"


def _held(talk: Talk) -> str:
    """What the cache takes, of what the budget allows now and of what all of it would."""
    session = talk.chat.session
    held, full = format_bytes(session.kv_bytes), session.kv_full_bytes
    if not full:
        return f"KV {held}"
    share = Share(session.kv_bytes, full, session.loaded.spec.dtype_bytes)
    kept = str(share) if share.of_run < 1 else f"{held} (all kept)"
    return f"KV {kept}, the budget is {format_bytes(session.budget_bytes)}"


def show_why(talk: Talk, _: str) -> None:
    """What every layer and head holds, and what was measured to decide it."""
    spent = talk.chat.spent()
    talk.tell(preset_line(talk.chat.session.preset), *budget_lines(spent))


def show_evidence(talk: Talk, _: str) -> None:
    """The passages that the latest answer attended to, and how much of them is kept."""
    found = talk.chat.evidence()
    if not found:
        talk.tell("the answer attended to no document and no earlier question")
        return
    talk.tell(*evidence_lines(found, width=talk.terminal.width("stderr")))
    for warning in evidence_warnings(found):
        talk.terminal.warn(as_commands(warning))


def pin(talk: Talk, argument: str) -> None:
    """List the pins, or keep lines of a document whatever the budget drops."""
    if argument:
        label = talk.chat.pin(argument).label
        talk.say(f"{label} is pinned: never evicted, and read again with the next turn where it was")
        return
    pins = [each.label for each in talk.chat.dialogue.pins]
    talk.tell(*pins or ["nothing is pinned; /pin FILE:10-40 keeps these lines"])


def unpin(talk: Talk, argument: str) -> None:
    """Give up a pin, or `all`."""
    dialogue = talk.chat.dialogue
    gone = [each for each in dialogue.pins if argument in ("all", each.label)]
    if not gone:
        known = ", ".join(each.label for each in dialogue.pins)
        raise UsageError(f"no pin '{argument}'", hint=f"/unpin all, or one of: {known}" if known else "/pin lists them")
    dialogue.pins = [each for each in dialogue.pins if each not in gone]
    talk.say(f"{', '.join(each.label for each in gone)} may be evicted again")
