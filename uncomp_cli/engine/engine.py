"""The engine: a loaded model that plans, reads, opens and writes; the road of ask, chat, evals, bench and calibrate.

    reading = engine.read(prompt, preset)      plans, refuses what does not fit; reads while it is iterated over
    writer = engine.writer(engine.asked(reading.finish()))        one row or many, behind one context or several
    for step in writer.write(): …

`for_any` reads the context alone, ranked without any question, so that it can be saved, opened and asked again and
again; what is read is laid out as what is opened, so both give the same logits, bit by bit. Its budget is the
context's; questions and answers come on top of it, in the model's own number format.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.shelf import Entry, Shelf
from uncomp_cli.config import LEAST_CHUNK_TOKENS, CacheConfig, Limits, Matmul, SamplingConfig
from uncomp_cli.engine.context.context import Account, Asked, Beside, Context, Unread
from uncomp_cli.engine.context.growth import Growth, for_any_question
from uncomp_cli.engine.context.recall import MOST_RECALLED, Recall, can_recall, passage_numbers
from uncomp_cli.engine.context.saved import (
    Origin,
    account_of,
    misfit,
    origin_of,
    prompt_of,
    record_of,
    sketch_of,
    tensors_of,
    texts_of,
)
from uncomp_cli.engine.context.session import Conversation
from uncomp_cli.engine.context.sketch import Sketcher, sketch_bytes
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watch import Watched, watched
from uncomp_cli.engine.read.distances import Reach
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.compression import Compression, check_length, plan_compression
from uncomp_cli.engine.spend.memory import activation_bytes, free_bytes, free_on, planned_kv_bytes, reset_peak
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.fixed_size import context_room
from uncomp_cli.engine.write.writer import Writer, free_room, rows_for
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UsageError, is_out_of_memory
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

OPEN = "no passage stands out for the question, as for a summary or a list"
OPEN_BITS = 8
_AUTO_NAME_LETTERS = 16
_USUAL_QUESTION_TOKENS = 128


class Reading:
    """A text that is about to be read as `planned`: iterate over it, then `context` is there.

    `note` says how `preset` differs from the one that was asked for.
    """

    def __init__(
        self,
        steps: Generator[PrefillStep, None, Context],
        planned: Compression,
        preset: Preset,
        note: str | None = None,
    ) -> None:
        self._steps, self.planned, self.preset, self.note = steps, planned, preset, note
        self._context: Context | None = None

    def __iter__(self) -> Iterator[PrefillStep]:
        self._context = yield from self._steps

    @property
    def context(self) -> Context:
        """What was read."""
        if self._context is None:
            raise RuntimeError("nothing has been read: exhaust the reading first")
        return self._context

    def finish(self) -> Context:
        """Read to the end."""
        for _ in self:
            pass
        return self.context


class Engine:
    """A loaded model, one way of sampling, and the limits of its memory.

    Texts whose answers are to be written in one batch need one regime of RoPE: `regime_tokens`, set before the first is
    read, are those of the longest with its answer.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sampling: SamplingConfig | None = None,
        limits: Limits | None = None,
        matmul: Matmul = "float32",
    ) -> None:
        self.loaded, self.sampling, self.limits = loaded, sampling or SamplingConfig(), limits or Limits()
        self.decoder = Decoder(loaded.model, loaded.spec, matmul=matmul, ranks=loaded.ranks)
        self.matmul = matmul
        self.regime_tokens = 0

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.loaded.spec

    def check_length(self, prompt: Prompt) -> None:
        """Raise DoesNotFitError when the prompt leaves no room for an answer inside the context."""
        check_length(self.spec, prompt, trained_length=self.loaded.info.trained_length)

    def plan(self, prompt: Prompt, preset: Preset) -> Compression:
        """How a prompt is read. Raises DoesNotFitError when it is too long or too large."""
        self.check_length(prompt)
        answer = self.sampling.max_new_tokens
        return plan_compression(
            self.spec,
            preset,
            prompt,
            available=free_on(
                self.decoder.device, self.loaded.ranks, beside_bytes=activation_bytes(self.spec, prompt.flat_len)
            ),
            limits=self._limits_beside(prompt, preset, tokens=answer),
            reach=self.reach(prompt, answer),
        )

    def reach(self, prompt: Prompt, answer_tokens: int) -> Reach | None:
        """The longest distance at which a prompt is read; None: it is not re-packed."""
        trained = self.loaded.info.trained_length
        return Reach.of(self.loaded.rope, prompt.seq_len, trained_length=trained, answer_tokens=answer_tokens)

    def read(self, prompt: Prompt, preset: Preset, *, for_any: bool = False) -> Reading:
        """Read a prompt with its questions, or its context alone. Raises DoesNotFitError before any work."""
        if for_any:
            growth, planned = self._plan_any(prompt, preset)
            return Reading(self._read_any(prompt, growth, planned), planned, growth.preset, growth.note)
        planned = self.plan(prompt, preset)
        return Reading(self._read(planned, preset, prompt), planned, preset)

    def conversation(self, preset: Preset) -> Conversation:
        """A chat in which nothing has been said yet."""
        self._check_alone()
        return Conversation(self.loaded, self.decoder, preset, self.sampling, self.limits)

    def asked(self, context: Context, *, words: Sequence[str] = ()) -> list[Asked]:
        """Every question of a context, to be answered; `words` are what the user typed of each."""
        most, limit = self.sampling.max_new_tokens, self.spec.trained_length
        numbers = range(len(context.prompt.questions))
        typed = [*words, *[""] * len(numbers)]
        return [Asked(context, n, min(most, limit - context.prompt_tokens(n)), typed[n]) for n in numbers]

    def fits(self, asked: Sequence[Asked]) -> bool:
        """Whether all these can be held as rows at once, beside what was read; those that are written in turn do."""
        if not all(isinstance(each.context.questions, Beside) for each in asked):
            return True
        return rows_for(asked, self.spec).bytes_of(asked) <= self._room(asked)

    def sampled(self, sampling: SamplingConfig) -> "Engine":
        """The same model and limits, with another way of sampling."""
        other = copy(self)
        other.sampling = sampling
        return other

    def writer(
        self,
        asked: Sequence[Asked],
        *,
        watch: Watched | bool = True,
        stop_ids: Sequence[int] | None = None,
        grows: bool = False,
    ) -> Writer:
        """What answers these questions; rows wait while the bytes of all would pass --kv-mem, or what is free.

        With `watch` True what the preset has to go by is watched (look/watch.py), which may be nothing. What `grows`
        takes more rows, read with the same preset, while it writes. Raises ValueError for keys of another regime of
        RoPE than the present one.
        """
        regime = self.decoder.regime_tokens
        if any(each.context.regime_tokens != regime for each in asked):
            raise ValueError(f"contexts were not all read in the regime of {regime} tokens: set regime_tokens first")
        preset = asked[0].context.account.preset
        return Writer(
            self.decoder,
            self.loaded.tokenizer,
            self.sampling,
            asked,
            kv_bytes=self._room(asked),
            stop_ids=stop_ids,
            constant_size=self.limits.constant_size,
            watch=watched(preset, self.spec) if watch is True else watch or None,
            grows=grows,
        )

    def origin(self, prompt: Prompt, preset: Preset) -> Origin:
        """What the context of a prompt is made from when it is read now for any question."""
        wanted, _ = for_any_question(preset)
        return origin_of(self.loaded, wanted, prompt, limits=self.limits, matmul=self.decoder.matmul)

    def save(
        self, context: Context, shelf: Shelf, name: str | None, *, texts: bytes = b"", **about: Any
    ) -> tuple[Entry, list[Entry]]:
        """Save a context that serves any question under `name`, or under how its hash begins.

        `about` are fields of its record; `texts` are those of its documents, for who asks for evidence without them.
        Returns it, and what was removed from the shelf to make room.
        """
        self._check_alone()
        context.restore()
        account, prompt = context.account, context.prompt
        record = account.record or record_of(context, self.origin(prompt, account.preset), self.loaded)
        chosen, record = name or record.key[:_AUTO_NAME_LETTERS], replace(record, **about)
        return shelf.save(
            chosen, context.cache, tensors=tensors_of(prompt.context, texts, context.sketch), record=record
        )

    def saved(self, shelf: Shelf, prompt: Prompt, preset: Preset) -> Entry | None:
        """What was saved of just this; with `auto` products also what was read in another type, weights the same."""
        origin = self.origin(prompt, preset)
        return shelf.with_key(*(origin.alike if self.matmul == "auto" else (origin.key,)))

    def open(self, shelf: Shelf, entry: Entry, prompt: Prompt, preset: Preset, *, as_saved: bool = False) -> Context:
        """A saved context with the questions of `prompt`, whose context must be the same unless it is `as_saved`.

        Raises UsageError, with both values, when another model or other text made it, DoesNotFitError when it does not
        fit, UncompError when it is damaged.
        """
        self._check_alone()
        record, begun = entry.manifest.record, time.perf_counter()
        origin = self.origin(prompt, preset)
        origin.check_model(entry.name, record.model)
        if not as_saved:
            origin.check_context(entry.name, record.context_sha256)
        self._check_saved(entry, prompt, preset)
        reset_peak(self.decoder.device)
        cache, tensors, _ = shelf.load(
            entry,
            device=self.decoder.device,
            reserve=prompt.longest_question,
            config=self._room_for(prompt, record.context_tokens),
            misfit=lambda stored: misfit(stored, self.spec, self.decoder.new_states()),
        )
        whole = prompt_of(tensors, prompt)
        self.check_length(whole)
        wanted, _ = for_any_question(preset)
        self.decoder.fix_regime(None)
        context = Context(self.decoder, whole, cache, Unread(Recall(self.loaded.tokenizer)))
        context.sketch = sketch_of(tensors)
        seconds, tokens = time.perf_counter() - begun, len(whole.context)
        texts = texts_of(tensors)
        context.account = account_of(
            cache, tokens, self.spec, wanted, None, seconds=seconds, record=record, texts=texts
        )
        return context

    def _check_alone(self) -> None:
        """Raise UsageError where the heads are dealt out to several ranks."""
        if self.loaded.ranks.count > 1:
            message = "contexts for any question, conversations and saved contexts need all heads in one process"
            raise UsageError(message, hint="name the questions when the text is read, or use one rank")

    def _plan_any(self, prompt: Prompt, preset: Preset) -> tuple[Growth, Compression]:
        self._check_alone()
        self.check_length(prompt)
        limits = self._limits_beside(prompt, preset, tokens=self._tokens_beside(prompt))
        if limits.kv_bytes is not None:
            numbers = passage_numbers(self.loaded.tokenizer, prompt.context)
            limits = replace(limits, kv_bytes=max(1, limits.kv_bytes - sketch_bytes(self.spec, int(numbers.max()) + 1)))
        growth = Growth(self.decoder, preset, limits, grows=False)
        growth.budget.guard_from = len(prompt.context)  # nothing of a document is more recent than the rest
        return growth, growth.plan_reading(prompt.context)

    def _read(self, planned: Compression, preset: Preset, prompt: Prompt) -> Generator[PrefillStep, None, Context]:
        self.decoder.fix_regime(max(self.regime_tokens, prompt.seq_len + self.sampling.max_new_tokens))
        reset_peak(self.decoder.device)
        begun = time.perf_counter()
        context = yield from self._read_as(planned)
        if preset.is_open(context.standing):
            whole, note = self._whole(prompt, preset)
            if whole is None:
                planned = replace(planned, notes=(*planned.notes, note))
            else:
                standing = context.standing
                del context
                context, planned = (yield from self._read_as(whole)), replace(whole, notes=(*whole.notes, note))
                context.standing = standing
        context.account = _account_of(planned, time.perf_counter() - begun)
        return context

    def _read_as(self, planned: Compression) -> Generator[PrefillStep, None, Context]:
        with _memory_of(planned):
            return (yield from Reader(self.decoder, planned, config=self._room_for(planned.prompt)).read())

    def _whole(self, prompt: Prompt, preset: Preset) -> tuple[Compression | None, str]:
        """How everything is kept for an open question, and what is said of it; None where it is not, and why."""
        if not preset.floor_tokens:
            return None, f"{OPEN}; budget {preset.budget} was named and stays: -p full --kv-bits {OPEN_BITS} keeps all"
        try:
            whole = self.plan(prompt, preset.keeping_all(kv_bits=OPEN_BITS))
        except DoesNotFitError as error:
            return None, f"{OPEN}; {error.message}, so not everything is kept"
        plan, question = whole.allocation.plan, whole.prompt.longest_question
        fits = preset.budget.kind != "bytes" or (
            planned_kv_bytes(self.spec, plan, question_tokens=question) <= preset.budget.amount
        )
        if not (fits and plan.keeps_everything):
            return None, f"{OPEN}; there is no room for all of it"
        return whole, f"{OPEN}: everything is kept, in {whole.preset.kv_bits} bits, and nothing is thinned"

    def _read_any(self, prompt: Prompt, growth: Growth, planned: Compression) -> Generator[PrefillStep, None, Context]:
        reset_peak(self.decoder.device)
        begun = time.perf_counter()
        sketcher = self._sketcher(prompt, planned)
        with _memory_of(planned):
            yield from growth.read(prompt.context, planned, sketcher)
        cache = growth.cache
        cache.config = self._room_for(prompt)
        cache.lay_out_anew(reserve=prompt.longest_question)
        context = Context(self.decoder, prompt, cache, Unread(Recall(self.loaded.tokenizer)))
        context.sketch = None if sketcher is None else sketcher.sketch()
        seconds, tokens = time.perf_counter() - begun, len(prompt.context)
        account = account_of(cache, tokens, self.spec, growth.preset, growth.uncertainty, seconds=seconds)
        context.account = replace(
            account, chunk_tokens=planned.chunk_tokens, repeated_tokens=planned.repeated_tokens, notes=planned.notes
        )
        return context

    def _sketcher(self, prompt: Prompt, planned: Compression) -> Sketcher | None:
        """What makes a sketch of a context; None where nothing of it goes, or could come back."""
        if not planned.drops or not can_recall(self.decoder):
            return None
        return Sketcher(self.spec, passage_numbers(self.loaded.tokenizer, prompt.context))

    def _room_for(self, prompt: Prompt, context_tokens: int | None = None) -> CacheConfig:
        """Of room in the cache what a prompt and its answer need, no more."""
        context = len(prompt.context) if context_tokens is None else context_tokens
        return CacheConfig(most_tokens=context + prompt.longest_question + self.sampling.max_new_tokens)

    def _room(self, asked: Sequence[Asked]) -> int:
        """Bytes for rows beside the contexts that were read."""
        if self.limits.kv_bytes is None:
            return free_room(self.decoder)
        contexts = {id(each.context): each.context.cache.nbytes for each in asked}
        return max(0, self.limits.kv_bytes - sum(contexts.values()))

    def _limits_beside(self, prompt: Prompt, preset: Preset, *, tokens: int) -> Limits:
        """The limits of what is read: a cap on the cache has room for `tokens` behind it, and for a constant copy."""
        cap = self.limits.kv_bytes
        if cap is None:
            return self.limits
        left, beside = cap, self._bytes_behind(tokens)
        if self.limits.constant_size:
            beside -= self._bytes_behind(self.sampling.max_new_tokens)
            left = context_room(self.spec, cap, kv_bits=preset.kv_bits)
        if left <= beside:
            raise DoesNotFitError(
                f"what is beside the document needs {(beside + cap - left) / 2**20:,.1f} MiB of KV cache (question, "
                f"answer{', a copy of constant size' * self.limits.constant_size}), --kv-mem allows {cap / 2**20:,.1f}",
                hint="use a larger --kv-mem, or a smaller --max-new-tokens",
            )
        return replace(self.limits, kv_bytes=left - beside)

    def _tokens_beside(self, prompt: Prompt) -> int:
        """A question, what is read again for it and its answer; a usual one's, so that one a little longer fits too."""
        recalled = min(MOST_RECALLED, len(prompt.context))
        return max(_USUAL_QUESTION_TOKENS, prompt.longest_question) + recalled + self.sampling.max_new_tokens

    def _bytes_behind(self, tokens: int) -> int:
        """Bytes of so many tokens that are put behind what was read, with their positions and slack, and of states."""
        cache = CacheConfig()
        entries = self.spec.num_layers * self.spec.num_kv_heads * (tokens + tokens // cache.slack_divisor)
        return entries * (self.spec.kv_bytes_per_entry + cache.position_bytes) + 2 * self.spec.state_bytes

    def _check_saved(self, entry: Entry, prompt: Prompt, preset: Preset) -> None:
        """Refuse a saved context that does not fit, or not under the cap on the cache."""
        size, available = entry.manifest.tensor_bytes, free_bytes(self.decoder.device)
        beside = self._tokens_beside(prompt)
        needed = size + self._bytes_behind(beside) + activation_bytes(self.spec, prompt.longest_question)
        cap = self._limits_beside(prompt, preset, tokens=beside).kv_bytes
        if needed > available or (cap is not None and size > cap):
            bound = f"{available / 2**20:,.1f} are free" if cap is None else f"--kv-mem leaves it {cap / 2**20:,.1f}"
            raise DoesNotFitError(
                f"cache '{entry.name}' has {size / 2**20:,.1f} MiB, {bound}",
                hint="use a larger --kv-mem, or read the document with a smaller --budget",
            )


def _account_of(planned: Compression, seconds: float) -> Account:
    """The account of a prompt that was read as planned."""
    allocation = planned.allocation
    return Account(
        planned.preset,
        allocation.plan,
        allocation.uncertainty,
        allocation.trust(),
        seconds,
        planned.chunk_tokens,
        planned.reread_tokens,
        planned.repeated_tokens,
        planned.notes,
    )


@contextmanager
def _memory_of(planned: Compression) -> Iterator[None]:
    """Raise OutOfMemoryError, with a chunk that needs half of it, when memory does not suffice to read as planned."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        at_once = planned.chunk_tokens or planned.prompt.flat_len
        smaller = max(LEAST_CHUNK_TOKENS, at_once // 2)
        hint = f"--chunk {smaller} needs about half of that" if smaller < at_once else "use a smaller --budget"
        raise OutOfMemoryError(f"memory ran out while {at_once:,} tokens were read at once", hint=hint) from error
