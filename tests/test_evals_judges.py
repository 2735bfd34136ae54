"""Each metric on figures worked out by hand, and judges on a small model: broken metrics and broken rows are seen."""

from math import log

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny import byte_tokenizer
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import coverage
from uncomp_cli.evals.judges.forced_rows import Rows, in_batches, token_nll
from uncomp_cli.evals.judges.predictions import NEXT_TOKENS, compare_logits, perplexity_metrics
from uncomp_cli.evals.tasks.task import Query
from uncomp_cli.spec import ModelSpec

LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 2, 4, 2, 8, 50


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits [N, V] of given probabilities."""
    return torch.tensor(rows).log()


def test_nll_is_the_log_likelihood_of_each_token() -> None:
    logits = logits_of((0.5, 0.25, 0.25), (0.1, 0.1, 0.8))[None] + 3  # a shift changes nothing
    torch.testing.assert_close(token_nll(logits, [1, 2]), torch.tensor([[log(4), log(1.25)]]))


def test_fidelity_of_equal_predictions_is_perfect() -> None:
    logits = torch.randn(7, 11)
    metrics = compare_logits(logits, logits + 2)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert (metrics["agreement"], metrics["divergence"]) == (1.0, 1.0)


def test_fidelity_by_hand() -> None:
    full = logits_of((0.5, 0.5, 1e-9), (0.8, 0.1, 0.1), (0.2, 0.2, 0.6), (0.6, 0.2, 0.2))
    ours = logits_of((0.75, 0.25, 1e-9), (0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.6, 0.2, 0.2))
    first = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    third = 0.2 * log(0.2 / 0.6) + 0.6 * log(0.6 / 0.2)
    metrics = compare_logits(full, ours)
    assert metrics["kl"] == pytest.approx((first + third) / 4, rel=1e-4)
    assert metrics["kl_p99"] > metrics["kl"]
    assert metrics["kl_p99"] <= third + 1e-6
    assert metrics["agreement"] == 0.75
    assert metrics["divergence"] == 0.5


def test_fidelity_is_directed() -> None:
    full, ours = logits_of((0.9, 0.1)), logits_of((0.5, 0.5))
    assert compare_logits(full, ours)["kl"] == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2), rel=1e-4)


def test_perplexity_weighs_tokens_by_what_the_prefix_helps() -> None:
    full = torch.ones(NEXT_TOKENS - 1)
    unrelated, ours = full.clone(), full.clone()
    unrelated[200] += 4  # the one token that the prefix helps with
    unrelated[300] -= 2  # a token that the prefix harms counts for nothing
    ours[200] += 1
    ours[10] += 31
    metrics = perplexity_metrics(ours, full, unrelated)
    assert metrics["nll_weighted"] == pytest.approx(2.0)
    assert metrics["gain_lost"] == pytest.approx(0.25)
    assert metrics["nll_to_32"] == pytest.approx(2.0)
    assert metrics["nll_to_128"] == pytest.approx(1.0)
    assert metrics["nll_to_512"] == pytest.approx(1 + 1 / 384)
    assert perplexity_metrics(full, full, unrelated)["gain_lost"] == 0
    assert perplexity_metrics(unrelated, full, unrelated)["gain_lost"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "need", "score"),
    [
        ("a 123 b 456", "all", 1.0),
        ("only 456", "all", 0.5),
        ("456", "any", 1.0),
        ("none", "any", 0.0),
        ("", "all", 0.0),
    ],
)
def test_match_is_the_share_of_accepted_strings(text: str, need: str, score: float) -> None:
    assert match_score(text, Query("", "", ("123", "456"), need="all" if need == "all" else "any")) == score


def test_match_without_regard_to_case() -> None:
    assert match_score("the AMBER one", Query("", "", ("amber",))) == 1.0


def test_coverage_is_the_share_of_evidence_by_head() -> None:
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=2)
    kept = [torch.tensor([0, 4, 5, 9]), torch.tensor([0, 1, 2, 3])]
    cache.store(0, [(torch.zeros(4, 2), torch.zeros(4, 2), at.to(torch.int32)) for at in kept])
    assert coverage(cache, torch.tensor([4, 5, 6, 7])) == [[0.5, 0.0]]
    assert coverage(cache, torch.tensor([0])) == [[1.0, 1.0]]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HEADS * DIM, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, max_position_embeddings=64,
    )  # fmt: skip
    spec = ModelSpec("llama", LAYERS, HEADS, KV_HEADS, DIM, HEADS * DIM, 32, VOCAB, 64, 4, (None,) * LAYERS)
    return Decoder(LlamaForCausalLM(config).eval(), spec)


def cache_of(decoder: Decoder, ids: list[int]) -> RaggedKVCache:
    """The full cache of `ids`."""
    empty = RaggedKVCache(num_layers=LAYERS, num_rows=1, num_kv_heads=KV_HEADS)
    from uncomp_cli.engine.forward.attention import AppendState

    positions = torch.arange(len(ids))[None]
    decoder.forward(torch.tensor([ids]), positions, AppendState(empty, positions), 1)
    return empty


def test_rows_go_back_to_their_mark(decoder: Decoder) -> None:
    caches = [cache_of(decoder, ids) for ids in ([1, 2, 3, 4], [9, 8, 7, 6])]
    rows = Rows(decoder, caches, position=4, reserve=8)
    mark = rows.mark()
    first = rows.feed([5, 6, 7])
    rows.rollback(mark)
    torch.testing.assert_close(rows.feed([5, 6, 7]), first)
    assert rows.position == 7
    torch.testing.assert_close(rows.feed([1, 2], last=1), rows_after(decoder, caches, [5, 6, 7, 1, 2])[:, -1:])


def rows_after(decoder: Decoder, caches: list[RaggedKVCache], ids: list[int]) -> Tensor:
    return Rows(decoder, caches, position=4, reserve=8).feed(ids)


def test_written_tokens_are_greedy_and_stop_row_by_row(decoder: Decoder) -> None:
    caches = [cache_of(decoder, ids) for ids in ([1, 2, 3, 4], [9, 8, 7, 6])]
    rows = Rows(decoder, caches, position=4, reserve=12)
    logits = rows.feed([5])[:, -1]
    prompt = Prompt(Tokens.of([1, 2, 3, 4, 5]), ((),))
    written = list(rows.writer(logits, prompt, 0, byte_tokenizer(), max_new_tokens=6, stop_ids=()).rounds())
    assert [[step.row for step in steps] for steps in written] == [[0, 1]] * 6
    for row, cache in enumerate(caches):
        ids = [5]
        for steps in written:
            best = int(rows_after(decoder, [cache], ids)[0, -1].argmax())
            assert steps[row].token == best
            ids.append(best)
    first = [steps[0].token for steps in written]
    stop = first[2]
    rows = Rows(decoder, caches, position=4, reserve=12)
    writer = rows.writer(rows.feed([5])[:, -1], prompt, 0, byte_tokenizer(), max_new_tokens=6, stop_ids=(stop,))
    assert [step.token for step in writer.write() if step.row == 0] == first[: first.index(stop) + 1]


def test_batches_hold_what_fits() -> None:
    spec = ModelSpec("llama", 1, 1, 1, 2, 2, 4, 10, 64, 4, (None,))
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=1)
    cache.store(0, [(torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(4, dtype=torch.int32))])
    batches = list(in_batches([cache] * 7, spec, tokens=2, logits_bytes=3 * 4 * 2 * 10))
    assert batches == [range(3), range(3, 6), range(6, 7)]
    assert list(in_batches([], spec, tokens=2)) == []
    assert list(in_batches([cache] * 2, spec, tokens=2, logits_bytes=1)) == [range(1), range(1, 2)]
