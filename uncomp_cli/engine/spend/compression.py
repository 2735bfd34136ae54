"""Planning a prefill: whether a prompt fits, what its heads keep, how many tokens are read at a time.

    plan_compression(spec, preset, prompt, available=…, limits=…) → Compression, all that a prefill needs

A prompt is read in one pass when that fits; otherwise in the longest chunks that do. A cap on the KV cache holds for
what is there on the way too, so it bounds the chunk and, when even short chunks leave too little, the budget.
A prompt that is re-packed (repacked.py) is always read in chunks, and no head holds more than leaves room for one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.thinning import Thinning, make_thinning
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.scorers import Scorer, make_scorer
from uncomp_cli.config import LEAST_CHUNK_TOKENS, CacheConfig, Limits, ScorerConfig
from uncomp_cli.engine.forward.families import can_thin
from uncomp_cli.engine.read.overkeep import held_on_the_way
from uncomp_cli.engine.read.streamed import BETWEEN_CHUNKS, held_of_chunk
from uncomp_cli.engine.read.thinner import LEAST_TOKENS, Thinner
from uncomp_cli.engine.spend.allocation import MEMORY_MARGIN, Allocation, make_allocation, profile_of, scorer_config
from uncomp_cli.engine.spend.memory import Estimate, activation_bytes, estimate
from uncomp_cli.engine.spend.reach import limits_within, most_held, tokens_to_reread
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

__all__ = [
    "Compression",
    "check_fits",
    "check_length",
    "make_thinner",
    "plan_compression",
]

_LONGEST_CHUNK = 8192
_SHORTEST_CHUNK = 512  # that is chosen; shorter ones have to be asked for
_BUDGET_SHARE = 0.5  # of a cap on the cache that the budget has at least, as long as chunks can be shorter


@dataclass(frozen=True, slots=True)
class Compression:
    """All that a prefill needs beside the model: the prompt with its question opened, and how it is compressed.

    It is read `chunk_tokens` at a time; None: in one pass. With `repack` what is held stands without gaps before every
    chunk, and `reread_tokens` tokens are read again in the end. `notes` say what was not done as asked for.
    """

    prompt: Prompt
    allocation: Allocation
    scorer: Scorer
    config: ScorerConfig
    thinner: Thinner
    chunk_tokens: int | None = None
    notes: tuple[str, ...] = ()
    repack: bool = False
    reread_tokens: int | None = None

    @property
    def streamed(self) -> bool:
        """Whether it is read in chunks, or thinned."""
        return self.chunk_tokens is not None or self.thinner.active


def check_length(spec: ModelSpec, prompt: Prompt, *, trained_length: int | None = None) -> None:
    """Raise DoesNotFitError when the prompt leaves no room for an answer inside the context.

    `trained_length` is what the model was trained for, when `spec` has it extended.
    """
    if prompt.seq_len < spec.trained_length:
        return
    trained = trained_length or spec.trained_length
    longer = spec.trained_length > trained
    extended = f", extended to {spec.trained_length:,}" if longer else ""
    raise DoesNotFitError(
        f"the prompt has {prompt.seq_len:,} tokens, the model was trained for {trained:,}{extended}",
        hint="use --rope auto, a larger factor or --context, or cut the prompt with --truncate head, middle or tail"
        if longer
        else "read all of it with --rope auto, cut it with --truncate head, middle or tail, or read on with --force, "
        "as a model that was not trained for it",
    )


def make_thinner(spec: ModelSpec, preset: Preset, config: ScorerConfig) -> tuple[Thinner, tuple[str, ...]]:
    """What thins a prefill of `preset`, and a note when the model's family cannot be thinned."""
    thinning = make_thinning(preset.thinning)
    notes: tuple[str, ...] = ()
    if thinning.name != "none" and not can_thin(spec):
        notes = (f"models of the family {spec.model_type} are read without thinning",)
        thinning = make_thinning("none")
    return Thinner(thinning, spec, config, uncertainty=_measured(thinning, preset)), notes


def _measured(thinning: Thinning, preset: Preset) -> Uncertainty | None:
    """The first of the measures that `thinning` can use and the preset's profile has."""
    profile = profile_of(preset)
    if profile is None:
        return None
    key = next((key for key in thinning.measures if key in profile.values), None)
    return None if key is None else Uncertainty(key, profile.as_rows(key))


def plan_compression(
    spec: ModelSpec,
    preset: Preset,
    prompt: Prompt,
    *,
    available: int,
    limits: Limits | None = None,
    reach: int | None = None,
    reread_tokens: int | None = None,
) -> Compression:
    """How `preset` compresses `prompt` within `available` bytes. Raises DoesNotFitError when it does not fit.

    `reach` is the longest distance between a token of the prompt and one it looks at: a prompt that is longer is
    re-packed within it, and passages of `reread_tokens` tokens a question are read again.
    """
    bounds = limits or Limits()
    if reach is not None and prompt.seq_len > reach:
        bounds = limits_within(bounds, prompt, reach)
        spread = partial(_planned, spec, preset, prompt, available=available, limits=bounds, reach=reach)
        planned = spread(bounds.chunk_tokens, give_way=bounds.kv_bytes is not None)
        again = tokens_to_reread(prompt, planned.scorer, reach=reach, each=reread_tokens)
        unseen = f"scorer {planned.scorer.name} does not look at the question, so that nothing is read again"
        notes = planned.notes if again or reread_tokens is None else (*planned.notes, unseen)
        return replace(planned, reread_tokens=again, notes=notes)
    refusal: DoesNotFitError | None = None
    for chunk in _chunks(prompt, bounds):
        try:
            return _planned(spec, preset, prompt, chunk, available=available, limits=bounds)
        except DoesNotFitError as error:
            refusal = refusal or error
    for smaller in _smaller_chunks(spec, bounds):
        try:
            return _planned(spec, preset, prompt, smaller, available=available, limits=bounds, give_way=True)
        except DoesNotFitError as error:
            refusal = error
    raise refusal or RuntimeError("no way of reading was tried")


def _smaller_chunks(spec: ModelSpec, limits: Limits) -> Iterator[int]:
    """Chunks for which the budget gives way to a cap, the preferred first."""
    if limits.kv_bytes is None:
        return
    if limits.chunk_tokens is not None:
        yield limits.chunk_tokens
        return
    chunk = _LONGEST_CHUNK
    while chunk >= LEAST_CHUNK_TOKENS:
        yield chunk
        chunk //= 2


def _chunks(prompt: Prompt, limits: Limits) -> Iterator[int | None]:
    """Ways of reading, the preferred first: in one pass, then in ever shorter chunks; or the one that was asked for."""
    document = len(prompt.context)
    if limits.chunk_tokens is not None:
        yield limits.chunk_tokens if limits.chunk_tokens < document else None
        return
    yield None
    chunk = _LONGEST_CHUNK
    while chunk >= _SHORTEST_CHUNK:
        if chunk < document:
            yield chunk
        chunk //= 2


def _planned(
    spec: ModelSpec,
    preset: Preset,
    prompt: Prompt,
    chunk: int | None,
    *,
    available: int,
    limits: Limits,
    give_way: bool = False,
    reach: int | None = None,
) -> Compression:
    """The compression with chunks of `chunk` tokens; with `give_way` the budget shrinks to the cap."""
    config = scorer_config(preset)
    scorer = make_scorer(config)
    thinner, notes = make_thinner(spec, preset, config)
    opened = open_question(prompt, recent=config.recent)
    cap = limits.kv_bytes
    chunk = None if chunk is None or chunk >= len(opened.context) else chunk
    tokens = opened.flat_len if chunk is None else min(opened.flat_len, chunk + _asked_tokens(opened))
    ceiling = None if reach is None else most_held(opened, chunk or len(opened.context), reach)
    share = partial(make_allocation, spec, preset, opened, available=available, at_once=tokens, most_held=ceiling)
    allocation = share()
    new = _new_in_layers(spec, allocation, opened, config, scorer, thinner, chunk)
    bounds = [cap] if give_way and cap is not None else []
    if chunk is not None and preset.budget.kind == "auto":
        bounds.append(int(MEMORY_MARGIN * available) - activation_bytes(spec, tokens))
    for bound in bounds:
        most = _entries_under(spec, bound, opened, new, chunk)
        crowded = most * spec.kv_bytes_per_entry < _BUDGET_SHARE * bound and limits.chunk_tokens is None
        if most < allocation.plan.entries and crowded and (chunk or 0) > LEAST_CHUNK_TOKENS:
            raise DoesNotFitError("chunks of this length leave the budget too little", hint="use a shorter --chunk")
        allocation = share(most_entries=min(most, allocation.plan.entries))
    held = _held(allocation, opened, config, scorer, thinner, chunk, new)
    expected = check_fits(spec, allocation.plan, opened, available=available, held=held, at_once=tokens)
    if cap is not None and expected.kv_kept_bytes > cap:
        raise DoesNotFitError(
            f"the KV cache needs about {expected.kv_kept_bytes / 2**20:,.1f} MiB on the way, "
            f"--kv-mem allows {cap / 2**20:,.1f}",
            hint="use a smaller --budget or a shorter --chunk, or --kv-mem auto",
        )
    return Compression(opened, allocation, scorer, config, thinner, chunk, notes, repack=reach is not None)


def _asked_tokens(prompt: Prompt) -> int:
    return prompt.flat_len - len(prompt.context) + prompt.asked


def _new_in_layers(
    spec: ModelSpec,
    allocation: Allocation,
    prompt: Prompt,
    config: ScorerConfig,
    scorer: Scorer,
    thinner: Thinner,
    chunk: int | None,
) -> list[int]:
    """The most tokens [L] of a chunk that a head holds beside its budget until the chunk is done."""
    length = len(prompt.context)
    most = length if chunk is None else min(length, chunk + prompt.asked)
    always = int(prompt.protected.sum()) + prompt.asked
    entering = (min(most, max(LEAST_TOKENS, always + math.ceil(share * most))) for share in thinner.most())
    waits = allocation.live or allocation.plan.head_floor < 1 or allocation.plan.keeps_everything
    if waits or scorer.shared == 0:
        return list(entering)
    return [min(new, held_of_chunk(config, most)) for new in entering]


def _entries_under(spec: ModelSpec, bound: int, prompt: Prompt, new: Sequence[int], chunk: int | None) -> int:
    """Entries that a bound on the cache allows between and during chunks, slack and waiting questions included."""
    cache, heads = CacheConfig(), spec.num_layers * spec.num_kv_heads
    entry = spec.kv_bytes_per_entry + cache.position_bytes
    slack = 1 + 1 / cache.slack_divisor
    beside = prompt.waiting_tokens * heads + (0 if chunk is None else slack * sum(new) * spec.num_kv_heads)
    left = bound - (beside + heads * cache.min_slack) * entry
    return max(0, int(left / (entry * slack * (1 if chunk is None else BETWEEN_CHUNKS))))


def _held(
    allocation: Allocation,
    prompt: Prompt,
    config: ScorerConfig,
    scorer: Scorer,
    thinner: Thinner,
    chunk: int | None,
    new: Sequence[int],
) -> BudgetPlan | None:
    """The most that is held on the way; None when it is no more than the plan."""
    plan, behind, length = allocation.plan, prompt.longest_question, len(prompt.context)
    if chunk is None and not thinner.active:
        return held_on_the_way(allocation, prompt, config, shared=scorer.shared)
    if plan.keeps_everything:
        return replace(plan, kv_bits=16)

    def held(count: int, fresh: int) -> int:
        before = 0 if chunk is None else int(BETWEEN_CHUNKS * (count - behind))
        return behind + min(length, before + fresh if chunk is not None else max(count - behind, fresh))

    kept = tuple(tuple(held(count, fresh) for count in row) for row, fresh in zip(plan.kept, new, strict=True))
    return BudgetPlan(plan.seq_len, kept)


def check_fits(
    spec: ModelSpec,
    plan: BudgetPlan,
    prompt: Prompt,
    *,
    available: int,
    held: BudgetPlan | None = None,
    at_once: int | None = None,
) -> Estimate:
    """The expected memory of `prompt` under `plan`, of which `held` is what is held at most on the way.

    `at_once` tokens go through the model together (None: all). Raises DoesNotFitError when it is more than `available`
    bytes.
    """
    expected = estimate(spec, held or plan, prompt=prompt, at_once=at_once)
    if expected.peak_bytes > available:
        raise DoesNotFitError(
            f"needs about {expected.peak_bytes / 2**20:,.0f} MiB beside the weights "
            f"({expected.kv_kept_bytes / 2**20:,.0f} of it KV cache), {available / 2**20:,.0f} MiB are free",
            hint="use a smaller --budget (or --budget auto) or a shorter --chunk (or --chunk auto), or cut the "
            "document with --truncate",
        )
    return expected
