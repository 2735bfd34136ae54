"""Every way of turning positions, kept in full, is stock transformers configured by hand, at 1, 2 and 4 times trained.

A kind whose frequencies depend on the length is compared with the stock model over a whole text of T tokens, which is
what the engine holds its frequencies to.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from support.families import assert_same, decode, full_plan, read
from support.rope import FACTOR, LONG, ORIGINAL, PLAIN, SMALL, STOCK, THETA, TRAINED, text
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.models.extension import parse_rope
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.rotary import use_rope
from uncomp_cli.models.runnable import LoadedModel

pytestmark = pytest.mark.usefixtures("without_tokenizer")

ANSWER, QUESTION = 8, 12
LENGTHS = [TRAINED, 2 * TRAINED, LONG]


@cache
def stock_model(plain_rope: Path, kind: str) -> PreTrainedModel:
    parameters, length = STOCK[kind]
    config = LlamaConfig(**SMALL, max_position_embeddings=length, rope_parameters=dict(parameters))
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(LlamaForCausalLM.from_pretrained(plain_rope).state_dict())
    return model


@torch.no_grad()
def stock_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [S, vocab] of a whole text of S tokens in one pass, by a copy: dynamic remembers the longest so far."""
    logits: Tensor = copy.deepcopy(model)(ids[None], use_cache=False).logits[0]
    return logits


def prompt_of(ids: Tensor) -> Prompt:
    """All of a text but its answer; the last tokens before that are the question."""
    asked = tuple(ids[:-ANSWER].tolist())
    return Prompt(Tokens.of(asked[:-QUESTION]), (asked[-QUESTION:],))


def assert_is_stock(decoder: Decoder, done: Context, ids: Tensor, expected: Tensor) -> None:
    """What follows the prompt, and every token of the answer, is predicted as the stock model does."""
    assert_same(done.questions.logits[0], expected[len(ids) - ANSWER - 1])
    assert_same(decode(decoder, done, ids[None, -ANSWER:])[0], expected[len(ids) - ANSWER :])


def check(loaded: LoadedModel, kind: str, length: int, stock: PreTrainedModel) -> None:
    ids = text(length)
    decoder, prompt, expected = Decoder(loaded.model, loaded.spec), prompt_of(ids), stock_logits(stock, ids)
    decoder.fix_regime(length)
    _, done = read(decoder, prompt, full_plan(loaded.spec, prompt))
    assert_is_stock(decoder, done, ids, expected)
    _, chunked = read(decoder, prompt, full_plan(loaded.spec, prompt), chunk=23)
    assert_is_stock(decoder, chunked, ids, expected)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", STOCK)
def test_loaded_so_it_is_the_stock_model(plain_rope: Path, kind: str, length: int) -> None:
    loaded = load_model(str(plain_rope), device="cpu", rope=kind)
    assert loaded.info.trained_length == TRAINED
    assert loaded.spec.trained_length >= LONG
    check(loaded, kind, length, stock_model(plain_rope, kind))


@pytest.fixture(scope="module")
def running(plain_rope: Path) -> LoadedModel:
    """One model whose positions are turned now this way, now that."""
    return load_model(str(plain_rope), device="cpu")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", STOCK)
def test_changed_at_run_time_it_is_the_stock_model(
    plain_rope: Path, running: LoadedModel, kind: str, length: int
) -> None:
    loaded = use_rope(running, parse_rope(kind))
    assert loaded.model is running.model
    assert str(loaded.rope) == kind
    check(loaded, kind, length, stock_model(plain_rope, kind))


def test_as_trained_again(plain_rope: Path, running: LoadedModel) -> None:
    for kind in STOCK:
        again = use_rope(use_rope(running, parse_rope(kind)), None)
        assert (again.spec, str(again.rope)) == (running.spec, "trained")
        check(again, "plain", TRAINED, stock_model(plain_rope, "plain"))


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("kind", [kind for kind in STOCK if kind != "plain"])
def test_no_kind_is_plain_past_the_trained_length(plain_rope: Path, kind: str, length: int) -> None:
    ids = text(length)
    apart = stock_logits(stock_model(plain_rope, kind), ids) - stock_logits(stock_model(plain_rope, "plain"), ids)
    assert apart[-1].abs().max() > 0.1


@pytest.mark.parametrize("kind", ["dynamic:4", "longrope:4"])
def test_a_shorter_text_is_read_in_the_regime_that_holds_it(plain_rope: Path, kind: str) -> None:
    """Stock transformers computes these frequencies for the whole of it; here for the first tokens alone, too."""
    loaded = load_model(str(plain_rope), device="cpu", rope=kind)
    decoder, ids = Decoder(loaded.model, loaded.spec), text(2 * TRAINED)
    whole = stock_logits(stock_model(plain_rope, kind), ids)
    decoder.fix_regime(TRAINED + 1)
    for length in (ANSWER + QUESTION + 2, TRAINED, 100):
        prompt = prompt_of(ids[:length])
        _, done = read(decoder, prompt, full_plan(loaded.spec, prompt))
        assert_is_stock(decoder, done, ids[:length], whole[:length])


# Models that ship a scaling of their own


@pytest.mark.sparse(1)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["dynamic:4", "yarn:4", "llama3:4", "longrope:4"])
def test_a_scaling_that_the_model_ships_is_run_as_stock(
    plain_rope: Path, tmp_path: Path, kind: str, length: int
) -> None:
    stock_model(plain_rope, kind).save_pretrained(tmp_path / "shipped")
    loaded = load_model(str(tmp_path / "shipped"), device="cpu")
    assert (str(loaded.rope), loaded.spec.trained_length) == ("trained", LONG)
    check(loaded, kind, length, stock_model(plain_rope, kind))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("shipped", ["dynamic:4", "yarn:4", "llama3:4", "longrope:4"])
@pytest.mark.parametrize("kind", ["ntk:4", "yarn:4", "dynamic:4"])
def test_a_shipped_scaling_is_replaced_from_the_length_before_it(
    plain_rope: Path, tmp_path: Path, shipped: str, kind: str
) -> None:
    stock_model(plain_rope, shipped).save_pretrained(tmp_path / "shipped")
    loaded = load_model(str(tmp_path / "shipped"), device="cpu", rope=kind)
    assert loaded.rope.replaced == shipped
    assert loaded.spec.trained_length == LONG
    check(loaded, kind, 2 * TRAINED, stock_model(plain_rope, kind))


# Another family, of which only a part of each head is turned


def partial(rope: dict[str, Any]) -> Phi3Config:
    """A plain one leaves its own original_max_position_embeddings, 4,096, as it is."""
    longrope = {"max_position_embeddings": LONG, "original_max_position_embeddings": TRAINED}
    own = longrope if rope["rope_type"] == "longrope" else {"max_position_embeddings": TRAINED}
    return Phi3Config(**SMALL, **own, rope_parameters={"partial_rotary_factor": 0.5, **rope})


@pytest.mark.sparse(1)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("at_load", [True, False])
@pytest.mark.parametrize("kind", ["ntk:4", "longrope:4"])
def test_phi3_turns_a_part_of_each_head(tmp_path: Path, kind: str, at_load: bool, length: int) -> None:
    torch.manual_seed(0)
    plain = Phi3ForCausalLM(partial(PLAIN)).eval()
    plain.save_pretrained(tmp_path / "phi3")
    pairs, exponent = 4, 8 / 6
    by_hand: dict[str, dict[str, Any]] = {
        "ntk:4": {**PLAIN, "rope_theta": THETA * FACTOR**exponent},
        "longrope:4": {
            "rope_type": "longrope",
            **ORIGINAL,
            "short_factor": [1.0] * pairs,
            "long_factor": [FACTOR ** (pair / 3) for pair in range(pairs)],
        },
    }
    stock = Phi3ForCausalLM(partial(by_hand[kind])).eval()
    stock.load_state_dict(plain.state_dict())
    loaded = load_model(str(tmp_path / "phi3"), device="cpu", rope=kind if at_load else None)
    loaded = loaded if at_load else use_rope(loaded, parse_rope(kind))
    check(loaded, kind, length, stock)
