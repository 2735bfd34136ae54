"""The eviction loss against finite differences of the likelihood itself, in every way a family attends."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import make_prompt, tiny, tokens
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.attention import AttentionState, attend_after, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.cost import ReadLayer, _Probe, eviction_loss, few_tokens
from uncomp_cli.errors import ModelError, UsageError

READ, KEPT, STEP = 30, 7, 1e-2


class Reading(AttentionState):
    """Exact attention over a prompt; keeps keys and values."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor, int | None]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        self.layers.append((key[0], value[0], form.window))
        return attend_causal(query[0], key[0], value[0], form)[None]


@dataclass
class Nudged(AttentionState):
    """Exact attention of an answer, but that one head and token moves a step towards what its kept tokens give."""

    layers: list[ReadLayer]
    at: tuple[int, int, int]  # layer, KV head, token
    step: float

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        read, heads = self.layers[layer], query.shape[1] // key.shape[1]
        keys, values = torch.cat([read.keys, key[0]], dim=1), torch.cat([read.values, value[0]], dim=1)
        output = attend_after(query[0], keys, values, form)
        at_layer, group, token = self.at
        if at_layer == layer and read.kept is not None:
            seen = [*read.kept[group].tolist(), *range(READ, READ + token + 1)]
            for head in range(group * heads, (group + 1) * heads):
                weights = (keys[group, seen] @ query[0, head, token] * form.scaling).softmax(0)
                output[head, token] += self.step * (weights @ values[group, seen] - output[head, token])
        return output[None]


def read(decoder: Decoder, *, kept: int = KEPT) -> list[ReadLayer]:
    """A prompt that was read, and random tokens of it to keep; none in sliding layers."""
    state = Reading()
    decoder.forward(torch.tensor([tokens(READ, 1)]), torch.arange(READ)[None], state, 1)
    torch.manual_seed(2)
    layers = []
    for keys, values, window in state.layers:
        chosen = torch.stack([torch.randperm(READ)[:kept].sort().values for _ in range(len(keys))])
        layers.append(ReadLayer(keys, values, chosen if window is None else None))
    return layers


def nll(decoder: Decoder, answer: list[int], state: AttentionState) -> float:
    ids = torch.tensor([answer[:-1]])
    logits = decoder.forward(ids, torch.arange(READ, READ + ids.shape[1])[None], state, ids.shape[1])[0]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer[1:])))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", ["llama", "llama-mha", "phi3", "granite", "gemma3_text", "smollm3"])
@pytest.mark.parametrize("length", [2, 4])
def test_losses_are_the_slopes_of_the_likelihood(family: str, length: int) -> None:
    _, decoder, spec = tiny(family)
    model: Any = decoder.model
    model.double()  # norms are float32 in some families all the same: the step is what their rounding allows
    layers, answer = read(decoder), list(tokens(length, 5))
    losses = eviction_loss(decoder, layers, answer)
    assert losses.shape == (spec.num_layers, spec.num_kv_heads)
    expected = torch.zeros(losses.shape)
    for layer in range(spec.num_layers):
        for group in range(spec.num_kv_heads):
            for token in range(length - 1):
                there, back = (
                    nll(decoder, answer, Nudged(layers, (layer, group, token), step)) for step in (STEP, -STEP)
                )
                expected[layer, group] += abs(there - back) / (2 * STEP)
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=1e-4)
    full = [layer.kept is not None for layer in layers]
    assert (losses[full] > 0).all()
    assert (losses[[not one for one in full]] == 0).all()


@pytest.mark.parametrize("family", ["llama", "llama-mha", "granite", "gemma3_text"])
def test_losses_and_their_order_are_those_of_one_way_back_through_the_stock_model(family: str) -> None:
    """Nothing is left away there, and nothing runs twice: its own loss, and gradients of what attention gives."""
    stock, decoder, spec = tiny(family)
    layers, answer = read(decoder), tokens(12, 5)
    given: list[Tensor] = []
    for layer in stock.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    ids = torch.tensor([[*tokens(READ, 1), *answer[:-1]]])
    out = stock(ids, output_attentions=True, use_cache=True)
    torch.nn.functional.cross_entropy(out.logits[0, READ:], torch.tensor(answer[1:])).backward(inputs=given)
    expected = torch.zeros(spec.num_layers, spec.num_kv_heads)
    for index, (layer, weights, at) in enumerate(zip(layers, out.attentions, given, strict=True)):
        if layer.kept is None:
            continue
        shape = ids.shape[1], spec.num_kv_heads, -1, spec.head_dim
        whole, slopes = (each.view(shape)[READ:].permute(1, 2, 0, 3) for each in (at.detach(), at.grad))
        values = out.past_key_values.layers[index].values[0].detach()
        for group, kept in enumerate(layer.kept):
            seen = torch.cat([kept, torch.arange(READ, ids.shape[1])])
            few = weights[0].detach().view(spec.num_kv_heads, -1, *weights.shape[-2:])[group, :, READ:, seen]
            few = few / few.sum(dim=-1, keepdim=True) @ values[group, seen]
            expected[index, group] = (slopes[group] * (few - whole[group])).sum(dim=(0, 2)).abs().sum()
    losses = eviction_loss(decoder, layers, answer)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    assert losses.flatten().argsort().tolist() == expected.flatten().argsort().tolist()


def test_what_keeps_everything_loses_nothing() -> None:
    _, decoder, _ = tiny("llama")
    losses = eviction_loss(decoder, read(decoder, kept=READ), tokens(6, 5))
    assert losses.abs().max() < 1e-6


def test_no_layer_waits_for_the_way_back() -> None:
    """What is recorded is behind the last layer: its norm and the logits."""
    _, decoder, spec = tiny("llama")
    layers, ids, recorded = read(decoder), torch.tensor([tokens(40, 5)]), []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            recorded.append(tensor.numel())
        return tensor

    positions = torch.arange(READ, READ + 40)[None]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = decoder.differentiable(ids, positions, _Probe(layers, States()), 40)
    assert logits.requires_grad
    assert sum(recorded) < 40 * (8 * spec.hidden_size + 4 * spec.vocab_size)


def test_weights_are_left_as_they_were_and_gather_no_gradient() -> None:
    _, decoder, _ = tiny("llama")
    model: Any = decoder.model
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    wanted = [weight.requires_grad for weight in weights]
    assert any(wanted)
    with torch.no_grad():  # as everything else that runs a model
        eviction_loss(decoder, read(decoder), tokens(4, 5))
    assert [weight.requires_grad for weight in weights] == wanted
    assert all(weight.grad is None for weight in weights)


def test_weights_are_left_as_they_were_after_a_failure() -> None:
    _, decoder, _ = tiny("llama")
    model: Any = decoder.model
    layers = read(decoder)
    broken: list[Any] = [None, *layers[1:]]
    wanted = [weight.requires_grad for weight in model.parameters()]
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"layer \d+: the gradient of an answer's loss is not finite"):
        eviction_loss(decoder, layers, tokens(4, 5))
    with pytest.raises(AttributeError):
        eviction_loss(decoder, broken, tokens(4, 5))
    assert [weight.requires_grad for weight in model.parameters()] == wanted


@pytest.mark.parametrize("wall", [[0, 1, 2, 3], [2]])
def test_weights_that_pass_no_gradient_back_are_refused(wall: list[int]) -> None:
    _, decoder, _ = tiny("llama")
    model: Any = decoder.model
    for layer in wall:
        model.model.layers[layer].self_attn.o_proj.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(ModelError, match="pass no gradient back") as refusal:
        eviction_loss(decoder, read(decoder), tokens(4, 5))
    assert "--quantize none" in str(refusal.value.hint)


@pytest.mark.parametrize(("answer", "length"), [((), "0 tokens"), ((5,), "1 token")])
def test_an_answer_without_a_second_token_is_refused(answer: tuple[int, ...], length: str) -> None:
    _, decoder, _ = tiny("llama")
    with pytest.raises(UsageError, match=f"an answer of {length} has none"):
        eviction_loss(decoder, read(decoder), answer)


def random_view(context: int, question: int) -> LayerView:
    torch.manual_seed(4)
    branch = torch.randn(4, question, 8), torch.randn(2, question, 8)
    return LayerView(
        0, torch.randn(4, context, 8), torch.randn(2, context, 8), torch.randn(2, context, 8), (branch,), Form(0.5)
    )


def test_few_tokens_are_the_protected_the_best_and_the_question() -> None:
    prompt = make_prompt(50, [6], protected=3)
    view = random_view(50, 6)
    view.keys[0, 30] = 40 * view.branches[0][0][0].mean(0)  # what the window of the first KV head looks at
    few = few_tokens(view, prompt, keep=9, config=ScorerConfig(width=3, whole_words=False))
    assert few.shape == (2, 3 + 9 + 6)
    assert torch.equal(few, few.sort(dim=1).values)
    for head in few.tolist():
        assert len(set(head)) == len(head)
        assert head[:3] == [0, 1, 2]
        assert head[-6:] == [50, 51, 52, 53, 54, 55]
    assert {29, 30, 31} <= set(few[0].tolist())  # pooled: the neighbours come with it


def test_few_tokens_of_a_short_context_are_all() -> None:
    few = few_tokens(random_view(10, 2), make_prompt(10, [2], protected=4), keep=20, config=ScorerConfig())
    assert few.tolist() == [list(range(12))] * 2


def test_few_tokens_keep_words_whole() -> None:
    prompt = make_prompt(50, [6], words=torch.arange(50) // 5)
    few = few_tokens(random_view(50, 6), prompt, keep=10, config=ScorerConfig(pooling="none", width=1, sinks=0))
    for head in few[:, :10].tolist():
        assert head == [*range(head[0], head[0] + 5), *range(head[5], head[5] + 5)]
