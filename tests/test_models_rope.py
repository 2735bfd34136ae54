"""RoPE extensions: what is parsed, what is refused, and that the engine computes what stock transformers does."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.scoring import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.decode import AppendState
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.prefill import Prefilled, prefill
from uncomp_cli.engine.prompt import Prompt
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.load import load_model
from uncomp_cli.models.rope import ROPE_KINDS, RopeExtension, check_fixed_rope, extend_config, parse_rope

TRAINED, HEAD_DIM, THETA = 64, 16, 10_000.0
SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 99,
    "max_position_embeddings": TRAINED,
}
FACTOR = 2
# What a user of stock transformers would write, by hand.
STOCK = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": THETA},
    "ntk": {"rope_type": "default", "rope_theta": THETA * 2 ** (HEAD_DIM / (HEAD_DIM - 2))},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "rope_theta": THETA, "original_max_position_embeddings": TRAINED},
}
FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "olmo2": Olmo2Config,
    "granite": GraniteConfig,
    "smollm3": SmolLM3Config,
}


# Parsing


@given(kind=st.sampled_from(ROPE_KINDS), hundredths=st.integers(101, 102_400))
def test_kind_and_factor_are_read(kind: str, hundredths: int) -> None:
    factor = hundredths / 100
    assert parse_rope(f" {kind.upper()} : {factor} ") == RopeExtension(kind, factor)


@given(text=st.text() | st.from_regex(r"(linear|ntk|yarn):.{0,6}", fullmatch=True))
def test_any_text_is_an_extension_or_a_usage_error_with_a_hint(text: str) -> None:
    try:
        extension = parse_rope(text)
    except UsageError as error:
        extension = None
        hint = error.hint
    assert hint if extension is None else 1 < extension.factor <= 1024


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("yran:4", "'yran'", "did you mean 'yarn:4'?"),
        ("liner:1.5", "'liner'", "did you mean 'linear:1.5'?"),
        ("yarn", "'yarn'", "did you mean 'yarn:2'?"),
        ("yarn4", "'yarn4'", "did you mean 'yarn:2'?"),
        ("dynamic:2", "'dynamic'", "linear:2, ntk:4 or yarn:4"),
        ("", "''", "linear:2, ntk:4 or yarn:4"),
        ("ntk:1", "factor 1 ", "linear:2, ntk:4 or yarn:4"),
        ("ntk:0.5", r"factor 0\.5", "linear:2, ntk:4 or yarn:4"),
        ("ntk:1025", r"factor 1025", "linear:2, ntk:4 or yarn:4"),
        ("ntk:nan", "'ntk:nan'", "did you mean 'ntk:2'?"),
        ("ntk:inf", "'ntk:inf'", "did you mean 'ntk:2'?"),
        ("ntk:-2", "'ntk:-2'", "did you mean 'ntk:2'?"),
        ("ntk:" + "9" * 400, "factor inf", "linear:2, ntk:4 or yarn:4"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_rope(text)
    assert hint in str(caught.value.hint)


# Configurations


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_is_extended_by_a_copy(family: str, kind: str) -> None:
    config = FAMILIES[family](**SMALL, head_dim=HEAD_DIM, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    before = config.to_dict()
    extended = extend_config(config, RopeExtension(kind, 2.0))
    assert config.to_dict() == before
    assert type(extended) is type(config)
    assert extended.rope_parameters == STOCK[kind]
    assert extended.max_position_embeddings == 2 * TRAINED


def test_ntk_counts_only_the_dimensions_that_rotate() -> None:
    parameters = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}
    config = Phi3Config(**SMALL, pad_token_id=0, rope_parameters=parameters)
    extended = extend_config(config, RopeExtension("ntk", 2.0))
    assert extended.rope_parameters == {**parameters, "rope_theta": pytest.approx(THETA * 2 ** (8 / 6))}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlamaConfig(**SMALL, rope_parameters=LLAMA3), r"already scales its positions \(llama3\)"),
        (LlamaConfig(**SMALL, rope_scaling={"type": "linear", "factor": 2.0}), r"already scales .*\(linear\)"),
        (Gemma3TextConfig(**SMALL), "not supported for gemma3_text models"),
        (GPT2Config(), "no rotary positions"),
    ],
    ids=["llama3", "linear", "gemma3", "gpt2"],
)
def test_configurations_that_are_not_plain_are_refused(config: PretrainedConfig, message: str, kind: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        extend_config(config, RopeExtension(kind, 2.0))
    assert "leave the extension out" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_kind_that_the_family_does_not_know_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f"phi3 models cannot use rope extension '{kind}'") as caught:
        extend_config(Phi3Config(**SMALL, pad_token_id=0), RopeExtension(kind, 2.0))
    assert "ntk:F" in str(caught.value.hint)


# Models whose own positions depend on the length


def namespace(value):
    """A dictionary as `catalog.read_config` reads it."""
    return json.loads(json.dumps(value), object_hook=lambda fields: SimpleNamespace(**fields))


DYNAMIC = {"rope_type": "dynamic", "rope_theta": THETA, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": THETA,
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_type": "default", "rope_theta": THETA}
PER_LAYER = {"sliding_attention": PLAIN, "full_attention": DYNAMIC}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (LlamaConfig(**SMALL, rope_parameters=DYNAMIC), "dynamic"),
        (LlamaConfig(**SMALL, rope_scaling={"type": "dynamic", "factor": 2.0}), "dynamic"),
        (LlamaConfig(**SMALL, rope_parameters=LONGROPE), "longrope"),
        (Gemma3TextConfig(**SMALL, head_dim=HEAD_DIM, rope_parameters=PER_LAYER), "dynamic"),
        (SimpleNamespace(rope_parameters=DYNAMIC), "dynamic"),
        (namespace({"rope_parameters": PER_LAYER}), "dynamic"),
        (namespace({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
        (namespace({"text_config": {"rope_parameters": LONGROPE}}), "longrope"),
        (namespace({"model_type": "phi3", "rope_scaling": {"type": "su"}}), "su"),
        (namespace({"model_type": "phi3", "rope_scaling": {"type": "yarn"}}), "yarn"),
    ],
)
def test_positions_that_depend_on_the_length_are_refused_by_name(config, kind: str) -> None:
    with pytest.raises(ModelError, match=rf"rope_type {kind}\b") as caught:
        check_fixed_rope(config)
    assert "another scaling" in str(caught.value.hint)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        LlamaConfig(**SMALL, rope_parameters=LLAMA3),
        *(LlamaConfig(**SMALL, rope_parameters=dict(parameters)) for parameters in STOCK.values()),
        Phi3Config(**SMALL, pad_token_id=0),
        Gemma3TextConfig(**SMALL),
        GPT2Config(),
        namespace({"model_type": "llama", "rope_scaling": None}),
        namespace({"model_type": "llama", "rope_theta": THETA, "rope_parameters": LLAMA3}),
        namespace({"rope_parameters": STOCK["yarn"]}),
        namespace({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": None}}),
    ],
)
def test_positions_that_are_fixed_pass(config) -> None:
    check_fixed_rope(config)


@pytest.mark.parametrize("rope", [None, "yarn:2"])
@pytest.mark.parametrize("parameters", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_such_a_model_is_refused_before_its_weights_are_loaded(model_dir, monkeypatch, parameters, rope) -> None:
    LlamaConfig(**SMALL, rope_parameters=dict(parameters)).save_pretrained(model_dir)
    monkeypatch.setattr("uncomp_cli.models.load.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ModelError, match=parameters["rope_type"]):
        load_model(str(model_dir), device="cpu", rope=rope)
    with pytest.raises(ModelError, match=parameters["rope_type"]):
        footprint(model_dir, dtype="auto", device=torch.device("cpu"), quantize="none", rope=rope)


# Loading, and parity with stock transformers


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    """A small Llama whose random weights are large enough that its attention depends on positions."""
    monkeypatch.setattr("uncomp_cli.models.load.load_tokenizer", lambda path: None)
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, initializer_range=0.2, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def stock_logits(model_dir, kind: str | None, ids: torch.Tensor) -> torch.Tensor:
    """Logits [S, vocab] of stock transformers with parameters written by hand."""
    weights = LlamaForCausalLM.from_pretrained(model_dir).state_dict()
    parameters = {"rope_type": "default", "rope_theta": THETA} if kind is None else STOCK[kind]
    config = LlamaConfig(**{**SMALL, "max_position_embeddings": FACTOR * TRAINED}, rope_parameters=dict(parameters))
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(ids[None]).logits[0]


def read(decoder: Decoder, ids: torch.Tensor) -> Prefilled:
    """Prefill `ids` with a plan that keeps everything; the last 8 tokens are the question."""
    tokens = tuple(ids.tolist())
    prompt = Prompt(tokens[:-8], (tokens[-8:],), protected=torch.zeros(len(tokens) - 8, dtype=torch.bool))
    spec = decoder.spec
    plan = BudgetPlan(len(tokens), ((len(tokens),) * spec.num_kv_heads,) * spec.num_layers)
    config = ScorerConfig()
    steps = prefill(decoder, [prompt], [plan], scorer=make_scorer(config), config=config)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("length", [TRAINED, FACTOR * TRAINED])
def test_the_engine_equals_stock_transformers(model_dir, kind: str, length: int) -> None:
    ids = torch.randint(99, (length,), generator=torch.Generator().manual_seed(length))
    loaded = load_model(str(model_dir), device="cpu", rope=f"{kind}:{FACTOR}")
    assert loaded.spec.trained_length == FACTOR * TRAINED
    assert loaded.model.config.rope_parameters == STOCK[kind]
    logits = read(Decoder(loaded.model, loaded.spec), ids).logits[0]
    torch.testing.assert_close(logits, stock_logits(model_dir, kind, ids)[-1], atol=1e-4, rtol=1e-4)
    assert (logits - stock_logits(model_dir, None, ids)[-1]).abs().max() > 0.1, "the extension changes nothing"


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_cached_keys_stay_valid_across_the_trained_length(model_dir, kind: str) -> None:
    ids = torch.randint(99, (TRAINED + 8,), generator=torch.Generator().manual_seed(1))
    loaded = load_model(str(model_dir), device="cpu", rope=f"{kind}:{FACTOR}")
    decoder = Decoder(loaded.model, loaded.spec)
    prefilled = read(decoder, ids[: TRAINED - 8])
    prefilled.begin_question()
    expected = stock_logits(model_dir, kind, ids)
    for at in range(TRAINED - 8, TRAINED + 8):
        positions = torch.tensor([[at]])
        logits = decoder.forward(ids[None, at : at + 1], positions, AppendState(prefilled.cache, positions), 1)
        torch.testing.assert_close(logits[0, 0], expected[at], atol=1e-4, rtol=1e-4)


def test_without_an_extension_nothing_changes(model_dir) -> None:
    loaded = load_model(str(model_dir), device="cpu")
    assert loaded.spec.trained_length == TRAINED
    assert loaded.model.config.rope_parameters == {"rope_type": "default", "rope_theta": THETA}


def test_extensions_that_cannot_be_used_are_usage_errors_when_loading(model_dir) -> None:
    with pytest.raises(UsageError, match="'yran'"):
        load_model(str(model_dir), rope="yran:2")
    config = LlamaConfig(**SMALL, rope_parameters=LLAMA3)
    config.save_pretrained(model_dir)
    with pytest.raises(UsageError, match="already scales"):
        load_model(str(model_dir), rope="yarn:2")
