"""Which entries a constant cache keeps: the needs against a loop, and what stays whatever the needs say."""

import torch

from support.operations import noise
from uncomp_cli.cache.needs import ConstantConfig, attention_needs, choose_kept, limits_of
from uncomp_cli.cache.softmax import Form


def test_needs_are_the_mean_attention_of_queries_that_saw_the_entry() -> None:
    config = ConstantConfig(width=3)
    keys = [noise(6, 4, seed=1), noise(9, 4, seed=2)]
    queries, ages = noise(2, 3, 2, 4, seed=3), torch.tensor([1, 0])
    found = attention_needs(queries, keys, ages, Form(0.5), config=config)
    for head, mine in enumerate(keys):
        need = torch.zeros(len(mine))
        for slot, age in enumerate(ages.tolist()):
            seen = len(mine) - age
            for query in queries[head, :, slot]:
                need[:seen] += (mine[:seen] @ query * 0.5).softmax(0) / 6
        pooled = torch.stack([need[max(0, i - 1) : i + 2].mean() for i in range(len(need))])
        torch.testing.assert_close(found[head, : len(mine)], pooled)


def test_recent_protected_and_prompt_stay_when_nobody_needs_them() -> None:
    config = ConstantConfig(recent=8, prompt_share=0.5)
    positions = [torch.arange(40), torch.arange(10, 50, 2)]
    shield = torch.zeros(20, dtype=torch.bool)
    shield[[0, 12]] = True
    limits = limits_of([20, 8], [2, 1], config)
    assert (limits.entries, limits.prompt) == ((20, 12), (10, 4))
    middle = torch.zeros(2, 40)
    middle[:, 20:30] = 0.9  # what was generated, but not the latest
    middle[0, 3] = 0.5
    kept = choose_kept(
        middle, positions, protected=[shield, shield], prompt_lens=[20, 20], limits=limits, config=config
    )
    assert [len(each) for each in kept] == [20, 12]
    first = kept[0].tolist()
    assert set(range(32, 40)) <= set(first)
    assert {0, 3, 12} <= set(first)
    assert sum(at < 20 for at in first) == 10
    assert sum(20 <= at < 30 for at in first) == 2
    second = positions[1][kept[1]].tolist()
    assert second[-8:] == list(range(34, 50, 2))
    assert 12 in second
    assert sum(at < 20 for at in second) == 4
