"""One model over several processes, of `uncomp ask --ranks` or torchrun: each has its KV heads, and all decide alike.

transformers' own plans shard the matrices and sum what is partial, so hidden states and logits are the same everywhere.
Keys, values and queries are a rank's own, and so is its part of the ragged cache. What its heads have to say about
which tokens stay is told to all (`whole`), every rank makes the one plan and the one choice for all heads, and keeps
what of it is its own (`own`): budgets, agreed scores and shared heads are those of one process.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.spec import ModelSpec

T = TypeVar("T")
_PATIENCE_S = 600
"""How long a process waits for another one, at most."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Process `number` of `count`; alone it asks nobody."""

    number: int = 0
    count: int = 1

    def whole(self, own: Tensor) -> Tensor:
        """Every rank's tensor [X, …] of one shape, one behind the other."""
        if self.count == 1 or not own.numel():
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def total(self, own: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, the same bits everywhere."""
        return own if self.count == 1 else self.whole(own[None]).sum(dim=0)

    def highest(self, own: Tensor) -> Tensor:
        """The largest of the ranks' tensors of one shape, number by number."""
        return own if self.count == 1 else self.whole(own[None]).amax(dim=0)

    def counted(self, reduce: Callable[[Tensor], Tensor], own: Sequence[int], device: torch.device) -> list[int]:
        """What `total` or `highest` makes of the ranks' counts, which meet on `device`."""
        if self.count == 1:
            return list(own)
        found: list[int] = reduce(torch.tensor(own, device=device)).tolist()
        return found

    def first(self, heads: int) -> int:
        """The number among all heads of the first of this rank's `heads`."""
        return self.number * heads

    def whole_ragged(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The same of heads of different lengths: each [S] of integers."""
        if self.count == 1:
            return list(own)
        lengths = self.whole(torch.tensor([len(each) for each in own], device=own[0].device)).tolist()
        laid = own[0].new_zeros(len(own), max(lengths))
        for row, each in zip(laid, own, strict=True):
            row[: len(each)] = each
        return [row[:length] for row, length in zip(self.whole(laid), lengths, strict=True)]

    def own(self, every: Sequence[T]) -> list[T]:
        """Of what is said of all heads, what is said of this rank's."""
        each = len(every) // self.count
        return list(every[self.number * each : (self.number + 1) * each])

    def least(self, own: int) -> int:
        """The smallest of the ranks' numbers: what all can do."""
        if self.count == 1:
            return own
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return int(min(found))

    def room(self, free_bytes: int, *, beside_bytes: int) -> int:
        """What all ranks hold together, with `free_bytes` each, when each needs `beside_bytes` of them."""
        return max(free_bytes, self.count * free_bytes - (self.count - 1) * beside_bytes)

    def part_of(self, spec: ModelSpec) -> ModelSpec:
        """The shape of a rank's part."""
        heads, kv_heads = spec.num_heads // self.count, spec.num_kv_heads // self.count
        return replace(spec, num_heads=heads, num_kv_heads=kv_heads)


ALONE = Ranks()
"""One process that has all heads."""


def join(count: int, device: torch.device) -> Ranks:
    """This process among `count`, which have met or were begun by torchrun. Raises UsageError where they are others."""
    if count == 1:
        return ALONE
    met = dist.is_initialized()
    begun = dist.get_world_size() if met else int(os.environ.get("WORLD_SIZE", "1"))
    if begun != count:
        message = f"{count} ranks are asked for, and torchrun began {begun}"
        raise UsageError(
            message, hint=f"torchrun --nproc-per-node {count} YOUR_SCRIPT.py, or uncomp ask --ranks {count}"
        )
    if not met:
        dist.init_process_group(_backend(device.type))
    return Ranks(dist.get_rank(), count)


def meet(number: int, count: int, place: Path) -> None:
    """Become process `number` of `count` on this machine; they find each other through the file `place`.

    A file in a private folder, unlike a port, is open to nobody else. On a CPU they talk over the loopback interface.
    """
    accelerated = torch.cuda.is_available()
    if not accelerated:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        _backend("cuda" if accelerated else "cpu"),
        store=FileStore(str(place), count),
        rank=number,
        world_size=count,
        timeout=timedelta(seconds=_PATIENCE_S),
    )


def part() -> None:
    """Leave the others, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def environment_of(number: int) -> dict[str, str]:
    """What process `number` of several on this machine is begun with: it sees one GPU, its own, where there are any."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number]} if count else {}


def _backend(device_type: str) -> str:
    return "nccl" if device_type == "cuda" else "gloo"


def check_devices(count: int, device: str) -> None:
    """Raise UsageError where each of `count` processes cannot have a device: a GPU of its own, or all the one CPU."""
    gpus = torch.cuda.device_count()
    if device not in ("auto", "cuda" if gpus else "cpu"):
        kind = "each rank takes a GPU of its own" if gpus else "without a GPU all ranks run on the CPU"
        raise UsageError(f"--ranks {count} and --device {device}: {kind}", hint="leave --device out")
    if 0 < gpus < count:
        message = f"--ranks {count} needs as many GPUs, and this machine has {gpus}"
        raise UsageError(message, hint=f"use --ranks {gpus}" if gpus > 1 else "leave --ranks out")


def check_heads(count: int, spec: ModelSpec, config: Any, name: str) -> None:
    """Raise ModelError for a model whose heads cannot be dealt out, or which transformers has no plan for."""
    if spec.num_kv_heads % count:
        message = f"the {spec.num_kv_heads} KV heads of {name} cannot be dealt out to {count} ranks"
        dividing = [str(each) for each in range(2, spec.num_kv_heads + 1) if spec.num_kv_heads % each == 0]
        raise ModelError(message, hint=f"use {' or '.join(dividing)} ranks" if dividing else "use one rank")
    if not getattr(config, "base_model_tp_plan", None):
        raise ModelError(f"transformers has no tensor-parallel plan for {spec.model_type}", hint="use one rank")
