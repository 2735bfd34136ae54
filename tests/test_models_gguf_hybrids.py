"""GGUF files of models with layers that carry a state: what they compute is what the original computes."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from support.families import assert_same, decode, full_plan, make_prompt, read, stock_logits, tokens
from support.gguf_files import tiny_llama, write_gguf
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.errors import ModelError
from uncomp_cli.models.catalog import ensure_local
from uncomp_cli.models.loading import LoadedModel, load_model
from uncomp_cli.models.qwen35 import stored_shape

IDS = torch.arange(40)[None]
SHORT = {
    "layer_types": ["conv", "full_attention", "conv"],
    "num_hidden_layers": 3,
    "norm_eps": 1e-3,
    "block_auto_adjust_ff_dim": False,
}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "hidden_size": 64,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))


def short(**more: Any) -> Any:
    """A tiny LFM2, whose every number is random."""
    return shaken(tiny_llama("Lfm2", **{**SHORT, **more}))


def delta(value_heads: int, **more: Any) -> Any:
    turns = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.25}
    turns |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    given = {**DELTA, "linear_num_value_heads": value_heads, "rope_parameters": turns, **more}
    return shaken(tiny_llama("Qwen3_5Text", **given))


def shaken(model: Any) -> Any:
    for each in model.parameters():
        each.requires_grad_(False).add_(torch.randn_like(each), alpha=0.1)
    return model


def of_short(writer: Any) -> None:
    writer.add_shortconv_l_cache(3)


def of_delta(value_heads: int) -> Any:
    def edit(writer: Any) -> None:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_state_size(32)
        writer.add_ssm_group_count(2)
        writer.add_ssm_time_step_rank(value_heads)
        writer.add_ssm_inner_size(32 * value_heads)
        writer.add_full_attention_interval(2)
        writer.add_rope_dimension_sections([2, 1, 1, 0])

    return edit


def pulled(path: Path) -> LoadedModel:
    list(ensure_local(str(path)))
    return load_model(str(path), device="cpu")


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(IDS).logits


def test_short_convolutions(tmp_path: Path) -> None:
    stock = short()
    loaded = pulled(write_gguf(tmp_path / "a.gguf", stock, architecture="lfm2", pre="lfm2", edit=of_short))
    assert loaded.model.config.layer_types == SHORT["layer_types"]
    assert loaded.model.config.norm_eps == pytest.approx(1e-3)
    assert (loaded.spec.attending, loaded.spec.recurrent) == ((1,), (0, 2))
    assert_same(logits(loaded.model), logits(stock))


@pytest.mark.parametrize("value_heads", [2, 4, 6])
def test_the_delta_rule(tmp_path: Path, value_heads: int) -> None:
    """With fewer key heads than value heads too, whose order the file changes."""
    stock = delta(value_heads)
    path = write_gguf(tmp_path / "a.gguf", stock, architecture="qwen35", pre="qwen35", edit=of_delta(value_heads))
    loaded = pulled(path)
    assert loaded.spec.model_type == "qwen3_5_text"
    assert (loaded.spec.attending, loaded.spec.recurrent) == ((1, 3), (0, 2))
    assert_same(logits(loaded.model), logits(stock))


@pytest.mark.parametrize("architecture", ["lfm2", "qwen35"])
def test_documents_are_read_and_answers_written(tmp_path: Path, architecture: str) -> None:
    """In chunks, behind states of the size that a plan counts."""
    stock, edit = (short(), of_short) if architecture == "lfm2" else (delta(4), of_delta(4))
    loaded = pulled(write_gguf(tmp_path / "a.gguf", stock, architecture=architecture, pre=architecture, edit=edit))
    decoder, prompt, forced = Decoder(loaded.model, loaded.spec), make_prompt(40, [3]), tokens(6, 7)
    assert decoder.new_states().nbytes == loaded.spec.state_bytes
    done = read(decoder, prompt, full_plan(loaded.spec, prompt), chunk=13)[1]
    ids = (*prompt.context, *prompt.questions[0])
    expected = stock_logits(stock, ids + forced)
    assert_same(done.questions.logits[0], expected[len(ids) - 1], atol=3e-4)
    assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(ids) :], atol=3e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_stay_what_they_are(tmp_path: Path, kind: str) -> None:
    """Rows are repeated and never made anew: the model over the blocks is that over their numbers."""
    path = write_gguf(
        tmp_path / "a.gguf", delta(4), architecture="qwen35", kind=lambda name: kind if wide(name) else "F32",
        edit=of_delta(4),
    )  # fmt: skip
    kept, numbers = pulled(path), load_model(str(path), device="cpu", widened=True)
    assert kept.weights_bytes < numbers.weights_bytes / 2
    assert_same(logits(kept.model), logits(numbers.model), atol=2e-3 * float(logits(numbers.model).std()))


def wide(name: str) -> bool:
    return name.endswith(".weight") and "conv" not in name


def test_more_layers_than_a_text_has_are_left_out(tmp_path: Path) -> None:
    """Those that guess further tokens lie behind the others."""
    stock = delta(2)

    def edit(writer: Any) -> None:
        of_delta(2)(writer)
        writer.kv_data[0]["qwen35.block_count"] = gguf.GGUFValue(5, gguf.GGUFValueType.UINT32)
        writer.add_nextn_predict_layers(1)

    loaded = pulled(write_gguf(tmp_path / "a.gguf", stock, architecture="qwen35", edit=edit))
    assert_same(logits(loaded.model), logits(stock))


def test_a_file_that_lacks_what_tells_its_shape_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", delta(2), architecture="qwen35")
    with pytest.raises(ModelError, match=r"qwen35\.ssm"):
        pulled(path)


def test_a_shape_that_no_count_of_heads_explains_is_another() -> None:
    config = delta(4).config
    config.linear_num_key_heads = 4
    assert stored_shape(config, "blk.0.attn_qkv.weight", (256, 64), (384, 64)) == (256, 64)
    assert stored_shape(config, "blk.0.attn_qkv.weight", (200, 64), (384, 64)) == (384, 64)
    assert stored_shape(config, "blk.0.ssm_conv1d.weight", (256, 4), (384, 1, 4)) == (256, 4)
    assert stored_shape(config, "blk.0.ffn_up.weight", (1, 64), (64, 64)) == (64, 64)
