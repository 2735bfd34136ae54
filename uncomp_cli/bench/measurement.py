"""What one child process is asked to do and what it reports: both plain data that survives JSON.

A job is one line on the child's standard input, a measurement the last line of its standard output. Every run has a
process of its own, so that one run's memory peak is not another's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from uncomp_cli import errors
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import UncompError

Arm = Literal["stock", "uncomp"]


@dataclass(frozen=True, slots=True)
class Job:
    """One run: `arm` on a model and a prompt of one question; `preset` is None for stock transformers.

    `limits` bound the memory of our own arm, `matmul` is how it multiplies (engine/forward/products.py).
    """

    arm: Arm
    label: str
    model: str
    tokenizer_dir: str | None
    device: str
    dtype: str
    quantize: str
    context: tuple[int, ...]
    question: tuple[int, ...]
    protected: tuple[bool, ...]
    words: tuple[int, ...]
    preset: Preset | None
    new_tokens: int
    limits: Limits = field(default_factory=Limits)
    matmul: Literal["float32", "bfloat16", "int8"] = "float32"

    @property
    def prompt(self) -> Prompt:
        """The prompt as the engine takes it."""
        protected, words = torch.tensor(self.protected, dtype=torch.bool), torch.tensor(self.words, dtype=torch.int64)
        return Prompt(Tokens.of(self.context, protected=protected, words=words), (self.question,))

    def to_json(self) -> str:
        """One line."""
        preset = None if self.preset is None else self.preset.to_plain()
        return json.dumps({**asdict(self), "preset": preset})

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """The inverse of `to_json`."""
        data = json.loads(line)
        for key in ("context", "question", "protected", "words"):
            data[key] = None if data[key] is None else tuple(data[key])
        preset = data["preset"]
        if preset is not None:
            data["preset"] = Preset.from_plain(preset)
        return cls(**{**data, "limits": Limits(**data["limits"])})


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run took.

    `ttft_s` is from the start of the prefill to the first token, `decode_tok_s` the tokens after it by their time.
    `kv_bytes` is what the cache has allocated after the last token, `kv_prefill_bytes` after the prompt. `peak_bytes`
    is the highest resident (on CUDA: allocated) memory above `resident_bytes`, the loaded and warm model; None where
    the system cannot start a new mark. `full_kv_bytes` is a full cache of the same tokens by the model's shape.
    """

    token_ids: tuple[int, ...]
    ttft_s: float
    decode_tok_s: float
    kv_prefill_bytes: int
    kv_bytes: int
    full_kv_bytes: int
    resident_bytes: int
    peak_bytes: int | None
    device: str
    dtype: str
    threads: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def encode_error(error: UncompError) -> str:
    """An error as the child's last line."""
    described = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return json.dumps({"error": described})


def decode_result(line: str) -> Measurement:
    """The measurement in the child's last line; raises the UncompError that is in its place, ValueError for neither."""
    data: Any = json.loads(line)
    if not isinstance(data, Mapping):
        raise ValueError("not an object")
    if "error" in data:
        raise _error(data["error"])
    try:
        return Measurement(**{**data, "token_ids": tuple(data["token_ids"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a measurement: {error}") from error


def _error(described: Mapping[str, Any]) -> UncompError:
    kind = vars(errors).get(described["type"])
    named = kind if isinstance(kind, type) and issubclass(kind, UncompError) else UncompError
    return named(described["message"], hint=described["hint"])
