"""Linear layers on the CPU: the same numbers as torch's own way, and the errors that narrower products may make."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from uncomp_cli.engine.forward import products as module
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import ByteLinear, RowLinear, check_matmul, chosen_matmul, use_product
from uncomp_cli.errors import UsageError
from uncomp_cli.models.shape import spec_from_config

MANY = module._MANY_ROWS


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)


def tiny() -> LlamaForCausalLM:
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=24, **shape)).eval()


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
    use_product(model)
    assert type(model["plain"]) is RowLinear
    assert model["plain"].weight is weight
    assert type(model["special"]) is Special
    assert type(model["narrow"]) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, MANY - 1, MANY, MANY + 9])
def test_bfloat16_rounds_both_sides_of_many_rows(bias: bool, rows: int) -> None:
    """Each factor is off by 2⁻⁹ of itself at most, and the product by as much: of the sum of magnitudes, 3 · 2⁻⁹."""
    torch.manual_seed(0)
    linear, states = nn.Linear(24, 12, bias=bias), torch.randn(1, rows, 24)
    with torch.no_grad():
        error = (RowLinear(linear, narrow=True)(states) - linear(states)).abs()
        bound = 3.01 * 2**-9 * (states.abs() @ linear.weight.abs().T)
    assert (error <= bound).all()
    assert (error.max() > 1e-4) == (rows >= MANY)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64), (64,), (1, MANY - 1, 64), (2, MANY, 64), (1, 1, 24), (1, 3, 24)])
def test_bytes_are_within_half_a_step(bias: bool, shape: tuple[int, ...]) -> None:
    """A weight is off by half its feature's step at most; rows and result are rounded to bfloat16.

    Rows of 24 features are no multiple of what torch's kernel reads at once.
    """
    torch.manual_seed(0)
    linear, states = nn.Linear(shape[-1], 40, bias=bias), torch.randn(*shape)
    steps = linear.weight.abs().amax(dim=1) / 127
    with torch.no_grad():
        output = ByteLinear(linear)(states)
        error = (output - linear(states)).abs()
        bound = 0.51 * states.abs().sum(-1, keepdim=True) * steps + 2.1 * 2**-9 * (states.abs() @ linear.weight.abs().T)
    assert output.shape == (*shape[:-1], 40)
    assert output.dtype == torch.float32
    assert (error <= bound).all()


def test_few_and_many_rows_of_bytes_agree() -> None:
    """Two kernels, one result, up to the rounding of the sum."""
    torch.manual_seed(0)
    layer, states = ByteLinear(nn.Linear(32, 16)), torch.randn(MANY, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(states), torch.cat([layer(row) for row in states.split(1)]), atol=1e-2, rtol=0)


def test_a_feature_of_zeros_stays_zero() -> None:
    linear = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        assert torch.equal(ByteLinear(linear)(torch.randn(3, 8)), torch.zeros(3, 4))


def test_int8_holds_a_quarter_of_the_weights(fast_cpu: None) -> None:
    model = tiny()
    before = sum(w.nbytes for name, w in model.named_parameters() if "_proj" in name)
    use_product(model, "int8")
    kept = [m for name, m in model.named_modules() if name.endswith("_proj")]
    assert all(isinstance(layer, ByteLinear) for layer in kept)
    assert sum(layer.weight.nbytes for layer in kept) * 4 == before
    assert not [name for name, _ in model.named_parameters() if "_proj" in name]


@pytest.mark.parametrize(("matmul", "tolerance"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_a_decoder_multiplies_as_told(fast_cpu: None, matmul: str, tolerance: float) -> None:
    class Causal:
        def attend(self, layer, query, key, value, form):
            keywords = {"is_causal": True, "scale": form.scaling, "enable_gqa": True}
            return nn.functional.scaled_dot_product_attention(query, key, value, **keywords)

    torch.manual_seed(0)
    model = tiny()
    spec = spec_from_config(model.config, "float32")
    ids, positions = torch.arange(40)[None], torch.arange(40)[None]
    exact = Decoder(copy.deepcopy(model), spec).forward(ids, positions, Causal(), 40)
    rounded = Decoder(model, spec, matmul=matmul).forward(ids, positions, Causal(), 40)
    assert 0 < (rounded - exact).abs().max() < tolerance * exact.abs().max()


def test_a_model_keeps_its_product(fast_cpu: None) -> None:
    model = tiny()
    use_product(model, "bfloat16")
    use_product(model, "bfloat16")
    with pytest.raises(ValueError, match="bfloat16 products, not float32"):
        use_product(model)


def test_auto_rounds_where_a_trial_says_so_and_remembers_it(
    fast_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "new"))
    gains = iter([1.5, 1.0])
    monkeypatch.setattr(module, "_gain", lambda: next(gains))
    wide = nn.ModuleDict({"wide": nn.Linear(module._LEAST_FEATURES, 4)})
    assert chosen_matmul("auto", tiny()) == "float32"
    assert [chosen_matmul("auto", wide) for _ in range(2)] == ["bfloat16", "bfloat16"]
    assert chosen_matmul("float32", wide) == "float32"
    (tmp_path / "new" / "products.json").write_text("{")
    assert [chosen_matmul("auto", wide) for _ in range(2)] == ["float32", "float32"]
    use_product(wide, "bfloat16")
    assert chosen_matmul("auto", wide) == "bfloat16"
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: False)
    assert chosen_matmul("auto", nn.ModuleDict({"wide": nn.Linear(module._LEAST_FEATURES, 4)})) == "float32"


def test_the_trial_measures_both_and_leaves_the_threads(two_threads: None) -> None:
    assert module._gain() > 0
    assert torch.get_num_threads() == 2


def test_what_gains_nothing_is_refused(fast_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'fp8' is unknown"):
        check_matmul("fp8", tiny())
    with pytest.raises(UsageError, match="float32 weights on a CPU"):
        check_matmul("bfloat16", tiny().bfloat16())
    check_matmul("float32", tiny().bfloat16())
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: False)
    with pytest.raises(UsageError, match="no instructions"):
        check_matmul("int8", tiny())
    check_matmul("float32", tiny())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, MANY, 24), (2, MANY, 24), (MANY + 5, 24)])
def test_many_rows_without_mkl_equal_linear(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, states = nn.Linear(24, 7, bias=bias), torch.randn(*shape)
    layer = RowLinear(linear)
    layer.avoids_mkl = True
    with torch.no_grad():
        torch.testing.assert_close(layer(states), linear(states), atol=1e-5, rtol=1e-5)


def test_gradients_pass_through_many_rows() -> None:
    layer, states = RowLinear(nn.Linear(24, 7)), torch.randn(MANY, 24, requires_grad=True)
    layer.avoids_mkl = True
    layer(states).sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad[0], layer.weight.detach().sum(0))


def test_an_older_torch_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not module.has_fast_bfloat16()
