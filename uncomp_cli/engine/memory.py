"""How much memory there is, how much was used at most, and how much a prompt will need.

Free memory on a CPU is what the operating system says is available, within the control group's limit if there is one.
The peak is the resident set's high-water mark since `reset_peak` (Linux), or the process's (elsewhere); on CUDA it is
the allocator's own.
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.config import CacheConfig
from uncomp_cli.spec import ModelSpec

__all__ = ["Estimate", "estimate", "free_bytes", "peak_bytes", "reset_peak", "resident_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a prompt is expected to allocate beyond the weights, in bytes; `peak_bytes` includes the kept cache."""

    kv_full_bytes: int
    kv_kept_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Kept cache, one layer in full and activations at once."""
        return self.kv_kept_bytes + self.activation_bytes


def estimate(spec: ModelSpec, plan: BudgetPlan, *, cache: CacheConfig | None = None) -> Estimate:
    """Expected bytes of a prefill of `plan.seq_len` tokens in one pass.

    At the widest point a token holds its embedding, its hidden state before the layer, after attention and normed, its
    cosines and sines, and either queries, keys, values and attention's output or the MLP's gate, up and product.
    """
    config = cache or CacheConfig()
    entry = spec.kv_bytes_per_entry + config.position_bytes
    slack = sum(config.slack(count) for layer in plan.kept for count in layer)
    attention = spec.head_dim * (2 * spec.num_heads + 4 * spec.num_kv_heads) + spec.hidden_size
    widest = 4 * spec.hidden_size + 2 * spec.head_dim + max(attention, 3 * spec.intermediate_size)
    return Estimate(
        kv_full_bytes=spec.full_kv_bytes(plan.seq_len),
        kv_kept_bytes=(plan.entries + slack) * entry,
        activation_bytes=plan.seq_len * widest * spec.dtype_bytes,
    )


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limit, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    return available if limit is None or used is None else max(0, min(available, limit - used))


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
    mark = _status_bytes("VmHWM:")
    if mark is not None:
        return mark
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes(device: torch.device) -> int:
    """Bytes in use now: allocated on CUDA, resident elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _status_bytes(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max": no limit
        return None
