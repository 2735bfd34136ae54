"""Prompts read in chunks, and what is in the cache behind the last of them."""

from functools import partial

import torch
from torch import Tensor

from support.families import assert_same, make_prompt
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.spend.allocation import Allocation, allocate
from uncomp_cli.engine.spend.gauge import measure_layer
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.spec import ModelSpec


def words_of(length: int) -> Tensor:
    """Word numbers: of one to five tokens."""
    sizes = torch.randint(1, 6, (length,), generator=torch.Generator().manual_seed(3))
    return torch.arange(length).repeat_interleave(sizes)[:length]


def positions_of(cache: RaggedKVCache) -> list[list[Tensor]]:
    """Positions [L][G] of all entries."""
    return [[cache.layer(i).head(g)[2] for g in range(cache.num_kv_heads)] for i in range(len(cache.layers))]


def assert_same_entries(one: RaggedKVCache, other: RaggedKVCache) -> None:
    for index in range(len(one.layers)):
        for head in range(one.num_kv_heads):
            mine, theirs = one.layer(index).head(head), other.layer(index).head(head)
            assert mine[2].tolist() == theirs[2].tolist()
            assert_same(mine[0], theirs[0])
            assert_same(mine[1], theirs[1])


CONTEXT, PROTECTED, QUESTION, CHUNK = 420, 6, 20, 100
CONFIG = ScorerConfig("window", window=8, width=5, held=1.0)


def prompt_of(*questions: int, context: int = CONTEXT, words: bool = True, seed: int = 1) -> Prompt:
    numbers = words_of(context) if words else None
    prompt = make_prompt(context, questions or [QUESTION], seed=seed, protected=PROTECTED, words=numbers)
    return open_question(prompt, recent=8)


def allocation_of(policy: str, spec: ModelSpec, prompt: Prompt, *, kept: float, kv_bits: int = 16) -> Allocation:
    entries = int(kept * spec.full_entries(prompt.seq_len))
    want = Wanted(spec, prompt.seq_len, entries, prompt.always_kept, kv_bits)
    return allocate(make_policy(policy), want, profile=None, measurer=partial(measure_layer, window=8, sinks=4))


def assert_as_planned(done: Context, plan: BudgetPlan, prompt: Prompt) -> None:
    """Every head (with a floor below 1: every layer) holds its count, the protected tokens among them."""
    done.begin(max(range(len(prompt.questions)), key=lambda i: len(prompt.questions[i])))
    at = positions_of(done.cache)
    lengths = [tuple(len(head) for head in layer) for layer in at]
    if plan.head_floor < 1:
        assert [sum(layer) for layer in lengths] == [sum(layer) for layer in plan.kept]
    else:
        assert tuple(lengths) == plan.kept
    assert done.cache.entries == plan.entries
    always = {*prompt.context.protected.nonzero()[:, 0].tolist(), *range(len(prompt.context), prompt.seq_len)}
    for head in (head for layer in at for head in layer):
        assert head.tolist() == sorted(set(head.tolist()))
        assert always <= set(head.tolist())
