"""Fixtures that several test modules share."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from support.matrix import thin_out
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.models.catalog import ensure_local, local_path
from uncomp_cli.models.sources import cache_dir

if TYPE_CHECKING:
    from support.commands import Ask, Running
    from support.desk import Desks
    from support.typist import Typist
    from uncomp_cli.models.runnable import LoadedModel


# Inputs with a shape are tried with 25 examples; `make slow`, or --hypothesis-profile thorough, tries 300.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")


def pytest_configure() -> None:
    """One thread: tensors are tiny, so that threads would only wait for each other, and workers share the cores."""
    gc.disable()  # until all is imported and collected, of which next to nothing is garbage
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and so would all that is started here
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process that a test starts compiles the package again
    sys.dont_write_bytecode = False
    state = Path(tempfile.mkdtemp(prefix="uncomp-state-"))  # in which a user was told all that is told once
    (state / "uncomp" / "told").mkdir(parents=True)
    (state / "uncomp" / "told" / "model").touch()
    os.environ["XDG_STATE_HOME"] = str(state)
    os.environ["UNCOMP_CACHE_DIR"] = str(_own_cache(state / "cache"))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background: Ctrl-C is tested all the same
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_cache(folder: Path) -> Path:
    """A cache directory for this session: it begins with what the user's remembers, and has the same models."""
    users = cache_dir()
    (users / "models").mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "models").symlink_to(users / "models")
    for memo in users.glob("*.json"):
        shutil.copy(memo, folder)
    return folder


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before the slow ones are taken out."""
    thin_out(items)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: nobody looks for garbage among its 700,000 objects again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """Nor among what a module leaves for those behind it: imports, caches, models of the session."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, and no settings of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNCOMP_CONFIG", os.devnull)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def ask(request: pytest.FixtureRequest, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> "Ask":
    """Run `uncomp ask` on the tiny model, with what the module's `ASKED` says too."""
    from uncomp_cli.cli.app import run

    def run_ask(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return run(["ask", "-m", str(tiny_model), *request.module.ASKED, *args]), *capsys.readouterr()

    return run_ask


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that says random letters."""
    from support.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copied_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> "LoadedModel":
    """The tiny model, loaded once for all who change nothing of it."""
    from uncomp_cli.models.loading import load_model

    return load_model(str(tiny_model))


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The default model in the cache directory, pulled when it is not there."""
    for _ in ensure_local(DEFAULT_MODEL):
        pass
    path = local_path(DEFAULT_MODEL)
    assert path is not None
    return path


@pytest.fixture(scope="session")
def default_model(default_model_dir: Path) -> "LoadedModel":
    """The default model, loaded once for all who change nothing of it; an engine may have replaced its layers.

    Who compares with the model as transformers loads it loads one of its own.
    """
    from uncomp_cli.models.loading import load_model

    assert default_model_dir.is_dir()
    return load_model(DEFAULT_MODEL, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def small_model(default_model: "LoadedModel") -> "LoadedModel":
    """Random weights behind the default model's tokenizer: for which numbers are compared, not for what they say."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from uncomp_cli.models.shape import spec_from_config

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=default_model.spec.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model, spec = LlamaForCausalLM(config).eval(), spec_from_config(config, "float32")
    return replace(default_model, model=model, spec=spec, own_config=None)


@pytest.fixture(scope="session")
def plain_rope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Llama with plain positions and no tokenizer."""
    from support.rope import make_plain_model

    return make_plain_model(tmp_path_factory.mktemp("plain") / "small")


@pytest.fixture(scope="module")
def without_tokenizer() -> Iterator[None]:
    """Models are loaded without one: token ids are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: None)
        yield


@pytest.fixture
def short_prose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the words to hide facts in, which every command writes and counts anew; whole where a process does."""
    if "long_lived" not in request.fixturenames:
        monkeypatch.setattr("uncomp_cli.evals.tasks.haystack.GENERATED_TOKENS", 6_000)


@pytest.fixture
def long_lived() -> Iterator[list["Running"]]:
    """Processes put in here are gone after the test."""
    running: list[Running] = []
    yield running
    for item in running:
        item.process.kill()


@pytest.fixture
def typists() -> Iterator[list["Typist"]]:
    """Those in here are gone after the test."""
    found: list[Typist] = []
    yield found
    for typist in found:
        typist.process.kill()
        typist.terminal.close()


@pytest.fixture
def desks() -> Iterator["Desks"]:
    """Those in here are gone after the test."""
    from support.desk import Desks

    found = Desks()
    yield found
    for desk in found:
        desk.close()
