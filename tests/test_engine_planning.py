"""Planning: what is chosen fits, and what is measured stays within what was allowed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from support.chunks import words_of
from support.families import exhaust, make_prompt, tiny
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import LEAST_CHUNK_TOKENS, CacheConfig, Limits, ScorerConfig
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.allocation import make_allocation
from uncomp_cli.engine.spend.compression import Compression, plan_compression
from uncomp_cli.engine.spend.memory import activation_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError, UsageError

CONTEXT, PLENTY = 1100, 2**40
DECODER: Decoder = tiny("llama")[1]
SPEC = DECODER.spec
SCORER = ScorerConfig("window", window=8, width=5)
ENTRY = SPEC.kv_bytes_per_entry + CacheConfig().position_bytes


def preset_of(
    budget: str = "full",
    policy: str = "uniform",
    *,
    scorer: ScorerConfig = SCORER,
    kv_bits: int = 16,
    thinning: str = "none",
) -> Preset:
    return Preset("x", "", budget, policy, scorer, kv_bits=kv_bits, thinning=thinning)


def prompt_of(*questions: int, context: int = CONTEXT) -> Prompt:
    return make_prompt(context, questions or [20], protected=6, words=words_of(context))


def full_bytes(prompt: Prompt) -> int:
    return SPEC.full_entries(prompt.seq_len) * ENTRY


def planned(
    preset: Preset, prompt: Prompt, *, available: int = PLENTY, chunk: int | None = None, kv_bytes: int | None = None
) -> Compression:
    return plan_compression(
        SPEC, preset, prompt, available=available, limits=Limits(chunk_tokens=chunk, kv_bytes=kv_bytes)
    )


def most_held(compression: Compression) -> int:
    """The most bytes that the cache takes: whenever a layer was stored, so before the last one ends the chunk too."""
    reader, found = Reader(DECODER, compression), []
    store = reader.cache.store

    def storing(*given: Any, **how: Any) -> None:
        store(*given, **how)
        found.append(reader.cache.nbytes)

    reader.cache.store = storing
    _, done = exhaust(reader.read())
    return max(done.cache.nbytes, *found)


@pytest.mark.parametrize("chunk", [1, LEAST_CHUNK_TOKENS - 1, 0, -5])
def test_a_chunk_that_is_too_short_is_refused(chunk: int) -> None:
    with pytest.raises(UsageError, match=str(chunk)) as caught:
        Limits(chunk_tokens=chunk)
    assert "--chunk" in str(caught.value.hint)


@pytest.mark.parametrize("kv_bytes", [0, -1])
def test_a_cap_of_nothing_is_refused(kv_bytes: int) -> None:
    with pytest.raises(UsageError, match="kv-mem"):
        Limits(kv_bytes=kv_bytes)


def test_limits_that_are_allowed() -> None:
    assert Limits() == Limits(chunk_tokens=None, kv_bytes=None, constant_size=False)
    assert Limits(chunk_tokens=LEAST_CHUNK_TOKENS, kv_bytes=1).kv_bytes == 1


def test_with_plenty_a_prompt_is_read_in_one_pass() -> None:
    for limits in (None, PLENTY):
        compression = planned(preset_of(), prompt_of(), kv_bytes=limits)
        assert (compression.chunk_tokens, compression.sieve.active) == (None, False)
    assert planned(preset_of(), prompt_of(), chunk=CONTEXT).chunk_tokens is None
    asked = planned(preset_of(), prompt_of(), chunk=300)
    assert (asked.chunk_tokens, asked.sieve.active) == (300, False)
    assert planned(preset_of(thinning="gather:after=2,keep=0.5"), prompt_of()).sieve.active


CAPPED = {
    "budget": st.sampled_from(["full", "60%", "10%"]),
    "policy": st.sampled_from(["uniform", "adaptive", "uncertain:by=entropy", "pyramid"]),
    "scorer": st.sampled_from(["window", "agreement"]),
    "bits": st.sampled_from([16, 4]),
    "thin": st.sampled_from(["none", "gather:after=2,keep=0.2", "uncertain"]),
    "questions": st.sampled_from([(20,), (6,), (20, 30)]),
    "share": st.sampled_from([0.35, 0.5, 0.8, 1.1]),
    "chunk": st.sampled_from([None, None, 128, 500]),
}


@settings(derandomize=True, max_examples=settings().max_examples // 3)
@given(**CAPPED)
def test_the_cache_never_takes_more_than_it_may(
    budget: str,
    policy: str,
    scorer: str,
    bits: int,
    thin: str,
    questions: tuple[int, ...],
    share: float,
    chunk: int | None,
) -> None:
    prompt = prompt_of(*questions)
    cap = int(share * full_bytes(prompt))
    preset = preset_of(budget, policy, scorer=replace(SCORER, name=scorer), kv_bits=bits, thinning=thin)
    try:
        compression = planned(preset, prompt, chunk=chunk, kv_bytes=cap)
    except DoesNotFitError:
        assert chunk == 500  # nothing else is too much for a third of the full cache
        reject()
    assert most_held(compression) <= cap


@pytest.mark.parametrize(("share", "chunk"), [(0.1, 512), (0.2, 1024), (0.3, 2048), (0.5, 2048)])
def test_a_chunk_leaves_the_budget_half_of_a_cap(share: float, chunk: int) -> None:
    """The longest that does: what a longer chunk holds on the way is taken from what is kept."""
    prompt = prompt_of(context=20_000)
    cap = int(share * full_bytes(prompt))
    compression = planned(preset_of("60%", "uncertain:by=entropy"), prompt, kv_bytes=cap)  # its layers wait
    assert compression.chunk_tokens == chunk
    assert 0.5 * cap <= compression.allocation.plan.entries * SPEC.kv_bytes_per_entry < cap


@pytest.mark.parametrize("policy", ["uniform", "adaptive"])
def test_a_chunk_takes_nothing_from_a_cap_where_each_layer_is_cut_at_once(policy: str) -> None:
    prompt = prompt_of(context=3000)
    cap = int(0.3 * full_bytes(prompt))
    for chunk in (500, 2000):
        assert 0.85 * cap < most_held(planned(preset_of("60%", policy), prompt, kv_bytes=cap, chunk=chunk)) <= cap


@pytest.mark.parametrize("bits", [16, 8])
def test_a_full_budget_gives_way_to_a_cap(bits: int) -> None:
    prompt = prompt_of()
    cap = full_bytes(prompt) // 3
    compression = planned(preset_of("full", "full", kv_bits=bits), prompt, kv_bytes=cap)
    assert not compression.allocation.plan.keeps_everything
    assert (0.6 if bits == 16 else 0.3) * cap < most_held(compression) <= cap  # the budget counts in the own dtype


@pytest.mark.parametrize("questions", [(20,), (20, 30), (4, 9, 2)], ids=str)
def test_every_number_of_questions_gives_way(questions: tuple[int, ...]) -> None:
    prompt = prompt_of(*questions)
    for share in (0.4, 0.95):
        cap = int(share * full_bytes(prompt))
        assert most_held(planned(preset_of(), prompt, kv_bytes=cap)) <= cap


def test_a_small_budget_is_kept_and_only_the_chunk_gets_shorter() -> None:
    prompt = prompt_of(context=3000)
    preset = preset_of("5%", scorer=replace(SCORER, name="agreement"))  # one pass holds a third on the way
    entries = planned(preset, prompt).allocation.plan.entries
    assert planned(preset, prompt).chunk_tokens is None
    cap = int(0.3 * full_bytes(prompt))
    compression = planned(preset, prompt, kv_bytes=cap)
    assert compression.chunk_tokens == 2048
    assert compression.allocation.plan.entries == entries
    assert most_held(compression) <= cap


@pytest.mark.parametrize("policy", ["uniform", "uncertain:by=entropy"])
@pytest.mark.parametrize(("budget", "keep"), [("10%", 0.7), ("20%", 0.5), ("40%", 0.9)])
def test_what_thinned_layers_hold_in_one_pass_is_planned_to_the_byte(budget: str, keep: float, policy: str) -> None:
    prompt = prompt_of(context=2000)
    scorer, thinning = replace(SCORER, name="agreement"), f"gather:after=2,keep={keep}"
    preset = preset_of(budget, policy, scorer=scorer, thinning=thinning)
    held = most_held(planned(preset, prompt))
    assert planned(preset, prompt, kv_bytes=held).chunk_tokens is None
    assert planned(preset, prompt, kv_bytes=held - 1).chunk_tokens is not None


def test_a_chunk_that_does_not_fit_is_refused_with_numbers() -> None:
    prompt = prompt_of(context=3000)
    available = activation_bytes(SPEC, 1000)
    with pytest.raises(DoesNotFitError) as caught:
        planned(preset_of("5%"), prompt, available=available, chunk=2000)
    assert f"{available / 2**20:,.0f} MiB" in str(caught.value)
    assert "--chunk" in str(caught.value.hint)
    assert caught.value.exit_code == 3


def test_a_shorter_chunk_is_chosen_when_memory_is_short() -> None:
    prompt = prompt_of(context=5000)
    assert planned(preset_of("5%"), prompt).chunk_tokens is None
    chosen = []
    for tokens in (4000, 2000, 1000):
        available = activation_bytes(SPEC, tokens) + full_bytes(prompt) // 5
        compression = planned(preset_of("5%"), prompt, available=available)
        assert compression.chunk_tokens is not None
        assert most_held(compression) + activation_bytes(SPEC, compression.chunk_tokens) <= available
        chosen.append(compression.chunk_tokens)
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > chosen[-1]
    with pytest.raises(DoesNotFitError):
        planned(preset_of("5%"), prompt, available=activation_bytes(SPEC, 200))


def test_a_large_cap_does_not_make_a_chunk_that_memory_refuses() -> None:
    """A full cache that is over both: the chunk goes by the memory, not by the cap alone."""
    prompt = prompt_of(context=40_000)
    cap = int(0.9 * full_bytes(prompt))
    available = cap + activation_bytes(SPEC, 3000)
    compression = planned(preset_of(), prompt, available=available, kv_bytes=cap)
    assert compression.chunk_tokens is not None
    assert compression.chunk_tokens <= 3000


def test_a_cap_below_what_is_always_kept_is_refused() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        planned(preset_of(), prompt_of(), kv_bytes=200 * ENTRY)
    assert caught.value.hint


def test_most_entries() -> None:
    prompt = prompt_of()
    full = SPEC.full_entries(prompt.seq_len)

    def entries(budget: str, policy: str, most: int | None) -> int:
        return make_allocation(
            SPEC, preset_of(budget, policy), prompt, available=PLENTY, most_entries=most
        ).plan.entries

    assert entries("full", "full", None) == full
    assert entries("full", "full", 1000) == entries("full", "uniform", 1000) == 1000
    assert entries("full", "pyramid", 1000) == 1000
    assert entries("10%", "uniform", full) == entries("10%", "uniform", None) == full // 10
    assert entries("10%", "uniform", full // 20) == full // 20


def test_auto_leaves_room_for_the_chunk_alone() -> None:
    prompt = prompt_of(context=4000)
    available = int(full_bytes(prompt) * 0.3) + activation_bytes(SPEC, 600)
    compression = planned(preset_of("auto"), prompt, available=available, chunk=512)
    assert 0.05 < compression.allocation.plan.entries / SPEC.full_entries(prompt.seq_len) < 0.31
    assert most_held(compression) + activation_bytes(SPEC, 512) <= available


def test_a_plan_can_be_read_again() -> None:
    """Nothing of one reading is left for the next."""
    preset = preset_of("20%", "uncertain:by=entropy", thinning="gather:after=2,keep=0.5")
    compression = planned(preset, prompt_of())
    (_, first), (_, second) = (exhaust(Reader(DECODER, compression).read()) for _ in range(2))
    assert second.hidden_kept == first.hidden_kept
    assert first.hidden_kept[0] == 1.0
    assert torch.equal(second.questions.logits, first.questions.logits)


def test_a_plan_says_what_is_kept_and_how_it_is_read() -> None:
    preset = replace(preset_of("20%", thinning="gather:after=2,keep=0.5"), floor_tokens=64)
    first, kept, read = str(planned(preset, prompt_of(context=2000), chunk=512)).splitlines()
    assert first == str(preset)
    assert "budget 20%, at least 64 document tokens a head" in first
    assert "thinning gather:after=2,keep=0.5" in first
    assert (
        kept == "kept: 404 of 2,020 tokens a head (404 to 404), 202 of 505 KiB in 16 bits (40.0 %, 20.0 % of float32)"
    )
    assert read == "read: 512 tokens at a time (4 chunks), at most 50 % in the last layers"
    assert str(planned(preset_of(), prompt_of())).splitlines()[-1] == "read: in one pass"
