"""Good small instruct models by alias (known.toml): what they are, what they take, and how one is fetched.

`uncomp model pull qwen3-4b` fetches the GGUF of that alias from the Hugging Face hub, or takes the file that somebody
has put where it would arrive, checks its hash, and prepares it as the default model is: the file is moved into the
directory that describes it.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uncomp_cli.errors import ModelError
from uncomp_cli.files import move
from uncomp_cli.models.conversion import describe, is_complete, publish, staging_directory, write_manifest
from uncomp_cli.models.gguf import prepare_gguf
from uncomp_cli.models.transfer import Remote, fetched
from uncomp_cli.schema import Count, Hash, read
from uncomp_cli.spec import ModelSpec
from uncomp_cli.steps import PullStep

TABLE = Path(__file__).with_name("known.toml")
_HUB = "https://huggingface.co"
_EVERY_FULL = 6
"""Of Gemma 3's layers every sixth attends to all."""


@dataclass(frozen=True, slots=True)
class Known:
    """A model of the table: its file on the hub, and its shape. `window` is that of Gemma 3's sliding layers."""

    alias: str
    family: str
    repository: str
    revision: str
    file: str
    kind: str
    size_bytes: Count
    sha256: Hash
    licence: str
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    hidden_size: Count
    intermediate_size: Count
    vocab_size: Count
    trained_length: Count
    window: Count | None = None
    tied: bool = True

    @property
    def parameters(self) -> int:
        """Numbers in its matrices: embeddings, and of each layer q, k, v, o and the three of its MLP."""
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2) + self.layers * layer

    @property
    def url(self) -> str:
        """Where the file is; a mirror that $HF_ENDPOINT names is asked instead of the hub."""
        endpoint = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{self.file}"

    def spec(self, dtype_bytes: int) -> ModelSpec:
        """Its shape, with a cache of numbers of so many bytes."""
        windows = (None if (layer + 1) % _EVERY_FULL == 0 else self.window for layer in range(self.layers))
        return ModelSpec(
            model_type=self.family,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            trained_length=self.trained_length,
            dtype_bytes=dtype_bytes,
            sliding_windows=tuple(windows),
        )


@cache
def known_models() -> dict[str, Known]:
    """The table by alias, the weakest model first."""
    data = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    models = (read(Known, each, "known.toml") for each in data["model"])
    return {model.alias: model for model in models}


def pull_known(known: Known, target: Path, arrivals: Path, *, offline: bool) -> Iterator[PullStep]:
    """Make sure that a model of the table is in `target`, yielding progress; nothing when it is there.

    What has arrived in the directory `arrivals` is used, and gone on with. Raises ModelError when it cannot be had.
    """
    if is_complete(target):
        return
    file = arrivals / known.file
    if offline and not file.is_file():
        message = f"model {known.alias} is not on this machine, and --offline was given"
        raise ModelError(message, hint=f"run once with the network, or {by_hand(known, file)}")
    remote = Remote(known.url, known.size_bytes, known.sha256, by_hand(known, file))
    yield from fetched(remote, file)
    with staging_directory(target) as staging:
        kept = staging / known.file
        move(file, kept)
        try:
            yield from prepare_gguf([kept], staging)
            source = f"{known.repository} ({known.file})"
            write_manifest(staging, describe(staging, source, known.licence, [kept], sha256=known.sha256))
            publish(staging, target, is_complete)
        finally:
            if kept.exists():
                move(kept, file)  # interrupted: what took an hour to fetch stays


def by_hand(known: Known, file: Path) -> str:
    """What to do where there is no network."""
    return f"fetch {known.url} elsewhere, put it at {file} and run: uncomp model pull {known.alias}"
