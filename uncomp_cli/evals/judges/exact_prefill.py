"""One exact prefill, many settings: the context is read once, every setting then evicts from what was read.

Nothing in a prefill depends on the setting but what is stored: a layer's attention is computed in full before its
eviction. So every layer's queries, keys and values are recorded once, and handed layer by layer to a `Reader` of
the setting; scores are shared by the budgets of one scorer. The caches are those that `Engine.read` makes
(tests/test_evals_sharing.py holds it). A setting that thins hidden states changes the prefill itself, so that it is
read anew for each of these, and its first logits are its own.

In the query-agnostic regime a setting sees the context alone: its last W tokens are the observation window, and are
kept; the question comes after the eviction.
"""

import zlib
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.thinning import NoThinning, make_thinning
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.read.sieve import Sieve
from uncomp_cli.engine.spend.allocation import Allocation, make_allocation, scorer_config
from uncomp_cli.engine.spend.compression import Compression, plan_compression
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
    scaling: float
    sliding_window: int | None

    def cut(self, length: int) -> "LayerCall":
        """The same over the first `length` tokens; itself when there are no more."""
        if length == self.key.shape[2]:
            return self
        key, value = (tensor[:, :, :length].contiguous() for tensor in (self.key, self.value))
        return replace(self, query=self.query[:, :, :length], key=key, value=value)


class _Recorder(AttentionState):
    """Exact causal attention over one prompt; keeps every call."""

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        self.calls.append(LayerCall(query, key.contiguous(), value.contiguous(), scaling, sliding_window))
        return attend_causal(query[0], key[0], value[0], scaling=scaling, window=sliding_window)[None]


class _Remembering:
    """A scorer that scores every layer once, for settings that differ in the budget alone."""

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
    """A prompt of one question that was read exactly; `logits` [1, vocab] follow its last token."""

    def __init__(self, decoder: Decoder, prompt: Prompt, calls: tuple[LayerCall, ...], logits: Tensor) -> None:
        self.decoder = decoder
        self.prompt = prompt
        self.logits = logits
        self._calls = calls
        self._draw = zlib.crc32(str(prompt.context.ids).encode())  # the random control draws anew for every context
        self._cut: dict[int, tuple[LayerCall, ...]] = {}
        self._measured: dict[tuple[str, int, int, int, int, int], Tensor] = {}
        self._scorers: dict[tuple[ScorerConfig, Regime], _Remembering] = {}

    def leave(self, setting: Setting, regime: Regime) -> Left:
        """What `setting` leaves.

        Raises DoesNotFitError when its budget is too small, ModelError for a model that it cannot be used with.
        """
        if make_thinning(setting.preset.thinning).name == NoThinning.name:
            cache, allocation = self._compress(setting, regime)
            return Left(cache, self.logits, allocation.trust())
        read, allocation = self._read_thinned(setting, regime)
        return Left(read.cache, read.begin().logits, allocation.trust())

    def read_thinned(self, setting: Setting, regime: Regime) -> Context:
        """The prompt, or its context alone, read by the engine itself, thinned as `setting` has it.

        Raises DoesNotFitError when budget or memory is too small, ModelError for a model that cannot be thinned.
        """
        return self._read_thinned(setting, regime)[0]

    @torch.no_grad()
    def _read_thinned(self, setting: Setting, regime: Regime) -> tuple[Context, Allocation]:
        config = self._config(setting.preset)
        prompt = self.prompt
        if regime == "agnostic":
            prompt = without_question(prompt, window=config.window)
            config = replace(config, recent=max(config.recent, config.window))  # the last tokens observe, all of them
        preset = replace(setting.preset, scorer=config)
        planned = plan_compression(self.decoder.spec, preset, prompt, available=free_bytes(self.decoder.device))
        if planned.notes:  # what is not thinned must not be judged as if it were
            raise ModelError(planned.notes[0], hint="leave thin= out")
        if planned.chunk_tokens is not None:  # a result must not depend on the memory that is free
            message = f"a sample of {self.prompt.seq_len:,} tokens does not fit into memory in one pass"
            raise DoesNotFitError(message, hint="use fewer --tokens")
        return finished(Reader(self.decoder, planned).read()), planned.allocation

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
        scorer, unthinned = self._scorer(config, regime), Sieve(NoThinning(), spec, config)
        reader = Reader(self.decoder, Compression(spec, setting.preset, prompt, allocation, scorer, config, unthinned))
        reader.begin(*reader.chunks)
        for layer, call in enumerate(self._seen(prompt.flat_len)):
            reader.keep(
                layer, call.query, call.key, call.value, scaling=call.scaling, sliding_window=call.sliding_window
            )
        return reader.cache, allocation

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

    def _scorer(self, config: ScorerConfig, regime: Regime) -> _Remembering:
        key = replace(config, pooling="none", width=1, whole_words=False), regime
        if key not in self._scorers:
            self._scorers[key] = _Remembering(make_scorer(config))
        return self._scorers[key]


def read_once(decoder: Decoder, prompt: Prompt) -> Reading:
    """Read `prompt`, which has one question, exactly."""
    recorder = _Recorder()
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    logits = decoder.forward(ids, torch.arange(ids.shape[1])[None], recorder, 1)[:, -1]
    return Reading(decoder, prompt, tuple(recorder.calls), logits)


def without_question(prompt: Prompt, *, window: int) -> Prompt:
    """The context alone: its last `window` tokens observe the others. Protected tokens stay on the other side."""
    cut = max(int(prompt.context.protected.sum()), len(prompt.context) - window)
    cut = min(cut, len(prompt.context) - 1)
    return replace(prompt, context=prompt.context[:cut], questions=(prompt.context.ids[cut:],))
