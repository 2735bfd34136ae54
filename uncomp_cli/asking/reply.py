"""The answer of a turn: written as it comes; or escalated, given again behind twice the budget while it is flagged.

Of the answers that were tried the last one stays when it is not flagged, else the least uncertain one. The conversation
goes on with the last budget that was tried, because what was read with it is there.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import Attempts, wider
from uncomp_cli.asking.events import Event, Noted, Pace, Piece, Spoken, Thought, Warned, thinks_behind
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.errors import failure_of, is_foreseen

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.context.session import Conversation
    from uncomp_cli.engine.records import RunStats
    from uncomp_cli.engine.tokens.messages import Message


Events = Generator[Event, None, None]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has begun: text, tokens, what it took, whether Ctrl-C ended it, whether thoughts came before."""

    text: str
    ids: tuple[int, ...]
    stats: "RunStats"
    stopped: bool
    thought: bool = False


class Earlier:
    """What was read before another preset is tried, until the reading with that begins: there are never two caches."""

    def __init__(self, session: "Conversation") -> None:
        self.session, self.preset, self.held = session, session.preset, [session.growth]

    def let_go(self) -> None:
        """The reading has begun."""
        self.held.clear()

    def take_back(self) -> None:
        """Go on with the preset of before."""
        if self.held:
            (self.session.growth,) = self.held
        else:
            self.session.use(self.preset)


def written(
    session: "Conversation",
    messages: "Sequence[Message]",
    *,
    shown: bool = True,
    begun: Callable[[], None] = lambda: None,
) -> Generator[Event, None, Reply | None]:
    """The answer to `messages`, piece by piece unless it may not be final; None when Ctrl-C came before it began.

    `begun` is called with each step.
    """
    said, stopped, spoken = list[Piece | Thought](), False, None
    try:
        for step in session.turn(messages):
            begun()
            yield from _told(session, step)
            if isinstance(step, DecodeStep):
                spoken = spoken or Spoken(thinks=thinks_behind(session.loaded.tokenizer, session.tokens.ids))
                new = [*spoken.push(step.text), *(spoken.rest() if step.finish_reason else ())]
                said += new
                yield from new if shown else []
    except KeyboardInterrupt:
        stopped = True
    except Exception:
        yield from _notes(session)
        raise
    yield from _notes(session)
    stats = session.stats
    if stats is None:
        return None
    said += [] if spoken is None else spoken.rest()
    text = "".join(each.text for each in said if isinstance(each, Piece))
    thought = any(isinstance(each, Thought) for each in said)
    return Reply(text, tuple(session.answer_ids), stats, stopped, thought)


def _told(session: "Conversation", step: PrefillStep | DecodeStep) -> Events:
    """How far the turn is."""
    if isinstance(step, PrefillStep):
        yield step.progress
    else:
        yield from _notes(session)
        yield Pace(step.index + 1, step.elapsed_s, step.kv_bytes)


def _notes(session: "Conversation") -> Events:
    """What was done that was not asked for, each once: that something evicted was read again."""
    while session.notes:
        yield Noted(session.notes.pop(0))


def escalated(session: "Conversation", messages: "Sequence[Message]") -> Generator[Event, None, Reply | None]:
    """The answer that stays of all that were tried, as one piece when it is final."""
    reply = yield from written(session, messages, shown=False)
    if reply is not None and not reply.stopped:
        reply = yield from _best(session, messages, reply)
    if reply is not None:
        yield Piece(reply.text)
    return reply


def _best(session: "Conversation", messages: "Sequence[Message]", first: Reply) -> Generator[Event, None, Reply]:
    """The answer that stays of `first` and those that larger budgets give."""
    budget, attempts = session.preset.budget, Attempts[Reply]()
    attempts.add(first, session.preset, first.stats, session.loaded)
    while attempts.is_open and (preset := wider(session.preset)) is not None:
        if len(attempts.tries) == 1:
            yield Noted(attempts.note)
        again = yield from _written_by(preset, session, messages)
        if again is None or again.stopped:
            break
        attempts.add(again, session.preset, again.stats, session.loaded)
        yield Noted(attempts.note)
    if session.preset.budget != budget:
        yield Noted(f"the conversation goes on with budget {session.preset.budget}; /budget {budget} goes back")
    stays = attempts.final
    session.stats, session.answer_ids = stays.stats, list(stays.ids)
    return stays


def _written_by(
    preset: "Preset", session: "Conversation", messages: "Sequence[Message]"
) -> Generator[Event, None, Reply | None]:
    """Another answer, by this preset from here on; None, and all as before, when there is none."""
    earlier, reply = Earlier(session), None
    session.use(preset)
    try:
        reply = yield from written(session, messages, shown=False, begun=earlier.let_go)
    except Exception as error:
        if not is_foreseen(error):
            raise
        yield Warned(f"budget {preset.budget} was not tried: {failure_of(error).message}")
    if reply is None:
        earlier.take_back()
    return reply
