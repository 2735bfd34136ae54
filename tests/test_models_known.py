"""Known models: facts that agree with each other, and how one is fetched, from a server that speaks as the hub does."""

import hashlib
import json
import socket
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.gguf_files import tiny_llama, write_gguf
from uncomp_cli.cli.app import run
from uncomp_cli.engine.spend import fitting
from uncomp_cli.errors import ModelError
from uncomp_cli.models import known, transfer
from uncomp_cli.models.catalog import ensure_local, list_models, local_path, remove_model
from uncomp_cli.models.families import load_families
from uncomp_cli.models.known import known_models
from uncomp_cli.models.loading import load_model

BITS = {"Q8_0": (8.45, 8.55), "Q4_K_M": (4.8, 6.4), "Q4_K_M qwen2.5-0.5b": (7.8, 7.9)}
"""A weight, by kind: embeddings have six bits or eight, some files have them twice, rows of 896 no blocks of 256."""
TOKENIZER_BYTES = 30
"""A token of the vocabulary: its text, kind, and score or merge."""
PUBLISHED = {"qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "mistral-7b": 7_248_023_552}


@pytest.mark.parametrize("alias", known_models())
def test_a_known_model_is_supported_and_as_large_as_its_shape(alias: str) -> None:
    model = known_models()[alias]
    assert model.family in load_families().supported
    assert model.file.endswith(".gguf")
    fewest, most = BITS.get(f"{model.kind} {alias}", BITS[model.kind])
    assert fewest <= 8 * (model.size_bytes - TOKENIZER_BYTES * model.vocab_size) / model.parameters <= most
    assert model.heads % model.kv_heads == 0
    assert model.parameters == pytest.approx(PUBLISHED.get(alias, model.parameters), rel=1e-3)


def test_what_a_document_needs_is_weights_cache_and_a_chunk() -> None:
    """Qwen3 4B: 36 layers of 8 heads of 128 numbers of 4 bytes, twice, of which balanced keeps a fifth."""
    fits = {fit.model.alias: fit for fit in fitting.fitting(2**60)}
    short, long = fits["qwen3-4b"].needed_bytes
    assert short is not None
    assert long is not None
    assert long - short == pytest.approx(0.2 * (32768 - 8192) * 36 * 8 * 128 * 4 * 2, rel=1e-3)
    assert short > 2_497_280_256 + 0.2 * 8192 * 36 * 8 * 128 * 4 * 2
    assert fits["smollm2-1.7b"].needed_bytes[1] is None  # it was trained for 8,192 tokens
    gemma = fits["gemma3-4b"].needed_bytes
    assert gemma[1] - gemma[0] < 0.25 * (long - short)  # five of six layers hold a window alone


def test_the_best_that_fits_comes_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(known_models())
    assert [fit.model.alias for fit in fitting.fitting(2**60)] == names[::-1]
    some = fitting.fitting(1200 * 2**20)
    assert [fit.fits for fit in some] == sorted((fit.fits for fit in some), reverse=True)
    assert fitting.best_known(available=1200 * 2**20) == known_models()["llama3.2-1b"]
    assert fitting.best_known(available=2**20) is None
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1200 * 2**20)
    assert run(["model", "list", "--known"]) == 0
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "NAME"
    assert first.split()[0] == "llama3.2-1b"
    assert "too large" in next(line for line in rest if line.startswith("qwen3-8b"))
    assert run(["model", "list", "--known", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["models"][0]["alias"] == "llama3.2-1b"
    assert record["models"][0]["url"].startswith("https://huggingface.co/bartowski/")


@dataclass
class Hub:
    """What a server has, what it was asked, and how it answers: `faults` are taken one a request."""

    data: bytes = b""
    faults: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, on this machine, with one tiny GGUF, which is known as `tiny`; the download directory is empty."""
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    data = write_gguf(tmp_path / "made.gguf", tiny_llama()).read_bytes()
    state = Hub(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    entry = asdict(known_models()["qwen3-4b"]) | {
        "alias": "tiny", "repository": "org/tiny", "revision": "main", "file": "tiny.gguf", "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "window": 8,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    (tmp_path / "known.toml").write_text("\n".join(["[[model]]", *lines]))
    monkeypatch.setattr(known, "TABLE", tmp_path / "known.toml")
    known_models.cache_clear()
    yield state
    server.shutdown()
    server.server_close()
    known_models.cache_clear()


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Redirects to where the file is, as the hub does, and sends what a Range asks for, unless a fault is due."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                hub.tokens.append(self.headers["Authorization"])
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn")
                self.send_header("X-Linked-Size", str(len(hub.data)))
                self.end_headers()
                return
            hub.tokens.append(self.headers["Authorization"])
            hub.ranges.append(self.headers["Range"])
            fault = hub.faults.pop(0) if hub.faults else ""
            if fault.isdigit():
                self.send_error(int(fault))
                return
            self.send_file(fault)

        def send_file(self, fault: str) -> None:
            asked = self.headers["Range"]
            start = 0 if asked is None or fault == "no ranges" else int(asked.removeprefix("bytes=").rstrip("-"))
            rest = hub.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if fault in ("cut", "slow") else rest)
            if fault == "slow":
                self.wfile.flush()
                time.sleep(0.5)

    return Handler


def test_an_alias_is_fetched_checked_loaded_listed_and_removed(hub: Hub, tmp_path: Path) -> None:
    assert local_path("tiny") is None
    stages = [step.stage for step in ensure_local("tiny")]
    assert list(dict.fromkeys(stages)) == ["download", "verify", "convert"]
    assert list(ensure_local("tiny")) == []
    assert load_model("tiny").info.name == "tiny"
    assert [(info.name, info.source, info.licence) for info in list_models()] == [
        ("tiny", "org/tiny (tiny.gguf)", "apache-2.0")
    ]
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
    assert remove_model("tiny") == []
    assert local_path("tiny") is None


def test_a_broken_connection_is_gone_on_with(hub: Hub) -> None:
    hub.faults += ["cut", "cut", "no ranges"]
    list(ensure_local("tiny"))
    half = len(hub.data) // 2
    assert hub.ranges[:3] == [None, f"bytes={half}-", f"bytes={half + (len(hub.data) - half) // 2}-"]
    assert local_path("tiny") is not None


def test_a_pull_that_was_stopped_is_gone_on_with_by_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.faults += ["cut", "503", "503", "503"]
    with pytest.raises(ModelError, match=r"503 .* are here$") as caught:
        list(ensure_local("tiny"))
    assert "goes on from there" in str(caught.value.hint)
    part = tmp_path / "cache" / "downloads" / "tiny.gguf.part"
    assert part.read_bytes() == hub.data[: len(hub.data) // 2]
    list(ensure_local("tiny"))
    assert hub.ranges[-1] == f"bytes={len(hub.data) // 2}-"
    assert not part.exists()


def test_no_network_is_said_in_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", unknown)
    with pytest.raises(ModelError, match=r"^cannot fetch tiny.gguf from \S+: no network, or no such name; ") as caught:
        list(ensure_local("tiny"))
    assert "elsewhere" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fault", "says", "hint"), [("404", "does not have", "--known"), ("401", "refuses", "hf auth login")]
)
def test_what_another_try_does_not_change_is_told_at_once(hub: Hub, fault: str, says: str, hint: str) -> None:
    hub.faults += [fault]
    with pytest.raises(ModelError, match=says) as caught:
        list(ensure_local("tiny"))
    assert hint in str(caught.value.hint)
    assert len(hub.ranges) == 1


def other_file(hub: Hub) -> None:
    hub.data = bytes(len(hub.data))


def longer_file(hub: Hub) -> None:
    hub.data += bytes(100)


@pytest.mark.parametrize("change", [other_file, longer_file])
def test_another_file_is_refused_by_its_hash(hub: Hub, tmp_path: Path, change: Callable[[Hub], None]) -> None:
    expected = known_models()["tiny"].sha256
    change(hub)
    with pytest.raises(ModelError, match="damaged or another file") as caught:
        list(ensure_local("tiny"))
    assert expected in caught.value.message
    assert local_path("tiny") is None


def test_a_part_that_is_longer_than_the_file_now_is_begun_anew(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    (tmp_path / "cache" / "downloads" / "tiny.gguf.part").write_bytes(hub.data[:100])
    hub.faults += ["416"]
    list(ensure_local("tiny"))
    assert hub.ranges == ["bytes=100-", None]


def test_a_server_that_falls_silent_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.1)
    hub.faults += ["slow"]
    list(ensure_local("tiny"))
    assert hub.ranges[1] is not None


def test_a_token_is_for_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    list(ensure_local("tiny"))
    assert hub.tokens == ["Bearer secret", None]


def test_a_full_disk_is_told_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ModelError, match=r"needs .* more, 10 B are free") as caught:
        list(ensure_local("tiny"))
    assert "UNCOMP_CACHE_DIR" in str(caught.value.hint)
    assert hub.ranges == []


def test_without_a_network_the_file_is_put_there_by_hand(hub: Hub, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "downloads" / "tiny.gguf"
    with pytest.raises(ModelError, match="--offline was given") as caught:
        list(ensure_local("tiny", offline=True))
    assert f"/org/tiny/resolve/main/tiny.gguf elsewhere, put it at {place}" in str(caught.value.hint)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"something else")
    with pytest.raises(ModelError, match="damaged or another file"):
        list(ensure_local("tiny", offline=True))
    place.write_bytes(hub.data)
    list(ensure_local("tiny", offline=True))
    assert hub.ranges == []
    assert local_path("tiny") is not None


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot fetch tiny\.gguf from 127\.0\.0\.1:9: ") as caught:
        list(ensure_local("tiny"))
    assert "elsewhere, put it at" in str(caught.value.hint)


def test_two_pulls_of_one_file_do_not_mix(hub: Hub) -> None:
    steps = ensure_local("tiny")
    next(steps)
    with pytest.raises(ModelError, match="is being fetched by another uncomp"):
        list(ensure_local("tiny"))
    list(steps)
    assert local_path("tiny") is not None
