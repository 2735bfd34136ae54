"""One row through a linear layer on all cores: the same numbers as torch's own way."""

import pytest
import torch
from torch import nn

from uncomp_cli.engine.linear import RowLinear, use_all_cores_for_one_row


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("out_features", [64, 40, 12, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1,), (1, 5), (3, 1)])
def test_it_equals_linear(two_threads: None, out_features: int, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, out_features, bias=bias)
    states = torch.randn(*shape, 24)
    with torch.no_grad():
        torch.testing.assert_close(RowLinear(linear)(states), linear(states), atol=1e-6, rtol=1e-6)


def test_a_single_row_takes_the_blocked_product(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: calls.append(1) or product(*args))
    layer = RowLinear(nn.Linear(8, 16))
    with torch.no_grad():
        layer(torch.randn(1, 1, 8))
        layer(torch.randn(1, 2, 8))
    assert calls == [1]


def test_weights_are_shared_and_other_layers_stay() -> None:
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "special": Special(4, 4), "narrow": nn.Linear(4, 4).half()})
    weight = model["plain"].weight
    use_all_cores_for_one_row(model)
    assert type(model["plain"]) is RowLinear
    assert model["plain"].weight is weight
    assert type(model["special"]) is Special
    assert type(model["narrow"]) is nn.Linear
