"""Reading again: the passages alone, read as a text of their own, at the places they have in the whole text."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.chunks import CONFIG, allocation_of, positions_of, prompt_of
from support.families import assert_same, decode, exhaust, planned_for, shared_tiny, tokens
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.read.distances import PASSAGE_TOKENS, Reach, choose_passages
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.models.extension import REPACKED, RopeChoice, RopeState, parse_rope


def reread(prompt: Prompt, allocation: Allocation, *, most: int, family: str = "llama") -> Context:
    """The prompt read in chunks of 100 and then again."""
    decoder = shared_tiny(family)[1]
    planned = planned_for(decoder, prompt, allocation, CONFIG, chunk=100)
    return exhaust(Reader(decoder, replace(planned, repack=True, reread_tokens=most)).read())[1]


def held(done: Context) -> list[int]:
    """Positions that every head of the first layer holds, when they all hold the same."""
    first, *others = [head.tolist() for layer in positions_of(done.cache) for head in layer]
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "granite"])
@pytest.mark.parametrize("question", [5, 20])
def test_the_model_reads_a_text_of_the_passages(family: str, question: int) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt, forced = prompt_of(question), torch.tensor([tokens(6, 9)])
    done = reread(prompt, allocation_of("uniform", spec, prompt, kept=0.6), most=2 * PASSAGE_TOKENS, family=family)
    done.begin(0)
    at = held(done)
    assert len(at) < prompt.seq_len / 2
    everything = [*prompt.context, *prompt.questions[0]]
    text = [everything[i] for i in at]
    with torch.no_grad():
        oracle = stock(torch.tensor([[*text, *forced[0].tolist()]])).logits[0]
    assert_same(done.questions.logits[0], oracle[len(text) - 1])
    assert_same(decode(decoder, done, forced)[0], oracle[len(text) :])


def test_the_first_pass_is_released_before_the_second() -> None:
    """What is held while the passages are read is theirs alone: a cap on the cache holds then, too."""
    decoder, spec = shared_tiny("llama")[1:]
    preset = Preset("test", "", budget="30%", policy="uniform", scorer=CONFIG)
    planned = plan_compression(spec, preset, prompt_of(context=900), available=10**12, reach=Reach(512, PASSAGE_TOKENS))
    steps, done = exhaust(Reader(decoder, planned).read())
    again = steps[-spec.num_layers :]
    assert max(step.kv_bytes for step in again) <= done.cache.nbytes
    assert steps[-spec.num_layers - 1].kv_bytes > done.cache.nbytes


def test_what_must_stay_is_there() -> None:
    prompt = prompt_of()
    done = reread(prompt, allocation_of("uniform", shared_tiny("llama")[2], prompt, kept=0.6), most=PASSAGE_TOKENS)
    asked = set(range(len(prompt.context) - prompt.asked, prompt.seq_len))
    assert {*prompt.context.protected.nonzero()[:, 0].tolist(), *asked} <= set(held(done))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("policy", ["uniform", "adaptive", "uncertain:by=entropy"])
def test_a_budget_below_the_passages_binds(policy: str, bits: int) -> None:
    spec, prompt = shared_tiny("llama")[2], prompt_of()
    allocation = allocation_of(policy, spec, prompt, kept=0.2, kv_bits=bits)
    done = reread(prompt, allocation, most=4 * PASSAGE_TOKENS)
    assert allocation.plan.entries == int(0.2 * spec.full_entries(prompt.seq_len))
    assert allocation.plan.seq_len == prompt.seq_len
    assert done.cache.entries == allocation.plan.entries
    for head in (head.tolist() for layer in positions_of(done.cache) for head in layer):
        assert head == sorted(set(head))
        assert head[-1] == prompt.seq_len - 1


def test_several_questions_wait_behind_the_whole_text() -> None:
    spec, decoder = shared_tiny("llama")[2], shared_tiny("llama")[1]
    prompt = prompt_of(20, 7)
    done = reread(prompt, allocation_of("uniform", spec, prompt, kept=0.6), most=2 * PASSAGE_TOKENS)
    stock, forced = shared_tiny("llama")[0], torch.tensor([tokens(4, 3)])
    for question, asked in enumerate(prompt.questions):
        done.begin(question)
        at = held(done)
        assert at[-len(asked) :] == list(range(len(prompt.context), len(prompt.context) + len(asked)))
        text = [([*prompt.context, *asked])[i] for i in at]
        with torch.no_grad():
            oracle = stock(torch.tensor([[*text, *forced[0].tolist()]])).logits[0]
        assert_same(done.questions.logits[question], oracle[len(text) - 1])
        assert_same(decode(decoder, done, forced, question)[0], oracle[len(text) :])


def test_a_plan_says_what_is_read_again() -> None:
    decoder, spec = shared_tiny("llama")[1:]
    preset = Preset("test", "", budget="30%", policy="uniform", scorer=CONFIG)
    prompt = prompt_of(context=900)
    planned = plan_compression(spec, preset, prompt, available=10**12, reach=Reach(512, 128))
    assert planned.reread_tokens == 128
    steps, done = exhaust(Reader(decoder, planned).read())
    chunks = -(-900 // 128)
    assert [steps[-1].layers_done, steps[-1].num_layers] == [(chunks + 1) * spec.num_layers] * 2
    assert max(map(len, [held(done)])) <= 128 + planned.prompt.always_kept + planned.prompt.asked
    within = plan_compression(spec, preset, prompt_of(context=100), available=10**12, reach=Reach(512, 128))
    assert within.reread_tokens is None


@given(st.integers(1, 700), st.integers(1, 500), st.integers(0, 40))
def test_whole_passages_around_the_best_tokens(length: int, most: int, seed: int) -> None:
    scores = torch.rand(length, generator=torch.Generator().manual_seed(seed))
    always = torch.zeros(length, dtype=torch.bool)
    always[-1] = True
    at = choose_passages(scores, always, most=most)
    assert int(scores.argmax()) in at.tolist()
    begins = {position // PASSAGE_TOKENS for position in at.tolist() if position != length - 1}
    assert len(begins) <= max(1, most // PASSAGE_TOKENS)
    chosen = [scores[i * PASSAGE_TOKENS : (i + 1) * PASSAGE_TOKENS].max() for i in begins]
    others = (i for i in range(-(-length // PASSAGE_TOKENS)) if i not in begins)
    left = [
        scores[i * PASSAGE_TOKENS : (i + 1) * PASSAGE_TOKENS].max() for i in others if i != length // PASSAGE_TOKENS
    ]
    assert not left or min(chosen) >= max(left)


def test_what_has_no_score_is_not_read_again() -> None:
    scores = torch.zeros(500)
    scores[130] = 1.0
    at = choose_passages(scores, torch.arange(500) < 3, most=400)
    assert at.tolist() == [0, 1, 2, *range(128, 192)]


def test_without_the_question_nothing_is_read_again_and_that_is_said() -> None:
    spec = shared_tiny("llama")[2]
    preset = Preset("test", "", budget="30%", policy="uniform", scorer=ScorerConfig("keydiff"))
    planned = plan_compression(spec, preset, prompt_of(context=900), available=10**12, reach=Reach(512, 128))
    assert planned.repack
    assert planned.reread_tokens is None
    assert "scorer keydiff does not look at the question" in planned.notes[-1]


@pytest.mark.parametrize(("questions", "most"), [(1, 100), (3, 256), (9, 256)])
def test_several_questions_share_half_of_the_reach(questions: int, most: int) -> None:
    prompt = prompt_of(*([5] * questions), context=900)
    assert Reach(512, 100).tokens_to_reread(prompt, make_scorer(CONFIG)) == most


@pytest.mark.parametrize(
    ("rope", "prompt", "reach"),
    [
        ("repack:2", 4000, 4096),
        ("repack:2", 9000, 4096),
        ("repack:1", 9000, 8092),
        ("reread", 9000, 2048),
        ("yarn:2", 9000, None),
        ("auto of a longer text", 8092, None),
        ("auto of a longer text", 8093, 2048),
    ],
)
def test_how_far_a_prompt_looks_back(rope: str, prompt: int, reach: int | None) -> None:
    of_auto = rope.startswith("auto")
    choice = RopeChoice("reread", only_past=True) if of_auto else parse_rope(rope)
    assert choice is not None
    state = RopeState.repacked(choice, 8192) if choice.kind in REPACKED else RopeState(choice.kind)
    found = Reach.of(state, prompt, trained_length=8192, answer_tokens=100)
    assert found == (None if reach is None else Reach(reach, state.reread_tokens))
