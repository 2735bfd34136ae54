"""Prefill: attend, score, evict, layer by layer.

Each layer's attention is exact over the whole prompt; then its context is scored by the questions' attention, cut to
the plan, and stored. So at any moment one layer is held in full and the earlier ones at their budget.
The questions' own keys and values are kept whole: a single question lies behind the context at once, several wait
beside the cache (and count in its bytes) until `begin_question` puts one there.
"""

import time
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.ragged import Head, RaggedKVCache
from uncomp_cli.cache.scorers import Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.forward.thread import stream
from uncomp_cli.engine.read.overkeep import OverKeep, choose
from uncomp_cli.engine.read.row import Row
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation, fixed
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["PrefillState", "layout", "prefill"]


class PrefillState:
    """The engine's state during a prefill; one call of `attend` a layer.

    In the last layer only the rows whose logits are read are attended, unless the model's rows interact.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        plans: Sequence[BudgetPlan | Allocation],
        *,
        scorer: Scorer,
        config: ScorerConfig,
        cache: RaggedKVCache,
        on_layer: Callable[[int], None],
        rows_interact: bool = False,
        frequencies: Tensor | None = None,
    ) -> None:
        self.prompts = prompts
        self.allocations = [fixed(plan) for plan in plans]
        self.overkeep = [
            OverKeep(prompt, allocation, config, shared=scorer.shared)
            for prompt, allocation in zip(prompts, self.allocations, strict=True)
        ]
        self.scorer = scorer
        self.config = config
        self.cache = cache
        self.on_layer = on_layer
        self.rows_interact = rows_interact
        self.frequencies = frequencies
        self.questions: list[list[list[Head]]] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Exact attention of every row over its prompt; stores what the plan keeps."""
        outputs: list[Tensor] = []
        last_only = layer == len(self.cache.layers) - 1 and not self.rows_interact
        rows = self._rows(query, key, value, scaling)
        for row in rows:
            pad = query.shape[2] - row.prompt.flat_len
            output = row.attend(window=sliding_window, last_only=last_only)
            outputs.append(functional.pad(output, (0, 0, pad, 0)) if pad else output)
        self._keep(layer, rows, sliding_window)
        self.on_layer(layer)
        return outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)

    def keep(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> None:
        """What `attend` stores, without its output: for tensors whose attention has been computed before."""
        self._keep(layer, self._rows(query, key, value, scaling), sliding_window)

    def _rows(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> list[Row]:
        rows = []
        for row, prompt in enumerate(self.prompts):
            pad = query.shape[2] - prompt.flat_len
            unpadded = (key[row, :, pad:].contiguous(), value[row, :, pad:].contiguous())
            rows.append(Row(prompt, query[row, :, pad:], *unpadded, scaling))
        return rows

    def _keep(self, layer: int, rows: list[Row], window: int | None) -> None:
        heads: list[Head] = []
        questions: list[list[Head]] = [[] for _ in self.prompts[0].questions]
        for index, row in enumerate(rows):
            heads += self._kept_heads(layer, index, row, window)
            for question, tail in zip(questions, row.tails(window), strict=True):
                question += tail
        waits = window is None and any(held.needed for held in self.overkeep)
        reserve = self._reserve if window is None else min(self._reserve, window)
        self.cache.store(layer, heads, reserve=reserve, quantize=not waits)
        self._keep_questions(layer, questions)
        self._trim(final=layer == len(self.cache.layers) - 1)

    @property
    def _reserve(self) -> int:
        """Room behind the context for a question."""
        return max(prompt.longest_question for prompt in self.prompts)

    def _keep_questions(self, layer: int, questions: list[list[Head]]) -> None:
        """One question goes behind the context; several are copied, so that the layer's full tensors can go."""
        if len(questions) == 1:
            self.cache.extend(layer, questions[0])
            return
        copies = [[(keys.clone(), values.clone(), at) for keys, values, at in question] for question in questions]
        self.questions.append(copies)
        self.cache.count_aside(tensor for question in copies for head in question for tensor in head)

    def _kept_heads(self, layer: int, index: int, row: Row, window: int | None) -> list[Head]:
        """(keys, values, positions) of the context tokens that stay in each head."""
        context, allocation, held = len(row.prompt.context), self.allocations[index], self.overkeep[index]
        keys, values = row.key[:, :context], row.value[:, :context]
        positions = torch.arange(context, device=keys.device, dtype=torch.int32)
        if window is not None:
            shortest = min(len(question) for question in row.prompt.questions)
            first = max(0, context - max(0, window - shortest))
            return [(k[first:], v[first:], positions[first:]) for k, v in zip(keys, values, strict=True)]
        if not allocation.live and not held.needed and _keeps_all(allocation, layer, row.prompt):
            return [(k, v, positions) for k, v in zip(keys, values, strict=True)]
        view = row.view(layer, self.frequencies)
        allocation.report(layer, view)
        scores = pool(self.scorer.score(view), kind=self.config.pooling, width=self.config.width)
        if held.needed:
            chosen = held.hold(layer, scores)
        else:
            counts = [count - row.prompt.longest_question for count in allocation.plan.kept[layer]]
            chosen = choose(scores, counts, row.prompt, self.config, head_floor=allocation.plan.head_floor)
        return [(keys[g, at], values[g, at], at.to(torch.int32)) for g, at in enumerate(chosen)]

    def _trim(self, *, final: bool) -> None:
        """Cut the layers that waited: at last, or when they hold much more than they will keep."""
        if not (final or any(held.is_wasteful() for held in self.overkeep)):
            return
        trims = [held.trim(final=final) if held.needed else {} for held in self.overkeep]
        for layer in trims[0]:
            chosen = [at for trim in trims for at in trim[layer]]
            if final and self.cache.kv_bits != 16:
                self._quantize(layer, chosen)
                continue
            entries = self.cache.layer(layer).lengths
            tails = (torch.arange(total - tail, total) for total, tail in zip(entries, self._behind(), strict=True))
            keep = [torch.cat([at, tail.to(at.device)]) for at, tail in zip(chosen, tails, strict=True)]
            self.cache.retain(layer, keep, reserve=self._reserve if self.questions else 0)

    def _behind(self) -> list[int]:
        """How many question tokens lie behind the context in every head of the cache."""
        waiting = len(self.prompts[0].questions) > 1
        tails = (0 if waiting else len(prompt.questions[0]) for prompt in self.prompts)
        return [tail for tail in tails for _ in range(self.cache.num_kv_heads)]

    def _quantize(self, layer: int, chosen: Sequence[Tensor]) -> None:
        """Store what stays of a layer that waited in the model's own dtype, its question behind it."""
        held = self.cache.layer(layer)
        heads = [held.head(i) for i in range(len(chosen))]
        cuts = [len(head[2]) - tail for head, tail in zip(heads, self._behind(), strict=True)]
        tails = [(k[cut:], v[cut:], at[cut:]) for (k, v, at), cut in zip(heads, cuts, strict=True)]
        kept = [(k[rows], v[rows], at[rows]) for (k, v, at), rows in zip(heads, chosen, strict=True)]
        self.cache.store(layer, kept, reserve=self._reserve)
        self.cache.extend(layer, tails)


def _keeps_all(allocation: Allocation, layer: int, prompt: Prompt) -> bool:
    """Whether every head of a layer keeps the whole context."""
    return all(count >= prompt.seq_len for count in allocation.plan.kept[layer])


def prefill(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    plans: Sequence[BudgetPlan | Allocation],
    *,
    scorer: Scorer,
    config: ScorerConfig,
) -> Generator[PrefillStep, None, Context]:
    """Read B prompts, one record a layer; returns what was read.

    Rows of a batch are padded on the left inside and have one question each; a single row may have several. The
    logits [B or Q, vocab] are those of each question's last token. Raises ValueError for several rows of several
    questions.
    """
    if len(prompts) > 1 and any(len(prompt.questions) > 1 for prompt in prompts):
        raise ValueError("a batch of several prompts takes one question each")
    spec = decoder.spec
    allocations = [fixed(plan) for plan in plans]
    (kv_bits,) = {each.plan.kv_bits for each in allocations}  # a ValueError when the rows differ: one cache has one
    cache = RaggedKVCache(
        num_layers=spec.num_layers, num_rows=len(prompts), num_kv_heads=spec.num_kv_heads, kv_bits=kv_bits
    )
    ids, positions, last = layout(prompts)
    begun = time.perf_counter()

    def work(emit: Callable[[PrefillStep], None]) -> Context:
        def on_layer(layer: int) -> None:
            elapsed = time.perf_counter() - begun
            emit(PrefillStep(layer + 1, spec.num_layers, _total(prompts), elapsed, cache.nbytes))

        state = PrefillState(
            prompts,
            allocations,
            scorer=scorer,
            config=config,
            cache=cache,
            on_layer=on_layer,
            rows_interact=decoder.rows_interact,
            frequencies=rope_frequencies(decoder.model),
        )
        read = Context(prompts, cache, state.questions)
        read.logits = decoder.forward(ids, positions, state, last).flatten(0, 1)
        return read

    return (yield from stream(work))


def _total(prompts: Sequence[Prompt]) -> int:
    return sum(prompt.flat_len for prompt in prompts)


def layout(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Left-padded ids and logical positions [B, N], and the columns whose logits are wanted."""
    width = max(prompt.flat_len for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    positions = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        context = len(prompt.context)
        flat = [*prompt.context, *(token for question in prompt.questions for token in question)]
        at = [torch.arange(context), *(context + torch.arange(len(question)) for question in prompt.questions)]
        ids[row, width - len(flat) :] = torch.tensor(flat)
        positions[row, width - len(flat) :] = torch.cat(at)
    if len(prompts) > 1:
        return ids, positions, torch.tensor([width - 1])
    ends = torch.tensor([len(question) for question in prompts[0].questions]).cumsum(0)
    return ids, positions, ends + len(prompts[0].context) - 1
