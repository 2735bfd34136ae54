"""The writer: answers behind contexts, one row or many; questions of one context or of several are rows of one batch.

    admit     rows that wait join while the bytes of all, as long as they can become, stay within a bound;
              rows whose answer has ended go when they are a quarter of what is held
    advance   one token for every row, each by its own sampler, seed and end

A weight matrix is read once a step and not once a row, which is what makes a batch faster. Every row's answer is the
one that it has alone, up to rounding. A single row is written where it was read, and where a step of several rows costs
little more than one it tries guesses from its text as well (lookup.py); its answer is the same.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from uncomp_cli.cache.needs import ConstantConfig
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Beside
from uncomp_cli.engine.context.telling import Telling, rarity
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watch import AnswerWatch, Tally, Watched
from uncomp_cli.engine.records import DecodeStep, FinishReason, RunStats
from uncomp_cli.engine.spend.memory import free_bytes, peak_bytes
from uncomp_cli.engine.tokens.prompt import silent_ids
from uncomp_cli.engine.write.lookup import MOST_GUESSES, Lookup
from uncomp_cli.engine.write.sampler import LOOK_BACK, Sampler, Scores, fetch, loop_period
from uncomp_cli.engine.write.stores import OneRow, RowStore, SharedRows, StackedRows, beside
from uncomp_cli.spec import ModelSpec

_MEMORY_MARGIN = 0.9
_GONE_SHARE = 4
_NEAR_TOKENS = 32


class _Row:
    """One answer while it is written."""

    def __init__(self, number: int, asked: Asked, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig) -> None:
        self.number, self.asked, self.prompt_tokens = number, asked, asked.prompt_tokens  # a context may grow
        own = asked.sampling or sampling
        self.sampler = Sampler(replace(own, seed=(own.seed + asked.question) % 2**64))
        self.stream, self._tokenizer = TextStream(tokenizer), tokenizer
        self.generated = torch.empty(1, 0, dtype=torch.int64)
        self.reason: FinishReason | None = None
        self.tally = Tally()
        self.lookup: Lookup | None = None
        self.begun: Begun | None = None
        self.begun_s = time.perf_counter()
        self.first_s = self.last_s = 0.0

    @property
    def signs(self) -> dict[str, float]:
        """What was seen of the answer so far, and what the text has of the question, which needs nothing watched."""
        seen = self.tally.signs
        if not self.asked.words:
            return seen
        ids, telling = self._telling
        about = {} if self.asked.documents == "" else {"together": telling.together}  # nothing is a document
        if not seen:
            return about
        at = self.tally.peak[0]
        near = self._decode(ids[max(0, at - _NEAR_TOKENS) : at + _NEAR_TOKENS])
        return {**seen, **about, "looked": telling.share(near)}

    @property
    def whole(self) -> bool:
        """Whether the question is known to ask for nothing in particular."""
        return bool(self.asked.words and self._telling[1].whole)

    @cached_property
    def _telling(self) -> tuple[tuple[int, ...], Telling]:
        """The text's tokens, and what the question's words tell of it."""
        ids = tuple(self.asked.context.prompt.context.ids[: self.asked.text_tokens])
        weight = partial(rarity, self._tokenizer.backend_tokenizer)
        return ids, Telling.of(self.asked.words, self.asked.documents or self._decode(ids), weight)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.backend_tokenizer.decode(ids))

    @property
    def position(self) -> int:
        """Where the latest token stands."""
        return self.prompt_tokens + self.generated.shape[1] - 1

    def choose(self, scores: Scores, stop_ids: Sequence[int]) -> tuple[int, str]:
        """The next token, and the text that became whole with it."""
        token = self.sampler.choose(scores, self.generated[0])
        self.generated = torch.cat([self.generated, torch.tensor([[token]])], dim=1)
        if self.lookup is not None:
            self.lookup.append(token)
        if token in stop_ids:
            self.reason = "stop"
        elif self.generated.shape[1] == self.asked.max_new_tokens:
            self.reason = "length"
        elif stop_ids and self.sampler.is_greedy and loop_period(self.generated[0, -LOOK_BACK:].tolist()):
            self.reason = "loop"
        self.last_s = time.perf_counter() - self.begun_s
        self.first_s = self.first_s or self.last_s
        return token, "" if self.reason == "stop" else self.stream.push(token)


class _Everywhere:
    """Bytes on all ranks: those of others when `here` was counted, and for all that came since as many as here."""

    def __init__(self, decoder: Decoder, here: Sequence[int]) -> None:
        ranks = decoder.ranks
        whole = ranks.counted(ranks.total, here, decoder.device)
        self._beside = [total - ranks.count * own for total, own in zip(whole, here, strict=True)]
        self._count = ranks.count

    def nbytes(self, number: int, now: int) -> int:
        """Of `here[number]`, of which there are `now` here."""
        return self._count * now + self._beside[number]


class Writer:
    """Answers what was `asked`; `kv_bytes` bounds what the rows take at once, beside the contexts.

    By default the bound is the memory that is free, and the model's stop tokens end an answer. One row is held whatever
    the bound: with too little for two, rows are answered one after another where they were read. So are they with
    `constant_size`: each in a cache that does not grow. With a `store` that holds the rows already none leaves before
    all have ended. `watch` is what is watched of every row, `watching` the watch of the rows that are held. What was
    asked is forgotten here as soon as it is held. What `grows` takes more rows while it writes.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        sampling: SamplingConfig,
        asked: Sequence[Asked],
        *,
        store: RowStore | None = None,
        kv_bytes: int | None = None,
        stop_ids: Sequence[int] | None = None,
        constant_size: bool = False,
        watch: Watched | None = None,
        grows: bool = False,
    ) -> None:
        self._decoder, self._tokenizer, self._sampling, self._watched = decoder, tokenizer, sampling, watch
        self._stop_ids = stop_tokens(decoder.model, tokenizer) if stop_ids is None else tuple(stop_ids)
        # A model that was not made for chat often goes on behind "Answer:" with the end of its text.
        self._is_plain = tokenizer is not None and not tokenizer.chat_template
        self._kv_bytes = free_room(decoder) if kv_bytes is None else kv_bytes
        self._waiting = deque(enumerate(asked))
        self._num_asked, self._grows = len(asked), grows
        self._held: list[_Row] = []
        self._stats: dict[int, RunStats] = {}
        self.watching: AnswerWatch | None = None
        self._everywhere: _Everywhere | None = None
        self._drops = store is None
        self.store = store or self._choose_store(asked, constant_size=constant_size, grows=grows)
        self._looks_up = sampling.lookup and store is None and decoder.has_program

    def add(self, asked: Asked) -> int:
        """One more to answer, which joins as soon as there is room for it; the number of its row."""
        self._waiting.append((self._num_asked, asked))
        self._num_asked += 1
        return self._num_asked - 1

    def forget(self, row: int) -> None:
        """End a row, if it has not ended, and keep nothing of it; the others go on."""
        self._waiting = deque(each for each in self._waiting if each[0] != row)
        self._stats.pop(row, None)
        for held in self._held:
            if held.number == row:
                held.reason = held.reason or "interrupted"

    def write(self) -> Iterator[DecodeStep]:
        """One record a token of any row, rows in order."""
        while self._waiting or self._goes_on:
            yield from self._admit()
            if self._goes_on:
                yield from self._decode()

    def round(self) -> list[DecodeStep]:
        """The tokens that are chosen together next, none when all have ended: for who may stop between two passes."""
        return list(self._admit()) or (list(self._decode()) if self._goes_on else [])

    def rounds(self) -> Iterator[list[DecodeStep]]:
        """All of them."""
        return iter(self.round, [])

    def stats(self, row: int = 0) -> RunStats | None:
        """What the answer of row number `row` took so far; None before its first token."""
        for at, held in enumerate(self._held):
            if held.number == row and row not in self._stats and held.first_s:
                return self._measure(held, at)
        return self._stats.get(row)

    def _choose_store(self, asked: Sequence[Asked], *, constant_size: bool, grows: bool) -> RowStore:
        spec = self._decoder.spec
        if grows:
            return StackedRows(spec)
        if len(asked) > 1 and not constant_size and all(isinstance(one.context.questions, Beside) for one in asked):
            store = rows_for(asked, spec)
            if store.bytes_of(asked[:2]) <= self._kv_bytes:
                return store
        return OneRow(spec, constant=ConstantConfig() if constant_size else None)

    @property
    def _watch(self) -> AnswerWatch | None:
        """What looks on: nothing once every answer's first tokens have been seen."""
        return None if all(row.tally.is_full for row in self._held) else self.watching

    @property
    def _goes_on(self) -> bool:
        return any(row.reason is None for row in self._held)

    def _admit(self) -> Iterator[DecodeStep]:
        """Lay the rows out anew when it is worth it: new ones begin with the token that their question ends in."""
        live = [at for at, row in enumerate(self._held) if row.reason is None]
        gone = len(self._held) - len(live)
        is_worth = gone * _GONE_SHARE >= len(self._held) or (self._grows and self._waiting)
        if not is_worth or (self._held and not self._drops):
            return
        joining = self._joining([self._held[at].asked for at in live])
        if not joining and not gone:
            return
        joined = [_Row(number, asked, self._tokenizer, self._sampling) for number, asked in joining]
        begun = self.store.lay_out(live, [row.asked for row in joined])
        self._held = [*(self._held[at] for at in live), *joined]
        if self._decoder.ranks.count > 1:
            here = self.store.nbytes, *map(self.store.row_bytes, range(len(self._held)))
            self._everywhere = _Everywhere(self._decoder, here)
        watched = self._watched
        texts = [row.asked.text_tokens for row in self._held]
        self.watching = None if watched is None else self._watch_of(watched, texts)
        for row, one in zip(joined, begun, strict=True):
            row.begun = one
        # All begin before any is told of: who stops at the first token finds every row begun.
        yield from [self._begin(row, one.logits) for row, one in zip(joined, begun, strict=True)]

    def _watch_of(self, watched: Watched, texts: Sequence[int]) -> AnswerWatch:
        """The watch of the rows that are held, of which `texts` tokens are the text."""
        decoder = self._decoder
        return AnswerWatch(watched, self.store.held, decoder.spec, texts=texts, ranks=decoder.ranks)

    def _begin(self, row: _Row, logits: Tensor) -> DecodeStep:
        """The first token, from logits [1, vocab]: who is no chat model says something before it ends."""
        allowed = logits
        if self._is_plain:
            ends = [token for token in self._stop_ids if token < logits.shape[1]]
            allowed = logits.index_fill(1, torch.tensor(ends, dtype=torch.int64, device=logits.device), -torch.inf)
        return self._take(row, logits[0], *fetch(allowed, [row.sampler]))

    def _joining(self, held: list[Asked]) -> list[tuple[int, Asked]]:
        """The rows, in order, that fit beside those that stay; one at least when none stays."""
        joining: list[tuple[int, Asked]] = []
        while self._waiting:
            rows = [*held, *(asked for _, asked in joining), self._waiting[0][1]]
            if self._drops and len(rows) > 1 and self.store.bytes_of(rows) > self._kv_bytes:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _decode(self) -> Iterator[DecodeStep]:
        """Put every row's latest token behind it, and choose the next."""
        if isinstance(self.store, OneRow) and (guesses := self._guesses(self._held[0], self.store)):
            yield from self._try(self._held[0], self.store, guesses)
            return
        watch, latest = self._watch, torch.cat([row.generated[:, -1:] for row in self._held])
        positions = torch.tensor([[row.position] for row in self._held])
        state = self.store.state(positions, on_query=None if watch is None else watch.observe)
        logits = self._decoder.forward(latest, positions, state, 1)[:, -1]
        scores = fetch(logits, [row.sampler for row in self._held])
        live = [(at, row) for at, row in enumerate(self._held) if row.reason is None]
        for at, row in live:
            if watch is not None:
                row.tally.take(watch.latest[at], watch.mass[at][-1])
            if row.asked.on_token is not None:
                row.asked.on_token(row.generated.shape[1] - 1, int(row.generated[0, -1]))
        for at, row in live:
            yield self._take(row, logits[at], scores[at])

    def _guesses(self, row: _Row, store: OneRow) -> list[int]:
        """What may come next; no more than the answer's length, and what looks at the cache between tokens, allow."""
        if not self._looks_up:
            return []
        if row.lookup is None:
            prompt, said = row.asked.context.prompt, row.generated[0].tolist()
            row.lookup = Lookup((*prompt.context.ids, *prompt.questions[row.asked.question], *said))
        done, pause = row.generated.shape[1], row.asked.pause_tokens
        room = min(store.room - 1, row.asked.max_new_tokens - done - 1, -done % pause if pause else MOST_GUESSES)
        return row.lookup.guess(min(MOST_GUESSES, room)) if room > 0 else []

    def _try(self, row: _Row, store: OneRow, guesses: list[int]) -> Iterator[DecodeStep]:
        """Put the latest token and the guesses behind the row; as many stay as are what is chosen."""
        watch, done = self._watch, row.generated.shape[1]
        put = [int(row.generated[0, -1]), *guesses]
        positions = torch.arange(row.position, row.position + len(put))[None]
        state = store.attempt(positions, on_query=None if watch is None else watch.observe)
        logits = self._decoder.forward(torch.tensor([put]), positions, state, len(put))[0]
        chosen: list[tuple[int, str]] = []
        for at, guess in enumerate([*guesses, None]):
            chosen.append(self._next(row, logits[at], *fetch(logits[at : at + 1], [row.sampler])))
            if row.reason is not None or chosen[-1][0] != guess:
                break
        state.settle(len(chosen))
        if row.lookup is not None:
            row.lookup.learn(len(guesses), len(chosen) - 1)
        for at, token in enumerate(put[: len(chosen)]):
            if watch is not None:
                row.tally.take(watch.recent[0, :, at], watch.mass[0][at])
            if row.asked.on_token is not None:
                row.asked.on_token(done - 1 + at, token)
        for at, (token, text) in enumerate(chosen):
            yield self._told(row, done + at, token, text)

    def _take(self, row: _Row, logits: Tensor, scores: Scores) -> DecodeStep:
        return self._told(row, row.generated.shape[1], *self._next(row, logits, scores))

    def _next(self, row: _Row, logits: Tensor, scores: Scores) -> tuple[int, str]:
        if self._watched is not None and self._watched.outputs:
            row.tally.predict(logits)
        return row.choose(scores, self._stop_ids)

    def _told(self, row: _Row, index: int, token: int, text: str) -> DecodeStep:
        """The record of a token that has been chosen; the row's last one ends it."""
        reason = row.reason if index == row.generated.shape[1] - 1 else None
        if reason is not None:
            self._stats[row.number] = self._measure(row, self._held.index(row))
        return DecodeStep(row.number, index, token, text, reason, row.last_s, self._on_all(0, self.store.nbytes))

    def _on_all(self, number: int, own_bytes: int) -> int:
        """Bytes of all rows (0), or of row `number` - 1, on all ranks."""
        return own_bytes if self._everywhere is None else self._everywhere.nbytes(number, own_bytes)

    def _measure(self, row: _Row, at: int) -> RunStats:
        begun, completed, decoder = row.begun, row.generated.shape[1], self._decoder
        if begun is None:
            raise RuntimeError("a row is measured that has not begun")
        return RunStats(
            prompt_tokens=row.prompt_tokens,
            cached_tokens=begun.cached_tokens,
            completion_tokens=completed,
            prefill_s=begun.prefill_s,
            ttft_s=begun.waited_s + row.first_s,
            decode_s=row.last_s - row.first_s,
            kv_bytes=self._on_all(1 + at, self.store.row_bytes(at)),
            kv_full_bytes=decoder.ranks.count * decoder.spec.full_kv_bytes(row.prompt_tokens + completed - 1),
            dtype_bytes=decoder.spec.dtype_bytes,
            peak_bytes=peak_bytes(decoder.device),
            finish_reason=row.reason or "interrupted",
            signs=row.signs,
            whole=row.whole,
            guessed_tokens=0 if row.lookup is None else row.lookup.guessed,
            accepted_tokens=0 if row.lookup is None else row.lookup.accepted,
        )


def rows_for(asked: Sequence[Asked], spec: ModelSpec) -> RowStore:
    """How the rows are held: behind one context when they share it, else each with a copy of its own."""
    context = asked[0].context
    shared = all(one.context is context for one in asked) and bool(beside(context).entries)
    return SharedRows(context, spec) if shared else StackedRows(spec)


def free_room(decoder: Decoder) -> int:
    """Bytes that rows may take: the memory that is free now, but for a margin."""
    return int(_MEMORY_MARGIN * decoder.ranks.least(free_bytes(decoder.device)))


class TextStream:
    """Turns one row's token ids into text as soon as it is whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer, self._unsaid = tokenizer.backend_tokenizer, silent_ids(tokenizer)
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        """What became printable with this token; empty while a character is incomplete."""
        return "" if token_id in self._unsaid else self._stream.step(self._tokenizer, token_id) or ""


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that end an answer: the generation config's, the model config's and the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))
