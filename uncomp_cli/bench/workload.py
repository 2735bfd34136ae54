"""The prompt of a benchmark: one document, repeated or cut to exactly the wanted tokens, and one question.

Everything that would be refused is refused here, before the first run: lengths, budgets, scorers, devices.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uncomp_cli.bench.measurement import Arm, Job
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits
from uncomp_cli.engine.forward.decoder import check_family
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.spend.memory import free_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt, truncate
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.models.catalog import read_config
from uncomp_cli.models.loading import choose_device, choose_dtype, load_tokenizer
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec

_QUESTION = "What is this document about? Answer in a few sentences."


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What is to be measured: `presets`, within `limits`, against stock transformers on `document`, cut to `tokens`."""

    model: str
    model_dir: Path
    document: str
    presets: tuple[Preset, ...]
    tokens: int
    new_tokens: int
    runs: int
    tokenizer_dir: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    limits: Limits = field(default_factory=Limits)
    matmul: Literal["float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that measure nothing."""
        for flag, value, least in (("runs", self.runs, 1), ("new-tokens", self.new_tokens, 2)):
            if value < least:
                raise UsageError(f"--{flag} is {value}", hint=f"use {least} or more")
        if not self.document.strip():
            raise UsageError("the document is empty", hint="name another with -f, or leave -f out")


def make_jobs(request: BenchRequest) -> list[Job]:
    """Stock first, then a job for every preset, all on one prompt. Refuses what would not run."""
    device = choose_device(request.device)
    spec = spec_from_config(read_config(request.model_dir), choose_dtype(request.dtype, device))
    check_family(spec.model_type)
    _check_length(request, spec)
    tokenizer = load_tokenizer(request.tokenizer_dir or request.model_dir)
    prompt = build_prompt(tokenizer, request.document, tokens=request.tokens, sinks=request.presets[0].scorer.sinks)
    available = free_bytes(device)
    for preset in request.presets:
        _check_plan(request, preset, spec, prompt, available=available)
    stock = _job(request, prompt, "stock", "stock transformers", None)
    return [stock, *(_job(request, prompt, "uncomp", _label(preset), preset) for preset in request.presets)]


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
    planned = plan_compression(spec, preset, prompt, available=available, limits=request.limits)
    for note in planned.notes:
        raise UsageError(f"{_label(preset)} on {request.model}: {note}", hint="use --thin none, or another --model")


def _check_length(request: BenchRequest, spec: ModelSpec) -> None:
    total = request.tokens + request.new_tokens
    if total > spec.trained_length:
        raise DoesNotFitError(
            f"{request.tokens:,} tokens and {request.new_tokens:,} new ones are {total:,}, the model was trained for "
            f"{spec.trained_length:,}",
            hint=f"use --tokens {max(1, spec.trained_length - request.new_tokens)} or fewer",
        )


def _label(preset: Preset) -> str:
    label = "full" if preset.budget.kind == "full" else f"{preset.budget} {preset.policy}"
    label = label if preset.kv_bits == 16 else f"{label}, {preset.kv_bits} bits"
    return label if preset.thinning == "none" else f"{label}, thin {preset.thinning}"


def _job(request: BenchRequest, prompt: Prompt, arm: Arm, label: str, preset: Preset | None) -> Job:
    return Job(
        arm=arm,
        label=label,
        model=request.model,
        tokenizer_dir=None if request.tokenizer_dir is None else str(request.tokenizer_dir),
        device=request.device,
        dtype=request.dtype,
        quantize=request.quantize,
        context=prompt.context.ids,
        question=prompt.questions[0],
        protected=tuple(prompt.context.protected.tolist()),
        words=tuple(prompt.context.words.tolist()),
        preset=preset,
        new_tokens=request.new_tokens,
        limits=request.limits,
        matmul=request.matmul,
    )
