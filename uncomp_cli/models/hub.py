"""Models of the Hugging Face hub, by id `org/name`.

What is fetched goes to `hub/` in our cache directory, so that `model list` and `model remove` own it; a copy in the
user's Hugging Face cache is used where it lies. Only safetensors, configuration and tokenizer files are fetched, and
no code is ever run from a repository.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from uncomp_cli.errors import ModelError
from uncomp_cli.models.download import last_error, running, watch
from uncomp_cli.steps import PullStep

__all__ = ["hub_path", "list_hub", "pull_hub", "remove_hub"]

FETCH = """
import json, sys
from huggingface_hub import snapshot_download
model_id, cache, wanted, unwanted = sys.argv[1:]
snapshot_download(model_id, cache_dir=cache, allow_patterns=json.loads(wanted), ignore_patterns=json.loads(unwanted))
"""
MARK = "uncomp.complete"
WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
UNWANTED = ["*/*", "consolidated*.safetensors"]


def hub_path(model_id: str, cache: Path) -> Path | None:
    """The local snapshot of a model, in our cache or in the user's Hugging Face cache; None when there is none."""
    ours = snapshot(model_id, cache) if (repository(model_id, cache) / MARK).exists() else None
    return ours or snapshot(model_id, None)


def snapshot(model_id: str, cache: Path | None) -> Path | None:
    """The snapshot in one cache, if it has a configuration and all its weights; None means the user's cache."""
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(model_id, cache_dir=cache, local_files_only=True))
        return found if (found / "config.json").exists() and has_all_weights(found) else None
    except (OSError, ValueError, KeyError):  # not there, not a valid id, or an index that cannot be read
        return None


def has_all_weights(directory: Path) -> bool:
    """Whether the one safetensors file, or every file that the index names, is there."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return any(directory.glob("*.safetensors"))
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((directory / name).exists() for name in names)


def pull_hub(model_id: str, cache: Path, *, offline: bool) -> Iterator[PullStep]:
    """Fetch a model unless it is here, yielding bytes that have arrived. Raises ModelError when it cannot be had."""
    if hub_path(model_id, cache) is not None:
        return
    if offline:
        hint = f"run once with the network: uncomp model pull {model_id}"
        raise ModelError(f"model {model_id} is not on this machine, and --offline was given", hint=hint)
    yield from download(model_id, cache)
    if snapshot(model_id, cache) is None:
        remove_hub(model_id, cache)
        raise ModelError(f"{model_id} has no config.json with *.safetensors weights", hint="choose another model")
    (repository(model_id, cache) / MARK).touch()


def download(model_id: str, cache: Path) -> Iterator[PullStep]:
    """Fetch what a model needs; files that are there already are kept, and half files are resumed."""
    yield PullStep("download", 0, None)
    command = [sys.executable, "-c", FETCH, model_id, str(cache), json.dumps(WANTED), json.dumps(UNWANTED)]
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "hub.log"
        with running(command, Path(scratch), log) as process:
            for arrived in watch(process, repository(model_id, cache)):
                yield PullStep("download", arrived, None)
        if process.returncode:
            hint = "check the id and the network, or name a model directory or GGUF file: --model PATH"
            raise ModelError(f"cannot fetch {model_id} from the hub: {last_error(log)}", hint=hint)


def repository(model_id: str, cache: Path) -> Path:
    """The directory of a model in a hub cache."""
    return cache / f"models--{model_id.replace('/', '--')}"


def list_hub(cache: Path) -> list[str]:
    """Ids of the models in our hub cache."""
    names = sorted(path.name.removeprefix("models--") for path in cache.glob("models--*--*"))
    return [name.replace("--", "/", 1) for name in names]


def remove_hub(model_id: str, cache: Path) -> bool:
    """Remove a model from our hub cache; False when it is not there."""
    path = repository(model_id, cache)
    if not path.is_dir():
        return False
    shutil.rmtree(path)
    return True
