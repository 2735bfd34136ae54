"""Many answers at once: questions of one document or of several are the rows of one batch.

    admit     rows that wait join while the bytes of all, as long as they can become, stay within a bound;
              rows whose answer has ended go when they are a quarter of what is held
    advance   one token for every row, each by its own sampler, seed and end

A weight matrix is read once a step and not once a row, which is what makes a batch faster. Every row's answer is the
one that it has alone, up to rounding.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.session import RunStats, Session
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watching import AnswerWatch, Tally, Watched
from uncomp_cli.engine.records import DecodeStep, FinishReason
from uncomp_cli.engine.spend.memory import free_bytes, peak_bytes
from uncomp_cli.engine.write.branches import SharedRows
from uncomp_cli.engine.write.generate import TextStream, stop_tokens
from uncomp_cli.engine.write.rows import Asked, OneRow, RowStore, StackedRows
from uncomp_cli.engine.write.sampling import Sampler
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.spec import ModelSpec

__all__ = ["Alone", "Batch", "BatchSession", "RowStep", "rows_for"]

_MEMORY_MARGIN = 0.9
_GONE_SHARE = 4


@dataclass(frozen=True, slots=True)
class RowStep:
    """One token of the row number `row`, counted in the order of asking; `step` is a record of that row alone."""

    row: int
    step: DecodeStep


class _Row:
    """One answer while it is written."""

    def __init__(self, number: int, asked: Asked, loaded: LoadedModel, sampling: SamplingConfig) -> None:
        self.number, self.asked = number, asked
        self.sampler = Sampler(replace(sampling, seed=sampling.seed + asked.question))
        self.stream = TextStream(loaded.tokenizer)
        self.generated = torch.empty(1, 0, dtype=torch.int64)
        self.reason: FinishReason | None = None
        self.tally = Tally()
        self.begun_s = time.perf_counter()
        self.first_s = self.last_s = 0.0

    @property
    def position(self) -> int:
        """Where the latest token stands."""
        return self.asked.prompt_tokens + self.generated.shape[1] - 1

    def take(self, logits: Tensor, stop_ids: Sequence[int], kv_bytes: int) -> RowStep:
        """Choose the next token from logits [1, vocab]."""
        index = self.generated.shape[1]
        chosen = self.sampler.choose(logits, self.generated)
        self.generated = torch.cat([self.generated, chosen[:, None]], dim=1)
        token = int(chosen)
        if token in stop_ids:
            self.reason = "stop"
        elif index + 1 == self.asked.max_new_tokens:
            self.reason = "length"
        text = "" if self.reason == "stop" else self.stream.push(token)
        self.last_s = time.perf_counter() - self.begun_s
        self.first_s = self.first_s or self.last_s
        return RowStep(self.number, DecodeStep(index, (token,), (text,), (self.reason,), self.last_s, kv_bytes))


class Batch:
    """Answers questions of prompts that were read; `kv_bytes` bounds what the rows take at once, beside the prompts.

    By default the bound is the memory that is free, and the model's stop tokens end an answer. One row is held whatever
    the bound: with too little for two, rows are answered one after another where they were read. So are they with
    `constant_size`: each in a cache that does not grow. `watch` is what is watched of every row.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        decoder: Decoder,
        sampling: SamplingConfig,
        *,
        kv_bytes: int | None = None,
        stop_ids: Sequence[int] | None = None,
        constant_size: bool = False,
        watch: Watched | None = None,
    ) -> None:
        self._watched = watch
        self._loaded, self._decoder, self._sampling = loaded, decoder, sampling
        self._stop_ids = stop_tokens(loaded.model, loaded.tokenizer) if stop_ids is None else tuple(stop_ids)
        self._kv_bytes = default_room(decoder) if kv_bytes is None else kv_bytes
        self._constant_size = constant_size
        self._waiting: deque[tuple[int, Asked]] = deque()
        self._held: list[_Row] = []
        self._stats: dict[int, RunStats] = {}
        self.store: RowStore = OneRow(decoder.spec)

    def answer(self, asked: Sequence[Asked]) -> Iterator[RowStep]:
        """One record a token of any row, rows in order; what was asked is forgotten here as soon as it is held."""
        self._waiting = deque(enumerate(asked))
        self._held, self._stats = [], {}
        self.store = self._choose_store(asked)
        while self._waiting or any(row.reason is None for row in self._held):
            yield from self._admit()
            if any(row.reason is None for row in self._held):
                yield from self._advance()

    def stats(self, row: int) -> RunStats | None:
        """What the answer of row number `row` took so far; None before its first token."""
        for at, held in enumerate(self._held):
            if held.number == row and row not in self._stats and held.first_s:
                return self._measure(held, at)
        return self._stats.get(row)

    def _choose_store(self, asked: Sequence[Asked]) -> RowStore:
        spec = self._decoder.spec
        if len(asked) > 1 and not self._constant_size:
            store = rows_for(asked, spec)
            if store.bytes_of(asked[:2]) <= self._kv_bytes:
                return store
        return OneRow(spec, constant_size=self._constant_size)

    def _admit(self) -> Iterator[RowStep]:
        """Lay the rows out anew when it is worth it: new ones begin with the token that their question ends in."""
        live = [at for at, row in enumerate(self._held) if row.reason is None]
        gone = len(self._held) - len(live)
        if gone * _GONE_SHARE < len(self._held):
            return
        joining = self._joining([self._held[at].asked for at in live])
        if not joining and not gone:
            return
        joined = [_Row(number, asked, self._loaded, self._sampling) for number, asked in joining]
        self.store.lay_out(live, [row.asked for row in joined])
        self._held = [*(self._held[at] for at in live), *joined]
        # All begin before any is told of: who stops at the first token finds every row begun.
        first = [(row, row.asked.read.logits[row.asked.question : row.asked.question + 1]) for row in joined]
        yield from [self._take(row, logits) for row, logits in first]

    def _joining(self, held: list[Asked]) -> list[tuple[int, Asked]]:
        """The rows, in order, that fit beside those that stay; one at least when none stays."""
        joining: list[tuple[int, Asked]] = []
        while self._waiting:
            rows = [*held, *(asked for _, asked in joining), self._waiting[0][1]]
            if len(rows) > 1 and self.store.bytes_of(rows) > self._kv_bytes:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _advance(self) -> Iterator[RowStep]:
        device = self._decoder.device
        latest = torch.cat([row.generated[:, -1:] for row in self._held])
        positions = torch.tensor([[row.position] for row in self._held])
        watch = None if self._watched is None else AnswerWatch(self._watched, self.store.held, self._decoder.spec)
        state = self.store.state(positions.to(device), on_query=None if watch is None else watch.observe)
        logits = self._decoder.forward(latest, positions, state, 1)[:, -1]
        for at, row in enumerate(self._held):
            if watch is not None and row.reason is None:
                row.tally.take(watch.latest[at])
        for at, row in enumerate(self._held):
            if row.reason is None:
                yield self._take(row, logits[at : at + 1])

    def _take(self, row: _Row, logits: Tensor) -> RowStep:
        if self._watched is not None and self._watched.reads_output:
            row.tally.predict(logits[0])
        taken = row.take(logits, self._stop_ids, self.store.nbytes)
        if row.reason is not None:
            self._stats[row.number] = self._measure(row, self._held.index(row))
        return taken

    def _measure(self, row: _Row, at: int) -> RunStats:
        asked, completed = row.asked, row.generated.shape[1]
        first = asked.question == 0  # one pass read all questions of a prompt
        prefill_s = asked.prefill_s if first else 0.0
        return RunStats(
            prompt_tokens=asked.prompt_tokens,
            cached_tokens=0 if first else len(asked.read.prompts[0].context),
            completion_tokens=completed,
            prefill_s=prefill_s,
            ttft_s=prefill_s + row.first_s,
            decode_s=row.last_s - row.first_s,
            kv_bytes=self.store.row_bytes(at),
            kv_full_bytes=self._decoder.spec.full_kv_bytes(asked.prompt_tokens + completed - 1),
            peak_bytes=peak_bytes(self._decoder.device),
            finish_reason=row.reason or "interrupted",
            attention_entropy=None if self._watched is None else row.tally.value(self._watched.signal),
        )


class BatchSession(Session):
    """A session whose prompts are answered in batches, several prompts in one if need be."""

    def asked(self) -> list[Asked]:
        """Every question of the prompt that was read, to be answered in a batch."""
        read = self._prompt_read()
        (prompt,) = read.prompts
        lengths = [len(prompt.context) + len(question) for question in prompt.questions]
        room = [self.loaded.spec.trained_length - length for length in lengths]
        return [
            Asked(read, number, min(self.sampling.max_new_tokens, left), self._prefill_s, self.decoder.regime_tokens)
            for number, left in enumerate(room)
        ]

    def fits(self, asked: Sequence[Asked]) -> bool:
        """Whether all these can be held as rows at once, beside what was read."""
        return rows_for(asked, self.decoder.spec).bytes_of(asked) <= self._room(asked)

    def batch(self, asked: Sequence[Asked]) -> "Batch | Alone":
        """What answers these questions; rows wait while the bytes of all would pass --kv-mem, or what is free.

        Raises ValueError for keys of another regime of RoPE than the present one.
        """
        regime = self.decoder.regime_tokens
        if any(each.regime_tokens != regime for each in asked):
            raise ValueError(f"prompts were not all read in the regime of {regime} tokens: set regime_tokens first")
        constant = self.limits.constant_size
        if len(asked) == 1 and asked[0].read is self._read and not constant:
            return Alone(self)
        room = self._room(asked)
        return Batch(
            self.loaded, self.decoder, self.sampling, kv_bytes=room, constant_size=constant, watch=self.watched
        )

    def _room(self, asked: Sequence[Asked]) -> int:
        """Bytes for rows beside the prompts that were read."""
        if self.limits.kv_bytes is None:
            return default_room(self.decoder)
        reads = {id(each.read): each.read.cache.nbytes for each in asked}
        return max(0, self.limits.kv_bytes - sum(reads.values()))


class Alone:
    """One question of the prompt that a session has read last, answered where it was read."""

    def __init__(self, session: BatchSession) -> None:
        self._session = session

    def answer(self, asked: Sequence[Asked]) -> Iterator[RowStep]:
        """One record a token of the one row."""
        (only,) = asked
        for step in self._session.answer(only.question):
            yield RowStep(0, step)

    def stats(self, row: int) -> RunStats | None:
        """What the answer took so far; None before its first token."""
        return self._session.stats


def rows_for(asked: Sequence[Asked], spec: ModelSpec) -> RowStore:
    """How the rows are held: behind one context when they share it, else each with a copy of its own."""
    shared = len({id(each.read) for each in asked}) == 1 and bool(asked[0].read.questions)
    return SharedRows(asked[0].read, spec) if shared else StackedRows(spec)


def default_room(decoder: Decoder) -> int:
    """Bytes that rows may take: the memory that is free now, but for a margin."""
    return int(_MEMORY_MARGIN * free_bytes(decoder.device))
