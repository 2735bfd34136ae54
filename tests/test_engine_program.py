"""A decode step in one call is the step of the model's own modules: every family, ragged heads, storages, threads."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from support.families import DECODED, FAMILIES, VOCAB, decode, full_plan, make_prompt, read, shared_tiny, tiny, tokens
from support.native import levels
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import RowLinear, ShortEmbedding, use_product
from uncomp_cli.engine.forward.program import make_program
from uncomp_cli.kernels.library import STEP_ROWS
from uncomp_cli.spec import ModelSpec


@pytest.fixture
def by_program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a decoder the program of a level, or, for None, leave it to torch."""

    def give(decoder: Decoder, level: Any, threads: int = 2) -> None:
        program = None if level is None else make_program(decoder.model, decoder.spec, level, threads=threads)
        assert (program is None) == (level is None)
        monkeypatch.setattr(decoder, "_program", program)

    return give


def ragged(spec: ModelSpec, lengths: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> RaggedKVCache:
    """A cache of one row whose heads have these lengths, turned by one from layer to layer."""
    noise = torch.Generator().manual_seed(seed)
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    for layer in range(spec.num_layers):
        turned = [lengths[(layer + head) % len(lengths)] for head in range(spec.num_kv_heads)]
        pairs = [torch.randn(2, length, spec.head_dim, generator=noise).to(dtype) for length in turned]
        cache.store(layer, [(keys, values, torch.arange(len(keys))) for keys, values in pairs])
    return cache


class Rounded(AppendState):
    """Puts the new token behind a cache of float32 numbers as one of another type would hold it; never a program's."""

    def __init__(self, cache: RaggedKVCache, positions: Tensor, dtype: torch.dtype) -> None:
        super().__init__(cache, positions)
        self._dtype = dtype

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        return super().attend(layer, query, *(new.to(self._dtype).float() for new in (key, value)), form)

    def opened(self) -> None:
        return None


def step(decoder: Decoder, cache: RaggedKVCache, token: int, position: int, **told: Any) -> Tensor:
    at = torch.tensor([[position]])
    return decoder.forward(torch.tensor([[token]]), at, AppendState(cache, at, **told), 1)


def entries(cache: RaggedKVCache) -> Iterator[tuple[Tensor, ...]]:
    for index in range(len(cache.layers)):
        layer = cache.layer(index)
        yield from (layer.head(i) for i in range(len(layer.lengths)))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gemma2", "gpt_oss")])
def test_every_family_says_the_same_32_tokens(family: str, by_program: Any) -> None:
    """All but those that cap their scores, or have experts."""
    _, decoder, spec = tiny(family)
    by_program(decoder, None)
    expected, logits = written(decoder, ragged(spec, [3, 70, 1, 131]))
    for level, threads in zip(levels(), (4, 1, 2) if family == "llama" else (1, 1, 2), strict=False):
        by_program(decoder, level, threads)
        said, ours = written(decoder, ragged(spec, [3, 70, 1, 131]))
        assert said == expected
        torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)


def written(decoder: Decoder, cache: RaggedKVCache) -> tuple[list[int], Tensor]:
    """32 tokens, each the likeliest, and the logits that they were taken from."""
    said, logits = [5], []
    for position in range(150, 182):
        logits.append(step(decoder, cache, said[-1], position)[0, 0])
        said.append(int(logits[-1].argmax()))
    return said, torch.stack(logits)


@given(
    st.sampled_from(["llama", "llama-bias", "gemma3_text", "mistral-sliding"]),
    st.lists(st.integers(0, 300), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_heads_of_all_lengths_in_all_storages(family: str, lengths: list[int], dtype: torch.dtype, seed: int) -> None:
    """Of numbers in 16 bits the step sees what is stored, as torch does with their float32 copies."""
    _, decoder, spec = shared_tiny(family)
    for level in levels():
        program = make_program(decoder.model, spec, level)
        assert program is not None
        cache, wide = ragged(spec, lengths, dtype, seed), ragged(spec, lengths, dtype, seed)
        for layer in wide.layers:
            assert layer is not None
            layer.keys, layer.values = layer.keys.float(), layer.values.float()
        at = torch.tensor([[301]])
        found = program.run(torch.tensor([[7]]), AppendState(cache, at))
        expected = decoder.forward(torch.tensor([[7]]), at, Rounded(wide, at, dtype), 1)
        assert found is not None
        # A number of the new token that lies between two of 16 bits may be rounded to the other one.
        torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.float32 else 1e-2, rtol=0)
        precision = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
        for ours, theirs in zip(entries(cache), entries(wide), strict=True):
            torch.testing.assert_close(ours[0].float(), theirs[0], atol=precision, rtol=precision)
            torch.testing.assert_close(ours[1].float(), theirs[1], atol=precision, rtol=precision)
            assert torch.equal(ours[2], theirs[2])


@given(
    st.sampled_from(["llama", "qwen3-sliding", "gemma3_text"]),
    st.sampled_from([8, 4]),
    st.lists(st.integers(0, 150), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_heads_in_fewer_bits_are_read_where_they_lie(family: str, bits: int, lengths: list[int], turns: int) -> None:
    """Scales of their own for blocks of any size, a tail behind them that grows, windows over both."""
    _, decoder, spec = shared_tiny(family)
    caches = []
    for _ in range(2):
        cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads, kv_bits=bits)
        for index, layer in enumerate(ragged(spec, lengths).layers):
            assert layer is not None
            cache.store(index, [layer.head(i) for i in range(len(layer.lengths))])
            kept = [torch.arange(len(head[2]))[::2] for head in map(cache.layer(index).head, range(spec.num_kv_heads))]
            cache.retain(index, kept, reserve=turns // 2)
        caches.append(cache)
    for level in levels():
        program = make_program(decoder.model, spec, level, threads=1 + turns % 3)
        assert program is not None
        for turn in range(turns):
            at = torch.tensor([[400 + turn]])
            found = program.run(torch.tensor([[9 + turn]]), AppendState(caches[0], at))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decoder, "_program", None)
                expected = step(decoder, caches[1], 9 + turn, 400 + turn)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_both_ways_may_alternate_over_one_cache(by_program: Any) -> None:
    _, decoder, spec = tiny("llama")
    mixed, plain = ragged(spec, [5, 40]), ragged(spec, [5, 40])
    for at, token in enumerate(tokens(24, 3)):
        by_program(decoder, None)
        expected = step(decoder, plain, token, 50 + at)
        by_program(decoder, levels()[-1] if at % 3 else None)
        torch.testing.assert_close(step(decoder, mixed, token, 50 + at), expected, atol=1e-4, rtol=0)
        if at == 7:
            for cache in (mixed, plain):
                cache.forget_from(52)
        if at == 15:
            for cache in (mixed, plain):
                cache.relabel(torch.arange(200, dtype=torch.int32) * 2)
    for ours, theirs in zip(entries(mixed), entries(plain), strict=True):
        assert torch.equal(ours[2], theirs[2])


def test_observers_are_told_each_layer_as_by_torch(by_program: Any) -> None:
    _, decoder, spec = tiny("qwen3")
    told: dict[bool, list[tuple[int, Tensor, float]]] = {True: [], False: []}
    layers: dict[bool, list[int]] = {True: [], False: []}
    for native, seen in told.items():
        by_program(decoder, levels()[-1] if native else None)
        cache = ragged(spec, [9, 4])

        def observe(layer: int, query: Tensor, form: Form, seen: Any = seen) -> None:
            seen.append((layer, query, form.scaling))

        step(decoder, cache, 8, 30, on_query=observe, on_layer=layers[native].append)
    assert layers[True] == layers[False] == list(range(spec.num_layers))
    for (layer, query, scaling), (other, expected, other_scaling) in zip(told[True], told[False], strict=True):
        assert (layer, scaling) == (other, other_scaling)
        torch.testing.assert_close(query, expected, atol=1e-5, rtol=0)


@given(
    st.sampled_from(["llama", "gemma3_text", "mistral-sliding", "olmo2", "phi3"]),
    st.sampled_from([torch.float32, torch.float16]),
    st.lists(st.integers(0, 150), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_several_rows_are_each_its_own(
    family: str, dtype: torch.dtype, lengths: list[int], strands: int, new: int, threads: int
) -> None:
    """Tokens that follow each other behind each of several caches, against one after the other, row by row."""
    _, decoder, spec = shared_tiny(family)
    ids = torch.tensor([tokens(new, 7 + strand) for strand in range(strands)])
    at, bound = (torch.arange(new) + 160).expand(strands, new), 1e-4 if dtype == torch.float32 else 1e-2
    for level in levels():
        program = make_program(decoder.model, spec, level, threads=threads)
        assert program is not None
        apart = [ragged(spec, lengths, dtype, seed=strand) for strand in range(strands)]
        together = RaggedKVCache.stack(apart, reserve=0) if strands > 1 else ragged(spec, lengths, dtype, seed=0)
        told: list[Tensor] = []

        def tell(layer: int, query: Tensor, form: Form, told: list[Tensor] = told) -> None:
            told.append(query)

        found = program.run(ids, AppendState(together, at, on_query=tell), last=new)
        assert found is not None
        for strand, cache in enumerate(apart):
            for index in range(new):
                here, seen = at[strand : strand + 1, index : index + 1], list[Tensor]()

                def see(layer: int, query: Tensor, form: Form, seen: list[Tensor] = seen) -> None:
                    seen.append(query)

                token = ids[strand : strand + 1, index : index + 1]
                expected = program.run(token, AppendState(cache, here, on_query=see))
                assert expected is not None
                # A number of 16 bits that lies between two may be rounded to the other one.
                torch.testing.assert_close(found[strand, index], expected[0, 0], atol=bound, rtol=0)
                for ours, theirs in zip(told, seen, strict=True):
                    torch.testing.assert_close(ours[strand, :, index], theirs[0, :, 0], atol=bound, rtol=0)
        ours = list(entries(together))
        for theirs in [head for layer in range(spec.num_layers) for one in apart for head in _heads(one, layer)]:
            mine = ours.pop(0)
            torch.testing.assert_close(mine[0], theirs[0], atol=1e-5 if dtype == torch.float32 else 2e-3, rtol=1e-2)
            assert torch.equal(mine[2], theirs[2])


def _heads(cache: RaggedKVCache, layer: int) -> list[tuple[Tensor, ...]]:
    held = cache.layer(layer)
    return [held.head(i) for i in range(len(held.lengths))]


def test_what_it_cannot_read_is_left_to_torch() -> None:
    _, decoder, spec = shared_tiny("llama")
    program, at, token = make_program(decoder.model, spec, levels()[-1]), torch.tensor([[9]]), torch.tensor([[5]])
    assert program is not None
    empty = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    assert program.run(token, AppendState(empty, at)) is None
    for said in (torch.tensor([[VOCAB]]), torch.tensor([[-1]]), token.expand(1, 2), token.expand(2, 1)):
        cache = ragged(spec, [9])
        assert program.run(said, AppendState(cache, at)) is None
        assert {len(head[2]) for head in entries(cache)} == {9}
    many = torch.full((1, STEP_ROWS + 1), 5)
    assert program.run(many, AppendState(ragged(spec, [9]), torch.arange(STEP_ROWS + 1)[None] + 9)) is None


def test_what_it_cannot_say_has_no_program() -> None:
    _, decoder, spec = tiny("llama")
    level = levels()[-1]
    assert make_program(decoder.model, spec, None) is None
    assert make_program(decoder.model, replace(spec, model_type="cohere"), level) is None  # not proven
    assert make_program(decoder.model, replace(spec, hidden_size=spec.hidden_size + 1), level) is None
    model: Any = decoder.model
    model.config.hidden_act = "relu"
    assert make_program(decoder.model, spec, level) is None
    model.config.hidden_act = "silu"
    attention, norm = model.model.layers[1].self_attn, model.model.layers[1].input_layernorm
    attention.gate = nn.Linear(2, 2)  # which its forward might ask
    assert make_program(decoder.model, spec, level) is None
    del attention.gate
    attention.sinks = nn.Parameter(torch.zeros(4))
    assert make_program(decoder.model, spec, level) is None
    del attention.sinks
    model.model.layers[1].input_layernorm = nn.LayerNorm(spec.hidden_size, bias=False)
    assert make_program(decoder.model, spec, level) is None
    model.model.layers[1].input_layernorm = norm
    assert make_program(decoder.model, spec, level) is not None
    model.model.layers[2].self_attn.k_proj = nn.Identity()
    assert make_program(decoder.model, spec, level) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_are_numbers_of_16_bits_are_held_so(dtype: torch.dtype) -> None:
    """Half the bytes, the same logits: read in one pass, and written."""
    stock, other, spec = tiny("llama")
    for model in (stock, other.model):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()
    library, before = levels()[-1], matrix_bytes(other.model)
    use_product(other.model, library=library)
    decoder = Decoder(other.model, spec)
    assert matrix_bytes(decoder.model) * 2 == before
    assert decoder.model.dtype == torch.float32
    prompt, forced = make_prompt(20, [3]), torch.tensor([tokens(DECODED, 4)])
    expected = Decoder(stock, replace(spec))
    expected._program = None
    _, wanted = read(expected, prompt, full_plan(spec, prompt))
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    torch.testing.assert_close(done.questions.logits, wanted.questions.logits, atol=1e-4, rtol=0)
    ours, theirs = decode(decoder, done, forced), decode(expected, wanted, forced)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def matrix_bytes(model: nn.Module) -> int:
    """Bytes of all weight matrices, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.dim() == 2)


def test_shared_weights_stay_shared_and_others_stay_as_they_are() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["other"], model["fine"] = nn.Linear(4, 4), nn.Linear(4, 4)
    model["head"].weight = model["embedding"].weight
    for name in ("embedding", "other"):
        model[name].weight.data = model[name].weight.data.half().float()
    ids, row = torch.tensor([[1, 5]]), torch.randn(1, 4)
    with torch.no_grad():
        expected = model["embedding"](ids), model["head"](row), model["fine"](row)
        use_product(model, library=levels()[-1])
        found = model["embedding"](ids), model["head"](row), model["fine"](row)
    assert isinstance(model["embedding"], ShortEmbedding)
    assert model["head"].weight is model["embedding"].weight
    assert [model[name].weight.dtype for name in ("head", "other", "fine")] == [torch.float16] * 2 + [torch.float32]
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_gradients_pass_a_layer_of_16_bits() -> None:
    linear = nn.Linear(8, 5)
    linear.weight.data = linear.weight.data.half().float()
    model = nn.ModuleDict({"layer": linear})
    use_product(model, library=levels()[-1])
    states, expected = torch.randn(1, 8, requires_grad=True), linear.weight.detach().sum(0)
    assert isinstance(model["layer"], RowLinear)
    assert model["layer"].weight.dtype == torch.float16
    model["layer"](states).sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad[0], expected)
