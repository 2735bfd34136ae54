"""A cache that stays the same size while tokens are added: for each new block, as many of the least needed go.

    need(head, entry) = mean over the last W queries t and the head's H/G query heads of softmax_t(q·k · scaling)

pooled along the text, so that an entry brings its neighbours (UNComp evicts one token for each new one, keeping the
last 8, arXiv 2410.03090, section 3.3; blocks are cheaper and let the queries of a whole window decide). What always
stays: the last `recent` entries, the protected positions, and the part `prompt_share` of a head's prompt, those of its
entries that are needed most, so that what is generated cannot starve it. Heads and rows are independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import Pooling
from uncomp_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class ConstantConfig:
    """How a cache is held constant; all but `prompt_share` in tokens.

    Every `block` tokens each head is cut to its limit, by the attention of the last `window` queries.
    """

    block: int = 64
    window: int = 32
    recent: int = 32
    prompt_share: float = 0.5
    pooling: Pooling = "mean"
    width: int = 7

    def __post_init__(self) -> None:
        checks = (
            (self.block >= 1, f"block is {self.block}", "evict 1 token or more at a time"),
            (self.window >= 1, f"window is {self.window}", "observe 1 query or more"),
            (self.recent >= 8, f"recent is {self.recent}", "keep the last 8 tokens or more"),
            (0 <= self.prompt_share <= 1, f"prompt share is {self.prompt_share}", "use a part from 0 to 1"),
            (self.width >= 1 and self.width % 2 == 1, f"pooling width is {self.width}", "use an odd number of tokens"),
        )
        for holds, message, hint in checks:
            if not holds:
                raise UsageError(message, hint=hint)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """What bounds one layer's heads: entries after each cut, and the prompt's entries that always stay. [heads]"""

    entries: tuple[int, ...]
    prompt: tuple[int, ...]


def limits_of(lengths: Sequence[int], protected: Sequence[int], config: ConstantConfig) -> HeadLimits:
    """Limits of heads of these `lengths` when generation begins, with so many `protected` entries each.

    A head's limit is its length, or more where that leaves no room for the recent window beside what always stays.
    """
    prompt = tuple(
        max(-int(-config.prompt_share * length // 1), held) for length, held in zip(lengths, protected, strict=True)
    )
    entries = tuple(max(length, held + config.recent) for length, held in zip(lengths, prompt, strict=True))
    return HeadLimits(entries, prompt)


def attention_needs(
    queries: Tensor, keys: Sequence[Tensor], ages: Tensor, form: Form, *, config: ConstantConfig
) -> Tensor:
    """Needs [heads, S] of each head's keys [S_i, D], padded on the right with zeros.

    queries [heads, H/G, W, D]; ages [W]: how many tokens came after each query, whose keys it did not see.
    """
    lengths = torch.tensor([len(each) for each in keys], device=queries.device)
    padded = pad_sequence(list(keys), batch_first=True)
    column = torch.arange(padded.shape[1], device=queries.device)
    unseen = column >= (lengths[:, None, None] - ages[:, None])  # [heads, W, S]
    scores = torch.einsum("hgwd,hsd->hgws", queries, padded).float() * form.scaling
    needs = form.weights(scores, unseen[:, None]).mean(dim=(1, 2))
    if config.pooling != "mean":
        return pool(needs, kind=config.pooling, width=config.width)
    inside = (column < lengths[:, None]).float()  # the mean is over the entries that there are
    return pool(needs, kind="mean", width=config.width) / pool(inside, kind="mean", width=config.width).clamp_min(1e-9)


def choose_kept(
    needs: Tensor,
    positions: Sequence[Tensor],
    *,
    protected: Sequence[Tensor],
    prompt_lens: Sequence[int],
    limits: HeadLimits,
    config: ConstantConfig,
) -> list[Tensor]:
    """The entries of each head that stay, ascending: the most needed up to its limit, after what always stays.

    `positions` [S_i] ascend; `protected` bool [P] by position and `prompt_lens` are those of each head's row.
    """
    always = pad_sequence(
        [_protected(at, shield) for at, shield in zip(positions, protected, strict=True)], batch_first=True
    )
    begins = torch.tensor(prompt_lens, device=needs.device)[:, None]
    at = pad_sequence(list(positions), batch_first=True)
    lengths = torch.tensor([len(each) for each in positions], device=needs.device)[:, None]
    column = torch.arange(needs.shape[1], device=needs.device)
    floor = torch.tensor(limits.prompt, device=needs.device)[:, None]
    always = always | (column >= lengths - config.recent)
    in_prompt = ((at < begins) & (column < lengths)).float()
    ranks = _ranks(needs + in_prompt * (2 + 2 * always))  # protected entries of the prompt count in its share
    worth = needs + 4.0 * (always | ((in_prompt > 0) & (ranks < floor)))
    worth = worth.masked_fill(column >= lengths, -1.0)
    ranks = _ranks(worth)
    kept = []
    for i, (each, limit) in enumerate(zip(positions, limits.entries, strict=True)):
        count = min(len(each), limit)
        order = torch.where(ranks[i] < count, column, len(column))
        kept.append(order.sort().values[:count])
    return kept


def _protected(positions: Tensor, shield: Tensor) -> Tensor:
    """Which of the positions are marked in `shield` [P]; what lies behind it is not."""
    inside = positions < len(shield)
    return shield[positions.clamp(max=len(shield) - 1).long()] & inside if len(shield) else inside


def _ranks(worth: Tensor) -> Tensor:
    """The rank [heads, S] of each entry in its row, the most worth first; of equals the later first."""
    order = worth.flip(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).flip(1)
