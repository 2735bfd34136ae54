"""Weights in blocks of 32 made at load: what they are, how far off, in how much memory, beside which other options."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from torch import nn

from support.commands import last_object, start
from support.gguf_files import tiny_llama, write_gguf
from uncomp_cli.asking import startup
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.errors import ModelError, OutOfMemoryError, UsageError
from uncomp_cli.kernels.library import Kind, find
from uncomp_cli.kernels.pages import Pages
from uncomp_cli.models import catalog
from uncomp_cli.models.footprint import footprint, narrower
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.weights.bits import Loss, held
from uncomp_cli.models.weights.modules import BlockEmbedding, BlockLinear

IDS = torch.arange(40)[None]
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
LOST = {"bfloat16": (1e-3, 3e-3), "q8": (3e-3, 8e-3), "q4": (5e-2, 9e-2)}
FAMILIES = {
    "Llama": {},
    "Qwen2": {"tie_word_embeddings": False},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Phi3": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path):
    """Makes the folder of a tiny model of a family, with the tokenizer of another."""

    def made(family: str = "Llama", dtype: torch.dtype = torch.float32, **more: object) -> Path:
        path = tmp_path / family.lower()
        tiny_llama(family, **WIDE, **FAMILIES[family], **more).to(dtype).save_pretrained(path)
        for file in tiny_model.glob("token*"):
            shutil.copy(file, path)
        return path

    return made


def logits(model: nn.Module) -> torch.Tensor:
    """Of the last of some tokens."""
    with torch.no_grad():
        return model(IDS).logits[0, -1]


def options(**more: object) -> dict[str, object]:
    """How a footprint is told to load."""
    return {"dtype": "auto", "device": torch.device("cpu"), "quantize": "none", **more}


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1])
@pytest.mark.parametrize("library", [find(), None], ids=["library", "torch"])
def test_blocks_are_nearer_than_ggufs_own_and_read_as_a_files(kind: Kind, library: object) -> None:
    chance, named = torch.Generator().manual_seed(0), gguf.GGMLQuantizationType[kind.name]
    numbers = torch.randn(48, 96, generator=chance) * torch.logspace(-3, 3, 48)[:, None]
    loss = Loss()
    matrix = held("it", numbers, kind, library, Pages(), loss)
    again = matrix.numbers(library)
    error = float((again - numbers).norm() / numbers.norm())
    assert loss.worst == ("it", pytest.approx(error, rel=1e-3))
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(numbers.numpy(), named), named))
    assert error <= float((theirs - numbers).norm() / numbers.norm()) * 1.001


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1])
def test_blocks_of_one_number_are_that_number(kind: Kind) -> None:
    numbers = torch.tensor([0.0, 1.0, -0.5, 2.0**-10]).repeat_interleave(32).view(2, 64)
    found = held("it", numbers, kind, None, Pages()).numbers(None)
    torch.testing.assert_close(found, numbers, rtol=1e-3, atol=0)


def test_numbers_that_no_scale_reaches_are_refused() -> None:
    with pytest.raises(ModelError, match="it cannot be held as Q4_1"):
        held("it", torch.full((1, 32), 1e30), Kind.Q4_1, None, Pages())


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["bfloat16", "q8", "q4"])
def test_a_model_of_blocks_computes_what_their_numbers_compute(folder, family: str, weights: str) -> None:
    """And is as large as was said beforehand; matrices that are shared stay shared, and all else is left alone."""
    path = folder(family)
    kept, wide = load_model(str(path), device="cpu", weights=weights), load_model(str(path), device="cpu")
    assert kept.quantization == weights
    told = footprint(path, **options(weights=weights)).weights_bytes
    assert kept.weights_bytes == pytest.approx(told, abs=1024)  # frequencies of positions
    assert kept.loss is not None
    low, high = LOST[weights]
    assert low < kept.loss.mean <= kept.loss.worst[1] < high
    layers = dict(kept.model.named_modules())
    assert all(type(layer) is not nn.Linear for layer in layers.values())
    tied = kept.model.lm_head.data.data_ptr() == kept.model.model.embed_tokens.data.data_ptr()
    assert tied == kept.model.config.tie_word_embeddings
    with torch.no_grad():
        for name, layer in wide.model.named_modules():
            if isinstance(layers[name], BlockLinear | BlockEmbedding):
                layer.weight.copy_(layers[name].matrix.numbers(layers[name].library))
    torch.testing.assert_close(logits(kept.model), logits(wide.model), atol=1e-5, rtol=1e-5)


def test_the_step_in_one_call_reads_them(folder) -> None:
    loaded = load_model(str(folder()), device="cpu", weights="q4")
    kinds = {module.matrix.kind for module in loaded.model.modules() if isinstance(module, BlockLinear)}
    assert kinds == {Kind.Q8_0, Kind.Q4_1}  # the logits, and the layers
    assert Decoder(loaded.model, loaded.spec)._program is not None


def test_numbers_of_16_bits_are_the_same_numbers(folder) -> None:
    path = folder(dtype=torch.bfloat16)
    kept, wide = load_model(str(path), device="cpu", weights="bfloat16"), load_model(str(path), device="cpu")
    assert kept.quantization is None  # what is saved opens under both
    assert kept.weights_bytes < 0.6 * wide.weights_bytes
    torch.testing.assert_close(logits(kept.model), logits(wide.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quantize": "nf4"}, "--weights q4 and --quantize nf4 both"),
        ({"dtype": "bfloat16"}, "computes in float32, not in bfloat16"),
        ({"weights": "q5"}, "'q5' are unknown"),
    ],
)
def test_what_contradicts_is_refused(folder, more: dict[str, str], words: str) -> None:
    if "quantize" in more:
        pytest.importorskip("bitsandbytes")
    with pytest.raises(UsageError, match=words):
        load_model(str(folder()), device="cpu", **{"weights": "q4", **more})
    with pytest.raises(UsageError, match=words):
        footprint(Path(folder()), **options(**{"weights": "q4", **more}))


def test_auto_takes_the_widest_that_fits_and_says_so(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder()
    choice, needed = ModelChoice(str(path), device="cpu"), {}
    for weights in ("auto", "bfloat16", "q8", "q4"):
        found = footprint(path, **options(weights=weights))
        needed[weights] = found.weights_bytes + found.passing_bytes
    assert sorted(needed.values(), reverse=True) == list(needed.values())
    for weights, least in needed.items():
        monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device, least=least: least)
        weighed = startup.weigh(choice, path)
        assert weighed.weights == weights
        assert [f"are held as {weights}" in note for note in weighed.notes] == [True] * (weights != "auto")
    monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device: needed["q4"] - 1)
    with pytest.raises(OutOfMemoryError, match="need"):
        startup.weigh(choice, path)
    with pytest.raises(OutOfMemoryError) as caught:
        startup.weigh(ModelChoice(str(path), device="cpu", weights="float32"), path)
    assert "use --weights auto" in str(caught.value.hint)


def test_a_files_blocks_stay_and_its_numbers_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    model, sizes = tiny_llama(hidden_size=64, intermediate_size=96, head_dim=16), {}
    blocks = write_gguf(tmp_path / "blocks.gguf", model, kind=lambda name: "Q8_0")
    floats = write_gguf(tmp_path / "floats.gguf", model, kind=lambda name: "F32")
    for path in (blocks, floats):
        list(catalog.ensure_local(str(path)))
        for weights in ("auto", "float32", "q8", "q4"):
            loaded = load_model(str(path), device="cpu", weights=weights)
            told = footprint(catalog.local_path(str(path)), **options(weights=weights))
            assert loaded.weights_bytes == pytest.approx(told.weights_bytes, abs=1024)
            sizes[path.stem, weights] = loaded.weights_bytes
            stays = path is blocks and weights in ("q8", "q4")
            assert [f"--weights {weights} is for those" in note for note in loaded.notes] == [True] * stays
            assert (loaded.loss is None) == (path is blocks or weights not in ("q8", "q4"))
    assert sizes["blocks", "auto"] == sizes["blocks", "q4"] < 0.4 * sizes["blocks", "float32"]
    assert sizes["floats", "auto"] == pytest.approx(sizes["floats", "float32"], abs=1024)
    assert sizes["floats", "q4"] < sizes["floats", "q8"] < 0.4 * sizes["floats", "float32"]
    assert narrower(catalog.local_path(str(blocks)), **options()) == ()


def test_ask_reports_the_error_and_opens_no_document_of_other_weights(tiny_model: Path, tmp_path: Path) -> None:
    document, home = tmp_path / "notes.txt", {"UNCOMP_CACHE_DIR": str(tmp_path / "cache")}
    document.write_text("The harbour was quiet and the lamps were lit. " * 20)
    asked = ("ask", "-m", str(tiny_model), "--device", "cpu", "--max-new-tokens", "4", "--cache", "saved")
    code, out, said = start(*asked, "-f", str(document), "--weights", "q8", "--json", "Who?", **home).finish()
    assert code == 0, said
    error = last_object(out)["model"]["weights_error"]
    assert last_object(out)["model"]["quantization"] == "q8"
    assert 0.003 < error["mean"] <= error["worst"] < 0.008
    assert error["worst_matrix"].startswith("model.layers.")
    code, _, said = start(*asked, "Who?", **home).finish()
    assert (code, "the quantization of the weights was q8, not none" in said) == (2, True), said
    code, _, said = start(*asked, "--weights", "q8", "-v", "Who?", **home).finish()
    assert (code, "weights q8, off 0.5 % (worst 0.6)" in said) == (0, True), said


PEAK = """
import json, sys, threading
from uncomp_cli.models.loading import load_model
import uncomp_cli.models.weights.floats

def taken():  # memory of our own: pages of the files are the system's, which takes them when it needs them
    with open("/proc/self/status") as status:
        found = dict(line.split(":") for line in status)
    return 1024 * sum(int(found[key].split()[0]) for key in ("RssAnon", "RssShmem"))

before, most, done = taken(), 0, threading.Event()
def look():
    global most
    while not done.wait(0.002):
        most = max(most, taken())
watch = threading.Thread(target=look)
watch.start()
loaded = load_model(sys.argv[1], device="cpu", weights=sys.argv[2])
done.set()
watch.join()
widest = max(4 * module.num_embeddings * module.embedding_dim for module in [loaded.model.get_input_embeddings()])
print(json.dumps({"more": most - before, "weights": loaded.weights_bytes, "widest": widest}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads how much memory a process has, as Linux says")
@pytest.mark.parametrize("weights", ["q8", "q4"])
def test_loading_takes_the_blocks_and_one_matrix(tiny_model: Path, tmp_path: Path, weights: str) -> None:
    config = transformers.Qwen2Config(
        vocab_size=60_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    for file in tiny_model.glob("token*"):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), weights], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    beside = found["more"] - found["weights"] - found["widest"]
    assert beside < 96 * 2**20, {key: value / 2**20 for key, value in found.items()}
