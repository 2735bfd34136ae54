"""MLPs in slices of rows: the same result from less memory."""

import pytest
import torch
from torch import nn

from support.families import FAMILIES, tiny
from support.memory import peak_of
from uncomp_cli.engine.forward import products as sliced
from uncomp_cli.engine.forward.products import SlicedRows, slice_mlps


class Gated(nn.Module):
    """An MLP of the usual kind that notes how many rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)
        self.seen: list[int] = []

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.seen.append(states.numel() // 8)
        return self.down_proj(nn.functional.silu(self.gate_proj(states)) * self.up_proj(states))


@pytest.mark.parametrize(("shape", "expected"), [((1, 7), [7]), ((1, 8), [7, 1]), ((2, 10), [7, 7, 6]), ((3,), [3])])
def test_slices_are_the_whole(shape: tuple[int, ...], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "SLICE_ROWS", 7)
    torch.manual_seed(0)
    inner, states = Gated(), torch.randn(*shape, 8)
    with torch.no_grad():
        whole = inner(states)
        inner.seen.clear()
        torch.testing.assert_close(SlicedRows(inner)(states), whole, atol=1e-6, rtol=0)
    assert inner.seen == expected


def test_the_peak_is_the_output_and_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate, up and product of a slice at once, beside all rows of the output; whole, of every row."""
    monkeypatch.setattr(sliced, "SLICE_ROWS", 16)
    rows = 160
    inner, states = Gated(), torch.randn(1, rows, 8)
    with torch.no_grad():
        whole, parts = (peak_of(lambda work=work: work(states)) for work in (inner, SlicedRows(inner)))
    assert whole == pytest.approx(rows * 3 * 20 * 4, rel=0.1)
    assert parts == pytest.approx((rows * 8 + 16 * 3 * 20) * 4, rel=0.1)


def test_rows_that_do_not_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "SLICE_ROWS", 4)
    inner, states = Gated(), torch.randn(8, 2, 5).permute(1, 2, 0)
    with torch.no_grad():
        torch.testing.assert_close(SlicedRows(inner)(states), inner(states), atol=1e-6, rtol=0)


def test_gradients_pass_through_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "SLICE_ROWS", 2)
    inner, states = Gated(), torch.randn(1, 5, 8, requires_grad=True)
    SlicedRows(inner)(states).sum().backward()
    assert inner.seen == [5]
    assert states.grad is not None
    assert states.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_an_mlp_that_is_sliced_once(family: str) -> None:
    _, decoder, spec = tiny(family)
    slice_mlps(decoder.model)
    wrapped = [name for name, module in decoder.model.named_modules() if isinstance(module, SlicedRows)]
    assert wrapped == [f"model.layers.{layer}.mlp" for layer in range(spec.num_layers)]


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_a_model_in_slices_is_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, decoder, _ = tiny(family)
    layer, ours = stock.model.layers[0].mlp, decoder.model.model.layers[0].mlp
    states = torch.randn(2, 11, 32)
    monkeypatch.setattr(sliced, "SLICE_ROWS", 3)
    with torch.no_grad():
        torch.testing.assert_close(ours(states), layer(states), atol=1e-6, rtol=1e-6)


def test_rows_that_interact_are_left_alone() -> None:
    """LLM.int8() chooses its outlier columns from all rows at once."""
    from uncomp_cli.engine.forward.decoder import Decoder

    stock, _, spec = tiny("llama")
    stock.is_loaded_in_8bit = True
    decoder = Decoder(stock, spec)
    assert not any(isinstance(module, SlicedRows) for module in decoder.model.modules())
