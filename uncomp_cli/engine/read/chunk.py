"""Chunks: the pieces of a prompt that are read one after the other, and one of them in one layer.

Each chunk is followed by the question, which observes it and is forgotten again; behind the last one it stays. The
beginning of a question that competes with the context (`Prompt.asked`) belongs to the last chunk. The past is ragged:
every KV head holds its own tokens. Heads of one length are taken together; the others one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView
from uncomp_cli.engine.forward.attention import attend_after, attend_causal, attend_continued, equal_runs
from uncomp_cli.engine.tokens.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a context from position `first` on, as a prompt of its own; `final` is the last one."""

    prompt: Prompt
    first: int
    final: bool

    @property
    def tokens_of_text(self) -> int:
        """How many of its tokens go on where the text before it ends: a question that only observes does not."""
        return self.prompt.flat_len if self.final else len(self.prompt.context)

    def layout(self) -> tuple[Tensor, Tensor]:
        """Ids and logical positions [1, N] of the piece and, each right behind it, its questions."""
        context = len(self.prompt.context)
        flat = [*self.prompt.context, *(token for question in self.prompt.questions for token in question)]
        at = [torch.arange(context), *(context + torch.arange(len(question)) for question in self.prompt.questions)]
        return torch.tensor([flat]), self.first + torch.cat(at)[None]


def cut_chunks(prompt: Prompt, chunk_tokens: int | None) -> Iterator[Chunk]:
    """Pieces of at most `chunk_tokens` tokens of the document, whole words where there are any; None: one piece."""
    document = len(prompt.context) - prompt.asked
    first = 0
    for last in _ends(prompt.context.words, document, chunk_tokens or document):
        yield Chunk(_observed(prompt, first, last), first, final=False)
        first = last
    yield Chunk(_part(prompt, first, len(prompt.context)), first, final=True)


def _ends(words: Tensor, document: int, chunk_tokens: int) -> Iterator[int]:
    """Where all pieces but the last end."""
    first = 0
    while document - first > chunk_tokens:
        last = first + chunk_tokens
        begin = int(torch.searchsorted(words, words[last]))  # of the word that the cut falls into
        last = begin if begin > first else last
        yield last
        first = last


def _part(prompt: Prompt, first: int, last: int) -> Prompt:
    return replace(prompt, context=prompt.context[first:last])


def _observed(prompt: Prompt, first: int, last: int) -> Prompt:
    """A piece with the whole question behind it."""
    opening = prompt.context.ids[len(prompt.context) - prompt.asked :]
    questions = tuple((*opening, *question) for question in prompt.questions)
    return replace(_part(prompt, first, last), questions=questions, asked=0)


class ChunkStates:
    """query [H, N, D], key and value [G, N, D] of the chunk's tokens that are there, at `positions`, and its questions.

    `past` has a head (keys, values, positions) for every KV head; it is empty in the first chunk. The questions stand
    from position `end` on, whether or not the last tokens before it are still there.
    """

    def __init__(
        self,
        prompt: Prompt,
        positions: Tensor,
        past: list[Head],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Form,
        *,
        end: int,
    ) -> None:
        self.end = end
        self.prompt, self.positions, self.past = prompt, positions, past
        self.query, self.key, self.value, self.form = query, key, value, form
        self.context = len(positions)
        starts = [self.context]
        for question in prompt.questions:
            starts.append(starts[-1] + len(question))
        self.spans = [slice(a, b) for a, b in pairwise(starts)]
        self._groups = list(equal_runs([len(at) for _, _, at in past] or [0] * len(key)))
        self._before = {group.start: _stacked(past[group]) for group in self._groups if past}

    def attend(self, *, last_only: bool) -> Tensor:
        """The attention output [H, N, D]; with `last_only` zero but for the rows whose logits are read."""
        if not (self.past or last_only) and len(self.spans) == 1:
            return attend_causal(self.query, self.key, self.value, self.form)
        heads, length, width = self.query.shape
        output = self.query.new_zeros(length, heads, width).transpose(0, 1)  # how the model wants it: no copy later
        for group in self._groups:
            rows = self._of(group)
            if not last_only:
                output[rows, : self.context] = self._context(group)
            for span in self.spans:
                at = slice(span.stop - 1, span.stop) if last_only else span
                output[rows, at] = self._question(group, span, at)
        return output

    def heads(self, past: Sequence[Head]) -> list[Head]:
        """All context entries of every KV head: those of `past`, as they shall be held, then the chunk's."""
        own = [(self.key[g, : self.context], self.value[g, : self.context]) for g in range(len(self.key))]
        at = self.positions.to(torch.int32)
        if not past:
            return [(keys, values, at) for keys, values in own]
        return [
            (torch.cat([before[0], keys]), torch.cat([before[1], values]), torch.cat([before[2], at]))
            for before, (keys, values) in zip(past, own, strict=True)
        ]

    def tails(self, window: int | None) -> list[list[Head]]:
        """Every question's entries, a head each, copied; in a sliding layer those inside its `window`."""
        tails = []
        for span in self.spans:
            first = span.start if window is None else max(span.start, span.stop - window)
            keys, values = self.key[:, first : span.stop].clone(), self.value[:, first : span.stop].clone()
            offset = self.end + first - span.start
            at = torch.arange(offset, offset + keys.shape[1], device=keys.device, dtype=torch.int32)
            tails.append([(keys[g], values[g], at) for g in range(len(keys))])
        return tails

    def asking(self, question: int) -> Tensor:
        """The queries [H, N, D] of a question, its beginning that competes with the context among them."""
        span = self.spans[question]
        return self.query[:, span.start - self.prompt.asked : span.stop]

    def asked_of(self, question: int, head: int) -> Head:
        """All that a question's last token sees in one KV head, itself the last."""
        span = self.spans[question]
        own = [torch.cat([each[head, : self.context], each[head, span]]) for each in (self.key, self.value)]
        behind = torch.arange(self.end, self.end + span.stop - span.start, device=own[0].device)
        at = torch.cat([self.positions, behind])
        if not self.past:
            return own[0], own[1], at
        keys, values, before = self.past[head]
        return torch.cat([keys, own[0]]), torch.cat([values, own[1]]), torch.cat([before.long(), at])

    def views(self, layer: int, frequencies: Tensor | None) -> list[LayerView]:
        """What scorers may look at, past and chunk: views of KV heads of one length, in order."""
        views = []
        for group in self._groups:
            before = self._before.get(group.start)
            own = self.key[group, : self.context], self.value[group, : self.context]
            keys, values = own if before is None else (torch.cat(pair, dim=1) for pair in zip(before, own, strict=True))
            earlier = [past[2].long() for past in self.past[group]] or [self.positions[:0]] * len(keys)
            at = torch.stack([torch.cat([past, self.positions]) for past in earlier])
            view = self._view(layer, group, keys, values, frequencies)
            views.append(replace(view, key_positions=at, first_head=group.start))
        return views

    def own_view(self, layer: int, frequencies: Tensor | None) -> LayerView:
        """The chunk alone, all heads: what measures look at."""
        every = slice(0, len(self.key))
        return self._view(layer, every, self.key[:, : self.context], self.value[:, : self.context], frequencies)

    def _view(self, layer: int, group: slice, keys: Tensor, values: Tensor, frequencies: Tensor | None) -> LayerView:
        rows = self._of(group)
        return LayerView(
            layer=layer,
            queries=self.query[rows, : self.context],
            keys=keys,
            values=values,
            branches=tuple((self.query[rows, span], self.key[group, span]) for span in self.spans),
            form=self.form.of(rows),
            frequencies=frequencies,
            asked=self.prompt.asked,
            positions=self.positions,
        )

    def _context(self, group: slice) -> Tensor:
        """Attention of the chunk's own tokens."""
        query = self.query[self._of(group), : self.context]
        own = self.key[group, : self.context], self.value[group, : self.context]
        before, form = self._before.get(group.start), self.form.of(self._of(group))
        if before is None:
            return attend_causal(query, *own, form)
        return attend_continued(query, before, *own, form)

    def _question(self, group: slice, span: slice, at: slice) -> Tensor:
        """Attention of a question's tokens `at`."""
        before = self._before.get(group.start, (self.key[group, :0], self.value[group, :0]))
        keys, values = (
            torch.cat([past, own[group, : self.context], own[group, span]], dim=1)
            for past, own in zip(before, (self.key, self.value), strict=True)
        )
        heads = self._of(group)
        return attend_after(self.query[heads, at], keys, values, self.form.of(heads))

    def _of(self, group: slice) -> slice:
        """The query heads of KV heads `group`."""
        per_group = len(self.query) // len(self.key)
        return slice(group.start * per_group, group.stop * per_group)


def _stacked(heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
    """Keys and values [count, P, D] of heads of one length; of a single head, views."""
    if len(heads) == 1:
        return heads[0][0][None], heads[0][1][None]
    keys, values, _ = zip(*heads, strict=True)
    return torch.stack(keys), torch.stack(values)
