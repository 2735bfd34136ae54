"""One model over several processes that `torchrun` began: each has KV heads of its own, and all decide alike.

transformers' own plans shard the matrices and sum what is partial, so hidden states and logits are the same everywhere.
Keys, values and queries are a rank's own, and so is its part of the ragged cache. What its heads have to say about
which tokens stay is told to all (`whole`), every rank makes the one plan and the one choice for all heads, and keeps
what of it is its own (`own`): budgets, agreed scores and shared heads are those of one process.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.spec import ModelSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Process `number` of `count`; alone it asks nobody."""

    number: int = 0
    count: int = 1

    def whole(self, own: Tensor) -> Tensor:
        """Every rank's tensor [X, …] of one shape, one behind the other."""
        if self.count == 1:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

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

    def part_of(self, spec: ModelSpec) -> ModelSpec:
        """The shape of a rank's part."""
        heads, kv_heads = spec.num_heads // self.count, spec.num_kv_heads // self.count
        return replace(spec, num_heads=heads, num_kv_heads=kv_heads)


def join(count: int, device: torch.device) -> Ranks:
    """This process among `count`. Raises UsageError where torchrun did not begin as many."""
    if count == 1:
        return Ranks()
    begun = int(os.environ.get("WORLD_SIZE", "1"))
    if begun != count:
        message = f"{count} ranks are asked for, and torchrun began {begun}"
        raise UsageError(message, hint=f"torchrun --nproc-per-node {count} YOUR_SCRIPT.py")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), count)


def check_ranks(ranks: Ranks, spec: ModelSpec, config: Any, name: str) -> None:
    """Raise ModelError for a model whose heads cannot be dealt out, or which transformers has no plan for."""
    if ranks.count == 1:
        return
    if spec.num_kv_heads % ranks.count:
        message = f"the {spec.num_kv_heads} KV heads of {name} cannot be dealt out to {ranks.count} ranks"
        raise ModelError(message, hint="use a number of ranks that divides them")
    if not getattr(config, "base_model_tp_plan", None):
        raise ModelError(f"transformers has no tensor-parallel plan for {spec.model_type}", hint="use one rank")
