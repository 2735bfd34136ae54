"""Growth: a context that is read on and on within a budget, a conversation or a document that is asked about later.

    read(text)      anew: attend, score, evict, layer by layer; no more than one layer is held in full, but for a
                    scorer that reads a document twice
    extend(text)    what the text has beyond what was read of it; what both begin with stays, the rest is forgotten
    fit()           cut to the budget, with room inside it for `reserve` tokens more; quantise what is not yet

No question decides what stays, because later ones are not known: keys and values alone do, whenever something has to
go, or of a document, once, a second reading. The text's own tokens are remembered, so everything that was evicted can
be read again.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.states import States
from uncomp_cli.config import AGNOSTIC_PRESET, Limits
from uncomp_cli.engine.context.allowance import Counts, TextBudget
from uncomp_cli.engine.context.context import Account, Begun, Behind, Context
from uncomp_cli.engine.context.recall import can_recall, put_back
from uncomp_cli.engine.context.sketch import Sketcher
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.forward.thread import stream
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation, scorer_config
from uncomp_cli.engine.spend.compression import Compression, plan_compression
from uncomp_cli.engine.spend.memory import activation_bytes, free_bytes, planned_kv_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.spec import ModelSpec

_PIECE_TOKENS = 1024
"""Tokens that are appended before the cache is cut again."""
_STATIONS = 4
"""Places to which a conversation can go back where layers have states: the ends of the latest texts that were read."""
_OUTGROWN = 2
"""A policy that measures live measures again when the text is this many times as long as the one it measured."""


class Growth:
    """How a `context` grows; `note` says what of the preset does not hold here.

    What stays whatever its score, and how many tokens each head keeps, is the business of `budget`. `answer_tokens` is
    how many may come behind the text, for RoPE that depends on the length: a text that outgrows what its keys were
    turned for is read again. None: nobody knows, so that the longest is taken. `reserve` tokens come before the next
    cut. What does not grow (`grows`) is a document, read for all questions.
    """

    def __init__(
        self, decoder: Decoder, preset: Preset, limits: Limits | None = None, *, reserve: int = 0, grows: bool = True
    ) -> None:
        self.decoder = decoder
        self.preset, self.note = for_any_question(preset, grows=grows)
        self.limits = limits or Limits()
        self.piece_tokens = self.limits.chunk_tokens or _PIECE_TOKENS
        self.budget = TextBudget(decoder.spec, self.preset, self.limits, self.piece_tokens, reserve)
        self._measured_live_on: int | None = None
        self._stations: dict[int, States] = {}
        self.answer_tokens: int | None = None
        self._regime: int | None = None
        self.clear()

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.decoder.spec

    @property
    def tokens(self) -> Tokens:
        """What was read, kept or not."""
        return self.context.prompt.context

    @property
    def cache(self) -> RaggedKVCache:
        """What is kept of it."""
        return self.context.cache

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The values that the budget is spread by; None when nothing was measured."""
        return self.budget.uncertainty

    def __len__(self) -> int:
        """Tokens that were read, kept or not."""
        return len(self.tokens)

    def clear(self) -> None:
        """Forget everything."""
        spec, bits = self.spec, self.preset.kv_bits
        cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads, kv_bits=bits)
        self._hold(Tokens.of(), cache, torch.empty(0))

    def common(self, text: Tokens) -> int:
        """How many first tokens of `text`, its last one left out, need not be read."""
        common = self.tokens.common(text.ids[:-1])
        if self.spec.recurrent and common < len(self):
            return max((at for at in self._stations if at <= common), default=0)
        windows = [window for window in self.spec.sliding_windows if window is not None]
        # A sliding layer has dropped what a shorter text would still see.
        return 0 if windows and common < len(self) > min(windows) else common

    def plan_reading(self, text: Tokens) -> Compression:
        """How a text is read anew. Raises DoesNotFitError when it does not fit."""
        available = self._available()
        prompt = self.budget.prompt(text, available=available)
        preset = self.budget.preset_for(prompt, text)
        return plan_compression(self.spec, preset, prompt, available=available, limits=self.limits)

    def read(
        self, text: Tokens, planned: Compression, sketcher: Sketcher | None = None
    ) -> Generator[PrefillStep, None, Tensor]:
        """Read a text anew as planned; returns the logits [1, vocab] behind it. `sketcher` is told of it."""
        self.clear()

        def run() -> Generator[PrefillStep, None, Tensor]:
            self.decoder.fix_regime(self._tokens_behind(len(text)))
            self._regime = self.decoder.regime_tokens
            reader = Reader(self.decoder, planned, sketcher=sketcher)
            found = yield from reader.read()
            logits = found.begin().logits
            self._hold(text, found.cache, logits)
            self.budget.uncertainty = planned.allocation.uncertainty
            self._measured_live_on = len(text) if planned.allocation.live else None
            self._cut(text, self._counts(text), reader.ranking)
            self._stop_over()
            return logits

        return run()

    def extend(self, text: Tokens) -> Generator[PrefillStep, None, Tensor]:
        """Read what `text` has beyond what was read of it; returns the logits [1, vocab] behind it.

        Raises DoesNotFitError before any work when it does not fit.
        """
        common = self.common(text)
        if common == 0 or self._outgrown(text) or not self._turned_for(len(text)):
            return self.read(text, self.plan_reading(text))
        counts = self._counts(text)  # refuses a budget that is too small
        self._check_memory(len(text) - common)
        self.forget_from(common)
        return self._append(text, counts)

    def adopt(self, context: Context) -> None:
        """Go on behind a context that was read for any question, as it is kept, in its bits."""
        self.preset = self.budget.preset = replace(self.preset, kv_bits=context.cache.kv_bits)
        self._hold(context.prompt.context, context.cache, torch.empty(0))
        self._stop_over()
        self._regime, self._measured_live_on = self.decoder.regime_tokens, None

    def forget_from(self, position: int) -> None:
        """Forget the tokens from logical `position` on, and give their memory back when it is most of what there is.

        Where layers have a state of their own, `position` is what `common` says.
        """
        if position < len(self) and self._stations:
            self.cache.states = self._stations[position].copy()
            self._stations = {at: states for at, states in self._stations.items() if at <= position}
        self._remember(self.tokens[:position])
        self.cache.forget_from(position)
        heads = self.spec.num_layers * self.spec.num_kv_heads
        needed = self.cache.entries + 2 * heads * self.cache.config.min_slack
        if self.cache.nbytes > 2 * needed * self.spec.kv_bytes_per_entry:
            self.cache.lay_out_anew()

    def appended(self, token: int) -> None:
        """Remember a generated token, whose keys and values have been put into the cache."""
        self._remember(Tokens.join([self.tokens, Tokens.of([token])]))

    def fit(self) -> None:
        """Cut the cache so that it stays in its budget when `reserve` tokens more are put behind it."""
        self._cut(self.tokens, self._counts(self.tokens))

    def budget_bytes(self) -> int:
        """Bytes that the budget gives to the text as long as it is; where it holds all, with what lies beside it."""
        plan = self._allocation().plan
        of_plan = planned_kv_bytes(self.spec, plan, question_tokens=self.budget.own_tokens)
        return of_plan if self.budget.cuts(plan) else max(of_plan, self.cache.nbytes)

    def check_pinned(self, pinned: Tensor) -> None:
        """Raise DoesNotFitError when the budget of what was read cannot hold the tokens `pinned` bool [S]."""
        self.budget.check_pinned(self.tokens, pinned, available=self._available())

    def account(self) -> Account:
        """What every head keeps of the text as long as it is, and by which values."""
        allocation = self._allocation()
        return Account(self.preset, allocation.plan, self.uncertainty, allocation.trust())

    def survival(self) -> Tensor:
        """The share [S] of heads that still hold each token; sliding layers, which hold their window, do not count."""
        return self.context.survival(len(self)) if len(self) and self.spec.full_layers else torch.ones(len(self))

    @property
    def can_recall(self) -> bool:
        """Whether what was evicted can be put back: not where a sliding layer has dropped what it would see."""
        return can_recall(self.decoder)

    def recall(self, spans: Sequence[range]) -> None:
        """Put back what was evicted of these tokens; they are over the budget until the cache is cut again."""
        put_back(self.decoder, self.cache, self.tokens, spans)

    def _hold(self, text: Tokens, cache: RaggedKVCache, logits: Tensor) -> None:
        self._stations = {}
        prompt = Prompt(text, ((),))
        self.context = Context(self.decoder, prompt, cache, Behind(Begun(logits)))

    def _stop_over(self) -> None:
        """Keep the states behind what has been read, to come back to: those of the latest places."""
        if len(self.cache.states):
            self._stations[len(self)] = self.cache.states.copy()
            for place in sorted(self._stations)[:-_STATIONS]:
                del self._stations[place]

    def _remember(self, text: Tokens) -> None:
        """The tokens that are in the cache now."""
        self.context.prompt = Prompt(text, ((),))

    def _append(self, text: Tokens, counts: Counts | None) -> Generator[PrefillStep, None, Tensor]:
        piece, num_layers = self.piece_tokens, self.spec.num_layers
        total = len(text) - len(self)
        pieces, begun = -(-total // piece), time.perf_counter()

        def work(emit: Callable[[PrefillStep], None]) -> Tensor:
            done, logits = 0, torch.empty(0)

            def on_layer(layer: int) -> None:
                nonlocal done
                done += 1
                elapsed = time.perf_counter() - begun
                emit(PrefillStep(done, pieces * num_layers, total, elapsed, self.cache.nbytes))

            while len(self) < len(text):
                upto = text[: len(self) + piece]
                logits = self.context.feed(upto.ids[len(self) :], len(self), last=1, on_layer=on_layer)
                self._remember(upto)
                self._cut(upto, counts)
            self._stop_over()
            return logits

        return (yield from stream(work))

    def _available(self) -> int:
        """Bytes that a cache may take: those that are free and those of the cache that is there."""
        return free_bytes(self.decoder.device) + self.cache.nbytes

    def _allocation(self) -> Allocation:
        return self.budget.allocation(self.tokens, available=self._available())

    def _counts(self, text: Tokens) -> Counts | None:
        """Tokens that heads may hold of a text with room for more; None: all."""
        plan = self.budget.allocation(text, available=self._available()).plan
        return self.budget.counts(plan, config=self.cache.config)

    def _cut(self, text: Tokens, counts: Counts | None, ranking: Mapping[int, Tensor] | None = None) -> None:
        frequencies = rope_frequencies(self.decoder.model)
        self.budget.cut(self.cache, text, counts, frequencies=frequencies, ranking=ranking or {})
        self.cache.settle(reserve=self.budget.reserve)

    def _outgrown(self, text: Tokens) -> bool:
        """Whether a policy that measures live has to measure again, because what it measured on was too short."""
        measured = self._measured_live_on
        if measured is None or len(text) < _OUTGROWN * measured:
            return False
        return self._counts(text) is not None

    def _tokens_behind(self, length: int) -> int | None:
        """Tokens of a text of `length` and what may come behind it; None when nobody knows."""
        return None if self.answer_tokens is None else min(length + self.answer_tokens, self.spec.trained_length)

    def _turned_for(self, length: int) -> bool:
        """Whether what is held was turned for a text this long; new tokens are turned as it was."""
        if self._regime is None:
            return True
        self.decoder.fix_regime(self._tokens_behind(length))
        holds = (self.decoder.regime_tokens or 0) <= self._regime
        if holds:
            self.decoder.fix_regime(self._regime)
        return holds

    def _check_memory(self, new: int) -> None:
        """Refuse what does not fit: a piece goes through the model at once, and lies in the cache before it is cut."""
        piece = min(new, self.piece_tokens)
        needed = activation_bytes(self.spec, piece) + self.spec.kv_bytes_per_token * piece + 2 * self.spec.state_bytes
        available = free_bytes(self.decoder.device)
        if needed > available:
            raise DoesNotFitError(
                f"reading on needs about {needed / 2**20:,.0f} MiB more, {available / 2**20:,.0f} are free",
                hint="use a smaller --budget (in a chat: /budget), or start again with /clear",
            )


def for_any_question(preset: Preset, *, grows: bool = False) -> tuple[Preset, str | None]:
    """The preset with a scorer that needs no question and no thinning, which does; a note when that changes it.

    What `grows` is cut again and again, by keys and values alone; what does not may be read a second time. Raises
    UsageError for a policy that is defined by a scorer that needs a question.
    """
    unthinned = replace(preset, thinning="none")
    scorer = make_scorer(scorer_config(unthinned))
    if not scorer.needs_queries or (scorer.repeats and not grows):
        return unthinned, None
    changed = replace(unthinned, scorer=load_preset(AGNOSTIC_PRESET).scorer)
    scorer = make_scorer(scorer_config(changed))
    if scorer.needs_queries:
        raise UsageError(
            f"policy {preset.policy} ranks by the question, and what is kept must serve questions nobody has asked yet",
            hint="leave --policy out, or take one that goes with any scorer, such as uniform",
        )
    if preset.policy == "full":
        return changed, None
    before = make_scorer(scorer_config(preset))
    why = f"ranks tokens by the question ({before.name}); here they must serve later questions too"
    if before.repeats:
        why = f"reads a text a second time to rank it ({before.name}), and what grows is cut again and again"
    return changed, f"preset {preset.name} {why}: scorer {scorer.name} is used"
