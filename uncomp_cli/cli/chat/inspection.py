"""Commands that show what is kept and why: /stats, /why, /evidence, /pin and /unpin; and the line below the prompt."""

from typing import TYPE_CHECKING

from uncomp_cli.asking.account import Spent, budget_lines
from uncomp_cli.asking.readout import evidence_lines, evidence_warnings
from uncomp_cli.cli.chat.chat_places import pin_of, sources
from uncomp_cli.cli.chat.chat_settings import preset_line
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.cli.chat.turns import show_readout
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal

if TYPE_CHECKING:
    from uncomp_cli.documents.places import Places

__all__ = ["pin", "places_of", "show_evidence", "show_stats", "show_why", "status_line", "unpin"]

_GAUGE = 20


def status_line(chat: Chat) -> str:
    """`context 1,204/8,192 (15 %) · KV 8.1 of 40 MiB · 14.2 tok/s · unseen 30%`."""
    session, stats = chat.session, chat.session.stats
    speed = None if stats is None else stats.decode_tok_s
    waiting = len(chat.dialogue.pending)
    parts = [
        _context(chat),
        f"KV {format_bytes(session.kv_bytes)}",
        None if speed is None else f"{format_decimal(speed)} tok/s",
        f"{session.preset.name} {session.preset.budget}",
        None if not waiting else f"{waiting} document{'s' if waiting > 1 else ''} for the next question",
    ]
    return " · ".join(part for part in parts if part)


def show_stats(chat: Chat, _: str) -> None:
    """Turns, a gauge of the context, what the cache takes, how it is compressed, and the latest readout."""
    session, dialogue = chat.session, chat.dialogue
    count = len(dialogue.exchanges)
    turns = f"{count} turn{'' if count == 1 else 's'} ({dialogue.interrupted} interrupted)"
    chat.tell(f"{turns} · {_context(chat)} {_gauge(session.cached_tokens / chat.loaded.spec.trained_length)}")
    chat.tell(f"{_held(chat)} · weights {format_bytes(chat.loaded.weights_bytes)}")
    chat.tell(preset_line(session.preset))
    show_readout(chat)


def _context(chat: Chat) -> str:
    used, limit = chat.session.cached_tokens, chat.loaded.spec.trained_length
    return f"context {format_count(used)}/{format_count(limit)} ({format_decimal(100 * used / limit)} %)"


def _gauge(share: float) -> str:
    full = min(_GAUGE, round(_GAUGE * share))
    return f"[{'█' * full}{'·' * (_GAUGE - full)}]"


def _held(chat: Chat) -> str:
    """What the cache takes, of what the budget allows now and of what all of it would."""
    session = chat.session
    full = chat.loaded.spec.full_kv_bytes(session.cached_tokens)
    if not full:
        return f"KV {format_bytes(session.kv_bytes)}"
    share = format_decimal(100 * session.kv_bytes / full)
    cap = "" if session.budget_bytes is None else f", the budget is {format_bytes(session.budget_bytes)}"
    return f"KV {format_bytes(session.kv_bytes)} of {format_bytes(full)} ({share} %{cap})"


def show_why(chat: Chat, _: str) -> None:
    """What every layer and head holds, and what was measured to decide it."""
    session = chat.session
    if not session.cached_tokens:
        raise UsageError("nothing has been read yet", hint="type a question, or add a document with /file")
    context = session.context
    layers = [context.cache.layer(index) for index in range(chat.loaded.spec.num_layers)]
    source = None if context.uncertainty is None else "live" if session.preset.profile is None else "profile"
    spent = Spent(context.plan(), chat.loaded.spec, [layer.nbytes for layer in layers], context.uncertainty, source)
    chat.tell(preset_line(session.preset))
    for line in budget_lines(spent):
        chat.tell(line)


def places_of(chat: Chat) -> "Places | None":
    """The places of documents and earlier questions among the tokens of the latest turn; None before any."""
    from uncomp_cli.documents.places import Places

    tokens = chat.session.tokens
    if not len(tokens):
        return None
    # What was taken back or moved since is not where it was.
    found = [each for each in sources(chat.dialogue) if chat.read_text.startswith(each.text.strip(), each.first_char)]
    return Places(found, tokens.offsets.tolist())


def show_evidence(chat: Chat, _: str) -> None:
    """The passages that the latest answer attended to, and how much of them is kept."""
    from uncomp_cli.documents.evidence import find_evidence

    session = chat.session
    places = places_of(chat)
    if places is None or not _answer_is_latest(chat):
        raise UsageError("there is no answer to what was read last", hint="ask something, or /retry; then /evidence")
    found = find_evidence(session.attended().tolist(), session.survival().tolist(), places)
    if not found:
        chat.tell("the answer attended to no document and no earlier question")
    for line in evidence_lines(found):
        chat.tell(line)
    for warning in evidence_warnings(found):
        chat.terminal.warn(warning.replace("--budget", "/budget"))


def _answer_is_latest(chat: Chat) -> bool:
    """Whether the conversation ends with an answer to what was read last, as it was read."""
    said = chat.dialogue.messages()[:-1]
    return chat.answered and "".join(message.text for message in said) == chat.read_text


def pin(chat: Chat, argument: str) -> None:
    """List the pins, or keep lines of a document whatever the budget drops."""
    if not argument:
        for each in chat.dialogue.pins:
            chat.tell(each.label)
        if not chat.dialogue.pins:
            chat.tell("nothing is pinned; /pin FILE:10-40 keeps these lines")
        return
    wanted = pin_of(argument, chat.dialogue)
    if wanted in chat.dialogue.pins:
        raise UsageError(f"{wanted.label} is pinned already", hint="/pin lists the pins")
    chat.dialogue.pins.append(wanted)
    chat.session.pinned = chat.dialogue.pinned()
    try:
        chat.session.check_pins()
    except DoesNotFitError as error:
        chat.dialogue.pins.remove(wanted)
        hint = "pin fewer lines, /unpin others, or take a larger /budget"
        raise DoesNotFitError(f"{wanted.label} cannot be pinned: {error.message}", hint=hint) from error
    chat.say(f"{wanted.label} is pinned: never evicted, and read again with the next turn where it was")


def unpin(chat: Chat, argument: str) -> None:
    """Give up a pin, or `all`."""
    pins = chat.dialogue.pins
    gone = list(pins) if argument == "all" else [each for each in pins if each.label == argument]
    if not gone:
        known = ", ".join(each.label for each in pins)
        raise UsageError(f"no pin '{argument}'", hint=f"/unpin all, or one of: {known}" if known else "/pin lists them")
    chat.dialogue.pins = [each for each in pins if each not in gone]
    chat.say(f"{', '.join(each.label for each in gone)} may be evicted again")
