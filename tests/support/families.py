"""Every supported family, tiny and with random weights, and the stock model that the engine is held against."""

import copy
from collections.abc import Generator, Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from uncomp_cli.budget.baselines import FullPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.budget.thinning import make_thinning
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.view import Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.read.sieve import Sieve
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation, fixed
from uncomp_cli.engine.spend.compression import Compression
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
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
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 9,
            "attn_logit_softcapping": 2.0,
            "layer_types": ["full_attention"] * 4,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["full_attention"] * 4,
        },
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

Ids = tuple[int, ...]


def config_of(family: str) -> Any:
    """Its shape, of which no model has to be made."""
    name, extra = FAMILIES[family]
    return getattr(transformers, f"{name}Config")(**{**SHAPE, **extra})


def tiny(family: str) -> tuple[Any, Decoder, ModelSpec]:
    """A stock model, an engine over a copy of its weights, and their shape."""
    config = config_of(family)
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{FAMILIES[family][0].removesuffix('Text')}ForCausalLM")
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
    return FullPolicy().plan(Wanted(spec, seq_len=prompt.seq_len, entries=0, protected=prompt.always_kept))


def planned_for(
    decoder: Decoder,
    prompt: Prompt,
    plan: BudgetPlan | Allocation,
    config: ScorerConfig | None = None,
    *,
    scorer: Scorer | None = None,
    chunk: int | None = None,
    thin: str = "none",
) -> Compression:
    """How a prompt is to be read whose plan is known: in one chunk, or `chunk` tokens at a time, or thinned."""
    config = config or ScorerConfig()
    sieve = Sieve(make_thinning(thin), decoder.spec, config)
    allocation, scorer = fixed(plan), scorer or make_scorer(config)
    return Compression(decoder.spec, load_preset("full"), prompt, allocation, scorer, config, sieve, chunk)


def exhaust(work: Generator[PrefillStep, None, Context]) -> tuple[list[PrefillStep], Context]:
    """The records of a prefill and its result."""
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as done:
            return steps, done.value


def read(
    decoder: Decoder,
    prompt: Prompt,
    plan: BudgetPlan | Allocation,
    config: ScorerConfig | None = None,
    *,
    scorer: Scorer | None = None,
    chunk: int | None = None,
    thin: str = "none",
) -> tuple[list[PrefillStep], Context]:
    """Exhaust a prefill: its records and its result."""
    planned = planned_for(decoder, prompt, plan, config, scorer=scorer, chunk=chunk, thin=thin)
    return exhaust(Reader(decoder, planned).read())


class Rows:
    """Contexts of one question each, behind which their answers come, as the rows of one cache."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.logits = torch.cat([context.begin().logits for context in contexts])
        self.prompts = [context.prompt for context in contexts]
        self.cache = RaggedKVCache.stack([context.cache for context in contexts], reserve=0)
        self._mark = self.cache.mark()

    def begin(self, question: int = 0) -> None:
        """Forget what came behind the questions."""
        self.cache.rollback(self._mark)


def next_positions(done: Context | Rows, question: int = 0) -> Tensor:
    """The logical position [B, 1] behind a question, in every row."""
    prompts = done.prompts if isinstance(done, Rows) else [done.prompt]
    return torch.tensor([[len(prompt.context) + len(prompt.questions[question])] for prompt in prompts])


def decode(decoder: Decoder, done: Context | Rows, forced: Tensor, question: int = 0) -> Tensor:
    """Logits [B, T, vocab] of T forced tokens [B, T], one at a time behind `question`."""
    done.begin(question)
    start = next_positions(done, question)
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


def assert_same(actual: Tensor, expected: Tensor, *, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
