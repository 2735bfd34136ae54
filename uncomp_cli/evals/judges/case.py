"""A case: one sample as the model has read it once, exactly, from which every setting evicts; judges start here.

Nothing in a prefill depends on the setting but what is stored: a layer's attention is computed in full before its
eviction. So every layer's queries, keys and values are recorded once, and handed layer by layer to a `Reader` of
the setting; scores are shared by the budgets of one scorer. The caches are those that `Engine.read` makes
(tests/test_evals_sharing.py holds it). Settings that thin hidden states change the prefill itself, so that it is read
anew, once for all that thin alike, and their first logits are their own. Of a text that is re-packed what is kept
decides how the rest is read: every setting reads it alone, and nobody reads it exactly.

In the query-agnostic regime a setting sees the context alone: its last W tokens are the observation window, and are
kept; the question comes after the eviction.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.thinning import NoThinning, make_thinning
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import OPEN_BITS
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.mixers import Step, branch_off
from uncomp_cli.engine.read.chunk import Chunk
from uncomp_cli.engine.read.distances import Reach
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.read.sieve import Sieve
from uncomp_cli.engine.spend.allocation import Allocation, make_allocation, scorer_config
from uncomp_cli.engine.spend.compression import Compression, check_repeats, plan_compression
from uncomp_cli.engine.spend.gauge import measure_layer
from uncomp_cli.engine.spend.memory import free_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt, completion_prompt, encode, open_question
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import DoesNotFitError, ModelError
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.judges.forced_rows import Rows
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Regime, Sample, Span
from uncomp_cli.steps import finished
from uncomp_cli.uncertainty.measures import Measure


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one layer handed to attention: query [1, H, N, D], key and value [1, G, N, D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    form: Form

    def cut(self, length: int) -> "LayerCall":
        """The same over the first `length` tokens; itself when there are no more."""
        if length == self.key.shape[2]:
            return self
        key, value = (tensor[:, :, :length].contiguous() for tensor in (self.key, self.value))
        return replace(self, query=self.query[:, :, :length], key=key, value=value)


class _Recorder(AttentionState):
    """Exact causal attention over one prompt; keeps every call, and the states behind the context and the question."""

    def __init__(self, context: int) -> None:
        self.calls: list[LayerCall] = []
        self.behind: dict[Regime, States] = {"agnostic": States(), "aware": States()}
        self._context = context

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        trunk, branch = self.behind.values()
        return branch_off(trunk, [branch], layer, hidden, [self._context], step)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        self.calls.append(LayerCall(query, key.contiguous(), value.contiguous(), form))
        return attend_causal(query[0], key[0], value[0], form)[None]


class _Flock(Reader):
    """One reading for `plans` that thin alike: the same tokens go on, and every plan holds what it would alone."""

    def __init__(self, decoder: Decoder, plans: Sequence[Compression]) -> None:
        super().__init__(decoder, plans[0])
        self._others = [Reader(decoder, planned) for planned in plans[1:]]

    def begin(self, chunk: Chunk) -> None:
        super().begin(chunk)
        for other in self._others:
            other.begin(chunk)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        output = super().attend(layer, query, key, value, form)
        for other in self._others:
            other.keep(layer, query, key, value, form)
        return output

    def keep_after(self, layer: int) -> Tensor | None:
        for other in self._others:
            other.keep_after(layer)
        return super().keep_after(layer)

    def read_chunk(self, chunk: Chunk, *, further: int = 0) -> Tensor:
        self._behind = super().read_chunk(chunk, further=further)
        return self._behind

    def read_all(self) -> list[Context]:
        """What every plan leaves, in their order."""
        return [finished(self.read()), *(other.context(self._behind) for other in self._others)]


class _Remembering:
    """A scorer that scores every layer once, for settings that differ in the budget alone."""

    repeats = False

    def __init__(self, scorer: Scorer) -> None:
        self.name, self.query_aware, self.published = scorer.name, scorer.query_aware, scorer.published
        self.shared, self.needs_queries = scorer.shared, scorer.needs_queries
        self._scorer = scorer
        self._scores: dict[int, Tensor] = {}

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]."""
        if view.layer not in self._scores:
            self._scores[view.layer] = self._scorer.score(view)
        return self._scores[view.layer]


@dataclass(frozen=True, slots=True)
class Left:
    """What a setting leaves: the cache of one row, and the logits [1, vocab] behind all that it read.

    `trust` [L][G] is how far its policy trusts each head to say what matters, None when it measures nothing.
    """

    cache: RaggedKVCache
    logits: Tensor
    trust: tuple[tuple[float, ...], ...] | None


class Reading:
    """A prompt of one question that was read exactly; `logits` [1, vocab] follow its last token.

    With a `reach` it was not read at all: every setting re-packs it.
    """

    def __init__(
        self, decoder: Decoder, prompt: Prompt, recorder: _Recorder, logits: Tensor, *, reach: Reach | None = None
    ) -> None:
        self.decoder, self.prompt, self.reach = decoder, prompt, reach
        self.logits = logits
        self._calls, self._behind = tuple(recorder.calls), recorder.behind
        self._draw = zlib.crc32(str(prompt.context.ids).encode())  # the random control draws anew for every context
        self._cut: dict[int, tuple[LayerCall, ...]] = {}
        self._measured: dict[tuple[str, int, int, int, int, int], Tensor] = {}
        self._scorers: dict[tuple[ScorerConfig, Regime], _Remembering] = {}
        self._repeated: dict[tuple[str, Regime], Mapping[int, Tensor]] = {}
        self._thinned: dict[tuple[str, Regime], tuple[Context, Allocation]] = {}

    def leave(self, setting: Setting, regime: Regime, *, beside: Sequence[Setting] = ()) -> Left:
        """What `setting` leaves; of those `beside` it the ones that thin as it does are read together with it.

        Raises DoesNotFitError when its budget is too small, ModelError for a model that it cannot be used with.
        """
        if self.reach is None and not _thins(setting):
            cache, allocation = self._compress(setting, regime)
            return Left(cache, self.logits, allocation.trust())
        read, allocation = self.read_thinned(setting, regime, beside=beside)
        asks_for_all = regime == "aware" and setting.preset.floor_tokens and setting.preset.is_open(read.standing)
        if self.reach is None and asks_for_all:
            whole = replace(setting, preset=setting.preset.keeping_all(kv_bits=OPEN_BITS))  # as `ask` does
            return Left(self.compress(whole, regime), self.logits, None)
        return Left(read.cache, read.begin().logits, allocation.trust())

    @torch.no_grad()
    def read_thinned(
        self, setting: Setting, regime: Regime, *, beside: Sequence[Setting] = ()
    ) -> tuple[Context, Allocation]:
        """The prompt, or its context alone, read by the engine itself, thinned as `setting` has it, or re-packed.

        Raises DoesNotFitError when budget or memory is too small, ModelError for what this model or setting cannot do.
        """
        if (setting.label, regime) not in self._thinned:
            planned = self._plan_thinned(setting, regime)
            plans = {setting.label: planned, **self._alike(planned, beside, regime)}
            contexts = _Flock(self.decoder, [*plans.values()]).read_all()
            for (label, plan), context in zip(plans.items(), contexts, strict=True):
                self._thinned[label, regime] = context, plan.allocation
        return self._thinned.pop((setting.label, regime))

    def _alike(self, planned: Compression, beside: Sequence[Setting], regime: Regime) -> dict[str, Compression]:
        """The plans of settings that let the same tokens go on; what is refused is told when it is its turn."""
        plans: dict[str, Compression] = {}
        if planned.repack:
            return plans
        for setting in filter(_thins, beside):
            with suppress(DoesNotFitError, ModelError):
                plans[setting.label] = self._plan_thinned(setting, regime)
        return {label: plan for label, plan in plans.items() if _thinned_by(plan) == _thinned_by(planned)}

    def _plan_thinned(self, setting: Setting, regime: Regime) -> Compression:
        config = self._config(setting.preset)
        prompt = self.prompt
        if regime == "agnostic":
            prompt = without_question(prompt, window=config.window)
            config = replace(config, recent=max(config.recent, config.window))  # the last tokens observe, all of them
        preset = replace(setting.preset, scorer=config)
        available = free_bytes(self.decoder.device)
        planned = plan_compression(self.decoder.spec, preset, prompt, available=available, reach=self.reach)
        planned.allocation.refuse_shortage()  # a mean over samples is of one budget
        if planned.notes:  # what is not thinned, or not read again, must not be judged as if it were
            raise ModelError(planned.notes[0], hint="leave it out")
        if planned.chunk_tokens and not planned.repack:  # a result must not depend on the memory that is free
            message = f"a sample of {self.prompt.seq_len:,} tokens does not fit into memory in one pass"
            raise DoesNotFitError(message, hint="use fewer --tokens")
        return planned

    def compress(self, setting: Setting, regime: Regime) -> RaggedKVCache:
        """The cache of one row that `setting` leaves of the exact prefill; what it says of thinning is not looked at.

        Raises DoesNotFitError when its budget is too small.
        """
        return self._compress(setting, regime)[0]

    @torch.no_grad()
    def _compress(self, setting: Setting, regime: Regime) -> tuple[RaggedKVCache, Allocation]:
        config = self._config(setting.preset)
        prompt = self._prompt(config, regime)
        spec = self.decoder.spec
        measurer = partial(self._measure, window=config.window, sinks=config.sinks)
        allocation = make_allocation(spec, setting.preset, prompt, available=0, measurer=measurer)
        allocation.refuse_shortage()
        scorer, unthinned = self._scorer(config, regime), Sieve(NoThinning(), spec, config)
        planned = Compression(spec, setting.preset, prompt, allocation, scorer, config, unthinned)
        reader = Reader(self.decoder, planned)
        reader.begin(*reader.chunks)
        for layer, call in enumerate(self._seen(prompt.flat_len)):
            reader.keep(layer, call.query, call.key, call.value, call.form)
        if planned.repeats:
            reader.cut_by(self._ranking(reader, planned, regime))
        reader.cache.states = self._behind[regime].copy()
        if regime == "agnostic":  # no question lies behind the context
            reader.cache.settle()
        return reader.cache, allocation

    def _ranking(self, reader: Reader, planned: Compression, regime: Regime) -> Mapping[int, Tensor]:
        """The scores of a second reading, one for all settings; raises where a text cannot be read so."""
        check_repeats(planned)
        key = planned.scorer.name, regime
        if key not in self._repeated:
            self._repeated[key] = reader.repeat()
        return self._repeated[key]

    def _config(self, preset: Preset) -> ScorerConfig:
        config = scorer_config(preset)
        return replace(config, seed=(config.seed + self._draw) % 2**63)

    def _prompt(self, config: ScorerConfig, regime: Regime) -> Prompt:
        """What compression sees: the prompt with its question, or its context alone."""
        if regime == "aware":
            return open_question(self.prompt, recent=config.recent)
        return without_question(self.prompt, window=config.window)

    def _measure(self, measure: Measure, view: LayerView, *, window: int, sinks: int) -> Tensor:
        """A live measurement, made once for all settings that want it of the same view."""
        key = str(measure), view.layer, view.keys.shape[1], view.asked, window, sinks
        if key not in self._measured:
            self._measured[key] = measure_layer(measure, view, window=window, sinks=sinks)
        return self._measured[key]

    def _seen(self, length: int) -> tuple[LayerCall, ...]:
        """The calls over the first `length` tokens, cut once for all settings."""
        if length not in self._cut:
            self._cut[length] = tuple(call.cut(length) for call in self._calls)
        return self._cut[length]

    def _scorer(self, config: ScorerConfig, regime: Regime) -> Scorer:
        scorer = make_scorer(config)
        if scorer.repeats:
            return scorer  # scores piece after piece: `_repeated` remembers
        key = replace(config, pooling="none", width=1, whole_words=False), regime
        if key not in self._scorers:
            self._scorers[key] = _Remembering(scorer)
        return self._scorers[key]


def _thins(setting: Setting) -> bool:
    return make_thinning(setting.preset.thinning).name != NoThinning.name


def _thinned_by(planned: Compression) -> tuple[object, ...]:
    """What decides which tokens go on."""
    return planned.preset.thinning, planned.config, planned.preset.profile_path


def read_once(decoder: Decoder, prompt: Prompt) -> Reading:
    """Read `prompt`, which has one question, exactly."""
    recorder = _Recorder(len(prompt.context))
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    logits = decoder.forward(ids, torch.arange(ids.shape[1])[None], recorder, 1)[:, -1]
    return Reading(decoder, prompt, recorder, logits)


def without_question(prompt: Prompt, *, window: int) -> Prompt:
    """The context alone: its last `window` tokens observe the others. Protected tokens stay on the other side."""
    cut = max(int(prompt.context.protected.sum()), len(prompt.context) - window)
    cut = min(cut, len(prompt.context) - 1)
    return replace(prompt, context=prompt.context[:cut], questions=(prompt.context.ids[cut:],))


@dataclass(frozen=True, slots=True)
class Compressed:
    """A setting's cache of one row, weighed; `outcome` waits for its metrics.

    `logits` [1, vocab] follow what the setting read: everybody's, unless it thinned hidden states on the way. `trust`
    [L][G] is how far its policy trusts each head, None when it measures nothing.
    """

    cache: RaggedKVCache
    logits: Tensor
    outcome: Outcome
    trust: tuple[tuple[float, ...], ...] | None = None

    def judged(self, metrics: dict[str, float], *, answer: str | None = None) -> Outcome:
        """The outcome with `metrics` beside those that compression itself gave."""
        return replace(self.outcome, metrics={**metrics, **self.outcome.metrics}, answer=answer)


@dataclass(frozen=True, slots=True)
class Case:
    """A sample and its one exact prefill.

    `prompt` has all questions, `reading` was done with the first; `answers[q]` are the reference's ids. `evidence`
    [E] are the context tokens that hold the answers.
    """

    sample: Sample
    tokenizer: Any
    decoder: Decoder
    prompt: Prompt
    answers: tuple[tuple[int, ...], ...]
    evidence: Tensor
    reading: Reading

    @property
    def context_len(self) -> int:
        """Tokens of the context."""
        return len(self.prompt.context)

    def seen_tokens(self, regime: Regime) -> int:
        """Tokens that compression saw: with the question or without it."""
        return self.context_len + (len(self.prompt.questions[0]) if regime == "aware" else 0)

    def compress(self, settings: Sequence[Setting], regime: Regime) -> tuple[list[Compressed], list[Outcome]]:
        """Every setting's cache, equal budgets side by side, and the outcomes of settings that were refused."""
        done: list[Compressed] = []
        refused: list[Outcome] = []
        for setting in sorted(settings, key=lambda setting: setting.budget):
            try:
                left = self.reading.leave(setting, regime, beside=settings)
            except (DoesNotFitError, ModelError) as refusal:  # or a scorer that this model cannot have
                refused.append(replace(self._outcome(setting, regime, kv_bytes=0), refused=refusal.message))
                continue
            outcome = self._weighed(setting, regime, left.cache)
            done.append(Compressed(left.cache, left.logits, outcome, left.trust))
        return done, refused

    def begin(self, compressed: Sequence[Compressed], regime: Regime, query: int, *, room: int) -> tuple[Rows, Tensor]:
        """The caches as rows behind question `query`, and the logits [B, vocab] of the token that follows it.

        There is room for `room` more tokens.
        """
        question, caches = self.prompt.questions[query], [one.cache for one in compressed]
        rows = Rows(self.decoder, caches, position=self.seen_tokens(regime), reserve=len(question) + room)
        if regime == "aware":
            return rows, torch.cat([one.logits for one in compressed])
        return rows, rows.feed(question, last=1)[:, -1]

    def writer(self, rows: Rows, logits: Tensor, query: int, *, max_new_tokens: int, stop_ids: Sequence[int]) -> Writer:
        """What writes every row's greedy answer to question `query`, behind which it stands, after `logits`."""
        return rows.writer(logits, self.prompt, query, self.tokenizer, max_new_tokens=max_new_tokens, stop_ids=stop_ids)

    def _weighed(self, setting: Setting, regime: Regime, cache: RaggedKVCache) -> Outcome:
        outcome = self._outcome(setting, regime, kv_bytes=cache.nbytes)
        if len(self.evidence) == 0:
            return outcome
        shares = coverage(cache, self.evidence)
        mean = float(torch.tensor(shares).mean())
        return replace(outcome, metrics={"coverage": mean}, coverage_by_head=shares)

    def _outcome(self, setting: Setting, regime: Regime, *, kv_bytes: int) -> Outcome:
        kept = kv_bytes / self.decoder.spec.full_kv_bytes(self.seen_tokens(regime))
        return replace(Outcome.of(self.sample, setting, regime), kept_fraction=kept, kv_bytes=kv_bytes)


def read_case(
    decoder: Decoder,
    tokenizer: Any,
    sample: Sample,
    *,
    reach: Callable[[Prompt, int], Reach | None] = lambda prompt, answer_tokens: None,
) -> Case:
    """Tokenise and read `sample`; `reach` says of a prompt and the tokens of its answer whether it is re-packed."""
    prompt, answers = tokenise(tokenizer, sample)
    room = max(max(len(ids), query.max_new_tokens) for ids, query in zip(answers, sample.queries, strict=True))
    decoder.fix_regime(prompt.seq_len + room)
    one, within = replace(prompt, questions=prompt.questions[:1]), reach(prompt, room)
    if within is None or one.seq_len <= within.tokens:
        reading = read_once(decoder, one)
    else:
        reading = Reading(decoder, one, _Recorder(len(one.context)), torch.empty(0), reach=within)
    return Case(sample, tokenizer, decoder, prompt, answers, _evidence(sample, prompt), reading)


def tokenise(tokenizer: Any, sample: Sample) -> tuple[Prompt, tuple[tuple[int, ...], ...]]:
    """The prompt with all questions of a sample, and the ids of every answer."""
    answers = tuple(tuple(encode(tokenizer, query.answer, special=False)) for query in sample.queries)
    return _prompt(tokenizer, sample, answers), answers


def coverage(cache: RaggedKVCache, evidence: Tensor) -> list[list[float]]:
    """Share of the `evidence` tokens whose entries a one-row cache still holds: [L][G], 0 to 1."""
    wanted = evidence.to(torch.int32)
    return [
        [float(torch.isin(wanted, layer.head(g)[2].cpu()).float().mean()) for g in range(cache.num_kv_heads)]
        for layer in (cache.layer(index) for index in range(len(cache.layers)))
    ]


def _prompt(tokenizer: Any, sample: Sample, answers: Sequence[tuple[int, ...]]) -> Prompt:
    sinks = ScorerConfig().sinks
    if sample.system is not None:
        told = bool(tokenizer.chat_template)
        questions = [f"{q.question}\n{q.instruction}" if told else q.question for q in sample.queries]
        return chat_prompt(tokenizer, sample.context, questions, system=sample.system or None, sinks=sinks)
    questions = [query.question for query in sample.queries]
    prompt = completion_prompt(tokenizer, sample.context, questions[0], sinks=sinks)
    # A text that is only continued has no question: its first token stands for one, so that the prefill has an end.
    branches = tuple(
        tuple(encode(tokenizer, text, special=False)) or ids[:1] for text, ids in zip(questions, answers, strict=True)
    )
    return replace(prompt, questions=branches)


def evidence_tokens(offsets: Tensor, spans: Iterable[Span]) -> Tensor:
    """Tokens [E] that overlap a range of `spans`, ascending; `offsets` [S, 2] are their characters, -1 for none."""
    found = torch.zeros(len(offsets), dtype=torch.bool)
    for begin, end in spans:
        found |= (offsets[:, 0] >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return found.nonzero()[:, 0]


def _evidence(sample: Sample, prompt: Prompt) -> Tensor:
    """Context tokens that hold the answers."""
    return evidence_tokens(prompt.context.offsets, (span for query in sample.queries for span in query.evidence))
