"""A sample's prefill: read once, exactly, and what every setting leaves of it.

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

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
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.errors import DoesNotFitError, ModelError
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.tasks.task import Regime
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


def read_by_each(decoder: Decoder, prompt: Prompt, reach: Reach) -> Reading:
    """Leave a `prompt` of one question to every setting, which re-packs it within its `reach`."""
    return Reading(decoder, prompt, _Recorder(len(prompt.context)), torch.empty(0), reach=reach)


def without_question(prompt: Prompt, *, window: int) -> Prompt:
    """The context alone: its last `window` tokens observe the others. Protected tokens stay on the other side."""
    cut = max(int(prompt.context.protected.sum()), len(prompt.context) - window)
    cut = min(cut, len(prompt.context) - 1)
    return replace(prompt, context=prompt.context[:cut], questions=(prompt.context.ids[cut:],))
