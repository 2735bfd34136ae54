"""Reading a prompt chunk by chunk, thinning it on the way: memory stays bounded however long it is.

    for each chunk:  for each layer:  attend to what was kept and, causally, to the chunk → score → hold → thin
                     then cut every layer back to its budget

The question observes every chunk from right behind it, and ranks what was kept before and what is new by one softmax:
late chunks cannot crowd early evidence out. Between chunks a head keeps an eighth more than its budget, because later
chunks may change the ranking. With a budget of everything nothing is ranked, and the chunk's length changes nothing.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.eviction import choose_held
from uncomp_cli.cache.ragged import Head, RaggedKVCache
from uncomp_cli.cache.scorers import Scorer
from uncomp_cli.cache.window import agree, mix
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.read.chunk_row import ChunkRow
from uncomp_cli.engine.read.overkeep import MARGIN_TOKENS
from uncomp_cli.engine.read.repacked import packed
from uncomp_cli.engine.read.thinner import Thinner
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.tokens.chunks import Chunk
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["BETWEEN_CHUNKS", "StreamedState", "held_of_chunk"]

BETWEEN_CHUNKS = 9 / 8
"""What a head keeps of its budget between two chunks."""


def held_of_chunk(config: ScorerConfig, chunk_tokens: int) -> int:
    """Tokens that a head holds beyond its budget until all layers have had their say about a chunk."""
    return MARGIN_TOKENS + math.ceil(config.held * chunk_tokens)


class StreamedState:
    """The engine's state while chunks are read; `begin` starts one, `finish` cuts back to the budget behind it."""

    def __init__(
        self,
        prompt: Prompt,
        allocation: Allocation,
        *,
        scorer: Scorer,
        config: ScorerConfig,
        cache: RaggedKVCache,
        thinner: Thinner,
        on_layer: Callable[[int], None],
        rows_interact: bool = False,
        frequencies: Tensor | None = None,
        repack: bool = False,
    ) -> None:
        self.prompt = prompt
        self.allocation = allocation
        self.scorer = scorer
        self.config = config
        self.cache = cache
        self.thinner = thinner
        self.on_layer = on_layer
        self.rows_interact = rows_interact
        self.frequencies = frequencies
        self.repack = repack
        self.questions: list[list[list[Head]]] = []
        self._scores: dict[int, Tensor] = {}

    def begin(self, chunk: Chunk, device: torch.device) -> None:
        """Start reading `chunk`."""
        self._chunk = chunk
        self._scores = {}
        self._tails: list[list[list[Head]]] = []
        self.thinner.begin(chunk, device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Attention of the chunk [1, H, N, D]; holds what may stay."""
        seen, held = self._past(layer)
        positions = self.thinner.at + self._chunk.first
        tensors = (tensor[0].contiguous() for tensor in (query, key, value))
        end = self._chunk.first + len(self._chunk.prompt.context)
        row = ChunkRow(self._chunk.prompt, positions, seen, *tensors, scaling=scaling, end=end)
        last_only = layer == len(self.cache.layers) - 1 and not self.rows_interact
        output = row.attend(window=sliding_window, last_only=last_only)
        self._hold(layer, row, sliding_window, held)
        self.on_layer(layer)
        return output[None]

    def _past(self, layer: int) -> tuple[list[Head], list[Head]]:
        """What is held of the text before the chunk: as the chunk sees it, and as it is held on."""
        if self._chunk.first == 0:
            return [], []
        cached = self.cache.layer(layer)
        held = [cached.head(i) for i in range(len(cached.lengths))]
        if not self.repack or self.frequencies is None:
            return held, held
        seen = packed(held, self._chunk.first, self.frequencies)
        return seen, seen if self._chunk.final else held  # an answer looks back over what the last chunk saw

    def keep_after(self, layer: int) -> Tensor | None:
        """Indices of the tokens that enter the next layer, the questions among them; None when all do."""
        before = len(self.thinner.at)
        kept = self.thinner.keep_after(layer)
        if kept is None:
            return None
        asked = sum(len(question) for question in self._chunk.prompt.questions)
        return torch.cat([kept, torch.arange(before, before + asked, device=kept.device)])

    def finish(self) -> None:
        """Cut every layer to its budget; behind the last chunk put the questions where they belong."""
        if self._chunk.final:
            self._fit_to_what_is_there()
        agreed = self._agreed()
        for layer in range(len(self.cache.layers)):
            self._cut(layer, agreed)
        for layer, questions in enumerate(self._tails if self._chunk.final else ()):
            self._put(layer, questions)

    def agreed(self) -> Tensor:
        """What all layers agree on behind the last chunk: a score [S] for every token, 0 where nothing is held."""
        trust = self.allocation.trust()
        if not self._scores:
            return torch.zeros(len(self.prompt.context))
        return agree(list(self._scores.values()), None if trust is None else [trust[layer] for layer in self._scores])

    def _hold(self, layer: int, row: ChunkRow, window: int | None, past: list[Head]) -> None:
        """Store the past and the chunk for now, cut as far as it is certain already."""
        if self._chunk.final:
            self._tails.append(row.tails(window))
        heads = row.heads(past)
        if window is not None:
            heads = [_last(head, self._sliding_room(window)) for head in heads]
        elif self._ranked(layer):
            views = row.views(layer, self.frequencies)
            if self.thinner.active:
                self.thinner.watch(views)
            self.allocation.report(layer, row.own_view(layer, self.frequencies))
            self._scores[layer] = self._dense([self.scorer.score(view) for view in views], heads)
            heads = self._fewer(layer, heads)
        elif self.thinner.active:
            self.thinner.watch(row.views(layer, self.frequencies))
        self.cache.store(layer, heads, reserve=self._reserve(layer), quantize=False)

    def _fewer(self, layer: int, heads: list[Head]) -> list[Head]:
        """What the heads hold until the chunk is done."""
        room = self._room(layer, heads)
        if all(count >= len(positions) for count, (_, _, positions) in zip(room, heads, strict=True)):
            return heads
        return self._chosen(self._mixed(layer), heads, room)

    def _sliding_room(self, window: int) -> int:
        """Context tokens that a sliding layer still needs: behind the last chunk the question takes some of them."""
        return max(0, window - min(map(len, self.prompt.questions))) if self._chunk.final else window

    def _ranked(self, layer: int) -> bool:
        """Whether any head of a layer may have to drop something."""
        return self.allocation.live or any(count < self.prompt.seq_len for count in self.allocation.plan.kept[layer])

    def _reserve(self, layer: int) -> int:
        """Room for a question behind the context; of a sliding layer's no more than its window."""
        window = self.thinner.spec.sliding_windows[layer]
        question = self.prompt.longest_question if self._chunk.final else 0
        return question if window is None else min(question, window)

    def _dense(self, scores: Sequence[Tensor], heads: Sequence[Head]) -> Tensor:
        """Pooled scores by position [G, S], 0 where a head has nothing."""
        rows = [row for group in scores for row in pool(group, kind=self.config.pooling, width=self.config.width)]
        dense: Tensor = rows[0].new_zeros(len(heads), len(self.prompt.context))
        for target, row, (_, _, positions) in zip(dense, rows, heads, strict=True):
            target[positions.long()] = row
        return dense

    def _mixed(self, layer: int) -> Tensor:
        """A layer's scores mixed with what the layers so far agree on."""
        own, agreed = self._scores[layer], self._agreed()
        return own if agreed is None else mix(own, agreed, shared=self.scorer.shared)

    def _agreed(self) -> Tensor | None:
        return None if self.scorer.shared == 0 or not self._scores else self.agreed()

    def _counts(self, layer: int) -> list[int]:
        """Context tokens of each head when the chunk is done."""
        counts = [count - self.prompt.longest_question for count in self.allocation.plan.kept[layer]]
        return counts if self._chunk.final else [int(BETWEEN_CHUNKS * count) for count in counts]

    def _room(self, layer: int, heads: Sequence[Head]) -> list[int]:
        """Context tokens of each head until the chunk is done: more, where later layers have a say or heads share."""
        shared, plan = self.scorer.shared > 0, self.allocation.plan
        if self.allocation.live or plan.head_floor < 1 or (self.thinner.active and not shared):
            return [len(positions) for _, _, positions in heads]
        spare = held_of_chunk(self.config, len(self._chunk.prompt.context)) if shared else MARGIN_TOKENS
        return [count + spare for count in self._counts(layer)]

    def _fit_to_what_is_there(self) -> None:
        """Plan anew for layers that hold fewer tokens than the prompt has, because it was thinned before them."""
        if not self.thinner.active:
            return
        layers = [self.cache.layer(i) for i in range(len(self.cache.layers))]
        self.allocation.fit([max(layer.lengths) + self.prompt.longest_question for layer in layers])

    def _cut(self, layer: int, agreed: Tensor | None) -> None:
        held = self.cache.layer(layer)
        heads = [held.head(i) for i in range(len(held.lengths))]
        quantize = self._chunk.final and self.cache.kv_bits != 16
        if layer in self._scores:
            scores = self._scores[layer]
            scores = scores if agreed is None else mix(scores, agreed, shared=self.scorer.shared)
            heads = self._chosen(scores, heads, self._counts(layer))
        elif not quantize:
            return
        self.cache.store(layer, heads, reserve=self._reserve(layer), quantize=quantize)

    def _chosen(self, scores: Tensor, heads: Sequence[Head], counts: Sequence[int]) -> list[Head]:
        """What stays of each head by scores [G, S]: `counts` entries, or all when there are fewer."""
        words = self.prompt.words if self.config.whole_words else None
        stay = choose_held(
            scores,
            [positions for _, _, positions in heads],
            counts,
            protected=self.prompt.protected.to(scores.device),
            words=None if words is None else words.to(scores.device),
            floor=self.allocation.plan.head_floor,
        )
        return [(k[rows], v[rows], at[rows]) for (k, v, at), rows in zip(heads, stay, strict=True)]

    def _put(self, layer: int, questions: list[list[Head]]) -> None:
        """One question behind the context; several wait beside it."""
        if len(questions) == 1:
            self.cache.extend(layer, questions[0])
            return
        self.questions.append(questions)
        self.cache.count_aside(tensor for question in questions for head in question for tensor in head)


def _last(head: Head, count: int) -> Head:
    keys, values, positions = head
    first = max(0, len(positions) - count)
    return keys[first:], values[first:], positions[first:]
