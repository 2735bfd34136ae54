"""A context of 8 or 4 bits: decoded like its own numbers, weighed to the byte, and more of it in the same budget."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from torch import Tensor

from support.budgets import make_spec
from support.families import DECODED, VOCAB, Rows, decode, full_plan, make_prompt, read, tiny
from support.town import QUESTION, town
from uncomp_cli.budget.amount import Budget, resolve_entries
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import CacheConfig, SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.spend.allocation import make_allocation
from uncomp_cli.engine.spend.memory import estimate, planned_kv_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import UncompError
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

BITS = pytest.mark.parametrize("bits", [8, 4])
FORCED = torch.randint(3, VOCAB, (1, DECODED), generator=torch.Generator().manual_seed(7))


def dense_copy(done: Context) -> Context:
    """The same entries, dequantised, in a cache of the model's own dtype."""
    old = done.cache
    cache = RaggedKVCache(num_layers=len(old.layers), num_rows=old.num_rows, num_kv_heads=old.num_kv_heads)
    for index in range(len(old.layers)):
        layer = old.layer(index)
        cache.store(index, [layer.head(i) for i in range(len(layer.lengths))])
    return Context(done.decoder, done.prompt, cache, done.questions)


def uneven_plan(spec: ModelSpec, prompt: Prompt, bits: int) -> BudgetPlan:
    weights = [[1.0 + head for head in range(spec.num_kv_heads)] for _ in range(spec.num_layers)]
    entries = spec.full_entries(prompt.seq_len) * 6 // 10
    plan = BudgetPlan.of_shares(
        Wanted(spec, seq_len=prompt.seq_len, entries=entries, protected=prompt.always_kept), weights
    )
    return replace(plan, kv_bits=bits)


@pytest.mark.sparse(1)
@BITS
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen3-sliding", "gemma3_text"])
def test_decoding_is_attention_over_the_dequantised_numbers(family: str, uneven: bool, bits: int) -> None:
    _, decoder, spec = tiny(family)
    prompt = make_prompt(100, [5], protected=4)
    plan = uneven_plan(spec, prompt, bits) if uneven else replace(full_plan(spec, prompt), kv_bits=bits)
    _, done = read(decoder, prompt, plan)
    assert done.cache.layer(0).num_quantized(0) > 0
    if uneven:
        assert not done.cache.layer(spec.full_layers[0]).is_rectangular(0, spec.num_kv_heads)
    expected = decode(decoder, dense_copy(done), FORCED)
    torch.testing.assert_close(decode(decoder, done, FORCED), expected, rtol=1e-5, atol=1e-5)
    _, exact = read(decoder, prompt, replace(plan, kv_bits=16))
    assert torch.equal(exact.questions.logits, done.questions.logits)  # the prompt itself is read exactly
    assert not torch.allclose(decode(decoder, exact, FORCED), expected, rtol=1e-5, atol=1e-5)


@BITS
def test_rows_of_a_batch(bits: int) -> None:
    _, decoder, spec = tiny("llama")
    prompts = [make_prompt(70, [3]), make_prompt(41, [3], seed=5)]
    plans = [replace(full_plan(spec, prompt), kv_bits=bits) for prompt in prompts]
    both = Rows([read(decoder, prompt, plan)[1] for prompt, plan in zip(prompts, plans, strict=True)])
    together = decode(decoder, both, FORCED.expand(2, -1))
    for row, (prompt, plan) in enumerate(zip(prompts, plans, strict=True)):
        _, alone = read(decoder, prompt, plan)
        torch.testing.assert_close(together[row : row + 1], decode(decoder, alone, FORCED), rtol=1e-4, atol=1e-4)


@BITS
def test_questions_share_one_quantised_context(bits: int) -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(80, [4, 9])
    _, done = read(decoder, prompt, replace(full_plan(spec, prompt), kv_bits=bits))
    first = decode(decoder, done, FORCED, 0)
    decode(decoder, done, FORCED, 1)
    assert torch.equal(decode(decoder, done, FORCED, 0), first)
    alone = Prompt(prompt.context, prompt.questions[:1])
    _, one = read(decoder, alone, replace(full_plan(spec, alone), kv_bits=bits))
    torch.testing.assert_close(decode(decoder, one, FORCED), first, rtol=1e-4, atol=1e-4)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("questions", [[5], [5, 12, 2]])
@pytest.mark.parametrize("family", ["llama", "qwen3-sliding"])
def test_the_cache_is_estimated_to_the_byte(family: str, questions: list[int], bits: int) -> None:
    _, decoder, spec = tiny(family)
    if family == "qwen3-sliding" and len(questions) > 1:
        questions = [5, 5]  # a sliding layer keeps less behind a longer question
    prompt = make_prompt(150, questions, protected=4)
    for plan in (replace(full_plan(spec, prompt), kv_bits=bits), uneven_plan(spec, prompt, bits)):
        _, done = read(decoder, prompt, plan)
        # Every waiting question's positions are one tensor for all heads.
        shared = prompt.waiting_tokens * spec.num_layers * (spec.num_kv_heads - 1) * CacheConfig().position_bytes
        assert done.cache.nbytes == estimate(spec, plan, prompt=prompt).kv_kept_bytes - shared


def preset_of(budget: str, bits: int, policy: str = "uniform") -> Preset:
    return Preset(name="x", description="", budget=budget, policy=policy, kv_bits=bits)


def wide_prompt(context: int, question: int = 20) -> Prompt:
    return Prompt(Tokens.of((1,) * context, protected=torch.arange(context) < 10), ((2,) * question,))


@BITS
@pytest.mark.parametrize("dtype_bytes", [4, 2])
@pytest.mark.parametrize("percent", [5, 12.5, 50])
def test_a_percentage_is_one_of_bytes(percent: float, dtype_bytes: int, bits: int) -> None:
    spec = replace(make_spec((None, None, 512), kv_heads=2, head_dim=64), dtype_bytes=dtype_bytes)
    prompt = wide_prompt(8000)
    plan = make_allocation(spec, preset_of(f"{percent}%", bits), prompt, available=0).plan
    exact = make_allocation(spec, preset_of(f"{percent}%", 16), prompt, available=0).plan
    assert (plan.kv_bits, exact.kv_bits) == (bits, 16)
    windows = spec.window_entries(prompt.seq_len)
    allowed = percent / 100 * (spec.full_kv_bytes(prompt.seq_len) - windows * spec.kv_bytes_per_entry)
    used = planned_kv_bytes(spec, replace(plan, kept=plan.kept[:2]), question_tokens=20)
    assert used <= allowed
    assert plan.keeps_everything or plan.entries == spec.full_entries(prompt.seq_len) or used > 0.99 * allowed
    gain = {(4, 8): 3.6, (4, 4): 6.0, (2, 8): 1.8, (2, 4): 3.0}[dtype_bytes, bits]
    decided = plan.entries - windows
    whole = decided == spec.full_entries(8020) - windows
    assert whole or decided == pytest.approx(gain * (exact.entries - windows), rel=0.06)


@BITS
def test_tokens_are_tokens_and_full_is_all(bits: int) -> None:
    spec, prompt = make_spec((None, 300)), wide_prompt(2000)
    for budget, policy in (("512", "uniform"), ("full", "full"), ("full", "uniform")):
        few, exact = (make_allocation(spec, preset_of(budget, b, policy), prompt, available=0) for b in (bits, 16))
        assert few.plan == replace(exact.plan, kv_bits=bits)
    assert make_allocation(spec, preset_of("90%", bits), prompt, available=0).plan.entries == spec.full_entries(2020)


@BITS
def test_a_budget_below_the_question_is_refused(bits: int) -> None:
    spec, prompt = make_spec((None, None)), wide_prompt(500, 100)
    for budget in ("1KiB", "10KiB"):
        with pytest.raises(UncompError, match="always kept"):
            make_allocation(spec, preset_of(budget, bits), prompt, available=0)


def allocated(spec: ModelSpec, plan: BudgetPlan, prompt: Prompt) -> int:
    """Bytes of a real cache of that plan, with one question in it and several beside it."""
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads, kv_bits=plan.kv_bits)

    def zeros(count: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros(count, spec.head_dim), torch.zeros(count, spec.head_dim), torch.zeros(count)

    question = prompt.longest_question
    for layer, kept in enumerate(plan.kept):
        tails = [min(question, count) for count in kept]
        cache.store(layer, [zeros(n - tail) for n, tail in zip(kept, tails, strict=True)], reserve=max(tails))
    waiting = prompt.waiting_tokens * spec.num_layers * spec.num_kv_heads
    return cache.nbytes + waiting * (spec.kv_bytes_per_entry + CacheConfig().position_bytes)


@given(
    windows=st.lists(st.one_of(st.none(), st.sampled_from([1, 64, 1500])), min_size=1, max_size=3),
    context=st.integers(1, 5000), questions=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    num_bytes=st.integers(1, 600_000), bits=st.sampled_from([16, 8, 4]), head_dim=st.sampled_from([1, 3, 8]),
    data=st.data(),
)  # fmt: skip
def test_a_byte_budget_is_never_exceeded(
    windows: list[int | None], context: int, questions: list[int], num_bytes: int, bits: int, head_dim: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    spec = make_spec(tuple(windows), kv_heads=2, head_dim=head_dim)
    prompt = Prompt(Tokens.of((1,) * context), tuple((2,) * n for n in questions))
    try:
        plan = make_allocation(spec, preset_of(f"{num_bytes}B", bits), prompt, available=0).plan
        assume(plan.entries > 0)
        weights = [[data.draw(st.sampled_from([0.01, 1.0, 9.0])) for _ in range(2)] for _ in windows]
        plan = BudgetPlan.of_shares(
            Wanted(spec, seq_len=prompt.seq_len, entries=plan.entries, protected=prompt.always_kept), weights
        )
    except UncompError:
        reject()  # when all are refused, nothing was shown, and it fails
    assert allocated(spec, replace(plan, kv_bits=bits), prompt) <= num_bytes


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("num_bytes", [400_000, 1_500_000])
def test_a_byte_budget_is_used(num_bytes: int, bits: int) -> None:
    spec, prompt = make_spec((None, None), head_dim=64), wide_prompt(20_000)
    plan = make_allocation(spec, preset_of(f"{num_bytes}B", bits), prompt, available=0).plan
    assert 0.98 * num_bytes < allocated(spec, plan, prompt) <= num_bytes


def test_sixteen_bits_plan_as_ever() -> None:
    spec, prompt = make_spec((None, None, 30)), wide_prompt(1000)
    for budget in ("20%", "256", "2MiB", "full"):
        entries = resolve_entries(Budget.parse(budget), spec, seq_len=prompt.seq_len, free_bytes=0)
        expected = UniformPolicy().plan(
            Wanted(spec, seq_len=prompt.seq_len, entries=entries, protected=prompt.always_kept)
        )
        assert make_allocation(spec, preset_of(budget, 16), prompt, available=0).plan == expected


@pytest.mark.slow
@pytest.mark.model
def test_eight_bits_say_the_same_and_four_nearly(default_model: LoadedModel) -> None:
    spec, decoder = default_model.spec, Decoder(default_model.model, default_model.spec)
    prompt = chat_prompt(default_model.tokenizer, town(7), [QUESTION], system=None, sinks=4)
    logits, bytes_kept = {}, {}
    forced = torch.tensor([default_model.tokenizer("The secret access code of the vault is 7391846.").input_ids])
    for bits in (16, 8, 4):
        plan = make_allocation(spec, replace(load_preset("full"), kv_bits=bits), prompt, available=0).plan
        _, done = read(decoder, prompt, plan)
        logits[bits] = decode(decoder, done, forced)[0].log_softmax(-1)
        bytes_kept[bits] = planned_kv_bytes(spec, plan, question_tokens=prompt.longest_question)
    divergence = {bits: (logits[16].exp() * (logits[16] - logits[bits])).sum(-1) for bits in (8, 4)}
    assert (logits[8] - logits[16]).abs().max() < 0.5
    assert torch.equal(logits[8].argmax(-1), logits[16].argmax(-1))
    assert divergence[8].mean() < 1e-3
    assert 10 * divergence[8].mean() < divergence[4].mean() < 0.05
    full = spec.full_kv_bytes(prompt.seq_len)
    assert bytes_kept[16] == full
    question = prompt.longest_question / prompt.seq_len
    assert bytes_kept[8] / full == pytest.approx(0.2735 * (1 - question) + question, abs=0.002)
    assert bytes_kept[4] / full == pytest.approx(0.1641 * (1 - question) + question, abs=0.002)


@pytest.mark.model
@pytest.mark.slow
def test_a_cache_in_eight_bits_answers_as_in_sixteen(default_model: LoadedModel) -> None:
    prompt = chat_prompt(default_model.tokenizer, town(14), [QUESTION], system=None, sinks=4)
    said, kept = {}, {}
    for bits in (16, 8):
        preset = replace(load_preset("full"), kv_bits=bits)
        engine = Engine(default_model, sampling=SamplingConfig(max_new_tokens=24))
        writer = engine.writer(engine.asked(engine.read(prompt, preset).finish()))
        said[bits] = [step.token for step in writer.write()]
        stats = writer.stats()
        assert stats is not None
        kept[bits] = stats.kept_fraction
    assert said[8] == said[16]
    assert kept[16] == 1
    assert 0.27 < kept[8] < 0.42  # about 320 tokens: slack and question weigh
