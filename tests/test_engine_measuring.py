"""From a layer's tensors to a measure: against slow oracles, and the same however the prompt is divided."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from support.families import tiny, tokens
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.spend.gauge import LayerMeter, measure_hidden, measure_layer
from uncomp_cli.errors import ModelError
from uncomp_cli.uncertainty.entropy import spectrum, truncated_entropy
from uncomp_cli.uncertainty.mass import minimum_output_budget
from uncomp_cli.uncertainty.measures import ATTENTION_MEASURES, DEFAULT_MEASURES, parse_measure

H, G, S, N, D, SINKS, WINDOW = 4, 2, 60, 12, 8, 4, 6
FREQUENCIES = torch.tensor([1.0, 0.3, 0.05])


def random_view(seed: int = 0, *, questions: int = 1) -> LayerView:
    torch.manual_seed(seed)
    branches = tuple((torch.randn(H, N, D) * 2, torch.randn(G, N, D)) for _ in range(questions))
    context = torch.randn(H, S, D), torch.randn(G, S, D), torch.randn(G, S, D)
    return LayerView(3, *context, branches, Form(0.7), FREQUENCIES)


def measured(key: str, view: LayerView) -> Tensor:
    return measure_layer(parse_measure(key), view, window=WINDOW, sinks=SINKS)


def rows_of(view: LayerView, question: int = 0) -> Tensor:
    """Attention [H, W, S + N] of the last queries of a question, row by row."""
    queries, own = view.branches[question]
    rows = torch.zeros(H, WINDOW, S + N)
    for head in range(H):
        keys = torch.cat([view.keys[head // (H // G)], own[head // (H // G)]])
        for row in range(WINDOW):
            seen = S + N - WINDOW + row + 1
            rows[head, row, :seen] = (keys[:seen] @ queries[head, N - WINDOW + row] * view.scaling).softmax(0)
    return rows


def least(row: Tensor) -> int:
    held, count = 0.0, 0
    for weight in row.sort(descending=True).values.tolist():
        if held >= 0.9 * float(row.sum()):
            break
        held, count = held + weight, count + 1
    return count


@pytest.mark.parametrize("state", ["q", "k", "v"])
def test_entropies_are_those_of_the_contexts_states(state: str) -> None:
    view = random_view()
    states = {"q": view.queries, "k": view.keys, "v": view.values}[state]
    expected = truncated_entropy(spectrum(states), rank=2)
    torch.testing.assert_close(measured(f"entropy/{state}/r1/4", view), expected.float())


@pytest.mark.parametrize(("key", "columns"), [("lmba/raw", slice(0, S + N)), ("lmba/sinkfree", slice(SINKS, S))])
def test_least_budgets_count_tokens_one_by_one(key: str, columns: slice) -> None:
    view = random_view()
    rows = rows_of(view)[..., columns]
    expected = torch.tensor([sum(least(row) for row in head) / WINDOW for head in rows])
    torch.testing.assert_close(measured(key, view), expected)


def test_attention_entropy_is_that_of_the_context_without_sinks() -> None:
    view = random_view()
    rows = rows_of(view)[..., SINKS:S]
    shares = rows / rows.sum(-1, keepdim=True)
    expected = -(shares * shares.log()).sum(-1).mean(-1) / torch.tensor(float(S - SINKS)).log()
    torch.testing.assert_close(measured("attention_entropy", view), expected)


def test_lmbo_takes_every_fourth_row_from_the_last_and_its_own_heads_values() -> None:
    view = random_view()
    rows = rows_of(view)[:, [1, 5], :S]
    expected = torch.stack([minimum_output_budget(rows[h], view.values[h // (H // G)]).mean() for h in range(H)])
    torch.testing.assert_close(measured("lmbo", view), expected)


@pytest.mark.parametrize("key", ATTENTION_MEASURES)
def test_of_several_questions_the_largest_counts(key: str) -> None:
    view = random_view(questions=2)
    alone = [measured(key, replace(view, branches=(branch,))) for branch in view.branches]
    assert not torch.equal(alone[0], alone[1])
    torch.testing.assert_close(measured(key, view), torch.maximum(*alone))


@pytest.mark.parametrize("asked", [3, 8, 11])
@pytest.mark.parametrize("key", ATTENTION_MEASURES)
def test_a_question_that_competes_with_the_context_changes_no_attention(key: str, asked: int) -> None:
    view = random_view()
    ((queries, own),) = view.branches
    opened = replace(
        view,
        queries=torch.cat([view.queries, queries[:, :asked]], dim=1),
        keys=torch.cat([view.keys, own[:, :asked]], dim=1),
        values=torch.cat([view.values, torch.randn(G, asked, D)], dim=1),
        branches=((queries[:, asked:], own[:, asked:]),),
        asked=asked,
    )
    torch.testing.assert_close(measured(key, opened), measured(key, view))


def turned(states: Tensor, first: int) -> Tensor:
    """States as RoPE turns them, the first at position `first`: pair by pair, 2 of the dimensions left alone."""
    out = states.clone()
    for position in range(states.shape[1]):
        for pair, frequency in enumerate(FREQUENCIES.tolist()):
            angle = torch.tensor((first + position) * frequency)
            a, b = states[:, position, pair], states[:, position, pair + 3]
            out[:, position, pair] = a * angle.cos() - b * angle.sin()
            out[:, position, pair + 3] = b * angle.cos() + a * angle.sin()
    return out


@pytest.mark.parametrize("first", [0, 17])
def test_prerope_turns_states_back(first: int) -> None:
    plain = random_view()
    view = replace(plain, queries=turned(plain.queries, first), keys=turned(plain.keys, first))
    for state in ("q", "k"):
        before = measured(f"entropy/{state}/r3", plain)
        assert (measured(f"entropy/{state}/r3", view) - before).abs().max() > 1e-3
        torch.testing.assert_close(measured(f"entropy/{state}/r3/prerope", view), before, atol=1e-5, rtol=0)


def test_states_are_not_turned_back_by_frequencies_that_nobody_knows() -> None:
    with pytest.raises(ModelError, match="layer 3: its rotary embedding") as refusal:
        measured("entropy/q/r1/4/prerope", replace(random_view(), frequencies=None))
    assert "/prerope" in str(refusal.value.hint)


@pytest.mark.parametrize("key", ["entropy/q/r1/4", "lmba/raw", "lmbo", "attention_entropy"])
def test_states_that_are_no_numbers_name_their_layer(key: str) -> None:
    view = random_view()
    view.queries[0, 5, 0] = view.branches[0][0][0, -1, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layer 3: .*not finite"):
        measured(key, view)


@pytest.mark.parametrize("key", ["entropy/hidden/r1/4", "loss"])
def test_what_a_layer_does_not_show_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        measured(key, random_view())


@pytest.mark.parametrize("context", [1, 3])
def test_a_context_shorter_than_its_sinks(context: int) -> None:
    view = random_view()
    cut = [tensor[:, :context] for tensor in (view.queries, view.keys, view.values)]
    view = replace(view, queries=cut[0], keys=cut[1], values=cut[2])
    for key in ATTENTION_MEASURES:
        assert measured(key, view).isfinite().all()


def test_a_meter_gives_what_one_measure_alone_gives() -> None:
    view = random_view()
    meter = LayerMeter(view, window=WINDOW, sinks=SINKS)
    for key in DEFAULT_MEASURES:
        if parse_measure(key).live:
            together, alone = meter.value(parse_measure(key)), measured(key, view)
            assert torch.equal(together, alone)
            assert together.dtype == torch.float32
            assert len(together) == (G if parse_measure(key).state in ("k", "v") else H)


class Plain(AttentionState):
    """Causal attention and nothing else."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        return attend_causal(query[0], key[0], value[0], form)[None]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
def test_layer_inputs_are_what_the_layers_of_the_stock_model_are_given(family: str) -> None:
    stock, decoder, spec = tiny(family)
    given: list[Tensor] = []
    for layer in stock.model.layers:
        layer.register_forward_pre_hook(lambda module, args, kwargs: given.append(args[0]), with_kwargs=True)
    ids = torch.tensor([tokens(20, 1)])
    with torch.no_grad():
        stock(input_ids=ids, use_cache=False)
    inputs: dict[int, Tensor] = {}
    decoder.layer_inputs(ids, torch.arange(20)[None], Plain(), inputs.__setitem__)
    assert list(inputs) == list(range(spec.num_layers))
    assert len(given) == spec.num_layers
    assert not any(layer.training for layer in decoder.model.model.layers)
    for ours, theirs in zip(inputs.values(), given, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert measure_hidden(parse_measure("entropy/hidden/r1/4"), inputs[0][0]).shape == (1,)
