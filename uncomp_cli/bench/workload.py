"""What one run is asked to do and what it reports, both plain data that survives JSON; and the prompt of a benchmark.

A job is one line on a child's standard input, a measurement the last line of its standard output: every run has a
process of its own, so that one run's memory peak is not another's. The prompt is one document, repeated or cut to
exactly the wanted tokens, and one question. What would be refused is refused here, before the first run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from uncomp_cli import errors
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, Matmul
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.spend.memory import free_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt, truncate
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError
from uncomp_cli.models.catalog import read_config
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.families import check_family
from uncomp_cli.models.loading import choose_device, choose_dtype
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.share import Share, bytes_of_dtype
from uncomp_cli.spec import ModelSpec

_QUESTION = "What is this document about? Answer in a few sentences."


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runs share: a model as it is loaded, the tokens to write, what bounds our memory, how we multiply."""

    model: str
    new_tokens: int
    tokenizer_dir: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    limits: Limits = field(default_factory=Limits)
    matmul: Matmul = "auto"
    rope: str | None = None
    weights: str = "auto"
    lookup: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """One run, on a prompt of one question; `preset` is None for stock transformers."""

    setup: Setup
    label: str
    context: tuple[int, ...]
    question: tuple[int, ...]
    protected: tuple[bool, ...]
    words: tuple[int, ...]
    preset: Preset | None

    @classmethod
    def of(cls, setup: Setup, prompt: Prompt, label: str, preset: Preset | None) -> "Job":
        """A run on `prompt`."""
        protected, words = tuple(prompt.context.protected.tolist()), tuple(prompt.context.words.tolist())
        return cls(setup, label, prompt.context.ids, prompt.questions[0], protected, words, preset)

    @property
    def prompt(self) -> Prompt:
        """The prompt as the engine takes it."""
        protected, words = torch.tensor(self.protected, dtype=torch.bool), torch.tensor(self.words, dtype=torch.int64)
        return Prompt(Tokens.of(self.context, protected=protected, words=words), (self.question,))

    def to_json(self) -> str:
        """One line."""
        preset = None if self.preset is None else self.preset.to_plain()
        return json.dumps({**asdict(self), "preset": preset}, default=str)

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """The inverse of `to_json`."""
        data = json.loads(line)
        ids = {key: tuple(data[key]) for key in ("context", "question", "protected", "words")}
        setup, preset = data["setup"], data["preset"]
        tokenizer_dir = None if setup["tokenizer_dir"] is None else Path(setup["tokenizer_dir"])
        setup = Setup(**{**setup, "tokenizer_dir": tokenizer_dir, "limits": Limits(**setup["limits"])})
        return cls(setup, data["label"], **ids, preset=None if preset is None else Preset.from_plain(preset))


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

    @property
    def kv_share(self) -> Share:
        """Allocated bytes over those of a full cache."""
        return Share(self.kv_bytes, self.full_kv_bytes, bytes_of_dtype(self.dtype))

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


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What is to be measured: `presets` against stock transformers on `document`, cut to `tokens`, `runs` times."""

    setup: Setup
    model_dir: Path
    document: str
    presets: tuple[Preset, ...]
    tokens: int
    runs: int

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that measure nothing."""
        for flag, value, least in (("runs", self.runs, 1), ("new-tokens", self.setup.new_tokens, 2)):
            if value < least:
                raise UsageError(f"--{flag} is {value}", hint=f"use {least} or more")
        if not self.document.strip():
            raise UsageError("the document is empty", hint="name another with -f, or leave -f out")


def make_jobs(request: BenchRequest) -> list[Job]:
    """Stock first, then a job for every preset, all on one prompt. Refuses what would not run."""
    device = choose_device(request.setup.device)
    spec = spec_from_config(read_config(request.model_dir), choose_dtype(request.setup.dtype, device))
    check_family(spec.model_type)
    _check_length(request, spec)
    tokenizer = load_tokenizer(request.setup.tokenizer_dir or request.model_dir)
    prompt = build_prompt(tokenizer, request.document, tokens=request.tokens, sinks=request.presets[0].scorer.sinks)
    available = free_bytes(device)
    for preset in request.presets:
        _check_plan(request, preset, spec, prompt, available=available)
    labelled = [("stock transformers", None), *((_label(preset), preset) for preset in request.presets)]
    return [Job.of(request.setup, prompt, label, preset) for label, preset in labelled]


def build_prompt(tokenizer: Any, document: str, *, tokens: int, sinks: int) -> Prompt:
    """`document` in the chat format with a question, exactly `tokens` tokens; a short document is repeated."""
    text = document.strip()
    prompt = chat_prompt(tokenizer, text, [_QUESTION], system=None, sinks=sinks)
    while prompt.seq_len < tokens:
        text = f"{text}\n\n{text}"
        prompt = chat_prompt(tokenizer, text, [_QUESTION], system=None, sinks=sinks)
    return truncate(prompt, tokens, "tail")[0]


def _check_plan(request: BenchRequest, preset: Preset, spec: ModelSpec, prompt: Prompt, *, available: int) -> None:
    """Raise what planning does, and UsageError for what would not be done as its label says."""
    planned = plan_compression(spec, preset, prompt, available=available, limits=request.setup.limits)
    planned.allocation.refuse_shortage()
    for note in planned.notes:
        raise UsageError(
            f"{_label(preset)} on {request.setup.model}: {note}", hint="use --thin none, or another --model"
        )


def _check_length(request: BenchRequest, spec: ModelSpec) -> None:
    new_tokens = request.setup.new_tokens
    total = request.tokens + new_tokens
    if total > spec.trained_length:
        raise DoesNotFitError(
            f"{request.tokens:,} tokens and {new_tokens:,} new ones are {total:,}, the model was trained for "
            f"{spec.trained_length:,}",
            hint=f"use --tokens {max(1, spec.trained_length - new_tokens)} or fewer",
        )


def _label(preset: Preset) -> str:
    label = "full" if preset.budget.kind == "full" else f"{preset.budget} {preset.policy}"
    label = label if preset.kv_bits == 16 else f"{label}, {preset.kv_bits} bits"
    return label if preset.thinning == "none" else f"{label}, thin {preset.thinning}"
