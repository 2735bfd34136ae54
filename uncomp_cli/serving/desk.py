"""Who answers: one thread with the engine, to which requests come in a queue that is bounded.

    submit → wait in line → read (the road of `ask`) → a row beside the others → pieces → Done, or Refused

What is read joins the rows that are being written (continuous batching), by preset. A request that comes alone, and one
to a saved document, is written where it was read, which is faster for one. Between two readings the rows go on. What
does not fit beside the others waits until one has ended. Who has left is forgotten at the next step.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.deposit import check_saving
from uncomp_cli.asking.events import Done, Piece, Refused, Turn, Warned
from uncomp_cli.asking.pipeline import check_questions, told
from uncomp_cli.asking.subject import Answer, Item, Reader
from uncomp_cli.documents.collection import DocumentSet, sent
from uncomp_cli.engine.context.context import Beside
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import DoesNotFitError, UncompError, is_foreseen
from uncomp_cli.models.runnable import fingerprint
from uncomp_cli.serving.exchange import Stops, Wanted

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset

_STOPPING = "the server is stopping"
_ROUNDS = 8
"""Steps that the rows make between two readings."""
Said = Piece | Warned | Done | Refused
NOTHING = DocumentSet(())


class FullError(UncompError):
    """The line is as long as it may be."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the house: `tell` hears what becomes of it; `left` is set when nobody listens any more."""

    wanted: Wanted
    tell: Callable[[Said], None]
    left: bool = False
    came_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Row:
    """A request whose answer is being written."""

    ticket: Ticket
    answer: Answer
    writer: Writer
    number: int
    stops: Stops


@dataclass(slots=True)
class Counts:
    """What has been done so far; `first_s` are the waits for first tokens, newest last."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    first_s: deque[float] = field(default_factory=lambda: deque(maxlen=1024))
    waited_s: float = 0.0
    num_first: int = 0


class Desk:
    """Answers requests with `engine`; `places` is how many may wait, `rows` how many answers are written at once."""

    def __init__(self, engine: Engine, *, places: int, rows: int) -> None:
        self.engine, self.places, self.most_rows = engine, places, rows
        self.counts = Counts()
        self._line: deque[Ticket] = deque()
        self._rows: list[_Row] = []
        self._batches: list[tuple[Preset, Writer]] = []
        self._writing: dict[int, Iterator[list[DecodeStep]]] = {}
        self._something = threading.Condition()
        self._closed = False
        if engine.decoder.regime_tokens is not None:  # rows need one regime: that of the longest
            engine.regime_tokens = engine.spec.trained_length

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def writing(self) -> int:
        """Answers that are being written."""
        return len(self._rows)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the rows' caches have now."""
        return sum(writer.store.nbytes for writer in {id(row.writer): row.writer for row in [*self._rows]}.values())

    def submit(self, ticket: Ticket) -> None:
        """Put a request in line, from any thread. Raises FullError when the line is full."""
        with self._something:
            if len(self._line) >= self.places or self._closed:
                self.counts.requests["full"] += 1
                message = (
                    "the server is stopping" if self._closed else f"{len(self._line)} requests are waiting already"
                )
                raise FullError(message, hint="try again in some seconds")
            self._line.append(ticket)
            self._something.notify()

    def close(self) -> None:
        """Answer nothing more; who waits is told."""
        with self._something:
            self._closed = True
            self._something.notify()

    def run(self) -> None:
        """Answer until closed: what the thread does."""
        while not self._closed:
            with self._something:
                while not (self._line or self._rows or self._closed):
                    self._something.wait()
            ticket = self._next()
            if ticket is not None:
                self._begin(ticket)
            for _ in range(_ROUNDS if self._line else 1):
                self._step()
        for ticket in [*self._line, *(row.ticket for row in self._rows)]:
            self._refuse(ticket, FullError(_STOPPING))

    def _next(self) -> Ticket | None:
        """Who is next in line, when there is room for another row."""
        with self._something:
            while self._line and self._line[0].left:
                self._line.popleft()
                self.counts.requests["left"] += 1
            return self._line.popleft() if self._line and len(self._rows) < self.most_rows else None

    def _begin(self, ticket: Ticket) -> None:
        """Read what is asked about; its answer joins the others."""
        try:
            item = self._read(ticket)
        except DoesNotFitError as error:
            if not self._rows:
                self._refuse(ticket, error)
            else:  # beside what is being written; it is the next when some of that has ended
                with self._something:
                    self._line.appendleft(ticket)
                self._wait_for_room()
        except Exception as error:
            if not is_foreseen(error):
                self._refuse(ticket, error)
                raise
            self._refuse(ticket, error)
        else:
            if item is not None:
                self._join(ticket, item)

    def _wait_for_room(self) -> None:
        """Write until one answer has ended."""
        before = len(self._rows)
        while len(self._rows) >= before:
            self._step()

    def _read(self, ticket: Ticket) -> Item | None:
        """The question, read or opened; None when who asked has left meanwhile."""
        request, files = ticket.wanted.request, ticket.wanted.files
        check_questions(request.questions)
        if request.saves_context:
            check_saving(request)
        documents = sent([(file.name, file.data) for file in files], request.wishes) if files else NOTHING
        for warned in told(documents):
            ticket.tell(warned)
        preset, _ = request.choice.settled(fingerprint(self.engine.loaded))
        reading = Reader(self.engine.sampled(request.sampling), preset, request.questions, request).read(documents)
        while not ticket.left:
            try:
                event = next(reading)
            except StopIteration as end:
                (item,) = end.value
                found: Item = replace(item, asked=replace(item.asked, sampling=request.sampling))
                return found
            if isinstance(event, Warned):
                ticket.tell(event)
        reading.close()
        self.counts.requests["left"] += 1
        return None

    def _join(self, ticket: Ticket, item: Item) -> None:
        """Write an answer beside the others, or where it was read."""
        context = item.asked.context
        alone = not (self._rows or self._line) or not isinstance(context.questions, Beside)
        engine = self.engine.sampled(ticket.wanted.request.sampling)
        if alone:
            writer, number = engine.writer([item.asked]), 0
        elif known := [writer for preset, writer in self._batches if preset == context.account.preset]:
            writer, number = known[0], known[0].add(item.asked)
        else:
            writer, number = engine.writer([item.asked], grows=True), 0
            self._batches.append((context.account.preset, writer))
        self._rows.append(_Row(ticket, Answer(item), writer, number, Stops(ticket.wanted.stop)))

    def _step(self) -> None:
        """One token for every row."""
        for writer in [*{id(row.writer): row.writer for row in self._rows}.values()]:
            self._forget_left()
            try:
                self._take(writer)
            except Exception as error:
                for row in [row for row in self._rows if row.writer is writer]:
                    self._refuse(row.ticket, error)
                    self._end(row)
                if not is_foreseen(error):
                    raise

    def _take(self, writer: Writer) -> None:
        """The tokens that `writer` chooses together; pieces are told, and what has ended goes."""
        rows = {row.number: row for row in self._rows if row.writer is writer}
        if not rows:
            return
        if id(writer) not in self._writing:
            self._writing[id(writer)] = writer.rounds()
        steps = next(self._writing[id(writer)], None)
        if steps is None:  # all its rows ended, and one has joined since
            self._writing[id(writer)] = writer.rounds()
            return
        for step in steps:
            if (row := rows.get(step.row)) in self._rows:
                self._add(row, step)

    def _add(self, row: _Row, step: DecodeStep) -> None:
        """The next token of an answer."""
        row.answer.add(step, row.writer)
        self._count(row, step.index)
        text = "".join(piece.text for piece in row.answer.rest() if isinstance(piece, Piece))
        told = row.stops.push(text) + (row.stops.rest() if row.answer.stats is not None else "")
        if row.stops.met and row.answer.stats is None and (stats := row.writer.stats(row.number)) is not None:
            row.answer.stats = replace(stats, finish_reason="stop")
        if told:
            row.ticket.tell(Piece(told))
        if row.answer.stats is not None:
            self._finish(row)

    def _count(self, row: _Row, index: int) -> None:
        self.counts.tokens["completion"] += 1
        if index == 0:
            waited_s = time.monotonic() - row.ticket.came_s
            self.counts.first_s.append(waited_s)
            self.counts.waited_s += waited_s
            self.counts.num_first += 1

    def _finish(self, row: _Row) -> None:
        """An answer that has ended by itself."""
        done = row.answer.done(row.ticket.wanted.request)
        self.counts.requests["answered"] += 1
        self.counts.tokens["prompt"] += done.stats.prompt_tokens
        self.counts.tokens["cached"] += done.stats.cached_tokens
        row.ticket.tell(done)
        self._end(row)

    def _forget_left(self) -> None:
        for row in [row for row in self._rows if row.ticket.left]:
            self.counts.requests["left"] += 1
            self._end(row)

    def _end(self, row: _Row) -> None:
        """Let go of a row; with the last one of a writer, of its cache."""
        row.writer.forget(row.number)
        self._rows.remove(row)
        if all(other.writer is not row.writer for other in self._rows):
            self._writing.pop(id(row.writer), None)
            self._batches = [(preset, writer) for preset, writer in self._batches if writer is not row.writer]

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        self.counts.requests["refused"] += 1
        question = ticket.wanted.request.questions[0]
        with suppress(RuntimeError):  # the loop that listened is gone
            ticket.tell(Refused(error, "", (Turn(question),)))
