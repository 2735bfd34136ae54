"""What a compressed context was made from: the model, the way of compressing, the tokens.

    key = sha256 of all of it

Two contexts of one key are interchangeable; they are the same numbers unless the device or, where that was left to the
memory that was free, the budget or the chunks they were read in differ. A saved one is used only with the model that
made it: other weights, another tokenizer, configuration, RoPE or number format is refused by both values.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits
from uncomp_cli.engine.forward.products import Matmul
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import UsageError
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.models.note import file_sha256
from uncomp_cli.models.rotary import regime_lengths
from uncomp_cli.models.shape import text_config

__all__ = ["Origin", "describe_model", "describe_preset", "origin_of"]

_SHORT = 16
_WORDS = {
    "weights_sha256": "the weights",
    "config_sha256": "the configuration",
    "tokenizer_sha256": "the tokenizer",
    "rope": "the RoPE",
    "dtype": "the number format",
    "quantization": "the quantization of the weights",
    "matmul": "the products (--matmul)",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """`model` and `compression` are JSON data; `context_sha256` is of the token ids and of which are never evicted."""

    model: dict[str, Any]
    compression: dict[str, Any]
    context_sha256: str

    @property
    def key(self) -> str:
        """The hash of all of it, in hexadecimal."""
        return _hash_json(asdict(self))

    def check_model(self, name: str, saved: Mapping[str, Any]) -> None:
        """Raise UsageError, with both values, unless what was saved as `name` was made with this model."""
        for key, words in _WORDS.items():
            mine, theirs = self.model.get(key), saved.get(key)
            if mine != theirs:
                message = (
                    f"cache '{name}' was made with another model: {words} was {_shown(theirs)}, not {_shown(mine)}"
                )
                raise UsageError(
                    message, hint="use it with the model and settings of `uncomp cache show`, or read anew"
                )

    def check_context(self, name: str, saved: str) -> None:
        """Raise UsageError, with both hashes, unless what was saved as `name` has these tokens."""
        if self.context_sha256 != saved:
            raise UsageError(
                f"cache '{name}' was made from other text: its tokens have the hash {_shown(saved)}, these have "
                f"{_shown(self.context_sha256)}",
                hint=f"leave -f, --system and --pin out to ask about what is saved, or --save-cache {name} again",
            )


def origin_of(loaded: LoadedModel, preset: Preset, prompt: Prompt, *, limits: Limits, matmul: Matmul) -> Origin:
    """The origin of the context of `prompt` when it is read now."""
    ids = torch.tensor(prompt.context.ids, dtype=torch.int64)
    digest = hashlib.sha256(ids.numpy().tobytes())
    digest.update(prompt.context.protected.numpy().tobytes())
    return Origin(describe_model(loaded, matmul=matmul), describe_preset(preset, limits), digest.hexdigest())


def describe_model(loaded: LoadedModel, *, matmul: Matmul) -> dict[str, Any]:
    """What decides the numbers that a model computes, as JSON data; its files by their hashes."""
    tokenizer = f"{loaded.tokenizer.backend_tokenizer.to_str()}{loaded.tokenizer.chat_template}"
    return {
        "weights_sha256": loaded.info.sha256,
        "config_sha256": file_sha256(loaded.info.path / "config.json"),
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "rope": _rope(loaded),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantization": loaded.quantization,
        "matmul": matmul,
    }


def describe_preset(preset: Preset, limits: Limits) -> dict[str, Any]:
    """What decides which tokens are kept, and in how many bits, as JSON data."""
    profile = preset.profile_path
    return {
        "policy": preset.policy,
        "scorer": asdict(preset.scorer),
        "budget": str(preset.budget),
        "floor_tokens": preset.floor_tokens,
        "kv_bits": preset.kv_bits,
        "profile_sha256": None if profile is None else file_sha256(profile),
        "chunk_tokens": limits.chunk_tokens,
        "kv_mem_bytes": limits.kv_bytes,
    }


def _rope(loaded: LoadedModel) -> dict[str, Any]:
    """How the model turns its keys, as JSON data. How much of a text may be read (--context) does not change them."""
    text = text_config(loaded.model.config)
    described = {**_plain(getattr(text, "rope_parameters", None)), "length": int(text.max_position_embeddings)}
    regimes = regime_lengths(loaded.model.config)
    if regimes:
        described["regime"] = regimes[-1]  # what is saved is read for any question, so for the longest text
    return described


def _plain(value: Any) -> dict[str, Any]:
    """A configuration's mapping as plain JSON data, whatever its classes and number types."""
    found: dict[str, Any] = json.loads(json.dumps(dict(value or {}), default=str, sort_keys=True))
    return found


def _hash_json(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    """A hash by its beginning, anything else as it is."""
    if isinstance(value, str):
        return value[:_SHORT] if len(value) > _SHORT else value
    return "none" if value is None else json.dumps(value, sort_keys=True)
