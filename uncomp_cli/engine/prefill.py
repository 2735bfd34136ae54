"""Prefill: attend, score, evict, layer by layer.

Each layer's attention is exact over the whole prompt; then its context is scored by the questions' attention, cut to
the plan, and stored. So at any moment one layer is held in full and the earlier ones at their budget.
The questions' own keys and values are kept whole: a single question lies behind the context at once, several wait
beside the cache (and count in its bytes) until `begin_question` puts one there.
"""

import time
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.coherence import pool, share_by_word
from uncomp_cli.cache.eviction import select
from uncomp_cli.cache.head_shares import share_heads
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scoring import LayerView, Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.attention import attend_after, attend_causal
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.prompt import Prompt
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.rotation import rope_frequencies
from uncomp_cli.engine.worker import stream

__all__ = ["PrefillState", "Prefilled", "prefill"]


Head = tuple[Tensor, Tensor, Tensor]
"""Keys [S, D], values [S, D] and positions [S] of one KV head."""


class Prefilled:
    """A prompt that has been read: its compressed context and, a question, its keys, values and next-token logits.

    `questions[l][q]` holds question q's entries in layer l, one `Head` for every KV head; it is empty when there is
    one question, whose entries are in the cache.
    """

    def __init__(self, prompts: Sequence[Prompt], cache: RaggedKVCache, questions: list[list[list[Head]]]) -> None:
        self.prompts = prompts
        self.cache = cache
        self.questions = questions
        self.logits: Tensor = torch.empty(0)
        self._mark: list[list[int]] | None = None

    def begin_question(self, question: int = 0) -> None:
        """Put the keys and values of `question` behind the context; what an earlier question left is forgotten."""
        if self._mark is None:
            self._mark = self.cache.mark()
        self.cache.rollback(self._mark)
        for layer, questions in enumerate(self.questions):
            self.cache.extend(layer, questions[question])

    def next_positions(self, question: int = 0) -> Tensor:
        """The logical position [B, 1] of the first generated token in every row."""
        return torch.tensor([[len(prompt.context) + len(prompt.questions[question])] for prompt in self.prompts])


class PrefillState:
    """The engine's state during a prefill; one call of `attend` a layer.

    In the last layer only the rows whose logits are read are attended, unless the model's rows interact.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        plans: Sequence[BudgetPlan],
        *,
        scorer: Scorer,
        config: ScorerConfig,
        cache: RaggedKVCache,
        on_layer: Callable[[int], None],
        rows_interact: bool = False,
        frequencies: Tensor | None = None,
    ) -> None:
        self.prompts = prompts
        self.plans = plans
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

    def _rows(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> "list[_Row]":
        rows = []
        for row, prompt in enumerate(self.prompts):
            pad = query.shape[2] - prompt.flat_len
            unpadded = (key[row, :, pad:].contiguous(), value[row, :, pad:].contiguous())
            rows.append(_Row(prompt, query[row, :, pad:], *unpadded, scaling))
        return rows

    def _keep(self, layer: int, rows: "list[_Row]", window: int | None) -> None:
        heads: list[Head] = []
        questions: list[list[Head]] = [[] for _ in self.prompts[0].questions]
        for row, plan in zip(rows, self.plans, strict=True):
            heads += self._kept_heads(layer, row, plan, window)
            for question, tail in zip(questions, row.tails(window), strict=True):
                question += tail
        longest = max(prompt.longest_question for prompt in self.prompts)
        self.cache.store(layer, heads, reserve=longest if window is None else min(longest, window))
        self._keep_questions(layer, questions)

    def _keep_questions(self, layer: int, questions: list[list[Head]]) -> None:
        """One question goes behind the context; several are copied, so that the layer's full tensors can go."""
        if len(questions) == 1:
            self.cache.extend(layer, questions[0])
            return
        copies = [[(keys.clone(), values.clone(), at) for keys, values, at in question] for question in questions]
        self.questions.append(copies)
        self.cache.count_aside(tensor for question in copies for head in question for tensor in head)

    def _kept_heads(self, layer: int, row: "_Row", plan: BudgetPlan, window: int | None) -> list[Head]:
        """(keys, values, positions) of the context tokens that stay in each head."""
        context, kept = len(row.prompt.context), plan.kept[layer]
        keys, values = row.key[:, :context], row.value[:, :context]
        positions = torch.arange(context, device=keys.device, dtype=torch.int32)
        if window is not None:
            shortest = min(len(question) for question in row.prompt.questions)
            first = max(0, context - max(0, window - shortest))
            return [(keys[g, first:], values[g, first:], positions[first:]) for g in range(len(kept))]
        counts = [count - row.prompt.longest_question for count in kept]
        if all(count >= context for count in counts):
            return [(keys[g], values[g], positions) for g in range(len(kept))]
        view = LayerView(
            layer=layer,
            queries=row.query[:, :context],
            keys=keys,
            values=values,
            branches=row.branches(),
            scaling=row.scaling,
            frequencies=self.frequencies,
        )
        chosen = self._choose(self.scorer.score(view), counts, row.prompt, plan.head_floor)
        return [(keys[g, at], values[g, at], at.to(torch.int32)) for g, at in enumerate(chosen)]

    def _choose(self, scores: Tensor, counts: Sequence[int], prompt: Prompt, head_floor: float) -> list[Tensor]:
        scores = pool(scores, kind=self.config.pooling, width=self.config.width)
        words = prompt.words.to(scores.device) if self.config.whole_words and prompt.words is not None else None
        if words is not None:
            scores = share_by_word(scores, words)
        protected = prompt.protected.to(scores.device)
        counts = share_heads(scores, counts, protected=protected, floor=head_floor)
        return select(scores, counts, protected=protected, words=words)


class _Row:
    """One row of the batch in one layer: the unpadded prompt, cut into context and questions."""

    def __init__(self, prompt: Prompt, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        self.prompt, self.query, self.key, self.value, self.scaling = prompt, query, key, value, scaling
        starts = [len(prompt.context)]
        for question in prompt.questions:
            starts.append(starts[-1] + len(question))
        self.spans = [slice(a, b) for a, b in pairwise(starts)]

    def attend(self, *, window: int | None, last_only: bool) -> Tensor:
        """The attention output [H, N, D]; with `last_only` zero but for the rows whose logits are read."""
        if len(self.spans) == 1 and not last_only:
            return attend_causal(self.query, self.key, self.value, scaling=self.scaling, window=window)
        context = len(self.prompt.context)
        output = torch.zeros_like(self.query)
        if not last_only:
            trunk = self.query[:, :context], self.key[:, :context], self.value[:, :context]
            output[:, :context] = attend_causal(*trunk, scaling=self.scaling, window=window)
        for span in self.spans:
            rows = slice(span.stop - 1, span.stop) if last_only else span
            seen = [torch.cat([t[:, :context], t[:, span]], dim=1) for t in (self.key, self.value)]
            output[:, rows] = attend_after(self.query[:, rows], *seen, scaling=self.scaling, window=window)
        return output

    def branches(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Every question's queries and keys."""
        return tuple((self.query[:, span], self.key[:, span]) for span in self.spans)

    def tails(self, window: int | None) -> list[list[Head]]:
        """Every question's entries, a head each; in a sliding layer those inside its `window`."""
        context = len(self.prompt.context)
        tails = []
        for span in self.spans:
            first = span.start if window is None else max(span.start, span.stop - window)
            keys, values = self.key[:, first : span.stop], self.value[:, first : span.stop]
            offset = context + first - span.start
            positions = torch.arange(offset, offset + keys.shape[1], device=keys.device, dtype=torch.int32)
            tails.append([(keys[g], values[g], positions) for g in range(len(keys))])
        return tails


def prefill(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    plans: Sequence[BudgetPlan],
    *,
    scorer: Scorer,
    config: ScorerConfig,
) -> Generator[PrefillStep, None, Prefilled]:
    """Read B prompts, one record a layer; returns what was read.

    Rows of a batch are padded on the left inside and have one question each; a single row may have several. The
    logits [B or Q, vocab] are those of each question's last token. Raises ValueError for several rows of several
    questions.
    """
    if len(prompts) > 1 and any(len(prompt.questions) > 1 for prompt in prompts):
        raise ValueError("a batch of several prompts takes one question each")
    spec = decoder.spec
    (kv_bits,) = {plan.kv_bits for plan in plans}  # a ValueError when the rows differ: one cache has one
    cache = RaggedKVCache(
        num_layers=spec.num_layers, num_rows=len(prompts), num_kv_heads=spec.num_kv_heads, kv_bits=kv_bits
    )
    ids, positions, last = _layout(prompts)
    begun = time.perf_counter()

    def work(emit: Callable[[PrefillStep], None]) -> Prefilled:
        def on_layer(layer: int) -> None:
            elapsed = time.perf_counter() - begun
            emit(PrefillStep(layer + 1, spec.num_layers, _total(prompts), elapsed, cache.nbytes))

        state = PrefillState(
            prompts,
            plans,
            scorer=scorer,
            config=config,
            cache=cache,
            on_layer=on_layer,
            rows_interact=decoder.rows_interact,
            frequencies=rope_frequencies(decoder.model),
        )
        read = Prefilled(prompts, cache, state.questions)
        read.logits = decoder.forward(ids, positions, state, last).flatten(0, 1)
        return read

    return (yield from stream(work))


def _total(prompts: Sequence[Prompt]) -> int:
    return sum(prompt.flat_len for prompt in prompts)


def _layout(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
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
