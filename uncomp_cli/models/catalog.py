"""Which model a name means, whether it is here, and what is known about it.

A name is the built-in alias, that of a known model, an entry of `uncomp model list`, a directory in Hugging Face
format, a .gguf file or a hub id, in this order. No torch is imported until a model is converted, so that listing stays
quick.
"""

import difflib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.errors import ModelError, UncompError, UsageError
from uncomp_cli.models.conversion import read_manifest, weights_sha256
from uncomp_cli.models.downloads import LICENCE, list_hub, remove_hub
from uncomp_cli.models.known import known_models
from uncomp_cli.models.shape import class_names, dtype_name, spec_from_config, stored_dtype
from uncomp_cli.models.sources import (
    Converted,
    Directory,
    GgufFile,
    Hub,
    Source,
    cache_dir,
    converted,
    hash_memo,
    hub_dir,
    models_dir,
)
from uncomp_cli.schema import inside, load_bytes
from uncomp_cli.steps import PullStep

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model on this machine. `kv_bytes_per_token` and `dtype` are those of the stored weights.

    `size_bytes` are those of all its files; `outside` are weights that are not in its directory.
    """

    name: str
    path: Path
    source: str
    sha256: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    trained_length: int
    kv_bytes_per_token: int
    dtype: str
    licence: str | None
    size_bytes: int
    outside: tuple[str, ...] = ()


def known_names() -> list[str]:
    """Names that need no path: the built-in alias, and what is in the cache directory."""
    return list(dict.fromkeys([DEFAULT_MODEL, *(path.name for path in converted()), *list_hub(hub_dir())]))


def resolve(name: str) -> Source:
    """The source that a name means. Raises UsageError for a name that means nothing."""
    path = Path(name).expanduser()
    if name == DEFAULT_MODEL or name in known_models() or (models_dir() / name) in converted():
        return Converted(models_dir() / name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return GgufFile(path)
    if path.is_dir():
        return directory(path, name)
    if HUB_ID.fullmatch(name) and not name.startswith((".", "~")) and path.suffix.lower() != ".gguf":
        return Hub(name)
    close = difflib.get_close_matches(name, [*known_names(), *known_models()], n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"no model {name!r}: no known name, directory, .gguf file or hub id{meant}", hint="uncomp model list --known"
    )


def directory(path: Path, name: str) -> Directory:
    """A local directory. Raises UsageError when it holds no model."""
    if not (path / "config.json").is_file():
        raise UsageError(f"directory {name!r} has no config.json, so it is no model", hint="uncomp model list")
    return Directory(path)


def local_path(name: str) -> Path | None:
    """The directory to load the model from, or None when it has to be pulled first."""
    return resolve(name).local()


def ensure_local(name: str, *, offline: bool = False, tokenizer_dir: Path | None = None) -> Iterator[PullStep]:
    """Make the model ready to load, yielding progress; nothing when it is. `tokenizer_dir` stands in for its tokenizer.

    Raises UsageError for an unknown name (at once), ModelError when it cannot be had.
    """
    return resolve(name).pull(offline=offline, needs_tokenizer=tokenizer_dir is None)


def list_models() -> list[ModelInfo]:
    """The models in the cache directory. Those that cannot be read are left out."""
    found = []
    for name in known_names():
        try:
            found.append(show_model(name))
        except (UncompError, OSError):
            continue
    return found


def show_model(name: str) -> ModelInfo:
    """What is known about a model on this machine. Raises ModelError when it is not here or has no usable config."""
    path = local_path(name)
    if path is None:
        raise ModelError(f"model {name} is not on this machine", hint=f"uncomp model pull {name}")
    config = read_config(path)
    note = read_manifest(path)
    dtype = dtype_name(stored_dtype(config))
    spec = spec_from_config(config, dtype)
    outside = [each for each in (note.files if note else ()) if Path(each.path).is_absolute()]
    within = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return ModelInfo(
        name=name,
        path=path,
        source=note.source if note else source_of(name),
        sha256=note.sha256 if note else weights_sha256(path, hash_memo()),
        architecture=next(iter(class_names(config)), spec.model_type),
        layers=spec.num_layers,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        trained_length=spec.trained_length,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        dtype=dtype,
        licence=note.licence if note else LICENCE if name == DEFAULT_MODEL else None,
        size_bytes=within + sum(each.size_bytes for each in outside),
        outside=tuple(each.path for each in outside),
    )


def source_of(name: str) -> str:
    """Where a model without a note comes from."""
    return "directory" if Path(name).expanduser().is_dir() else "hub"


def read_config(path: Path) -> SimpleNamespace:
    """config.json as a namespace. Raises ModelError when it cannot be read."""
    file, hint = path / "config.json", "remove the model and pull again"
    with inside(str(file), hint=hint, kind=ModelError):
        text = load_bytes(file)
    try:
        config = json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=hint) from error
    if not isinstance(config, SimpleNamespace):
        raise ModelError(f"{file} is not an object", hint=hint)
    return config


def remove_model(name: str) -> list[str]:
    """Remove a model from the cache directory; weights that lie elsewhere stay, and are returned.

    Raises ModelError when it is not there, or not ours to remove.
    """
    source = resolve(name)
    if isinstance(source, Hub) and remove_hub(name, hub_dir()):
        return []
    path = models_dir() / name if isinstance(source, Converted) else source.local()
    if path is None or not path.is_dir() or path.parent != models_dir():
        raise ModelError(f"model {name} is not in the cache directory {cache_dir()}", hint="uncomp model list")
    note = read_manifest(path)
    shutil.rmtree(path)
    return [each.path for each in (note.files if note else ()) if Path(each.path).is_absolute()]
