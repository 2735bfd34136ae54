"""Kept in full, the engine is the stock model: every supported family, tiny and with random weights."""

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.policies import FullPolicy
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward import attention
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.families import SUPPORTED_FAMILIES, check_keywords
from uncomp_cli.engine.read.prefill import prefill
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import ModelError
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec

VOCAB, WINDOW, DECODED = 61, 8, 8
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large, so that attention is peaked and a wrong key shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ALTERNATING}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", {"attention_bias": True, "num_key_value_heads": 1}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": ("Qwen2", QWEN_WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-sliding": ("Qwen3", {"head_dim": 16, **QWEN_WINDOWS}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": WINDOW}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5}),
    "phi3-sliding": ("Phi3", {"sliding_window": WINDOW}),
    "gemma3_text": (
        "Gemma3Text",
        {"head_dim": 16, "query_pre_attn_scalar": 9, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    ),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1, 1]}),
    "smollm3-sliding": ("SmolLM3", QWEN_WINDOWS),
}
LENGTHS = [(3, 2), (WINDOW, 1), (20, 5), (5, 11), (40, 3)]
"""(context, question) tokens: inside, at and beyond the window; a question longer than the window."""

Ids = tuple[int, ...]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(family: str) -> tuple[Any, Decoder, ModelSpec]:
    """A stock model, an engine over a copy of its weights, and their shape."""
    name, extra = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **extra})
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    stock = model_class(config).eval()
    stock.set_attn_implementation("eager")
    spec = spec_from_config(config, "float32")
    return stock, Decoder(copy.deepcopy(stock), spec), spec


@cache
def shared_tiny(family: str) -> tuple[Any, Decoder, ModelSpec]:
    """`tiny`, made once, for those who change nothing of it."""
    return tiny(family)


def tokens(count: int, seed: int) -> Ids:
    return tuple(torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def make_prompt(
    context: int, questions: Sequence[int], *, seed: int = 1, protected: int = 0, words: Tensor | None = None
) -> Prompt:
    text = Tokens.of(tokens(context, seed), protected=torch.arange(context) < protected, words=words)
    return Prompt(text, tuple(tokens(count, seed + 100 + i) for i, count in enumerate(questions)))


def full_plan(spec: ModelSpec, prompt: Prompt) -> BudgetPlan:
    return FullPolicy().plan(spec, seq_len=prompt.seq_len, entries=0, protected=prompt.always_kept)


def read(
    decoder: Decoder, prompts: Sequence[Prompt], plans: Sequence[BudgetPlan], config: ScorerConfig | None = None
) -> tuple[list[PrefillStep], Context]:
    """Exhaust a prefill: its records and its result."""
    config = config or ScorerConfig()
    work = prefill(decoder, prompts, plans, scorer=make_scorer(config), config=config)
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as done:
            return steps, done.value


def decode(decoder: Decoder, done: Context, forced: Tensor, question: int = 0) -> Tensor:
    """Logits [B, T, vocab] of T forced tokens [B, T], one at a time behind `question`."""
    done.begin_question(question)
    start = done.next_positions(question)
    outputs = []
    for step in range(forced.shape[1]):
        state = AppendState(done.cache, start + step)
        outputs.append(decoder.forward(forced[:, step : step + 1], start + step, state, 1)[:, 0])
    return torch.stack(outputs, dim=1)


@torch.no_grad()
def stock_logits(stock: Any, ids: Ids) -> Tensor:
    """Logits [S, vocab] of one whole sequence."""
    logits: Tensor = stock(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_every_supported_family_has_a_case() -> None:
    types = {getattr(transformers, f"{name}Config").model_type for name, _ in FAMILIES.values()}
    assert types == SUPPORTED_FAMILIES


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_plan_is_the_stock_model(family: str, lengths: tuple[int, int]) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(lengths[0], [lengths[1]])
    _, done = read(decoder, [prompt], [full_plan(spec, prompt)])
    prompt_ids, forced = (*prompt.context, *prompt.questions[0]), tokens(DECODED, 7)
    expected = stock_logits(stock, prompt_ids + forced)
    assert expected.abs().max() > 0.5
    assert_same(done.logits, expected[len(prompt_ids) - 1][None])
    assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(prompt_ids) :])


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma3_text", "smollm3"])
def test_a_batch_is_its_rows(family: str) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompts = [make_prompt(20, [3], seed=1), make_prompt(4, [5], seed=2), make_prompt(11, [1], seed=3)]
    forced = torch.tensor([tokens(DECODED, 20 + row) for row in range(3)])
    _, batch = read(decoder, prompts, [full_plan(spec, prompt) for prompt in prompts])
    decoded = decode(decoder, batch, forced)
    for row, prompt in enumerate(prompts):
        ids = (*prompt.context, *prompt.questions[0])
        expected = stock_logits(stock, ids + tuple(forced[row].tolist()))
        assert_same(batch.logits[row], expected[len(ids) - 1])
        assert_same(decoded[row], expected[len(ids) :])
        _, single = read(decoder, [prompt], [full_plan(spec, prompt)])
        torch.testing.assert_close(batch.logits[row], single.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[row], decode(decoder, single, forced[row : row + 1])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma3_text", "granite"])
def test_questions_over_one_prefill_are_separate_runs(family: str) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(19, [4, 9, 1])
    _, done = read(decoder, [prompt], [full_plan(spec, prompt)])
    assert done.logits.shape == (3, VOCAB)
    for question in (2, 0, 1, 0):  # any order, and one of them again
        ids = (*prompt.context, *prompt.questions[question])
        forced = tokens(DECODED, 50 + question)
        expected = stock_logits(stock, ids + forced)
        assert_same(done.logits[question], expected[len(ids) - 1])
        assert_same(decode(decoder, done, torch.tensor([forced]), question)[0], expected[len(ids) :])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_several_new_tokens_at_once(family: str) -> None:
    """A turn of a chat: tokens appended in one pass see the cache and, causally, each other."""
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(20, [4])
    _, done = read(decoder, [prompt], [full_plan(spec, prompt)])
    done.begin_question()
    ids, turn = (*prompt.context, *prompt.questions[0]), tokens(11, 9)
    positions = done.next_positions() + torch.arange(len(turn))
    logits = decoder.forward(torch.tensor([turn]), positions, AppendState(done.cache, positions), len(turn))
    assert_same(logits[0], stock_logits(stock, ids + turn)[len(ids) :])


def test_sliding_prefill_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 7)
    stock, decoder, spec = shared_tiny("mistral-sliding")
    prompt = make_prompt(40, [3])
    _, done = read(decoder, [prompt], [full_plan(spec, prompt)])
    assert_same(done.logits[0], stock_logits(stock, (*prompt.context, *prompt.questions[0]))[-1])


def test_a_batch_with_several_questions_is_refused() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompts = [make_prompt(6, [2, 2], seed=seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="one question"):
        read(decoder, prompts, [full_plan(spec, prompt) for prompt in prompts])


@pytest.mark.parametrize("family", ["Gemma2", "GptOss", "Cohere"])
def test_other_families_are_refused_by_name(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ModelError, match=f"'{config.model_type}'") as caught:
        Decoder(model, spec_from_config(config, "float32"))
    assert "llama" in str(caught.value.hint)


@pytest.mark.parametrize(("family", "keyword"), [("Gemma2", "softcap"), ("GptOss", "s_aux")])
def test_a_keyword_that_is_not_honoured_is_refused(family: str, keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were such a family let in, its attention would still not run wrongly."""
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    monkeypatch.setattr("uncomp_cli.engine.forward.decoder.check_family", lambda name: None)
    spec = spec_from_config(config, "float32")
    prompt = make_prompt(6, [2])
    with pytest.raises(ModelError, match=f"'{keyword}'"):
        read(Decoder(model, spec), [prompt], [full_plan(spec, prompt)])


def test_attention_in_both_directions_is_refused() -> None:
    name, extra = FAMILIES["gemma3_text"]
    config = transformers.Gemma3TextConfig(**{**SHAPE, **extra, "use_bidirectional_attention": True})
    spec = spec_from_config(config, "float32")
    decoder = Decoder(getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval(), spec)
    prompt = make_prompt(6, [2])
    with pytest.raises(ModelError, match="both directions"):
        read(decoder, [prompt], [full_plan(spec, prompt)])


def test_keywords() -> None:
    check_keywords({"dropout": 0.0, "position_ids": torch.zeros(1), "softcap": None})
    with pytest.raises(ModelError, match="'brand_new'"):
        check_keywords({"brand_new": 1})
