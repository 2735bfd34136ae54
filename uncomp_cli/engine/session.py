"""A session: one loaded model, one way of compressing, one way of sampling, and the prompt it has read.

    read(prompt) → PrefillStep…      plans the budget, refuses what does not fit, prefills and evicts
    answer(question) → DecodeStep…   generates behind the context and that question

Both are generators of records; what was measured on the way is in `stats`.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.uncertainty_values import Uncertainty
from uncomp_cli.budget.units import Budget, parse_budget, resolve_entries, resolve_quantized
from uncomp_cli.cache.scoring import Scorer, make_scorer
from uncomp_cli.config import SamplingConfig, ScorerConfig
from uncomp_cli.engine.allocation import Allocation, Measurer, Wanted, allocate
from uncomp_cli.engine.decode import AppendState
from uncomp_cli.engine.generate import generate, stop_tokens
from uncomp_cli.engine.measuring import measure_layer
from uncomp_cli.engine.memory import Estimate, estimate, free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.overkeep import held_on_the_way
from uncomp_cli.engine.prefill import Prefilled, prefill
from uncomp_cli.engine.profiles import profile_of
from uncomp_cli.engine.prompt import Prompt, open_question
from uncomp_cli.engine.records import DecodeStep, FinishReason, PrefillStep
from uncomp_cli.engine.sampling import Sampler
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.load import LoadedModel
from uncomp_cli.spec import ModelSpec

__all__ = [
    "Compression",
    "RunStats",
    "Session",
    "check_fits",
    "check_length",
    "make_allocation",
    "make_plan",
    "plan_compression",
    "scorer_config",
]

_MEMORY_MARGIN = 0.9


@dataclass(frozen=True, slots=True)
class RunStats:
    """What one answer took. `kv_full_bytes` is a full cache of the same tokens; `ttft_s` counts from the prefill."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_s: float
    ttft_s: float
    decode_s: float
    kv_bytes: int
    kv_full_bytes: int
    peak_bytes: int
    finish_reason: FinishReason

    @property
    def kept_fraction(self) -> float:
        """Allocated bytes over full-cache bytes."""
        return self.kv_bytes / self.kv_full_bytes

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens per second after the first; None when there was only one."""
        return (self.completion_tokens - 1) / self.decode_s if self.completion_tokens > 1 and self.decode_s else None


def check_length(spec: ModelSpec, prompt: Prompt, *, trained_length: int | None = None) -> None:
    """Raise DoesNotFitError when the prompt leaves no room for an answer inside the context.

    `trained_length` is what the model was trained for, when `spec` has it extended.
    """
    if prompt.seq_len < spec.trained_length:
        return
    trained = trained_length or spec.trained_length
    extended = f", extended to {spec.trained_length:,}" if spec.trained_length > trained else ""
    raise DoesNotFitError(
        f"the prompt has {prompt.seq_len:,} tokens, the model was trained for {trained:,}{extended}",
        hint="cut it with --truncate head, middle or tail, or extend the context with "
        f"--rope yarn:{prompt.seq_len // trained + 1} if the model's own RoPE is plain",
    )


def make_plan(spec: ModelSpec, preset: Preset, prompt: Prompt, *, available: int) -> BudgetPlan:
    """The plan of `make_allocation`: of a policy that measures live, one of as many entries, evenly spread."""
    return make_allocation(spec, preset, prompt, available=available).plan


def make_allocation(
    spec: ModelSpec, preset: Preset, prompt: Prompt, *, available: int, measurer: Measurer | None = None
) -> Allocation:
    """How `preset` spreads its budget over `prompt`; `available` bytes are what a budget of `auto` may use.

    `measurer` measures for a policy that does so live. Raises DoesNotFitError when the budget is too small, UsageError
    when the policy needs a measure that the preset's profile does not have.
    """
    budget = parse_budget(preset.budget)
    policy = make_policy("full" if budget.kind == "full" else preset.policy)
    everything = BudgetPlan(prompt.seq_len, ((prompt.seq_len,) * spec.num_kv_heads,) * spec.num_layers)
    spare = int(_MEMORY_MARGIN * available) - estimate(spec, everything, prompt=prompt).activation_bytes
    entries = _entries(spec, budget, prompt, kv_bits=preset.kv_bits, free_bytes=max(0, spare))
    if preset.floor_tokens:
        floor = (prompt.always_kept + preset.floor_tokens) * spec.num_layers * spec.num_kv_heads
        entries = max(entries, min(floor, spec.full_entries(prompt.seq_len)))
    wanted = Wanted(policy, spec, prompt.seq_len, entries, prompt.always_kept, preset.kv_bits)
    measuring = measurer or partial(measure_layer, window=preset.scorer.window, sinks=preset.scorer.sinks)
    return allocate(wanted, profile=profile_of(preset), measurer=measuring)


@dataclass(frozen=True, slots=True)
class Compression:
    """All that a prefill needs beside the model: the prompt with its question opened, and how it is compressed."""

    prompt: Prompt
    allocation: Allocation
    scorer: Scorer
    config: ScorerConfig


def plan_compression(spec: ModelSpec, preset: Preset, prompt: Prompt, *, available: int) -> Compression:
    """How `preset` compresses `prompt` within `available` bytes. Raises DoesNotFitError when it does not fit."""
    config = scorer_config(preset)
    scorer = make_scorer(config)
    opened = open_question(prompt, recent=config.recent)
    allocation = make_allocation(spec, preset, opened, available=available)
    held = held_on_the_way(allocation, opened, config, shared=scorer.shared)
    check_fits(spec, allocation.plan, opened, available=available, held=held)
    return Compression(opened, allocation, scorer, config)


def _entries(spec: ModelSpec, budget: Budget, prompt: Prompt, *, kv_bits: int, free_bytes: int) -> int:
    """KV entries that `budget` allows for `prompt`; in bytes, the questions that wait their turn count too."""
    if kv_bits != 16:
        return resolve_quantized(
            budget,
            spec,
            seq_len=prompt.seq_len,
            free_bytes=free_bytes,
            kv_bits=kv_bits,
            question_tokens=prompt.longest_question,
            waiting_tokens=prompt.waiting_tokens,
        )
    entries = resolve_entries(budget, spec, seq_len=prompt.seq_len, free_bytes=free_bytes)
    if budget.kind in ("auto", "bytes"):
        entries = max(0, entries - spec.num_layers * spec.num_kv_heads * prompt.waiting_tokens)
    return entries


def check_fits(
    spec: ModelSpec, plan: BudgetPlan, prompt: Prompt, *, available: int, held: BudgetPlan | None = None
) -> Estimate:
    """The expected memory of `prompt` under `plan`, of which `held` is what is held at most on the way.

    Raises DoesNotFitError when it is more than `available` bytes.
    """
    expected = estimate(spec, held or plan, prompt=prompt)
    if expected.peak_bytes > available:
        raise DoesNotFitError(
            f"needs about {expected.peak_bytes / 2**20:,.0f} MiB beside the weights "
            f"({expected.kv_kept_bytes / 2**20:,.0f} of it KV cache), {available / 2**20:,.0f} MiB are free",
            hint="use a smaller --budget (or --budget auto), or cut the document with --truncate",
        )
    return expected


class Session:
    """Reads one prompt at a time and answers its questions."""

    def __init__(self, loaded: LoadedModel, preset: Preset, sampling: SamplingConfig) -> None:
        self.loaded = loaded
        self.preset = preset
        self.sampling = sampling
        self.decoder = Decoder(loaded.model, loaded.spec)
        self.allocation: Allocation | None = None
        self.stats: RunStats | None = None
        self._read: Prefilled | None = None
        self._prefill_s = 0.0

    def read(self, prompt: Prompt) -> Iterator[PrefillStep]:
        """Prefill `prompt`. Raises DoesNotFitError before any work when it is too long or too large."""
        spec, device = self.loaded.spec, self.decoder.device
        check_length(spec, prompt, trained_length=self.loaded.info.trained_length)
        available = free_bytes(device)
        compression = plan_compression(spec, self.preset, prompt, available=available)
        reset_peak(device)
        self.allocation = compression.allocation
        self._read = None
        return self._prefill(compression)

    def _prefill(self, compression: Compression) -> Generator[PrefillStep, None, None]:
        begun = time.perf_counter()
        self._read = yield from prefill(
            self.decoder,
            [compression.prompt],
            [compression.allocation],
            scorer=compression.scorer,
            config=compression.config,
        )
        self._prefill_s = time.perf_counter() - begun

    @property
    def plan(self) -> BudgetPlan | None:
        """What every head keeps; of a policy that measures live, it is final once the prompt has been read."""
        return None if self.allocation is None else self.allocation.plan

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The values that the plan was made from."""
        return None if self.allocation is None else self.allocation.uncertainty

    @property
    def measured(self) -> Literal["live", "profile"] | None:
        """Where those values come from."""
        if self.allocation is None or (self.allocation.uncertainty is None and not self.allocation.live):
            return None
        return "live" if self.allocation.live else "profile"

    def layer_bytes(self) -> list[int]:
        """Bytes that each layer of the cache has allocated."""
        if self._read is None:
            raise RuntimeError("nothing has been read: exhaust read() first")
        return [self._read.cache.layer(layer).nbytes for layer in range(self.loaded.spec.num_layers)]

    def answer(self, question: int = 0) -> Iterator[DecodeStep]:
        """Generate the answer to one question of the prompt that was read, which may be asked again."""
        if self._read is None:
            raise RuntimeError("nothing has been read: exhaust read() first")
        self.stats = None
        return self._generate(self._read, question)

    def predict(self, ids: Sequence[int], question: int = 0) -> Tensor:
        """Logits [N, vocab] of each of `ids` given those before it, behind a question of the prompt that was read."""
        if self._read is None:
            raise RuntimeError("nothing has been read: exhaust read() first")
        read = self._read
        read.begin_question(question)
        logits = read.logits[question : question + 1]
        if len(ids) > 1:
            positions = read.next_positions(question) + torch.arange(len(ids) - 1)
            state = AppendState(read.cache, positions.to(self.decoder.device))
            following = self.decoder.forward(torch.tensor([ids[:-1]]), positions, state, len(ids) - 1)[0]
            logits = torch.cat([logits, following])
        return logits

    def _generate(self, read: Prefilled, question: int) -> Iterator[DecodeStep]:
        prompt, spec = read.prompts[0], self.loaded.spec
        begun = time.perf_counter()
        read.begin_question(question)
        seq_len = len(prompt.context) + len(prompt.questions[question])
        steps = generate(
            self.decoder,
            read.cache,
            read.logits[question : question + 1],
            read.next_positions(question),
            tokenizer=self.loaded.tokenizer,
            sampler=Sampler(replace(self.sampling, seed=self.sampling.seed + question)),
            stop_ids=stop_tokens(self.loaded.model, self.loaded.tokenizer),
            max_new_tokens=min(self.sampling.max_new_tokens, spec.trained_length - seq_len),
        )
        prefill_s = self._prefill_s if question == 0 else 0.0  # one pass read all questions
        first_s = 0.0
        for step in steps:
            first_s = first_s or time.perf_counter() - begun
            completed = step.index + 1
            self.stats = RunStats(
                prompt_tokens=seq_len,
                cached_tokens=0 if question == 0 else len(prompt.context),
                completion_tokens=completed,
                prefill_s=prefill_s,
                ttft_s=prefill_s + first_s,
                decode_s=time.perf_counter() - begun - first_s,
                kv_bytes=read.cache.nbytes,
                kv_full_bytes=spec.full_kv_bytes(seq_len + completed - 1),
                peak_bytes=peak_bytes(self.decoder.device),
                finish_reason=step.finish_reasons[0] or "interrupted",
            )
            yield step


def scorer_config(preset: Preset) -> ScorerConfig:
    """The scorer of a preset; some policies are defined by theirs. Coherence is the same for all, controls included."""
    fixed = make_policy(preset.policy).fixed_scorer
    return preset.scorer if fixed is None else replace(preset.scorer, name=fixed)
