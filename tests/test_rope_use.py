"""A choice of RoPE made true: what may be read then, what `auto` takes, what is refused, and what a regime guards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from support.rope import LONG, SMALL, STOCK, TRAINED, text
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.engine.context.growth import Growth
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.spend.memory import check_context, context_bytes
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.models.extension import LONGEST, RopeChoice, parse_rope
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.rotary import HeldRope, resolve_rope, use_rope
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("without_tokenizer")


@pytest.fixture
def loaded(plain_rope: Path) -> LoadedModel:
    return load_model(str(plain_rope), device="cpu")


def length_on_disk(path: Path, choice: RopeChoice | None) -> int:
    """What may be read, told by the files alone."""
    spec = footprint(path, dtype="auto", device=torch.device("cpu"), quantize="none", rope=choice).spec
    return spec.trained_length


@pytest.mark.parametrize(
    ("rope", "context", "length", "state"),
    [
        ("plain", None, LONGEST, "plain"),
        ("plain", "1k", 1024, "plain"),
        ("plain", "8", TRAINED, "plain"),
        ("repack", None, LONGEST, "repack"),
        ("repack", "1k", 1024, "repack"),
        (None, "1k", 1024, "auto"),
        ("yarn:4", None, LONG, "yarn:4"),
        ("yarn:4", "200", 200, "yarn:4"),
        ("yarn", "200", 200, "yarn:3.125"),
        ("yarn", "60", TRAINED, "trained"),
        ("dynamic:3", None, 3 * TRAINED, "dynamic:3"),
        ("longrope", "100", 100, "longrope:1.5625"),
    ],
)
def test_how_far_is_read(plain_rope: Path, rope: str | None, context: str | None, length: int, state: str) -> None:
    choice = parse_rope(rope, context=context)
    loaded = load_model(str(plain_rope), device="cpu", rope=choice)
    assert (loaded.spec.trained_length, str(loaded.rope)) == (length, state)
    assert loaded.rope.repacks == (rope == "repack") == (loaded.rope.reach is not None)
    assert (loaded.info.trained_length, loaded.rope.replaced) == (TRAINED, None)
    assert length_on_disk(plain_rope, choice) == length


@pytest.mark.parametrize(
    ("rope", "state", "reach"), [("repack", "repack", 16), ("repack:2", "repack:2", 32), ("reread", "reread", 16)]
)
def test_how_far_apart_re_packed_text_is_read(plain_rope: Path, rope: str, state: str, reach: int) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope=rope)
    assert (str(loaded.rope), loaded.rope.reach, loaded.rope.factor) == (state, reach, TRAINED / reach)
    assert loaded.rope.reread_tokens == (TRAINED // 8 if rope == "reread" else None)
    turned = use_rope(loaded, parse_rope("repack:1.5"))
    assert (str(turned.rope), turned.rope.reach) == ("repack:1.5", 42)
    assert use_rope(loaded, parse_rope("plain")).rope.reach is None


# auto


@pytest.mark.parametrize(
    ("tokens", "grows", "state", "length", "word"),
    [
        (TRAINED, False, "trained", TRAINED, "as trained"),
        (TRAINED + 1, False, "reread", LONGEST, "--rope reread"),
        (TRAINED, True, "trained", TRAINED, "as trained"),
        (TRAINED + 1, True, "yarn:2", 2 * TRAINED, "a text that grows cannot be re-packed"),
    ],
)
def test_auto_takes_what_the_text_needs(
    loaded: LoadedModel, tokens: int, grows: bool, state: str, length: int, word: str
) -> None:
    chosen, note = resolve_rope(loaded, parse_rope("auto"), tokens=tokens, grows=grows)
    assert (str(chosen.rope), chosen.spec.trained_length) == (state, length)
    assert note is not None
    assert word in note


def test_auto_keeps_a_context_free_for_what_grows(loaded: LoadedModel) -> None:
    choice = parse_rope(None, context="200")
    assert str(resolve_rope(loaded, choice, tokens=10, grows=True)[0].rope) == "yarn:4"
    assert str(resolve_rope(loaded, choice, tokens=10)[0].rope) == "trained"


def test_auto_is_yarn_where_a_shipped_scaling_depends_on_the_length(tmp_path: Path) -> None:
    parameters, trained = STOCK["dynamic:4"]
    config = LlamaConfig(**SMALL, max_position_embeddings=trained, rope_parameters=dict(parameters))
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu", rope="auto")
    assert str(resolve_rope(loaded, RopeChoice("auto"), tokens=LONG)[0].rope) == "trained"
    chosen, note = resolve_rope(loaded, RopeChoice("auto"), tokens=LONG + 1)
    assert (str(chosen.rope), chosen.rope.replaced) == ("yarn:5", "dynamic:4")
    assert "cannot be re-packed" in str(note)
    with pytest.raises(UsageError, match="cannot be re-packed") as caught:
        use_rope(chosen, RopeChoice("repack"))
    assert "--rope yarn" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["dynamic:4", "longrope:4"])
def test_plain_ends_where_a_shipped_scaling_that_depends_on_the_length_does(tmp_path: Path, kind: str) -> None:
    parameters, trained = STOCK[kind]
    config = LlamaConfig(**SMALL, max_position_embeddings=trained, rope_parameters=dict(parameters))
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu", rope=RopeChoice("plain", None, LONG))
    assert (str(loaded.rope), loaded.spec.trained_length) == ("plain", LONG)
    ends = f"its {kind[:-2]} RoPE ends at {LONG} tokens"
    for choice in (RopeChoice("plain"), RopeChoice("plain", None, LONG + 1)):
        with pytest.raises(UsageError, match=ends) as caught:
            use_rope(loaded, choice)
        assert "no larger context is possible" in str(caught.value.hint)
        assert "--rope auto or yarn" in str(caught.value.hint)


def test_any_other_choice_stays_as_it_was_loaded(plain_rope: Path) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope="ntk:2")
    assert resolve_rope(loaded, parse_rope("ntk:2"), tokens=9_999) == (loaded, None)


def test_layers_that_turn_differently_are_refused_and_left_alone(tmp_path: Path) -> None:
    own = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "max_position_embeddings": TRAINED}
    Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **own)).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    before = dict(loaded.model.config.rope_parameters)
    for rope in ("yarn:2", "repack"):
        with pytest.raises(UsageError, match="gemma3_text"):
            use_rope(loaded, parse_rope(rope))
    assert loaded.model.config.rope_parameters == before
    decoder = Decoder(use_rope(loaded, parse_rope("plain")).model, loaded.spec)
    assert not decoder.fix_regime(9)
    assert decoder.regime_tokens is None


# Regimes


@pytest.mark.parametrize(
    ("rope", "chosen"),
    [
        ("dynamic:4", {1: 64, 64: 64, 65: 128, 128: 128, 129: 256, 9999: 256}),
        ("dynamic:3", {1: 64, 65: 128, 129: 192, 9999: 192}),
        ("longrope:4", {1: 64, 64: 64, 65: 256, 9999: 256}),
        ("yarn:4", {1: None, 9999: None}),
    ],
)
def test_the_smallest_regime_that_holds_the_text(plain_rope: Path, rope: str, chosen: dict[int, int | None]) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope=rope)
    decoder = Decoder(loaded.model, loaded.spec)
    for tokens, regime in chosen.items():
        before = decoder.regime_tokens
        assert decoder.fix_regime(tokens) == (regime != before)
        assert decoder.regime_tokens == regime
    decoder.fix_regime(1)
    decoder.fix_regime(None)
    assert decoder.regime_tokens == list(chosen.values())[-1]


def test_a_position_past_the_regime_is_an_error(plain_rope: Path) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope="dynamic:4")
    decoder = Decoder(loaded.model, loaded.spec)
    decoder.fix_regime(TRAINED)
    rotary = loaded.model.model.rotary_emb
    assert isinstance(rotary, HeldRope)
    rotary(torch.zeros(1), torch.tensor([[TRAINED - 1]]))
    with pytest.raises(RuntimeError, match="position 64 is outside the dynamic regime of 64 tokens"):
        rotary(torch.zeros(1), torch.tensor([[3, TRAINED]]))


def grow(kept: Growth, length: int) -> torch.Tensor:
    steps = kept.extend(Tokens.of(text(LONG).tolist()[:length]))
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def test_a_text_that_outgrows_its_regime_is_read_again(plain_rope: Path) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope="dynamic:4")
    decoder = Decoder(loaded.model, loaded.spec)
    kept = Growth(decoder, replace(load_preset("full"), name="all"))
    kept.answer_tokens = 10
    seen: list[tuple[int | None, bool]] = []
    grown = {}
    for length in (30, 50, 60, 90, 40):  # at last what comes behind token 39 is said anew
        cache = kept.cache
        grown[length] = grow(kept, length)
        seen.append((decoder.regime_tokens, kept.cache is cache))
        decoder.fix_regime(None)  # someone else reads with this model, and what is held is still turned as it was
    assert seen == [(64, False), (64, True), (128, False), (128, True), (128, True)]
    anew = Growth(decoder, kept.preset)
    anew.answer_tokens = 10
    torch.testing.assert_close(grow(anew, 90), grown[90], atol=1e-4, rtol=0)


def test_a_text_of_which_nobody_knows_what_follows_is_read_for_the_longest(plain_rope: Path) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope="dynamic:4")
    decoder = Decoder(loaded.model, loaded.spec)
    decoder.fix_regime(1)
    grow(Growth(decoder, load_preset("full")), 20)
    assert decoder.regime_tokens == LONG


# Memory


def preset_of(**changes: Any) -> Preset:
    return replace(load_preset("full"), **changes)


def test_a_context_larger_than_memory_is_refused_with_both_sizes(loaded: LoadedModel) -> None:
    spec: ModelSpec = replace(loaded.spec, trained_length=LONGEST)
    full = spec.full_kv_bytes(LONGEST)
    check_context(spec, preset_of(), context=None, available=0)
    check_context(spec, preset_of(), context=LONGEST, available=full)
    with pytest.raises(
        DoesNotFitError, match=f"needs {full / 2**20:,.0f} MiB of KV cache under --budget full"
    ) as caught:
        check_context(spec, preset_of(), context=LONGEST, available=full - 1)
    assert "--budget" in str(caught.value.hint)
    check_context(spec, preset_of(), context=LONGEST, available=full // 1000, held_tokens=TRAINED)


@pytest.mark.parametrize(
    ("budget", "share"),
    [("full", 1.0), ("10%", 0.1), ("auto", 0.0), ("100", 100 / 1000), ("5000", 1.0), ("1KiB", None)],
)
def test_what_a_context_keeps(loaded: LoadedModel, budget: str, share: float | None) -> None:
    expected = 1024 if share is None else share * loaded.spec.full_kv_bytes(1000)
    policy = "full" if budget == "full" else "uniform"
    assert context_bytes(loaded.spec, preset_of(budget=budget, policy=policy), 1000) == expected
