"""The answers of `uncomp ask`: contexts are read one after another, their questions answered in batches, in order.

With --each every document is a context of its own. What is read waits until enough has come for a batch, or until no
more fits the memory. One document or one question of several that fails is told in its turn, and the others go on.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import entropy_of
from uncomp_cli.asking.escalation import HELD_BACK
from uncomp_cli.asking.material import longest_read
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.asking_again import AskingAgain, answered
from uncomp_cli.cli.ask.contexts import ContextReader, Item
from uncomp_cli.cli.ask.in_order import InOrder
from uncomp_cli.cli.ask.telling import INTERRUPTED, Answered, Teller
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, is_out_of_memory
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_rows

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.context.session import RunStats
    from uncomp_cli.engine.write.batch import RowStep
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["Answering"]

ROWS_TO_WAIT_FOR = 16
"""With --each reading goes on until this many questions wait for their answers."""


class Answering:
    """Reads contexts and writes the answers to `questions` of each; `run` returns the exit code.

    With --escalate answers are held back until all of a batch are final.
    """

    def __init__(
        self, job: Request, questions: Sequence[str], preset: "Preset", loaded: "LoadedModel", terminal: Terminal
    ) -> None:
        from uncomp_cli.engine.write.batch import BatchSession

        self._job, self._questions, self._preset, self._terminal = job, questions, preset, terminal
        self._session = BatchSession(loaded, preset, job.sampling, job.limits, matmul=job.matmul)
        self._reader = ContextReader(job, questions, preset, self._session, terminal)
        self._teller = Teller(job, questions, loaded, terminal)
        self._again = AskingAgain(job, questions, preset, loaded, terminal) if job.escalate else None
        self._waiting: list[Item] = []
        self._held_back: list[Answered] = []
        if job.escalate:
            terminal.note(HELD_BACK)

    def run(self, contexts: Sequence[DocumentSet]) -> int:
        """Read and answer; Ctrl-C keeps what was said. Returns 0, the first failure's code or 130."""
        if (
            len(contexts) > 1 and self._session.decoder.regime_tokens is not None
        ):  # all in the frequencies of the longest
            tokenizer = self._session.loaded.tokenizer
            self._session.regime_tokens = longest_read(self._job, contexts, self._questions, tokenizer)
        for documents in contexts:
            self._take(documents)
            if len(self._waiting) >= ROWS_TO_WAIT_FOR:
                self._answer_waiting()
            if self._teller.exit_code == INTERRUPTED:
                return INTERRUPTED
        self._answer_waiting()
        return self._teller.exit_code

    def _take(self, documents: DocumentSet) -> None:
        """Read one context; what fails is told when others can go on without it."""
        try:
            items = self._read_beside(documents)
        except Exception as error:
            if not (self._job.each and _is_foreseen(error)):
                raise
            self._answer_waiting()  # what was asked before is told before
            self._teller.fail_document(documents.documents[0].path, error)
            return
        if self._waiting and not self._session.fits([item.asked for item in (*self._waiting, *items)]):
            self._answer_waiting()
        self._waiting += items

    def _read_beside(self, documents: DocumentSet) -> list[Item]:
        """Read one context; when what waits leaves too little memory for it, that is answered first."""
        try:
            return self._reader.read(documents)
        except Exception as error:
            if not self._waiting or not (isinstance(error, DoesNotFitError) or is_out_of_memory(error)):
                raise
        self._answer_waiting()
        return self._reader.read(documents)

    def _answer_waiting(self) -> None:
        """Answer what waits, as one batch; when it fails, what has not been begun is answered one by one."""
        items, self._waiting = self._waiting, []
        if not items or self._teller.exit_code == INTERRUPTED:
            return
        try:
            self._answer(items)
        except Exception as error:
            self._settle()
            left = [item for item in items if item not in self._teller.ended]
            if not left or not ((self._job.each or len(self._questions) > 1) and _is_foreseen(error)):
                raise
            self._teller.fail(left[0], error)
            for item in left[1:]:
                self._waiting = [item]
                self._answer_waiting()
        self._settle()

    def _answer(self, items: Sequence[Item]) -> None:
        """Answer `items`, which are shown in order."""
        ids: list[list[int]] = [[] for _ in items]
        order = InOrder(
            len(items),
            self._terminal,
            begin=lambda row: self._begin(items[row]),
            end=lambda row, answer, stats: self._end(items[row], answer, ids[row], stats),
            silent=self._job.as_json or self._again is not None,
        )
        asked = [item.asked for item in items]
        batch = self._session.batch(asked)
        steps: Iterator[RowStep] = watch_rows(
            batch.answer(asked),
            self._terminal,
            num_rows=len(items),
            entropy=lambda: entropy_of(batch.stats(0)) if len(items) == 1 else None,
        )
        del asked
        try:
            for taken in steps:
                ids[taken.row] += taken.step.token_ids
                order.add(taken.row, taken.step.texts[0])
                stats = batch.stats(taken.row) if taken.step.finish_reasons[0] is not None else None
                if stats is not None:
                    order.finish(taken.row, stats)
        except KeyboardInterrupt:
            self._interrupt(order, [batch.stats(row) for row in range(len(items))])
        except Exception:
            order.close()
            raise

    def _interrupt(self, order: InOrder, stats: "Sequence[RunStats | None]") -> None:
        """Write what there is of every answer that has begun. Raises KeyboardInterrupt when nothing was written."""
        begun = [(row, each) for row, each in enumerate(stats) if row >= order.row and each is not None]
        for row, each in begun:
            order.finish(row, each)
        if not begun and not self._teller.written and not self._held_back:
            raise KeyboardInterrupt
        self._teller.exit_code = INTERRUPTED

    def _begin(self, item: Item) -> None:
        if self._again is None:
            self._teller.begin(item)

    def _end(self, item: Item, answer: str, ids: Sequence[int], stats: "RunStats") -> None:
        """Tell what there is to say of an answer, or hold it back until it is final."""
        if item in self._teller.ended or any(done.item is item for done in self._held_back):
            return  # Ctrl-C came while the rest was being said
        done = answered(self._job, self._reader, item, answer, ids, stats, self._preset)
        if self._again is None:
            self._teller.report(done)
        else:
            self._held_back.append(done)

    def _settle(self) -> None:
        """Write what was held back; what was flagged of it is asked again before, unless Ctrl-C was pressed."""
        held, self._held_back = self._held_back, []
        if self._again is not None and held and self._teller.exit_code != INTERRUPTED:
            held = self._again.settle(held)
            if self._again.interrupted:
                self._teller.exit_code = INTERRUPTED
        for done in held:
            self._teller.write(done)


def _is_foreseen(error: Exception) -> bool:
    """Whether others may go well all the same."""
    return isinstance(error, UncompError) or is_out_of_memory(error)
