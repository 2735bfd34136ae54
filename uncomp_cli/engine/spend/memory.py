"""How much memory there is, how much was used at most, and how much a prompt, or a context not read yet, will need.

Free memory on a CPU is what the operating system says is available, within the control group's limit if there is one.
The peak is the resident set's high-water mark since `reset_peak` (Linux), or the process's (elsewhere); on CUDA it is
the allocator's own.

Of a context that is asked for by its length alone, what is needed is bounded from below: the budget's share of a full
cache. What reading takes beside the cache is known when there is a prompt (compression.py).
"""

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from uncomp_cli.budget.amount import Budget, resolve_entries
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.scorers import ROWS_AGAIN
from uncomp_cli.config import CacheConfig
from uncomp_cli.engine.forward.products import PART_NUMBERS, SLICE_ROWS
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.ranks import Ranks
from uncomp_cli.numerals import format_decimal
from uncomp_cli.spec import ModelSpec

_CGROUP = Path("/sys/fs/cgroup")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Limit, use and statistics of a control group, of version 2 and of version 1."""
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a prompt is expected to allocate beyond the weights, in bytes; `peak_bytes` includes the kept cache."""

    kv_kept_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Kept cache, one layer in full and activations at once."""
        return self.kv_kept_bytes + self.activation_bytes


def estimate(
    spec: ModelSpec, plan: BudgetPlan, *, prompt: Prompt | None = None, at_once: int | None = None, window: int = 0
) -> Estimate:
    """Expected bytes of a prefill: of `plan.seq_len` tokens, or of `prompt` with all its questions.

    `at_once` of them go through the model together; None: all, in one pass. The last `window` tokens of a question
    rank the others; 0: nothing is ranked. A single question's keys and values are copied until all layers are read.
    """
    config = CacheConfig()
    entry = spec.kv_bytes_per_entry + config.position_bytes
    question = 0 if prompt is None else prompt.longest_question
    quantized, own = _split(spec, plan, question_tokens=question)
    slack = sum(config.slack(count) for count in own)
    waiting = 0 if prompt is None else prompt.waiting_tokens * spec.num_layers * spec.num_kv_heads
    states = 2 if prompt is None else 1 + 2 * len(prompt.questions)  # the text's, and each question's begin and end
    tokens = plan.seq_len if prompt is None else prompt.flat_len
    at_once, rows = at_once or tokens, 0 if prompt is None else min(window, prompt.asked + question)
    aside = 0 if prompt is None or waiting else question * spec.kv_bytes_per_token
    return Estimate(
        kv_kept_bytes=quantized + (sum(own) + slack + waiting) * entry + states * spec.state_bytes,
        activation_bytes=activation_bytes(spec, at_once, holding=_holding(spec, plan, at_once, rows=rows)) + aside,
    )


def _holding(spec: ModelSpec, plan: BudgetPlan, tokens: int, *, rows: int) -> int:
    """Bytes of what ranks a layer by so many `rows` of a question, or then quantises one of its heads.

    Of a row every query head has scores, those masked, and weights, in float32, beside one mask; KV heads have their
    entries' positions. Of what is quantised there are numbers in float32, finite and turned, those padded to whole
    groups, clamped, less their zero and divided, and which of them are finite (cache/quantized.py). What is held of
    chunks before is ranked too, and not counted.
    """
    ranking = tokens * (rows * (3 * 4 * spec.num_heads + 1) + 8 * spec.num_kv_heads) if rows else 0
    if plan.kv_bits == 16:
        return ranking
    group = CacheConfig().group
    padded, most = -(-spec.head_dim // group) * group, max(max(layer) for layer in plan.kept)
    return max(ranking, most * (4 * (2 * spec.head_dim + 4 * padded) + padded))


def repeating_bytes(spec: ModelSpec, context: int, piece: int) -> int:
    """Bytes that a piece of a text takes behind all of it in a second reading, without the cache (read/repetition.py).

    A layer's keys and values are copied twice: the heads beside each other, and those with the piece behind them, or in
    float32. Of the rows that rank there are scores in float32. The text's own attention and the piece's are merged.
    """
    copies = 2 * (2 * context + piece) * spec.num_kv_heads * spec.head_dim * max(4, spec.dtype_bytes)
    ranking = context * min(piece, ROWS_AGAIN) * 4 * spec.num_heads
    merged = 2 * piece * spec.num_heads * spec.head_dim * spec.dtype_bytes
    return activation_bytes(spec, piece, holding=copies + ranking + merged)


def planned_kv_bytes(spec: ModelSpec, plan: BudgetPlan, *, question_tokens: int) -> int:
    """Bytes of what `plan` keeps, without slack: what a budget in per cent is compared with, and the states beside it.

    Of a quantised context they include scales and positions; the question behind it is in the model's own dtype.
    """
    quantized, own = _split(spec, plan, question_tokens=question_tokens)
    return quantized + sum(own) * spec.kv_bytes_per_entry + spec.state_bytes


def kept_amount(budget: Budget, spec: ModelSpec, plan: BudgetPlan, *, question_tokens: int) -> str:
    """What `plan` keeps of what can be dropped, in the unit of `budget`: tokens a head, or per cent of bytes."""
    if budget.kind == "tokens":
        return str(round(plan.per_head(spec)))
    heads = max(1, len(spec.full_layers) * spec.num_kv_heads)
    decided = replace(plan, kept=tuple(plan.kept[layer] for layer in spec.full_layers))
    kept = planned_kv_bytes(spec, decided, question_tokens=question_tokens)
    return f"{format_decimal(100 * min(1.0, kept / (heads * plan.seq_len * spec.kv_bytes_per_entry)))}%"


def _split(spec: ModelSpec, plan: BudgetPlan, *, question_tokens: int) -> tuple[int, list[int]]:
    """Bytes of all quantised entries, and for every head how many entries are in the model's own dtype."""
    counts = [count for layer in plan.kept for count in layer]
    if plan.kv_bits == 16:
        return 0, counts
    own = [min(count, question_tokens) for count in counts]
    context = (count - tail for count, tail in zip(counts, own, strict=True))
    return sum(context) * CacheConfig().entry_bytes(head_dim=spec.head_dim, bits=plan.kv_bits), own


def activation_bytes(spec: ModelSpec, tokens: int, *, holding: int = 0) -> int:
    """Bytes of a forward pass of `tokens` at its widest point, without the cache.

    Everywhere a token has its embedding, the layer's input, that normed, and cosines and sines. Beside them there are,
    whichever is most,

        RoPE         queries, their product with the cosines, their halves exchanged and those' product; keys, values
        attention    queries, output; keys, values, their contiguous copies, and those packed (kernels/outlook.py)
        holding      queries, output; keys, values, their copies, and what ranks or quantises them: `holding` bytes
        MLP          what attention added, and the output while a slice of tokens (engine/forward/products.py) has gate,
                     up and product, or gate, up and a matrix that is widened for them; of more than PART_NUMBERS those
        a state      the same with what its layer takes
    """
    hidden, queries, keys = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    at_once, matrix = min(tokens, SLICE_ROWS), min(hidden * spec.intermediate_size, PART_NUMBERS)
    attention = tokens * max(4 * queries + 2 * keys, 2 * queries + 6 * keys)
    held = tokens * (2 * queries + 4 * keys) * spec.dtype_bytes + holding
    added = tokens * hidden * (2 if tokens > SLICE_ROWS else 1)
    mlp = added + 2 * at_once * spec.intermediate_size + max(at_once * spec.intermediate_size, matrix)
    state = added * spec.dtype_bytes + at_once * spec.mixing_bytes
    everywhere = tokens * (3 * hidden + 2 * spec.head_dim)
    return everywhere * spec.dtype_bytes + max(max(attention, mlp) * spec.dtype_bytes, held, state)


def check_context(
    spec: ModelSpec, preset: Preset, *, context: int | None, available: int, held_tokens: int | None = None
) -> None:
    """Raise DoesNotFitError when the cache of `context` tokens under `preset` needs more than `available` bytes.

    `held_tokens` is the most that a head ever holds, as when what is kept is moved into the trained length.
    """
    if context is None:
        return
    needed = context_bytes(spec, preset, context if held_tokens is None else min(context, held_tokens))
    if needed > available:
        raise DoesNotFitError(
            f"a context of {context:,} tokens needs {needed / 2**20:,.0f} MiB of KV cache under --budget "
            f"{preset.budget}, {available / 2**20:,.0f} MiB are free",
            hint="use a smaller --budget (or --budget auto), or a shorter --context",
        )


def context_bytes(spec: ModelSpec, preset: Preset, tokens: int) -> int:
    """Bytes of the keys and values that the budget of `preset` keeps of `tokens`; auto takes what there is."""
    budget, full = preset.budget, spec.full_kv_bytes(tokens)
    if budget.kind in ("auto", "bytes"):
        return 0 if budget.kind == "auto" else min(full, int(budget.amount))
    entries = resolve_entries(budget, spec, seq_len=tokens, free_bytes=0)
    if budget.kind == "fraction" or preset.kv_bits == 16:
        return entries * spec.kv_bytes_per_entry
    return entries * CacheConfig().entry_bytes(head_dim=spec.head_dim, bits=preset.kv_bits)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limits = (_group_bytes(*names) for names in _GROUP_FILES)
    return max(0, min([available, *(left for left in limits if left is not None)]))


def free_on(device: torch.device, ranks: Ranks, *, beside_bytes: int = 0) -> int:
    """The same of all `ranks`, which share one memory or have GPUs of their own; each needs `beside_bytes` there."""
    free = ranks.least(free_bytes(device))
    return ranks.room(free, beside_bytes=beside_bytes) if device.type == "cuda" else free


def reset_peak(device: torch.device) -> None:
    """Start a new high-water mark, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:  # some containers forbid it: the mark is then the process's
            return


def peak_bytes(device: torch.device) -> int:
    """The high-water mark in bytes: allocated memory on CUDA, resident memory elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes(device: torch.device) -> int:
    """Bytes in use now: allocated on CUDA, resident elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _group_bytes(limit_name: str, used_name: str, stat_name: str, prefix: str) -> int | None:
    """Bytes that a control group leaves; None where it has no limit."""
    limit, used = _read_int(_CGROUP / limit_name), _read_int(_CGROUP / used_name)
    if limit is None or used is None:
        return None
    return limit - used + _reclaimable_bytes(_CGROUP / stat_name, prefix)


def _reclaimable_bytes(path: Path, prefix: str) -> int:
    """File pages that the control group counts as used and gives back when memory is asked for."""
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
        return int(fields[f"{prefix}inactive_file"]) + int(fields[f"{prefix}active_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max": no limit
        return None
