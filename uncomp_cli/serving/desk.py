"""Who answers: one thread with the engine, to which requests come in a queue that is bounded.

    submit → wait in line → read (the road of `ask`) → a row beside the others → pieces → Done, or an error

What is read joins the rows that are being written (continuous batching), by preset. A request that comes alone, and one
to a saved document, is written where it was read, which is faster for one. Between two readings the rows go on. What
does not fit beside the others waits until one of them has ended. Who has left is forgotten at the next step. What fails
is told to whom it was for, and the others go on; when the thread ends everybody is told.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.deposit import check_saving
from uncomp_cli.asking.events import Done, Event, Piece
from uncomp_cli.asking.subject import Answer, Item, Reader
from uncomp_cli.documents.collection import DocumentSet, sent
from uncomp_cli.engine.context.context import Beside
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.spend.compression import TooLongError, too_long
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import (
    OutOfMemoryError,
    UncompError,
    failure_of,
    is_foreseen,
    is_out_of_memory,
    is_panic,
    lacks_room,
)
from uncomp_cli.models.runnable import fingerprint
from uncomp_cli.numerals import format_bytes
from uncomp_cli.serving.exchange import Stops, Wanted
from uncomp_cli.steps import Progress, Working

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset

_STOPPING = "the server is stopping"
_ROUNDS = 8
"""Steps that the rows make between two readings, at most: as many as they are, so that few soon become more."""
Said = Piece | Done | UncompError


class FullError(UncompError):
    """The line is as long as it may be."""


class StoppingError(UncompError):
    """The server ends."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the house: `tell` hears what becomes of it; `left` is set when nobody listens any more."""

    wanted: Wanted
    tell: Callable[[Said], None]
    left: bool = False
    documents: DocumentSet | None = None
    came_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Batch:
    """Rows that are written together; others of its preset may join, where it has one. `kv_bytes` are its cache's."""

    writer: Writer
    preset: "Preset | None" = None
    kv_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Row:
    """A request whose answer is being written."""

    ticket: Ticket
    answer: Answer
    batch: _Batch
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
    steps: int = 0


class Desk:
    """Answers requests with `engine`; `rows` is how many answers are written at once.

    `places` is how many may wait, with `bytes_waiting` of documents. `on_defect` hears of errors that nobody foresaw.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        places: int,
        rows: int,
        bytes_waiting: int,
        on_defect: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        self.engine, self.places, self.most_rows = engine, places, rows
        self.counts = Counts()
        self._bytes_waiting, self._on_defect = bytes_waiting, on_defect
        self._line: deque[Ticket] = deque()
        self._rows: list[_Row] = []
        self._batches: list[_Batch] = []
        self._something = threading.Condition()
        self._closed = self._is_cramped = False
        self._token_bytes = max(len(token.encode()) for token in engine.loaded.tokenizer.get_vocab())
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
        """Bytes that the rows' caches had at their latest token."""
        return sum(batch.kv_bytes for batch in [*self._batches])

    def check_room(self, num_bytes: int = 0) -> None:
        """Raise FullError when a request with documents of so many bytes cannot wait, StoppingError when none may."""
        with self._something:
            if self._closed:
                raise StoppingError(_STOPPING, hint="ask again when it has been started anew")
            self._forget_left()
            waiting = sum(ticket.wanted.num_bytes for ticket in self._line)
            if len(self._line) < self.places and (not waiting or waiting + num_bytes <= self._bytes_waiting):
                return
            self.counts.requests["full"] += 1
            of = f" with {format_bytes(waiting)} of documents" if waiting else ""
            raise FullError(f"{len(self._line)} requests{of} are waiting already", hint="try again in some seconds")

    def submit(self, ticket: Ticket) -> None:
        """Put a request in line, from any thread. Raises what `check_room` raises."""
        with self._something:
            self.check_room(ticket.wanted.num_bytes)
            self._line.append(ticket)
            self._something.notify()

    def close(self) -> None:
        """Answer nothing more; who waits is told."""
        with self._something:
            self._closed = True
            self._something.notify()

    def run(self) -> None:
        """Answer until closed: what the thread does."""
        try:
            while not self._closed:
                self._turn()
        finally:
            self.close()
            for ticket in [*self._line, *(row.ticket for row in self._rows)]:
                self._refuse(ticket, StoppingError(_STOPPING))

    def _turn(self) -> None:
        """One more is read, if there is room; then the rows go on."""
        with self._something:
            while not (self._line or self._rows or self._closed):
                self._something.wait()
        if (ticket := self._next()) is not None:
            self._begin(ticket)
        for _ in range(min(_ROUNDS, len(self._rows)) if self._line else 1):
            self._step()

    def _next(self) -> Ticket | None:
        """Who is next in line, when there is room for another row."""
        with self._something:
            self._forget_left()
            has_room = len(self._rows) < self.most_rows and not self._is_cramped
            return self._line.popleft() if self._line and has_room else None

    def _forget_left(self) -> None:
        """Nobody waits for who has left, nor for room for the first in line, if that is who."""
        self._is_cramped = self._is_cramped and not self._line[0].left
        still = [ticket for ticket in self._line if not ticket.left]
        self.counts.requests["left"] += len(self._line) - len(still)
        self._line = deque(still)

    def _begin(self, ticket: Ticket) -> None:
        """Read what is asked about; its answer joins the others. What lacks room beside them waits for one to end."""
        try:
            item = self._read(ticket)
            if item is not None:
                self._join(ticket, item)
        except BaseException as error:
            was_read = ticket.documents is not None
            if not (self._rows and was_read and lacks_room(error)) or isinstance(error, TooLongError):
                self._fail([ticket], error)
                return
            with self._something:
                self._line.appendleft(ticket)
                self._is_cramped = True

    def _read(self, ticket: Ticket) -> Item | None:
        """The question, read or opened; None when who asked has left meanwhile, or the server ends."""
        steps = self._steps(ticket)
        while not (ticket.left or self._closed):
            try:
                next(steps)
            except StopIteration as end:
                found: Item = end.value
                return found
        steps.close()
        if ticket.left:
            self.counts.requests["left"] += 1
        else:
            self._refuse(ticket, StoppingError(_STOPPING))
        return None

    def _steps(self, ticket: Ticket) -> Generator[Event | Progress | Working, None, Item]:
        """What happens while a request is read."""
        request = ticket.wanted.request
        if request.saves_context:
            check_saving(request)
        if ticket.documents is None:
            files = [(file.name, file.data) for file in ticket.wanted.files]
            ticket.documents = (yield from sent(files, request.wishes)) if files else DocumentSet(())
        self._check_length(ticket.wanted, ticket.documents)
        preset, _ = request.choice.settled(fingerprint(self.engine.loaded))
        reader = Reader(self.engine.sampled(request.sampling), preset, request.questions, request)
        (item,) = yield from reader.read(ticket.documents)
        return replace(item, asked=replace(item.asked, sampling=request.sampling))

    def _check_length(self, wanted: Wanted, documents: DocumentSet) -> None:
        """Raise DoesNotFitError for texts that are too long whatever their words: to make tokens of them takes long."""
        request, spec = wanted.request, self.engine.spec
        texts = [*request.questions, *(text for _, text in request.earlier), request.system or ""]
        texts += [document.text for document in documents.documents]
        num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
        if num_bytes > spec.trained_length * self._token_bytes:
            raise too_long(spec, num_bytes // self._token_bytes, counted=False)

    def _join(self, ticket: Ticket, item: Item) -> None:
        """Write an answer beside the others, or where it was read."""
        context = item.asked.context
        preset = context.account.preset
        batch = next((each for each in self._batches if each.preset == preset), None)
        is_alone = not (self._rows or self._line) or not isinstance(context.questions, Beside)
        if batch is not None and not is_alone:
            number = batch.writer.add(item.asked)
        else:
            engine = self.engine.sampled(ticket.wanted.request.sampling)
            batch = _Batch(engine.writer([item.asked], grows=not is_alone), None if is_alone else preset)
            self._batches.append(batch)
            number = 0
        self._rows.append(_Row(ticket, Answer(item), batch, number, Stops(ticket.wanted.stop)))

    def _step(self) -> None:
        """One token for every row."""
        for row in [row for row in self._rows if row.ticket.left]:
            self.counts.requests["left"] += 1
            self._end(row)
        for batch in [*self._batches]:
            try:
                self._take(batch)
            except BaseException as error:
                rows = self._rows_of(batch)
                for row in rows:
                    self._end(row)
                self._fail([row.ticket for row in rows], error)

    def _rows_of(self, batch: _Batch) -> list[_Row]:
        return [row for row in self._rows if row.batch is batch]

    def _take(self, batch: _Batch) -> None:
        """The tokens that a batch chooses together; pieces are told, and what has ended goes."""
        rows = {row.number: row for row in self._rows_of(batch)}
        steps = batch.writer.round()
        self.counts.steps += bool(steps)
        for step in steps:
            batch.kv_bytes = step.kv_bytes
            if rows[step.row] in self._rows:  # not when a stop was met before the tokens that were guessed
                self._add(rows[step.row], step)

    def _add(self, row: _Row, step: DecodeStep) -> None:
        """The next token of an answer."""
        row.answer.add(step, row.batch.writer)
        self._count(row, step.index)
        text = "".join(piece.text for piece in row.answer.rest() if isinstance(piece, Piece))
        said = row.stops.push(text) + (row.stops.rest() if row.answer.stats is not None else "")
        if row.stops.met and row.answer.stats is None and (stats := row.batch.writer.stats(row.number)) is not None:
            row.answer.stats = replace(stats, finish_reason="stop")
        if said:
            row.ticket.tell(Piece(said))
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
        self._end(row)
        row.ticket.tell(done)

    def _end(self, row: _Row) -> None:
        """Let go of a row; with the last one of a batch, of its cache."""
        row.batch.writer.forget(row.number)
        self._rows.remove(row)
        self._is_cramped = False
        if not self._rows_of(row.batch):
            self._batches.remove(row.batch)

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        """Tell them what went wrong, and of a defect those who run the server. Raises what is to end the thread."""
        is_end = not isinstance(error, Exception) and not is_panic(error)
        if not is_end and not is_foreseen(error):
            self._on_defect(error)
        for ticket in tickets:
            self._refuse(ticket, StoppingError(_STOPPING) if is_end else _told(error))
        if is_end:
            raise error

    def _refuse(self, ticket: Ticket, error: UncompError) -> None:
        self.counts.requests["refused"] += 1
        ticket.tell(error)


def _told(error: BaseException) -> UncompError:
    """What a client is told of it."""
    if isinstance(error, UncompError):
        return error
    kind = OutOfMemoryError if is_out_of_memory(error) else UncompError
    return kind(failure_of(error).message, hint="who runs the server is told more of it")
