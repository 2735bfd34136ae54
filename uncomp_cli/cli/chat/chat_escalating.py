"""Escalation in a chat: an answer that was flagged is given again behind the conversation read with twice the budget.

The last answer stays when it is not flagged, else the least uncertain one. The conversation goes on with the last
budget that was tried, because what was read with it is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import check_calibrated, risk_of
from uncomp_cli.asking.escalation import HELD_BACK, Try, best_of, try_note
from uncomp_cli.cli.chat.chat_preset import times
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.cli.declare.failures import describe_failure
from uncomp_cli.errors import UncompError, is_out_of_memory

if TYPE_CHECKING:
    from uncomp_cli.engine.context.session import RunStats

__all__ = ["Said", "escalate", "settle"]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text and tokens, whether Ctrl-C ended it, and what it took; no `stats` before its first token."""

    text: str
    stopped: bool
    stats: "RunStats | None"
    ids: tuple[int, ...]


def escalate(chat: Chat, wanted: bool) -> None:
    """Begin or cease to escalate. Raises UsageError when nothing says which answers are to be doubted."""
    if wanted:
        check_calibrated(chat.session.preset, "escalate")
        chat.say(HELD_BACK)
    chat.escalates = wanted


def settle(chat: Chat, first: Said, again: Callable[[Callable[[], None]], Said]) -> Said:
    """The answer that stays of `first` and those that `again` gives; `again` is given what to call when it begins."""
    if first.stats is None or first.stopped:
        return first
    said, tries = [first], [_try(chat, first.stats)]
    budget = chat.session.preset.budget
    while _is_open(said[-1], tries):
        chat.say(try_note(tries[-1], len(tries)))
        latest = _with_twice(chat, again)
        if latest is None or latest.stats is None or latest.stopped:
            break
        said.append(latest)
        tries.append(_try(chat, latest.stats))
    if len(tries) > 1:
        chat.say(try_note(tries[-1], len(tries)))
    if chat.session.preset.budget != budget:
        chat.say(f"the conversation goes on with budget {chat.session.preset.budget}; /budget {budget} goes back")
    stays = said[best_of(tries)]
    chat.session.stats, chat.session.answer_ids = stays.stats, list(stays.ids)
    return stays


def _try(chat: Chat, stats: "RunStats") -> Try:
    preset = chat.session.preset
    return Try.of(preset, stats, risk_of(preset, stats, chat.loaded))


def _is_open(latest: Said, tries: list[Try]) -> bool:
    """Whether more may help: the latest is flagged, and kept more than the one before, yet not all."""
    grew = len(tries) < 2 or tries[-2].kv_bytes < tries[-1].kv_bytes
    held_all = latest.stats is not None and latest.stats.kept_fraction >= 1
    return tries[-1].more_may_help and grew and not held_all and tries[-1].budget.times(2) is not None


def _with_twice(chat: Chat, again: Callable[[Callable[[], None]], Said]) -> Said | None:
    """Another answer, with twice the budget from here on; None, and all as before, when there is none."""
    from uncomp_cli.models.identity import fingerprint

    session, before = chat.session, [chat.session.context]
    earlier, said = session.preset, None
    choice = times(chat.choice, "2x", now=earlier)
    session.use(choice.settled(fingerprint(chat.loaded))[0])
    try:
        said = again(before.clear)  # once the reading has begun, there are not two caches
    except Exception as error:
        if not (isinstance(error, UncompError) or is_out_of_memory(error)):
            raise
        chat.terminal.warn(f"budget {choice.budget} was not tried: {describe_failure(error).message}")
    if said is not None and said.stats is not None:
        chat.choice = choice
        return said
    if before:
        (session.context,) = before
    else:
        session.use(earlier)
    return None
