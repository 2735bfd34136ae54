"""Which model a loaded one is: the shape and the stored weights, not how they are held."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from uncomp_cli.errors import UsageError
from uncomp_cli.models.catalog import show_model
from uncomp_cli.models.conversion import file_sha256
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import fingerprint, fingerprint_of
from uncomp_cli.uncertainty.profile import ModelFingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))


def found(directory: Path, **settings: str) -> ModelFingerprint:
    return fingerprint(load_model(str(directory), device="cpu", **settings))


def test_the_fields_are_those_of_the_files(tiny_model: Path) -> None:
    sha256 = file_sha256(tiny_model / "model.safetensors")
    assert found(tiny_model) == ModelFingerprint(str(tiny_model), "llama", 4, 4, 2, 16, sha256)


def test_another_dtype_an_extended_context_and_another_place_are_the_same_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    mine = found(tiny_model)
    mine.check(found(tiny_model, dtype="bfloat16"))
    mine.check(found(tiny_model, rope="yarn:4"))
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert found(copy).name != mine.name
    mine.check(found(copy))


def test_other_weights_of_the_same_shape_are_another_model_and_both_hashes_are_named(
    tiny_model: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(tiny_model, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + torch.tensor(1e-3)
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    mine, other = found(tiny_model), found(changed)
    with pytest.raises(UsageError) as caught:
        mine.check(other)
    assert mine.weights_sha256 in caught.value.message
    assert other.weights_sha256 in caught.value.message


def test_a_model_that_is_not_loaded_has_the_same_fingerprint(tiny_model: Path) -> None:
    spec = footprint(tiny_model, dtype="float16", device=torch.device("cpu"), quantize="none", rope=None).spec
    assert fingerprint_of(show_model(str(tiny_model)), spec) == found(tiny_model)
