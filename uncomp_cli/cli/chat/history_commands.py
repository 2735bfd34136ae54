"""Commands that change what was said: /retry, /undo, /forget, /edit and /clear."""

from dataclasses import replace

from uncomp_cli.cli.chat.chat_places import pin_of
from uncomp_cli.cli.chat.said import Dialogue, papers_in, spoken
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.cli.chat.turns import answer, ask
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.sessions.transcript import Entry
from uncomp_cli.ui.blocks import edit_text

__all__ = ["clear", "edit", "forget", "retry", "undo"]


def retry(chat: Chat, _: str) -> None:
    """Answer the latest question again, with another seed; the earlier answer stays when there is no new one."""
    before = list(chat.dialogue.entries)
    if not before:
        raise UsageError("nothing has been asked yet", hint="type a question")
    latest = chat.dialogue.exchanges[-1]
    chat.dialogue.entries = before[: -len(latest)]
    chosen = chat.session.sampling
    if chosen.temperature == 0:
        chat.say("temperature is 0, so the same answer is likely; /set temperature 0.7 makes it vary")
    chat.retries += 1
    answered = False
    try:
        chat.session.sampling = replace(chosen, seed=(chosen.seed + chat.retries) % 2**63)
        answered = answer(chat, latest[0])
    finally:
        chat.session.sampling = chosen
        if not answered:
            chat.dialogue.entries = before
            chat.say("the earlier answer stays")


def undo(chat: Chat, argument: str) -> None:
    """Take back the latest exchanges, or the documents that were added behind them."""
    if chat.dialogue.pending and not argument:
        chat.say(f"{', '.join(paper.path for paper in chat.dialogue.drop_pending())} taken out again")
        return
    dialogue = chat.dialogue
    pins = list(dialogue.pins)
    gone = dialogue.drop_last(_count(argument, "/undo"))
    papers = [paper for exchange in gone for entry in exchange for paper in papers_in(entry)]
    dialogue.pending = papers + dialogue.pending
    left = len(dialogue.entries)
    moved = [pin_of(pin.label, dialogue) for pin in pins if pin.entry >= left]
    dialogue.pins = [*(pin for pin in pins if pin.entry < left), *moved]
    chat.draft = spoken(gone[0][0])
    names = ", ".join(paper.path for paper in papers)
    waits = f"; {names} for the next question, /undo again takes that out too" if papers else ""
    chat.say(f"{_exchanges(gone)} taken back; /edit has the question again{waits}")


def forget(chat: Chat, argument: str) -> None:
    """Forget the oldest exchanges, so that there is room."""
    gone = chat.dialogue.drop_first(_count(argument, "/forget"))
    names = [each.path for exchange in gone for entry in exchange for each in entry.attachments]
    with_them = f", with {', '.join(names)}" if names else ""
    chat.say(f"the oldest {_exchanges(gone)} forgotten{with_them}: the next turn reads the conversation again")


def edit(chat: Chat, argument: str) -> None:
    """Write a message in the editor, from `argument` or the message that got no answer, and send it."""
    text = edit_text(argument or chat.draft, chat.terminal).strip()
    if not text:
        chat.say("nothing was written, so nothing is sent")
        return
    chat.say(f"> {text}")
    ask(chat, text)


def clear(chat: Chat, _: str) -> None:
    """Forget the conversation and its documents; system prompt, settings and preset stay."""
    chat.dialogue = Dialogue(system=chat.dialogue.system)
    chat.session.clear()
    chat.session.stats = None
    chat.say("the conversation is forgotten")


def _count(argument: str, command: str) -> int:
    """How many exchanges; one when nothing is said."""
    if not argument:
        return 1
    if not argument.isdecimal() or not 1 <= int(argument[:9]) <= 10**6:
        raise UsageError(f"'{argument}' is no number of exchanges", hint=f"{command}, or {command} 2")
    return int(argument)


def _exchanges(gone: list[list[Entry]]) -> str:
    return "exchange" if len(gone) == 1 else f"{format_count(len(gone))} exchanges"
