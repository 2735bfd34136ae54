"""Models of strangers: code that lies beside them never runs, and what cannot be run is refused by name."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import uncomp_cli
from uncomp_cli.cli.app import run
from uncomp_cli.errors import ModelError, failure_of
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("x")
class Evil: pass
EvilConfig = LlamaConfig = LlamaForCausalLM = Evil
"""
DAMAGED = "model.layers.2.mlp.up_proj.weight"
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def change(file: Path, **fields: Any) -> None:
    """Set fields of a configuration, which may not be there yet."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **fields}))


def config_wants_code(model: Path) -> None:
    change(model / "config.json", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"})


def scaled_config_wants_code(model: Path) -> None:
    change(model / "config.json", auto_map={"AutoConfig": "evil.EvilConfig"}, rope_parameters=DYNAMIC)


def unknown_config_wants_code(model: Path) -> None:
    change(model / "config.json", auto_map={"AutoConfig": "other/place--evil.EvilConfig"}, model_type="evil")


def tokenizer_wants_code(model: Path) -> None:
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def tokenizer_alone_wants_code(model: Path) -> None:
    tokenizer_wants_code(model)
    (model / "tokenizer.json").unlink()


def old_tokenizer_wants_code(model: Path) -> None:
    change(model / "tokenizer_config.json", auto_map=["evil.Evil", None])


def processor_wants_code(model: Path) -> None:
    change(model / "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"})


def nested_config_wants_code(model: Path) -> None:
    change(model / "config.json", extra={"deep": [{"auto_map": {"AutoModel": "evil.Evil"}}]})


HOSTILE = [
    config_wants_code, scaled_config_wants_code, unknown_config_wants_code, tokenizer_wants_code,
    tokenizer_alone_wants_code, old_tokenizer_wants_code, processor_wants_code, nested_config_wants_code,
]  # fmt: skip


@pytest.fixture
def hostile(copied_model: Path) -> Path:
    (copied_model / "evil.py").write_text(EVIL)
    return copied_model


def ran(model: Path) -> bool:
    """Whether the code has run, or been made ready to."""
    return (model / "ran").exists() or any(name.endswith(".evil") or name == "evil" for name in sys.modules)


@pytest.mark.parametrize("plant", HOSTILE)
def test_code_of_a_model_never_runs(hostile: Path, plant: Callable[[Path], None], monkeypatch: Any) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    plant(hostile)
    works: list[Callable[[], object]] = [
        lambda: load_model(str(hostile)),
        lambda: footprint(hostile, dtype="auto", device=torch.device("cpu"), quantize="none"),
        lambda: load_tokenizer(hostile),
    ]
    for work in works:
        with pytest.raises(ModelError, match=r"code of its own.*evil\.Evil") as caught:
            work()
        assert "--model" in str(caught.value.hint) or "--tokenizer" in str(caught.value.hint)
    assert not ran(hostile)


@pytest.mark.parametrize("options", [[], ["--offline"], ["--rope", "dynamic:2"], ["--dry-run"]], ids=" ".join)
@pytest.mark.parametrize("plant", [scaled_config_wants_code, tokenizer_alone_wants_code])
def test_a_command_refuses_it_in_two_lines(
    hostile: Path, plant: Callable[[Path], None], options: list[str], capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    plant(hostile)
    (hostile / "notes.txt").write_text("The harbour was quiet.")
    assert run(["ask", "-m", str(hostile), "-f", str(hostile / "notes.txt"), *options, "Where?"]) == 1
    error, hint = capfd.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert str(hostile) in error
    assert hint.startswith("hint: ")
    assert not ran(hostile)


def test_the_tokenizer_of_another_directory_is_no_way_in(hostile: Path, tiny_model: Path) -> None:
    tokenizer_alone_wants_code(hostile)
    with pytest.raises(ModelError, match="code of its own"):
        load_model(str(tiny_model), tokenizer_dir=hostile)
    assert not ran(hostile)


def test_classes_that_transformers_has_are_its_own(copied_model: Path) -> None:
    """As in models that were there before transformers knew their family."""
    names = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    change(copied_model / "config.json", auto_map=names)
    (copied_model / "configuration_llama.py").write_text(EVIL)
    (copied_model / "modeling_llama.py").write_text(EVIL)
    assert load_model(str(copied_model)).spec.model_type == "llama"
    assert not ran(copied_model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_too_large_to_be_one_is_refused_before_it_is_read(copied_model: Path, name: str) -> None:
    os.truncate(copied_model / name, 2**29)
    with pytest.raises(ModelError, match=rf"{name} has (more than|536,870,912 bytes)"):
        load_model(str(copied_model))


@pytest.mark.parametrize(
    "name",
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors", "b.safetensors"],
)
def test_a_pipe_among_the_files_of_a_model_is_not_waited_for(copied_model: Path, name: str) -> None:
    (copied_model / name).unlink(missing_ok=True)
    os.mkfifo(copied_model / name)
    with pytest.raises(ModelError, match=f"{name} is not a regular file"):
        load_tokenizer(copied_model)
    with pytest.raises(ModelError, match=f"{name} is not a regular file"):
        footprint(copied_model, dtype="auto", device=torch.device("cpu"), quantize="none")


@pytest.mark.parametrize("stops", [["2"], "2", {}, [[2]], True])
def test_what_ends_an_answer_are_numbers(copied_model: Path, stops: object) -> None:
    change(copied_model / "generation_config.json", eos_token_id=stops)
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is"):
        load_model(str(copied_model))


def test_labels_do_not_fill_the_memory(copied_model: Path) -> None:
    change(copied_model / "config.json", num_labels=10**9)
    with pytest.raises(ModelError, match="num_labels is 1000000000"):
        load_model(str(copied_model))


def test_the_longest_text_of_a_tokenizer_is_a_number(copied_model: Path) -> None:
    change(copied_model / "tokenizer_config.json", model_max_length="x")
    with pytest.raises(ModelError, match="model_max_length is 'x'"):
        load_tokenizer(copied_model)


def test_a_link_to_nothing_beside_a_model_is_none_of_its_files(copied_model: Path) -> None:
    (copied_model / "loop.json").symlink_to("loop.json")
    load_tokenizer(copied_model)


def test_one_module_alone_lets_transformers_read() -> None:
    root = Path(uncomp_cli.__file__).parent
    loaders = ("from_pretrained(", "AutoModelForCausalLM.from_config(", "AutoConfig.", "trust_remote_code")
    files = (file for file in root.rglob("*.py") if file.name != "checkpoint.py")
    assert [file.name for file in files if any(loader in file.read_text() for loader in loaders)] == []
    text = (root / "models" / "checkpoint.py").read_text()
    assert text.count("trust_remote_code=False") == text.count("trust_remote_code") >= 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "invented"}}, "invented"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"bits": 4}}, "without a name"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
def test_weights_that_are_stored_quantized_are_refused_by_method(
    copied_model: Path, fields: dict[str, Any], named: str
) -> None:
    change(copied_model / "config.json", **fields)
    works: list[Callable[[], object]] = [
        lambda: load_model(str(copied_model)),
        lambda: load_model(str(copied_model), quantize="nf4"),
        lambda: footprint(copied_model, dtype="auto", device=torch.device("cpu"), quantize="none"),
    ]
    for work in works:
        with pytest.raises(ModelError, match=named) as caught:
            work()
        assert "damaged" not in str(caught.value.hint)
        assert "--quantize" in str(caught.value.hint)


def changed_weights(model: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(model / "model.safetensors")
    weights[DAMAGED] = change(weights[DAMAGED])
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_weights_of_integers_are_no_numbers(copied_model: Path) -> None:
    """Codes of a quantization that no configuration names."""
    changed_weights(copied_model, lambda weight: (weight * 10).to(torch.int8))
    with pytest.raises(ModelError, match=f"weights of type I8, such as {re.escape(DAMAGED)}"):
        load_model(str(copied_model))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("policy", ["uniform", "uncertain"])
@pytest.mark.parametrize("sampling", [[], ["--temperature", "1"]], ids=["greedy", "sampled"])
def test_weights_that_are_no_numbers_give_no_answer(
    copied_model: Path, value: float, policy: str, sampling: list[str], capfd: Any
) -> None:
    changed_weights(copied_model, lambda weight: weight.fill_(value))
    (copied_model / "notes.txt").write_text("The harbour was quiet. " * 40)
    options = ["-m", str(copied_model), "-f", str(copied_model / "notes.txt"), "-b", "20%", *sampling]
    assert run(["ask", *options, "--policy", policy, "--scorer", "window", "Where?"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "not finite" in err
    assert "fetch the model anew" in err.splitlines()[-1]


def test_a_tokenizer_that_makes_its_library_panic_is_damaged(copied_model: Path) -> None:
    """A panic of Rust is no Exception."""
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    change(copied_model / "tokenizer.json", normalizer=normalizer)
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(copied_model)


def test_the_name_of_a_tokenizer_on_the_network_is_no_directory() -> None:
    with pytest.raises(ModelError, match="no directory 'org/x'"):
        load_tokenizer(Path("org/x"))


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),
        RuntimeError("unable to mmap 269 bytes from file <x>: Cannot allocate memory (12)"),
        MemoryError(),
    ],
)
def test_little_memory_is_told_with_its_sizes(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (300 * 2**20, 300 * 2**20))
    failure = failure_of(error)
    assert failure.exit_code == 4
    assert "ulimit -v allows 300" in failure.message


@pytest.mark.parametrize("limit_kib", [300_000, 450_000, 600_000])
def test_a_small_address_space_ends_as_out_of_memory(tiny_model: Path, tmp_path: Path, limit_kib: int) -> None:
    (tmp_path / "notes.txt").write_text("The harbour was quiet.")
    asked = [sys.executable, "-m", "uncomp_cli", "ask", "-m", str(tiny_model), "-f", "notes.txt", "Where?"]
    limited = ["bash", "-c", f'ulimit -v {limit_kib}; exec "$@"', "_", *asked]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr
    assert "MiB" in done.stderr.splitlines()[-2]
    assert done.stderr.splitlines()[-1].startswith("hint: ")


def test_too_few_descriptors_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (8, 8))
    failure = failure_of(OSError(24, "Too many open files"))
    assert failure.message == "Too many open files (ulimit -n allows 8)"
    assert failure.hint is not None
    assert "ulimit -n" in failure.hint
