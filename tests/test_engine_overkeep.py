"""Over-keep and re-trim: what one pass keeps is what two passes would, and little more is held on the way."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import SHAPE, decode, make_prompt, planned_for, read, shared_tiny, tiny, tokens
from support.planning import Asked
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.eviction import select
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.chunk import cut_chunks
from uncomp_cli.engine.read.overkeep import MARGIN_TOKENS, OverKeep
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.allocation import Allocation, allocate
from uncomp_cli.engine.spend.gauge import measure_layer
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import parse_measure

CONTEXT, QUESTION, PROTECTED, RECENT, SINKS, WINDOW = 400, 20, 6, 8, 4, 8
WAITING = ["zigzag", "zigzag:by=lmbo,reverse=true", "uncertain:by=entropy", "uncertain:by=lmba-free", "uncertain"]
WINDOWED = ScorerConfig("window", window=WINDOW, width=5)
AGREEING = ScorerConfig("agreement", window=WINDOW, width=5, held=1.0)


class Recorder:
    """A scorer that remembers what it was shown and what it said."""

    def __init__(self, scorer: Scorer) -> None:
        self.name, self.query_aware, self.published = scorer.name, scorer.query_aware, scorer.published
        self.shared, self.repeats = scorer.shared, scorer.repeats
        self.scorer = scorer
        self.views: list[LayerView] = []
        self.scores: list[Tensor] = []

    def score(self, view: LayerView) -> Tensor:
        self.views.append(view)
        self.scores.append(self.scorer.score(view))
        return self.scores[-1]


def words_of(kind: str, length: int) -> Tensor:
    """Word numbers: of three tokens; of one to five; of three with a short word here and there."""
    if kind == "even":
        return torch.arange(length) // 3
    sizes = torch.randint(1, 6, (length,), generator=torch.Generator().manual_seed(3))
    if kind == "rare":
        sizes = torch.full((length,), 3)
        sizes[::40] = 1
    return torch.arange(length).repeat_interleave(sizes)[:length]


def prompt_of(context: int = CONTEXT, *questions: int, words: str = "mixed", seed: int = 1) -> Prompt:
    numbers = words_of(words, context)
    prompt = make_prompt(context, questions or [QUESTION], seed=seed, protected=PROTECTED, words=numbers)
    return open_question(prompt, recent=RECENT)


def wanted(policy: str, spec: ModelSpec, prompt: Prompt, *, kept: float, kv_bits: int = 16) -> Asked:
    entries = int(kept * spec.full_entries(prompt.seq_len))
    return Asked(make_policy(policy), Wanted(spec, prompt.seq_len, entries, prompt.always_kept, kv_bits))


def live(of: Asked) -> Allocation:
    return allocate(*of, profile=None, measurer=partial(measure_layer, window=WINDOW, sinks=SINKS))


def measured(decoder: Decoder, prompt: Prompt, want: Asked) -> Uncertainty:
    """The first of two passes: every layer is measured, whatever is kept."""
    recorder = Recorder(make_scorer(WINDOWED))
    read(decoder, prompt, UniformPolicy().plan(want.wanted), WINDOWED, scorer=recorder)
    spec, key = decoder.spec, next(key for key in want.policy.measures if parse_measure(key).live)
    measure = parse_measure(key)
    values = [(0.0,) * measure.width(spec)] * spec.num_layers
    for view in recorder.views:
        values[view.layer] = tuple(measure_layer(measure, view, window=WINDOW, sinks=SINKS).tolist())
    return Uncertainty(key, tuple(values))


def entries_of(cache: RaggedKVCache) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for index in range(len(cache.layers)):
        layer = cache.layer(index)
        yield from (layer.head(head) for head in range(len(layer.lengths)))


def assert_same_cache(one: RaggedKVCache, other: RaggedKVCache) -> None:
    pairs = list(zip(entries_of(one), entries_of(other), strict=True))
    assert [mine[2].tolist() for mine, _ in pairs] == [theirs[2].tolist() for _, theirs in pairs]
    for mine, theirs in pairs:
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


def one_and_two_passes(
    decoder: Decoder, prompt: Prompt, want: Asked, config: ScorerConfig
) -> tuple[Allocation, Context, Context]:
    allocation = live(want)
    _, one = read(decoder, prompt, allocation, config)
    plan = want.plan(measured(decoder, prompt, want))
    assert allocation.plan == plan
    _, two = read(decoder, prompt, plan, config)
    return allocation, one, two


@pytest.mark.sparse(1)
@pytest.mark.parametrize(
    ("kept", "words"), [(0.2, None), (0.2, "even"), (0.2, "mixed"), (0.2, "rare"), (0.08, "mixed"), (0.5, "rare")]
)
@pytest.mark.parametrize("policy", WAITING)
def test_one_pass_keeps_what_two_would(policy: str, kept: float, words: str | None) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of(words=words or "mixed")
    config = replace(WINDOWED, whole_words=words is not None)
    want = wanted(policy, spec, prompt, kept=kept)
    allocation, one, two = one_and_two_passes(decoder, prompt, want, config)
    assert allocation.waits
    assert len(set(allocation.plan.kept)) > 1  # layers differ, so that something was trimmed
    assert_same_cache(one.cache, two.cache)
    assert one.cache.entries == want.wanted.entries
    assert one.cache.nbytes == two.cache.nbytes
    forced = torch.tensor([tokens(6, 7)])
    assert torch.equal(decode(decoder, one, forced), decode(decoder, two, forced))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", ["gemma3_text", "qwen3-sliding", "llama-bias"])
@pytest.mark.parametrize("policy", ["zigzag", "uncertain", "uncomp", "uncomp:stages=true"])
def test_other_families_and_scopes(policy: str, family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt = prompt_of()
    want = wanted(policy, spec, prompt, kept=0.2)
    allocation, one, two = one_and_two_passes(decoder, prompt, want, WINDOWED)
    assert allocation.waits == (policy != "uncomp")
    assert_same_cache(one.cache, two.cache)
    assert (one.cache.entries, one.cache.nbytes) == (want.wanted.entries, two.cache.nbytes)


@pytest.mark.sparse(2)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("questions", [[QUESTION], [5, QUESTION, 2]], ids=["one", "several"])
@pytest.mark.parametrize("policy", ["zigzag", "uncertain"])
def test_fewer_bits_are_rounded_once(policy: str, questions: list[int], bits: int) -> None:
    """What waits is in the model's own dtype until the last cut, so its codes are those of two passes."""
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of(CONTEXT, *questions)
    want = wanted(policy, spec, prompt, kept=0.2, kv_bits=bits)
    _, one, two = one_and_two_passes(decoder, prompt, want, WINDOWED)
    assert all(before is not None for i in range(spec.num_layers) for before in one.cache.layer(i).quantized)
    assert_same_cache(one.cache, two.cache)
    assert one.cache.nbytes == two.cache.nbytes
    forced = torch.tensor([tokens(6, 7)])
    for question in reversed(range(len(questions))):
        assert torch.equal(decode(decoder, one, forced, question), decode(decoder, two, forced, question))


@pytest.mark.parametrize("config", [WINDOWED, AGREEING], ids=lambda config: str(config.name))
def test_several_questions_wait_beside_the_layers(config: ScorerConfig) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of(CONTEXT, 9, QUESTION, 3)
    want = wanted("uncertain", spec, prompt, kept=0.2)
    assert (prompt.asked, len(prompt.questions)) == (0, 3)
    allocation = live(want)
    _, one = read(decoder, prompt, allocation, config)
    _, two = read(decoder, prompt, known(want, decoder, prompt), config)
    assert_same_cache(one.cache, two.cache)
    assert one.cache.nbytes == two.cache.nbytes
    forced = torch.tensor([tokens(40, 7)])  # every head grows
    for question in (1, 0, 2, 1):
        assert torch.equal(decode(decoder, one, forced, question), decode(decoder, two, forced, question))
    one.begin(1)
    assert [tuple(one.cache.layer(i).lengths) for i in range(spec.num_layers)] == list(allocation.plan.kept)


def known(want: Asked, decoder: Decoder, prompt: Prompt) -> Allocation:
    """The second of two passes with the first one's values, as those of a profile: trust is known from the start."""
    values = measured(decoder, prompt, want)
    return Allocation.of(want.policy, replace(want.wanted, uncertainty=values))


def mixed_by_hand(
    scores: Sequence[Tensor], trust: Sequence[Sequence[float]] | None, *, shared: float
) -> list[list[Tensor]]:
    """Pooled scores [L][G] with their shared part, one head after the other, in float64."""
    own = [[head.double() for head in layer] for layer in scores]
    agreed = torch.zeros(scores[0].shape[1], dtype=torch.float64)
    total = sum(sum(layer) for layer in trust) if trust else 0.0
    for layer, heads in enumerate(own):
        for group, head in enumerate(heads):
            agreed = agreed + trust[layer][group] / total * head if trust else torch.maximum(agreed, head)
    return [[(1 - shared) * head + shared * agreed for head in heads] for heads in own]


def worded_by_hand(scores: Tensor, words: Tensor) -> Tensor:
    best: dict[int, float] = {}
    for word, score in zip(words.tolist(), scores.tolist(), strict=True):
        best[word] = max(score, best.get(word, -math.inf))
    return torch.tensor([best[word] for word in words.tolist()], dtype=torch.float64)


@pytest.mark.sparse(2)
@pytest.mark.parametrize("shared", [0.5, 1.0])
@pytest.mark.parametrize("whole_words", [True, False])
@pytest.mark.parametrize("policy", ["uniform", "uncomp", "zigzag", "uncertain", "uncertain:reverse=true"])
def test_agreement_is_two_passes_by_hand(policy: str, whole_words: bool, shared: float) -> None:
    """All layers are scored, then mixed, then cut: held whole until then, and trust only where it was measured."""
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    config = replace(AGREEING, whole_words=whole_words, shared=shared)
    want = wanted(policy, spec, prompt, kept=0.2)
    recorder = Recorder(make_scorer(config))
    allocation = live(want)
    _, done = read(decoder, prompt, allocation, config, scorer=recorder)
    trust = None
    if policy != "uniform":
        values = measured(decoder, prompt, want)
        trust = [[weight * weight for weight in layer] for layer in want.policy.weights(spec, values)]
        assert len({weight for layer in trust for weight in layer}) > 1
    pooled = [pool(scores, kind="mean", width=5) for scores in recorder.scores]
    final = mixed_by_hand(pooled, trust, shared=shared)
    for layer in range(spec.num_layers):
        for group, count in enumerate(allocation.plan.kept[layer]):
            scores = worded_by_hand(final[layer][group], prompt.context.words) if whole_words else final[layer][group]
            words = prompt.context.words if whole_words else None
            (expected,) = select(scores[None], [count - RECENT], protected=prompt.context.protected, words=words)
            positions = done.cache.layer(layer).head(group)[2].tolist()
            assert positions == [*expected.tolist(), *range(prompt.seq_len - RECENT, prompt.seq_len)]


def test_what_all_agree_on_changes_what_a_layer_keeps() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    plan = wanted("uniform", spec, prompt, kept=0.2).plan()
    kept = []
    for shared in (0.0, 0.5, 1.0):
        _, done = read(decoder, prompt, plan, replace(AGREEING, shared=shared, whole_words=False))
        kept.append([positions.tolist() for _, _, positions in entries_of(done.cache)])
    _, window = read(decoder, prompt, plan, replace(WINDOWED, whole_words=False))
    assert kept[0] == [positions.tolist() for _, _, positions in entries_of(window.cache)] != kept[1]
    assert len({tuple(head) for head in kept[1]}) > 1
    assert len({tuple(head) for head in kept[2]}) == 1  # nothing is a head's own


def watch(
    decoder: Decoder, prompt: Prompt, plan: BudgetPlan | Allocation, config: ScorerConfig
) -> tuple[list[list[list[int]]], RaggedKVCache, Recorder]:
    """Context positions [heads so far] in the cache after each layer, and the cache in the end."""
    spec, recorder = decoder.spec, Recorder(make_scorer(config))
    seen: list[list[list[int]]] = []

    def on_layer(kv_bytes: int) -> None:
        layers = [i for i, layer in enumerate(reader.cache.layers) if layer is not None]
        heads = [reader.cache.layer(i).head(g)[2].tolist() for i in layers for g in range(spec.num_kv_heads)]
        seen.append([[at for at in head if at < len(prompt.context)] for head in heads])

    reader = Reader(decoder, planned_for(decoder, prompt, plan, config, scorer=recorder), on_layer=on_layer)
    reader.read_chunk(*reader.chunks)
    return seen, reader.cache, recorder


def test_a_layer_that_keeps_everything_has_a_say_in_what_others_drop() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    plan = BudgetPlan(prompt.seq_len, ((prompt.seq_len,) * 2, *((60,) * 2,) * (spec.num_layers - 1)))
    config = replace(AGREEING, shared=1.0, whole_words=False)
    seen, _, recorder = watch(decoder, prompt, plan, config)
    pooled = [pool(scores, kind="mean", width=5) for scores in recorder.scores]
    assert len(pooled) == spec.num_layers
    final, without_it = (mixed_by_hand(scores, None, shared=1.0)[-1][0] for scores in (pooled, pooled[1:]))
    count = 60 - prompt.longest_question
    (expected,), (other,) = (
        select(scores[None], [count], protected=prompt.context.protected, words=None) for scores in (final, without_it)
    )
    assert seen[-1][-1] == expected.tolist() != other.tolist()
    assert len(seen[-1][0]) == len(prompt.context)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("held", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("policy", ["uniform", "adaptive", "zigzag", "uncertain", "uncomp"])
def test_a_part_that_is_held_is_where_the_cut_is_made(policy: str, held: float) -> None:
    """Counts are exact, and what stays was there all the time."""
    _, decoder, spec = shared_tiny("llama-mha")
    prompt = prompt_of()
    want = wanted(policy, spec, prompt, kept=0.15)
    allocation = live(want)
    seen, cache, _ = watch(decoder, prompt, allocation, replace(AGREEING, held=held))
    last = seen[-1]
    assert cache.entries == want.wanted.entries
    lengths = [tuple(cache.layer(i).lengths) for i in range(spec.num_layers)]
    assert [sum(layer) for layer in lengths] == [sum(layer) for layer in allocation.plan.kept]
    assert policy == "adaptive" or lengths == list(allocation.plan.kept)
    least = math.ceil(held * len(prompt.context))
    for before in seen[:-1]:
        for then, now in zip(before, last, strict=False):
            assert len(then) >= least
            assert set(now) <= set(then)
            assert set(range(PROTECTED)) <= set(now)
            assert now == sorted(set(now))


def torn_words(positions: Tensor, prompt: Prompt) -> int:
    """Words, protected tokens aside, of which a head has a part."""
    kept = torch.isin(torch.arange(len(prompt.context)), positions)
    free = ~prompt.context.protected
    sizes = torch.bincount(prompt.context.words[free])
    left = torch.bincount(prompt.context.words[free & kept], minlength=len(sizes))
    return int(((left > 0) & (left < sizes)).sum())


@pytest.mark.sparse(2)
@pytest.mark.parametrize("words", ["even", "mixed", "rare"])
@pytest.mark.parametrize("config", [WINDOWED, replace(AGREEING, held=0.3)], ids=lambda config: str(config.name))
@pytest.mark.parametrize("policy", ["uniform", "zigzag", "uncertain"])
def test_at_most_one_word_of_a_head_is_torn(policy: str, config: ScorerConfig, words: str) -> None:
    """Also where the cut wanted words that are no longer held: others come whole in their place."""
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of(words=words)
    _, done = read(decoder, prompt, live(wanted(policy, spec, prompt, kept=0.2)), config)
    assert max(torn_words(positions, prompt) for _, _, positions in entries_of(done.cache)) <= 1


def test_what_is_no_longer_there_is_replaced_by_the_best_that_is() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    config = replace(AGREEING, held=0.0, shared=1.0, whole_words=False)
    plan = wanted("uniform", spec, prompt, kept=0.1).plan()
    seen, _, recorder = watch(decoder, prompt, plan, config)
    final = mixed_by_hand([pool(scores, kind="mean", width=5) for scores in recorder.scores], None, shared=1.0)
    replaced = 0
    for head, (held, now) in enumerate(zip(seen[-2], seen[-1], strict=False)):
        scores = final[head // 2][head % 2]
        ranked = sorted(held, key=lambda at: (at >= PROTECTED, -float(scores[at])))
        assert now == sorted(ranked[: len(now)])
        anywhere = sorted(range(len(scores)), key=lambda at: (at >= PROTECTED, -float(scores[at])))
        replaced += now != sorted(anywhere[: len(now)])
    assert replaced  # some head had dropped what all agreed on in the end


def test_what_is_held_is_ranked_by_what_the_layers_so_far_agree_on() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    config = replace(AGREEING, held=0.4, shared=0.5, whole_words=False)
    seen, _, recorder = watch(decoder, prompt, wanted("uniform", spec, prompt, kept=0.1).plan(), config)
    pooled = [pool(scores, kind="mean", width=5) for scores in recorder.scores]
    for layer in range(spec.num_layers - 1):
        mixed = mixed_by_hand(pooled[: layer + 1], None, shared=0.5)[layer]
        for group in range(spec.num_kv_heads):
            size = math.ceil(0.4 * len(prompt.context))
            (expected,) = select(mixed[group][None], [size], protected=prompt.context.protected, words=None)
            assert seen[layer][2 * layer + group] == expected.tolist()


def test_a_head_that_wins_more_than_it_holds_leaves_the_rest_to_the_others() -> None:
    """Heads that share by their scores (adaptive) still keep as much as their layer may."""
    _, _, spec = shared_tiny("llama")
    prompt = prompt_of(1000)
    allocation = live(wanted("adaptive", spec, prompt, kept=0.2))
    config = replace(AGREEING, held=0.0, whole_words=False)
    overkeep = OverKeep(prompt, allocation, config, shared=0.01)
    overkeep.begin(*cut_chunks(prompt, None))
    scores = torch.rand(2, len(prompt.context), generator=torch.Generator().manual_seed(0))
    text = [torch.arange(len(prompt.context))] * 2
    for layer in range(spec.num_layers):
        assert overkeep.hold(layer, torch.stack([scores[0] + 1, scores[1] * 1e-3]), text) is None  # all is held
    for layer in range(spec.num_layers):
        kept = overkeep.cut(layer, text, overkeep.agreed())
        question = spec.num_kv_heads * prompt.longest_question
        assert sum(map(len, kept)) + question == sum(allocation.plan.kept[layer])


def test_what_was_just_trimmed_is_not_trimmed_again() -> None:
    """The margin is no waste: a small budget must not cut every layer anew at each layer."""
    _, _, spec = shared_tiny("llama")
    prompt = prompt_of(1000)
    overkeep = OverKeep(prompt, live(wanted("zigzag", spec, prompt, kept=0.05)), WINDOWED, shared=0.0)
    overkeep.begin(*cut_chunks(prompt, None))
    held: list[Tensor] = []
    for layer in range(spec.num_layers):
        scores = torch.rand(2, len(prompt.context), generator=torch.Generator().manual_seed(layer))
        first = overkeep.hold(layer, scores, [torch.arange(len(prompt.context))] * 2)
        assert first is not None
        held += [at[stay] for at, stay in zip(first, overkeep.retrim(layer, first), strict=True)]
        entries = sum(map(len, held))
        assert not overkeep.is_wasteful(entries)
        assert overkeep.is_wasteful(2 * entries)


def deep(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Decoder, ModelSpec]:
    """Twelve layers, so that a budget is small beside one of them."""
    monkeypatch.setitem(SHAPE, "num_hidden_layers", 12)
    return tiny("llama")


@pytest.mark.sparse(1)
@pytest.mark.parametrize(
    ("kept", "questions"), [(0.05, [QUESTION]), (0.12, [QUESTION, 9])], ids=["small, one", "large, several"]
)
@pytest.mark.parametrize("policy", WAITING)
def test_little_more_than_the_budget_is_held_while_reading(
    policy: str, kept: float, questions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the budget more at most, and in every head the margin."""
    _, decoder, spec = deep(monkeypatch)
    prompt = prompt_of(1200, *questions)
    want = wanted(policy, spec, prompt, kept=kept)
    steps, done = read(decoder, prompt, live(want), WINDOWED)
    heads, slack = spec.num_layers * spec.num_kv_heads, CacheConfig().slack(prompt.seq_len)
    entry = spec.kv_bytes_per_entry + CacheConfig().position_bytes
    waiting = prompt.waiting_tokens * heads * entry
    bound = (1.5 * want.wanted.entries + heads * (MARGIN_TOKENS + slack + prompt.longest_question)) * entry + waiting
    peak = max(step.kv_bytes for step in steps)
    assert done.cache.nbytes == steps[-1].kv_bytes <= peak <= bound < spec.full_kv_bytes(prompt.seq_len)
    assert max(step.kv_bytes for step in steps[:-1]) > 1.1 * steps[-1].kv_bytes  # it did hold more than it keeps


def test_a_policy_that_decides_by_layer_never_holds_more_than_it_keeps() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    want = wanted("uncomp:groups=2", spec, prompt, kept=0.1)
    allocation = live(want)
    assert allocation.live
    assert not allocation.waits
    steps, one = read(decoder, prompt, allocation, WINDOWED)
    assert len({count for layer in allocation.plan.kept for count in layer}) > 1
    again, two = read(decoder, prompt, allocation.plan, WINDOWED)
    assert [step.kv_bytes for step in steps] == [step.kv_bytes for step in again]
    assert_same_cache(one.cache, two.cache)


@pytest.mark.parametrize("config", [WINDOWED, AGREEING], ids=lambda config: str(config.name))
@pytest.mark.parametrize("family", ["mistral-sliding", "phi3-sliding"])
def test_a_model_of_sliding_layers_alone_has_nothing_to_wait_for(family: str, config: ScorerConfig) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt = prompt_of(60)
    for policy in ("uniform", "zigzag"):
        _, done = read(decoder, prompt, live(wanted(policy, spec, prompt, kept=1.0)), config)
        assert done.cache.entries == spec.full_entries(prompt.seq_len)


@pytest.mark.sparse(1)
@pytest.mark.parametrize(("held", "bits"), [(0.3, 16), (1.0, 16), (0.3, 8)])
@pytest.mark.parametrize("policy", ["full", "uniform", *WAITING, "uncomp"])
def test_nothing_is_lost_when_everything_may_stay(policy: str, held: float, bits: int) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt, forced = prompt_of(150), torch.tensor([tokens(6, 7)])
    _, full = read(decoder, prompt, wanted("full", spec, prompt, kept=1.0, kv_bits=bits).plan(), WINDOWED)
    expected = decode(decoder, full, forced)
    full.begin()
    for config in (WINDOWED, replace(AGREEING, held=held)):
        _, done = read(decoder, prompt, live(wanted(policy, spec, prompt, kept=1.0, kv_bits=bits)), config)
        assert_same_cache(done.cache, full.cache)
        assert torch.equal(decode(decoder, done, forced), expected)
