"""A turn of a chat: the question goes in, the answer is written as it comes, and what it took is said.

An answer that was stopped stays, marked; a question that got no answer at all is not lost: `/edit` begins with it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.cli.chat_state import Chat
from uncomp_cli.cli.dialogue import spoken
from uncomp_cli.cli.report import readout
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, is_out_of_memory
from uncomp_cli.sessions.transcript import Entry
from uncomp_cli.ui.format import format_count, format_readout
from uncomp_cli.ui.live import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.engine.session import RunStats

__all__ = ["answer", "ask", "hint_in_chat", "show_readout", "ways_out"]

_SHOWN = 30
_NEARLY_FULL = 0.9
_FREES = "/clear frees what the conversation takes; so does leaving and coming back with --quantize int8"
INTERRUPTED = "[interrupted: what is above stays in the conversation]"


def ask(chat: Chat, text: str) -> None:
    """Answer `text` and the documents that wait for it; both stay as they were when nothing was answered."""
    chat.draft, chat.retries = text, 0
    if answer(chat, chat.dialogue.question(text)):
        chat.draft = ""
        chat.dialogue.pending.clear()
    else:
        chat.say("the message was not kept; /edit has it")


def answer(chat: Chat, question: Entry) -> bool:
    """Answer `question` behind the conversation; both join it when there is an answer, and True is returned."""
    try:
        text, stopped = _stream(chat, question)
    except DoesNotFitError as error:
        raise DoesNotFitError(error.message, hint=hint_in_chat(chat, error.hint)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError("memory ran out; the message was not kept", hint=_FREES) from error
    session = chat.session
    stats = session.stats
    if stats is None:
        chat.say("stopped before the answer began")
        return False
    ids = session.answer_ids[:-1] if stats.finish_reason == "stop" else session.answer_ids
    chat.dialogue.entries += [question, Entry("assistant", text, ids=tuple(ids), interrupted=stopped)]
    chat.answered = True
    _tell_end(chat, stats, stopped=stopped)
    return True


def _stream(chat: Chat, question: Entry) -> tuple[str, bool]:
    """Write the answer as it comes; returns its text and whether Ctrl-C ended it."""
    from uncomp_cli.engine.records import DecodeStep

    pieces: list[str] = []
    stopped = False
    try:
        for step in watch_generation(chat.session.turn(chat.messages(question)), chat.terminal):
            if isinstance(step, DecodeStep):
                _say_notes(chat)
                pieces.append(step.texts[0])
                chat.terminal.write_answer(step.texts[0])
    except KeyboardInterrupt:
        stopped = True
    finally:
        if chat.session.stats is not None:
            chat.terminal.write_line()
        _say_notes(chat)
    return "".join(pieces), stopped


def _say_notes(chat: Chat) -> None:
    """What the session has to say, each once: that something evicted was read again."""
    while chat.session.notes:
        chat.say(chat.session.notes.pop(0))


def _tell_end(chat: Chat, stats: "RunStats", *, stopped: bool) -> None:
    session = chat.session
    if stopped:
        session.stats = replace(stats, finish_reason="interrupted")
        chat.say(INTERRUPTED)
    elif stats.finish_reason == "length" and stats.completion_tokens < session.sampling.max_new_tokens:
        chat.say(f"[the answer ended because the context is full: {ways_out(chat)}]")
    elif stats.finish_reason == "length":
        chat.say("[the answer ended at its longest length; /set max-new-tokens N sets it]")
    show_readout(chat)
    used = stats.prompt_tokens + stats.completion_tokens
    if _NEARLY_FULL * chat.loaded.spec.trained_length <= used < chat.loaded.spec.trained_length:
        chat.say(f"the context is nearly full: {ways_out(chat)}")


def show_readout(chat: Chat) -> None:
    """What the latest answer took."""
    stats = chat.session.stats
    if stats is not None:
        cached = f"cached {format_count(stats.cached_tokens)} · " if stats.cached_tokens else ""
        chat.say(cached + format_readout(readout(stats, chat.loaded.spec)))


def hint_in_chat(chat: Chat, hint: str | None) -> str:
    """How what does not fit is mended from inside a chat."""
    if hint is None or "--rope" in hint:  # the context is full
        return ways_out(chat)
    return hint


def ways_out(chat: Chat) -> str:
    """How room is made, chosen by the user: nothing falls out by itself."""
    exchanges = chat.dialogue.exchanges
    if not exchanges:
        return "use something shorter, or leave and come back with a larger --rope"
    oldest = spoken(exchanges[0][0]).split("\n")[0]
    shown = oldest if len(oldest) <= _SHOWN else oldest[: _SHOWN - 1] + "…"
    return f"/forget 1 drops the oldest exchange ({shown}), /undo the latest, /clear all"
