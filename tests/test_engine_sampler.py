"""How tokens are drawn: by the probabilities that the settings leave, and as if everything were sorted and summed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.write.sampler import Sampler, fetch

GENERATED = torch.tensor([[3, 5]])
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0, 2.5, -1.0]])


def choices(draws: int = 400, **settings: Any) -> set[int]:
    sampler = Sampler(SamplingConfig(**settings))
    return set(chosen(sampler, LOGITS.expand(draws, -1), GENERATED))


def chosen(sampler: Sampler, logits: torch.Tensor, said: torch.Tensor) -> list[int]:
    """What is chosen of each row of logits, behind the one answer that was said."""
    return [sampler.choose(scores, said[0]) for scores in fetch(logits, [sampler])]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {3}),
        ({"temperature": 3.0}, {0, 1, 2, 3, 4, 5}),
        ({"temperature": 3.0, "top_k": 2}, {3, 4}),
        ({"temperature": 1.0, "top_p": 0.7}, {3, 4}),
        ({"temperature": 1.0, "min_p": 0.5}, {3, 4}),
        ({"repetition_penalty": 2.0}, {4}),
    ],
)
def test_sampling_options(settings: dict[str, Any], expected: set[int]) -> None:
    assert choices(**settings) == expected


def test_sampling_follows_the_probabilities() -> None:
    sampler = Sampler(SamplingConfig(temperature=1.0))
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(4000, -1)
    drawn = torch.tensor(chosen(sampler, logits, torch.empty(1, 0, dtype=torch.int64)))
    counts = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.2, 0.1]), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.5}]
)
def test_tokens_are_drawn_with_their_probabilities(settings: dict[str, float]) -> None:
    """Chi-square over a small vocabulary, against transformers' own processors; guesses are kept with theirs.

    A guess is right when it is what is drawn, so that what is drawn is all that there is to test.
    """
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    made = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper,
            "min_p": MinPLogitsWarper, "repetition_penalty": RepetitionPenaltyLogitsProcessor}  # fmt: skip
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 1.5
    said, draws = torch.tensor([[1, 5, 5, 7]]), 5_000
    processors = LogitsProcessorList(made[name](value) for name, value in settings.items())
    shares = processors(said, logits.clone()).softmax(dim=-1)[0]
    sampler = Sampler(SamplingConfig(**{"temperature": 1.0, **settings}))
    drawn = torch.tensor(chosen(sampler, logits.expand(draws, -1), said))
    counts = torch.bincount(drawn, minlength=12).double()
    possible = shares > 0
    assert counts[~possible].sum() == 0
    wanted = shares[possible].double() * draws
    chi_square = float(((counts[possible] - wanted).square() / wanted).sum())
    assert chi_square < 40  # 11 degrees of freedom or fewer: 1 in 30,000


def sorted_choice(scores: torch.Tensor, config: SamplingConfig, uniform: float) -> int:
    """The same by sorting everything and summing everything."""
    values = scores.numpy()
    shares = np.exp((values - values.max()) / np.float32(config.temperature))
    least = np.float32(0.0)
    if 0 < config.top_k < len(shares):
        least = np.sort(shares)[-config.top_k]
    if config.top_p < 1:
        falling = np.sort(shares[shares >= least])[::-1]
        sums = falling.cumsum(dtype=np.float64)
        least = falling[sums.searchsorted(config.top_p * sums[-1])]
    least = max(least, np.float32(config.min_p))
    sums = np.where(shares < least, np.float32(0.0), shares).cumsum(dtype=np.float64)
    return int(sums.searchsorted(uniform * sums[-1], side="right"))


@given(
    vocab=st.sampled_from([1, 2, 63, 64, 65, 255, 256, 257, 1000, 5000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    steps=st.sampled_from([0, 3]),
    temperature=st.sampled_from([0.2, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 900]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 99),
)
def test_a_draw_is_the_one_of_a_whole_sort(
    vocab: int, spread: float, steps: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    """With a few equal scores (`steps`) too: those stay or go together."""
    scores = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread
    scores = (scores * steps).round() / steps if steps else scores
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    sampler, uniforms = Sampler(config), torch.Generator().manual_seed(seed)
    for _ in range(20):
        uniform = float(torch.rand(1, generator=uniforms, dtype=torch.float64))
        assert chosen(sampler, scores[None], GENERATED) == [sorted_choice(scores, config, uniform)]
