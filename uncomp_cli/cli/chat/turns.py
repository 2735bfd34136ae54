"""A turn of a chat: the question goes in, the answer is written as it comes, and what it took is said.

An answer that was stopped stays, marked; a question that got no answer at all is not lost: `/edit` begins with it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import risk_of, risk_warnings
from uncomp_cli.asking.readout import readout
from uncomp_cli.cli.ask.lengthening import length_warnings
from uncomp_cli.cli.chat.chat_escalating import Said, settle
from uncomp_cli.cli.chat.room import hint_in_chat, ways_out
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, is_out_of_memory
from uncomp_cli.numerals import format_count, format_readout
from uncomp_cli.sessions.transcript import Entry
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.engine.context.session import RunStats

__all__ = ["answer", "ask", "show_readout"]

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
        said = _stream(chat, question)
        if chat.escalates:
            said = _held_back(chat, question, said)
    except DoesNotFitError as error:
        raise DoesNotFitError(error.message, hint=hint_in_chat(chat, error.hint)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError("memory ran out; the message was not kept", hint=_FREES) from error
    stats = said.stats
    if stats is None:
        chat.say("stopped before the answer began")
        return False
    ids = said.ids[:-1] if stats.finish_reason == "stop" else said.ids
    chat.dialogue.entries += [question, Entry("assistant", said.text, ids=ids, interrupted=said.stopped)]
    chat.answered = True
    _tell_end(chat, stats, stopped=said.stopped)
    return True


def _held_back(chat: Chat, question: Entry, first: Said) -> Said:
    """The answer that stays of `first` and those that larger budgets gave, written now that it is final."""
    said = settle(chat, first, again=lambda begun: _stream(chat, question, begun=begun))
    if said.stats is not None:
        chat.terminal.write_answer(said.text)
        chat.terminal.write_line()
    return said


def _stream(chat: Chat, question: Entry, *, begun: Callable[[], None] = lambda: None) -> Said:
    """Write the answer as it comes, unless it may not be final; Ctrl-C ends it. `begun` is called with each step."""
    from uncomp_cli.engine.records import DecodeStep

    session, shown = chat.session, not chat.escalates
    pieces: list[str] = []
    stopped = False
    try:
        for step in watch_generation(session.turn(chat.messages(question)), chat.terminal):
            begun()
            if isinstance(step, DecodeStep):
                _say_notes(chat)
                pieces.append(step.texts[0])
                if shown:
                    chat.terminal.write_answer(step.texts[0])
    except KeyboardInterrupt:
        stopped = True
    finally:
        if shown and session.stats is not None:
            chat.terminal.write_line()
        _say_notes(chat)
    return Said("".join(pieces), stopped, session.stats, tuple(session.answer_ids))


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
    _warn(chat, stats)
    used = stats.prompt_tokens + stats.completion_tokens
    if _NEARLY_FULL * chat.loaded.spec.trained_length <= used < chat.loaded.spec.trained_length:
        chat.say(f"the context is nearly full: {ways_out(chat)}")


def _warn(chat: Chat, stats: "RunStats") -> None:
    """What is to be doubted about an answer, and once, that the conversation is past the trained length."""
    for warning in risk_warnings(risk_of(chat.session.preset, stats, chat.loaded)):
        chat.terminal.warn(warning)
    if stats.cached_tokens <= chat.loaded.info.trained_length:
        for warning in length_warnings(chat.loaded, stats.prompt_tokens):
            chat.terminal.warn(warning)


def show_readout(chat: Chat) -> None:
    """What the latest answer took."""
    stats = chat.session.stats
    if stats is not None:
        cached = f"cached {format_count(stats.cached_tokens)} · " if stats.cached_tokens else ""
        chat.say(cached + format_readout(readout(stats, chat.loaded.spec)))
