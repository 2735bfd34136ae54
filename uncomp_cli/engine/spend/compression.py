"""Planning a prefill: whether a prompt fits, what its heads keep, how many tokens are read at a time.

    plan_compression(spec, preset, prompt, available=…, limits=…) → Compression, all that a prefill needs

A prompt is read in one pass when that fits; otherwise in the longest chunks that do. A cap on the KV cache holds for
what is there on the way too, so it bounds the chunk and, when even short chunks leave too little, the budget.
A prompt that is re-packed (distances.py) is always read in chunks, and no head holds more than leaves room for one.
One that is read a second time (repetition.py) is held whole until then, and leaves room behind it for a piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.thinning import Thinning, make_thinning
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.view import Scorer
from uncomp_cli.config import LEAST_CHUNK_TOKENS, CacheConfig, Limits, ScorerConfig
from uncomp_cli.engine.forward.decoder import can_thin
from uncomp_cli.engine.read.chunk import cut_chunks
from uncomp_cli.engine.read.distances import Reach
from uncomp_cli.engine.read.overkeep import BETWEEN_CHUNKS, held_of_chunk, held_on_the_way
from uncomp_cli.engine.read.repetition import LEAST_PIECE_TOKENS, piece_tokens
from uncomp_cli.engine.read.sieve import Sieve
from uncomp_cli.engine.spend.allocation import MEMORY_MARGIN, Allocation, make_allocation, profile_of, scorer_config
from uncomp_cli.engine.spend.memory import Estimate, activation_bytes, estimate, planned_kv_bytes, repeating_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.errors import DoesNotFitError, ModelError, UsageError
from uncomp_cli.numerals import format_bytes
from uncomp_cli.share import Share
from uncomp_cli.spec import ModelSpec

_LONGEST_CHUNK = 8192
_SHORTEST_CHUNK = 512  # that is chosen; shorter ones have to be asked for
_SMALLER = "use a smaller --budget (or --budget auto) or a shorter --chunk (or --chunk auto)"
_READ_TWICE = "use another --scorer: repeat holds the whole text until it was read twice, whatever the --budget"
_BUDGET_SHARE = 0.5  # of a cap on the cache that the budget has at least, as long as chunks can be shorter


@dataclass(frozen=True, slots=True)
class Compression:
    """All that a prefill needs beside the model: the prompt with its question opened, and how `preset` compresses it.

    It is read `chunk_tokens` at a time; None: in one pass. With `repack` what is held stands without gaps before every
    chunk, and `reread_tokens` tokens are read again in the end. `notes` say what was not done as asked for. Beside the
    weights it takes `peak_bytes`, which fit; 0 where nobody asked.
    """

    spec: ModelSpec
    preset: Preset
    prompt: Prompt
    allocation: Allocation
    scorer: Scorer
    config: ScorerConfig
    sieve: Sieve
    chunk_tokens: int | None = None
    notes: tuple[str, ...] = ()
    repack: bool = False
    reread_tokens: int | None = None
    peak_bytes: int = 0

    @property
    def drops(self) -> bool:
        """Whether anything of the text may go."""
        return self.sieve.active or not self.allocation.plan.keeps_everything

    @property
    def repeats(self) -> bool:
        """Whether the text is read a second time: for its scorer, where anything may go."""
        return self.scorer.repeats and not self.allocation.plan.keeps_all_in(self.spec.full_layers)

    @property
    def repeated_tokens(self) -> int:
        """Tokens that are read a second time."""
        return len(self.prompt.context) if self.repeats else 0

    @property
    def plan(self) -> BudgetPlan:
        """What is kept at most: in a layer, no more than thinning lets into it."""
        if not self.sieve.active:
            return self.allocation.plan
        caps = [self.prompt.longest_question] * self.spec.num_layers
        for piece in (chunk.prompt for chunk in cut_chunks(self.prompt, self.chunk_tokens)):
            always = int(piece.context.protected.sum()) + piece.asked
            entering = self.sieve.entering(len(piece.context), always=always)
            caps = [cap + new for cap, new in zip(caps, entering, strict=True)]
        return self.allocation.fitted(caps)

    def __str__(self) -> str:
        """The preset, then what it comes to for this prompt: tokens and bytes kept, how the prompt is read, notes."""
        spec, plan, heads = self.spec, self.plan, self.spec.num_layers * self.spec.num_kv_heads
        kept = planned_kv_bytes(spec, plan, question_tokens=self.prompt.longest_question)
        share = Share.of(spec, kept, plan.seq_len)
        counts = [count for layer in spec.full_layers for count in plan.kept[layer]]
        length, chunk = len(self.prompt.context), self.chunk_tokens
        read = "in one pass" if chunk is None else f"{chunk:,} tokens at a time ({-(-length // chunk):,} chunks)"
        entering = min(self.sieve.most())
        return "\n".join(
            (
                str(self.preset),
                f"kept: {round(plan.entries / heads):,} of {plan.seq_len:,} tokens a head "
                f"({min(counts, default=0):,} to {max(counts, default=0):,}), "
                f"{share.whole}",
                f"read: {read}"
                + (f", at most {100 * entering:.0f} % in the last layers" if entering < 1 else "")
                + (", then once more, to see what of it is looked at" if self.repeats else ""),
                *self.notes,
            )
        )


class TooLongError(DoesNotFitError):
    """A prompt is longer than the model reads, whatever else is held."""


def check_length(spec: ModelSpec, prompt: Prompt, *, trained_length: int | None = None) -> None:
    """Raise DoesNotFitError when the prompt leaves no room for an answer inside the context.

    `trained_length` is what the model was trained for, when `spec` has it extended.
    """
    if prompt.seq_len >= spec.trained_length:
        raise too_long(spec, prompt.seq_len, trained_length=trained_length)


def too_long(
    spec: ModelSpec,
    tokens: int,
    *,
    trained_length: int | None = None,
    counted: bool = True,
    others: str = "",
    lasts: str = "",
) -> TooLongError:
    """The refusal of a prompt of `tokens`, about so many where they were not `counted`; `others` are further ways.

    `lasts` says how long it would be read.
    """
    trained = trained_length or spec.trained_length
    longer = spec.trained_length > trained
    extended = f", extended to {spec.trained_length:,}" if longer else ""
    whole = ", ".join(part for part in (format_bytes(spec.full_kv_bytes(tokens)), lasts) if part)
    about, over = "" if counted else "about ", tokens - spec.trained_length
    cut = f"leave out {over:,} tokens and room for the answer with --truncate head, middle or tail"
    return TooLongError(
        f"the prompt has {about}{tokens:,} tokens, the model was trained for {trained:,}{extended}",
        hint=f"use --rope auto, a larger factor or --context, {others}or {cut}"
        if longer
        else f"read all of it with --rope auto (its KV cache is {whole}, --budget "
        f"keeps a part, --pin FILE:LINES what must stay), {others}{cut}, or read on with --rope plain, as a model that "
        "was not trained for it",
    )


def make_sieve(spec: ModelSpec, preset: Preset, config: ScorerConfig) -> tuple[Sieve, tuple[str, ...]]:
    """What thins a prefill of `preset`, and a note when the model's family cannot be thinned."""
    thinning = make_thinning(preset.thinning)
    notes: tuple[str, ...] = ()
    if thinning.name != "none" and not can_thin(spec):
        notes = (f"models of the family {spec.model_type} are read without thinning",)
        thinning = make_thinning("none")
    return Sieve(thinning, spec, config, uncertainty=_measured(thinning, preset)), notes


def _measured(thinning: Thinning, preset: Preset) -> Uncertainty | None:
    """The first of the measures that `thinning` can use and the preset's profile has."""
    profile = profile_of(preset)
    if profile is None:
        return None
    key = next((key for key in thinning.measures if key in profile.values), None)
    return None if key is None else Uncertainty(key, profile.as_rows(key))


_ONCE = "use a scorer that reads the text once: --scorer distinct"


def check_repeats(planned: Compression) -> None:
    """Raise where a text cannot be read a second time behind itself."""
    spec, length, again = planned.spec, len(planned.prompt.context), f"scorer {planned.scorer.name} reads a text again"
    if planned.sieve.active:
        raise UsageError(f"{again}, of which thinning lets a part go on", hint="use --thin none, or another --scorer")
    if spec.recurrent:
        message = f"{again}, which models of the family {spec.model_type} do not: their layers have states that go on"
        raise ModelError(message, hint=_ONCE)
    if planned.repack:
        raise DoesNotFitError(f"{again} behind all of it, and this one is longer than the model reads", hint=_ONCE)
    least = min(length, LEAST_PIECE_TOKENS)
    if piece_tokens(length, spec.trained_length) < least:
        message = f"{again} behind all of it, {length:,} tokens and {least} at least"
        raise DoesNotFitError(f"{message}: the model reads {spec.trained_length:,}", hint=_ONCE)


def plan_compression(
    spec: ModelSpec,
    preset: Preset,
    prompt: Prompt,
    *,
    available: int,
    limits: Limits | None = None,
    reach: Reach | None = None,
) -> Compression:
    """How `preset` compresses `prompt` within `available` bytes. Raises DoesNotFitError when it does not fit.

    A prompt that is longer than its `reach` is re-packed within it, and perhaps read again.
    """
    bounds = limits or Limits()
    if reach is not None and prompt.seq_len > reach.tokens:
        bounds = reach.limits_within(bounds, prompt)
        ways = _Ways.of(spec, preset, prompt, available=available, limits=bounds, reach=reach)
        planned = ways.plan(bounds.chunk_tokens, give_way=bounds.kv_bytes is not None)
        again = reach.tokens_to_reread(prompt, planned.scorer)
        unseen = f"scorer {planned.scorer.name} does not look at the question, so that nothing is read again"
        notes = planned.notes if again or reach.reread_tokens is None else (*planned.notes, unseen)
        return replace(planned, reread_tokens=again, notes=notes)
    ways, refusal = _Ways.of(spec, preset, prompt, available=available, limits=bounds), None
    for chunk, gives_way in _tries(len(prompt.context), bounds):
        try:
            return ways.plan(chunk, give_way=gives_way)
        except DoesNotFitError as error:
            refusal = error if gives_way else refusal or error
    raise refusal or RuntimeError("no way of reading was tried")


def _tries(document: int, limits: Limits) -> Iterator[tuple[int | None, bool]]:
    """Chunks to try, the preferred first: in one pass, then ever shorter ones, or the one that was asked for.

    Under a cap on the cache all are tried again, even shorter ones, with a budget that gives way (True).
    """
    asked = limits.chunk_tokens
    shorter = [_LONGEST_CHUNK >> halved for halved in range((_LONGEST_CHUNK // LEAST_CHUNK_TOKENS).bit_length())]
    if asked is None or asked >= document:
        yield None, False
    chosen = [chunk for chunk in shorter if chunk >= _SHORTEST_CHUNK] if asked is None else [asked]
    yield from ((chunk, False) for chunk in chosen if chunk < document)
    if limits.kv_bytes is not None:
        yield from ((chunk, True) for chunk in (shorter if asked is None else [asked]))


@dataclass(frozen=True, slots=True)
class _Ways:
    """What all ways of reading one prompt share: the prompt with its question opened, and what compresses it."""

    spec: ModelSpec
    preset: Preset
    prompt: Prompt
    config: ScorerConfig
    scorer: Scorer
    sieve: Sieve
    notes: tuple[str, ...]
    available: int
    limits: Limits
    reach: Reach | None

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        preset: Preset,
        prompt: Prompt,
        *,
        available: int,
        limits: Limits,
        reach: Reach | None = None,
    ) -> "_Ways":
        """With `reach` the prompt is re-packed."""
        config = scorer_config(preset)
        sieve, notes = make_sieve(spec, preset, config)
        opened = open_question(prompt, recent=config.recent)
        return cls(spec, preset, opened, config, make_scorer(config), sieve, notes, available, limits, reach)

    def plan(self, chunk: int | None, *, give_way: bool = False) -> Compression:
        """The compression with chunks of `chunk` tokens; with `give_way` the budget shrinks to the cap."""
        prompt, cap = self.prompt, self.limits.kv_bytes
        chunk = None if chunk is None or chunk >= len(prompt.context) else chunk
        tokens = prompt.flat_len if chunk is None else min(prompt.flat_len, chunk + self._asked_tokens)
        allocation = self._allocation(chunk, tokens)
        new = self._new_in_layers(allocation, chunk)
        bounds = [cap] if give_way and cap is not None else []
        if chunk is not None and self.preset.budget.kind == "auto":
            bounds.append(int(MEMORY_MARGIN * self.available) - activation_bytes(self.spec, tokens))
        for bound in bounds:
            most = self._entries_under(bound, new, chunk)
            crowded = most * self.spec.kv_bytes_per_entry < _BUDGET_SHARE * bound and self.limits.chunk_tokens is None
            if most < allocation.plan.entries and crowded and (chunk or 0) > LEAST_CHUNK_TOKENS:
                raise DoesNotFitError("chunks of this length leave the budget too little", hint="use a shorter --chunk")
            allocation = self._allocation(chunk, tokens, most_entries=min(most, allocation.plan.entries))
        planned = Compression(
            self.spec,
            self.preset,
            prompt,
            allocation,
            self.scorer,
            self.config,
            self.sieve,
            chunk,
            self.notes if allocation.shortage is None else (*self.notes, allocation.shortage),
            repack=self.reach is not None,
        )
        if planned.repeats:
            check_repeats(planned)
        held = self._everything(allocation.plan) if planned.repeats else self._held(allocation, new, chunk)
        expected = self._fitting(held or allocation.plan, tokens, planned)
        if cap is not None and expected.kv_kept_bytes > cap:
            raise DoesNotFitError(
                f"the KV cache needs about {expected.kv_kept_bytes / 2**20:,.1f} MiB on the way, "
                f"--kv-mem leaves it {cap / 2**20:,.1f} beside the answer",
                hint=f"{_ONCE}, or --kv-mem auto"
                if planned.repeats
                else "use a smaller --budget, --max-new-tokens or --chunk, or --kv-mem auto",
            )
        return replace(planned, peak_bytes=expected.peak_bytes)

    def _everything(self, plan: BudgetPlan) -> BudgetPlan:
        """All of the text in the model's own dtype, until it has been read a second time."""
        full = set(self.spec.full_layers)
        kept = ((plan.seq_len,) * len(row) if layer in full else row for layer, row in enumerate(plan.kept))
        return BudgetPlan(plan.seq_len, tuple(kept))

    def _fitting(self, held: BudgetPlan, tokens: int, planned: Compression) -> Estimate:
        """What it takes to hold that much at most while `tokens` go through the model together, and the question ranks.

        Raises DoesNotFitError when it is more than is available.
        """
        window = self.config.window if planned.drops and not planned.repeats else 0
        expected = estimate(self.spec, held, prompt=self.prompt, at_once=tokens, window=window)
        if planned.repeats:
            context = len(self.prompt.context)
            again = repeating_bytes(self.spec, context, piece_tokens(context, self.spec.trained_length))
            expected = replace(expected, activation_bytes=max(expected.activation_bytes, again))
        if expected.peak_bytes > self.available:
            raise DoesNotFitError(
                f"needs about {expected.peak_bytes / 2**20:,.0f} MiB beside the weights "
                f"({expected.kv_kept_bytes / 2**20:,.0f} of it KV cache), {self.available / 2**20:,.0f} MiB are free",
                hint=f"{_READ_TWICE if planned.repeats else _SMALLER}, or cut the document with --truncate",
            )
        return expected

    @property
    def _asked_tokens(self) -> int:
        return self.prompt.flat_len - len(self.prompt.context) + self.prompt.asked

    def _allocation(self, chunk: int | None, tokens: int, *, most_entries: int | None = None) -> Allocation:
        """What heads keep when `tokens` go through the model together, and no more than `most_entries` are kept."""
        prompt, reach = self.prompt, self.reach
        return make_allocation(
            self.spec,
            self.preset,
            prompt,
            available=self.available,
            at_once=tokens,
            most_entries=most_entries,
            most_held=None if reach is None else reach.most_held(prompt, chunk or len(prompt.context)),
        )

    def _new_in_layers(self, allocation: Allocation, chunk: int | None) -> list[int]:
        """The most tokens [L] of a chunk that a head holds beside its budget until the chunk is done."""
        plan, most, entering = allocation.plan, self._new_tokens(chunk), self._entering(chunk)
        if not (allocation.waits or self.scorer.shared > 0 or self.sieve.active):
            return [0] * len(entering)  # a layer is cut to its budget before the next one is read
        grows = allocation.live or plan.head_floor < 1 or plan.keeps_everything or self.scorer.shared == 0
        return entering if grows else [min(new, held_of_chunk(self.config, most)) for new in entering]

    def _new_tokens(self, chunk: int | None) -> int:
        """The most tokens of the text that a chunk has."""
        length = len(self.prompt.context)
        return length if chunk is None else min(length, chunk + self.prompt.asked)

    def _entering(self, chunk: int | None) -> list[int]:
        """The most of them that enter each layer [L]."""
        most, always = self._new_tokens(chunk), int(self.prompt.context.protected.sum()) + self.prompt.asked
        return self.sieve.entering(most, always=min(most, always))

    def _entries_under(self, bound: int, new: Sequence[int], chunk: int | None) -> int:
        """Entries that a bound on the cache allows between and during chunks, slack and waiting questions included."""
        spec, cache = self.spec, CacheConfig()
        heads, entry = spec.num_layers * spec.num_kv_heads, spec.kv_bytes_per_entry + cache.position_bytes
        slack = 1 + 1 / cache.slack_divisor
        beside = self.prompt.waiting_tokens * heads + (0 if chunk is None else slack * sum(new) * spec.num_kv_heads)
        left = bound - (beside + heads * cache.min_slack) * entry
        return max(0, int(left / (entry * slack * (1 if chunk is None else BETWEEN_CHUNKS))))

    def _held(self, allocation: Allocation, new: Sequence[int], chunk: int | None) -> BudgetPlan | None:
        """The most that is held on the way; None when it is no more than the plan."""
        plan, behind, length = allocation.plan, self.prompt.longest_question, len(self.prompt.context)
        if chunk is None and not self.sieve.active:
            return held_on_the_way(allocation, self.prompt, self.config, shared=self.scorer.shared)
        if plan.keeps_everything:
            return replace(plan, kv_bits=16)

        share, most = (1.0, self._entering(None)) if chunk is None else (BETWEEN_CHUNKS, [length] * len(new))

        def held(count: int, fresh: int, there: int) -> int:
            return behind + min(there, int(share * (count - behind)) + fresh)

        rows = zip(plan.kept, new, most, strict=True)
        kept = tuple(tuple(held(count, fresh, there) for count in row) for row, fresh, there in rows)
        return BudgetPlan(plan.seq_len, kept)
