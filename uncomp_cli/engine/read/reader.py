"""Reading a prompt as it was planned: attend, score, hold, cut; in one chunk or in many.

    for each chunk:  for each layer:  attend to what was kept and, causally, to the chunk → score → hold → thin
                     then cut every layer that had to wait back to its budget

One chunk is a prefill in one pass: attention is exact over the whole prompt, one layer is held in full and the earlier
ones at their budget. With more, memory stays bounded however long the text is: the question observes every chunk from
right behind it, and ranks what was kept before and what is new by one softmax, so that late chunks cannot crowd early
evidence out. With a budget of everything nothing is ranked, and the chunk's length changes nothing.

With a scorer that repeats all is held until the last chunk has been read. Then the text is read a second time behind
itself (repetition.py), which ranks all of it, and every layer is cut.

The questions' own keys and values are kept whole: a single question lies behind the context at once, several wait
beside the cache (and count in its bytes) until `Context.begin` puts one there.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from uncomp_cli.budget.thinning import NoThinning
from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.config import CacheConfig
from uncomp_cli.engine.context.context import Beside, Context
from uncomp_cli.engine.context.sketch import Sketcher
from uncomp_cli.engine.forward.attention import AttentionState
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.forward.mixers import Step, branch_off
from uncomp_cli.engine.forward.thread import stream
from uncomp_cli.engine.look.standing import MEASURED_TOKENS, Standing
from uncomp_cli.engine.look.watch import watched
from uncomp_cli.engine.read.chunk import Chunk, ChunkStates, cut_chunks
from uncomp_cli.engine.read.distances import choose_passages, packed
from uncomp_cli.engine.read.overkeep import OverKeep
from uncomp_cli.engine.read.repetition import Repetition
from uncomp_cli.engine.read.sieve import Sieve
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.compression import Compression
from uncomp_cli.errors import ModelError, UsageError


class Reader(AttentionState):
    """Reads one prompt as `planned`; what stays is in `cache`, the questions that wait in `questions`.

    `ranking` are the scores [G, S] of each full layer by a second reading, once there was one.

    While a chunk goes through the model it is the state of every layer's attention. `on_layer` is told the bytes of the
    cache when a layer is done. In the last layer only the rows whose logits are read are attended, unless the model's
    rows interact, a later layer needs all, or `all_rows` are wanted. Layers with a state of their own carry it from
    chunk to chunk; a question goes on from a copy. Raises ModelError where a model is to be re-packed whose layers do
    not share one RoPE, UsageError where a text is to be read twice by one of several ranks.
    """

    def __init__(
        self,
        decoder: Decoder,
        planned: Compression,
        *,
        on_layer: Callable[[int], None] = lambda kv_bytes: None,
        all_rows: bool = False,
        config: CacheConfig | None = None,
        sketcher: Sketcher | None = None,
    ) -> None:
        spec, allocation, self._ranks = decoder.spec, planned.allocation, decoder.ranks
        self.decoder, self.planned = decoder, planned
        self.frequencies = rope_frequencies(decoder.model)
        if planned.repack and self.frequencies is None:
            raise ModelError(
                f"models of the family {spec.model_type} cannot be re-packed: their layers do not share one RoPE",
                hint="use --rope yarn instead of repack, or --truncate",
            )
        if planned.repeats and self._ranks.count > 1:
            message = f"scorer {planned.scorer.name} reads a text again, with all heads in one process"
            raise UsageError(message, hint="use a scorer that reads it once, or one process")
        self.cache = RaggedKVCache(
            num_layers=spec.num_layers,
            num_rows=1,
            num_kv_heads=spec.num_kv_heads,
            config=config,
            kv_bits=allocation.plan.kv_bits,
        )
        self.questions: list[list[list[Head]]] = []
        self.states: list[States] = []
        self.ranking: Mapping[int, Tensor] = {}
        self.chunks = list(cut_chunks(planned.prompt, planned.chunk_tokens))
        self._on_layer, self._sketcher = on_layer, sketcher
        self._all_rows = all_rows or decoder.rows_interact or not spec.ends_in_attention
        self._sieve = planned.sieve
        self._standing = _standing_of(planned, decoder)
        self._overkeep = OverKeep(
            planned.prompt,
            allocation,
            planned.config,
            shared=planned.scorer.shared,
            thinned=planned.sieve.active,
            repeats=planned.repeats,
        )

    def read(self) -> Generator[PrefillStep, None, Context]:
        """Read the prompt: one record a chunk and layer; returns what was read. A second reading counts as much."""
        again = self.planned.reread_tokens
        once = (len(self.chunks) + (again is not None)) * self.decoder.spec.num_layers
        total = 2 * once if self.planned.repeats else once
        tokens, begun = self.planned.prompt.flat_len + self.planned.repeated_tokens, time.perf_counter()

        def work(emit: Callable[[PrefillStep], None]) -> Context:
            done = 0.0

            def on_layer(kv_bytes: int, layers: float = 1.0) -> None:
                nonlocal done
                done += layers
                emit(PrefillStep(round(done), total, tokens, time.perf_counter() - begun, kv_bytes))

            self._on_layer = on_layer
            for chunk in self.chunks:
                logits = self.read_chunk(chunk)
            if self.planned.repeats:
                self.cut_by(self.repeat(lambda part: on_layer(self.cache.nbytes, part * once)))
            return self.context(logits) if again is None else self._read_again(again)

        return (yield from stream(work))

    def read_chunk(self, chunk: Chunk, *, further: int = 0) -> Tensor:
        """Logits [Q, vocab] behind every question of the next chunk, which stands `further` on than in its text."""
        self.begin(chunk)
        ids, positions = chunk.layout()
        positions = positions + further
        lengths = torch.tensor([len(question) for question in chunk.prompt.questions])
        from_end = lengths.sum() - lengths.cumsum(0) + 1
        if self._sieve.active:
            return self.decoder.layer_by_layer(ids, positions, self, from_end)[0]
        return self.decoder.forward(ids, positions, self, ids.shape[1] - from_end)[0]

    def repeat(self, on_layer: Callable[[float], None] = lambda part: None) -> dict[int, Tensor]:
        """Scores [G, S] of each full layer from a second reading; `on_layer` is told which part of it has been done."""
        again = Repetition(self.decoder, self.planned.scorer, self.planned.prompt, self._heads)
        part = 1 / (len(again.pieces) * self.decoder.spec.num_layers)
        return again.read(lambda: on_layer(part))

    def cut_by(self, ranking: Mapping[int, Tensor]) -> None:
        """Cut every layer, of which all is held, by the scores of a second reading; the question goes behind it."""
        self.ranking = ranking
        self._overkeep.scores = dict(ranking)
        for layer, window in enumerate(self.decoder.spec.sliding_windows):
            if window is not None:
                heads = [_last(head, self._sliding_room(window)) for head in self._heads(layer)]
                self._store(layer, heads, settled=True)
        self._finish()

    def begin(self, chunk: Chunk) -> None:
        """Start the next chunk; its last layer ends it."""
        self._chunk = chunk
        self._tails: list[list[list[Head]]] = []
        self.states = [States() for _ in chunk.prompt.questions]
        self._overkeep.begin(chunk)
        self._sieve.begin(chunk, self.decoder.device)
        if self._standing is not None:
            self._standing.begin()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention of the chunk [1, H, N, D]; holds what may stay."""
        states, past = self._states(layer, query, key, value, form)
        last_only = layer == len(self.cache.layers) - 1 and not self._all_rows
        output = states.attend(last_only=last_only)
        if self._sketcher is not None:
            self._sketcher.add(layer, self._chunk.first, value[0, :, : self._chunk.tokens_of_text])
        self._hold(layer, states, past, form.window)
        self._on_layer(self.cache.nbytes)
        return output[None]

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """The chunk behind the text before it, and each question behind the chunk."""
        prompt = self._chunk.prompt
        ends = accumulate([len(prompt.context), *map(len, prompt.questions)])
        return branch_off(self.cache.states, self.states, layer, hidden, list(ends)[:-1], step)

    def keep(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> None:
        """What `attend` holds, without its output: for tensors whose attention has been computed before."""
        states, past = self._states(layer, query, key, value, form)
        self._hold(layer, states, past, form.window)

    def keep_after(self, layer: int) -> Tensor | None:
        """Indices of the tokens that enter the next layer, the questions among them; None when all do."""
        before = len(self._sieve.at)
        kept = self._sieve.keep_after(layer)
        if kept is None:
            return None
        asked = sum(len(question) for question in self._chunk.prompt.questions)
        return torch.cat([kept, torch.arange(before, before + asked, device=kept.device)])

    def _states(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form
    ) -> tuple[ChunkStates, list[Head]]:
        """The chunk in one layer, and what is held of the text before it."""
        seen, past = self._past(layer)
        at = self._sieve.at + self._chunk.first
        end = self._chunk.first + len(self._chunk.prompt.context)
        own = query[0], key[0].contiguous(), value[0].contiguous()
        return ChunkStates(self._chunk.prompt, at, seen, *own, form, end=end), past

    def _past(self, layer: int) -> tuple[list[Head], list[Head]]:
        """What is held of the text before the chunk: as the chunk sees it, and as it is held on."""
        if self._chunk.first == 0:
            return [], []
        held = self._heads(layer)
        if not self.planned.repack or self.frequencies is None:
            return held, held
        seen = packed(held, self._chunk.first, self.frequencies)
        return seen, seen if self._chunk.final else held  # an answer looks back over what the last chunk saw

    def _hold(self, layer: int, states: ChunkStates, past: list[Head], window: int | None) -> None:
        """Store the past and the chunk, cut as far as it is certain already."""
        if self._standing is not None and window is None:
            self._standing.observe(layer, states)
        heads, stay, settled = states.heads(past), None, not self.planned.repeats
        if window is not None:
            heads = [_last(head, self._sliding_room(window) if settled else window) for head in heads]
        elif self.planned.repeats:
            self.planned.allocation.report(layer, states.own_view(layer, self.frequencies), self._ranks)
        elif self._overkeep.ranks(layer):
            scores = self._scores(layer, states, heads)
            stay, settled = self._overkeep.hold(layer, scores, self._places(heads)), not self._overkeep.waits
            stay = None if stay is None else self._ranks.own(stay)
        elif self._sieve.active:
            self._sieve.watch(states.views(layer, self.frequencies), self._ranks)
        self._store(layer, heads if stay is None else _taken(heads, stay), settled=settled)
        if self._chunk.final:
            self._keep_questions(states.tails(window))
        if self.planned.repeats:
            return  # until all has been read twice
        if layer == len(self.cache.layers) - 1:
            self._finish()
        else:
            self._retrim()

    def _scores(self, layer: int, states: ChunkStates, heads: Sequence[Head]) -> Tensor:
        """Pooled scores by position [G, S], 0 where a head has nothing; tells who else looks at a layer of it."""
        views, config = states.views(layer, self.frequencies), self.planned.config
        before = self._ranks.first(len(heads))
        views = [replace(view, first_head=view.first_head + before) for view in views]
        if self._sieve.active:
            self._sieve.watch(views, self._ranks)
        self.planned.allocation.report(layer, states.own_view(layer, self.frequencies), self._ranks)
        groups = [pool(self.planned.scorer.score(view), kind=config.pooling, width=config.width) for view in views]
        dense = groups[0].new_zeros(len(heads), len(self.planned.prompt.context))
        scores = (own for group in groups for own in group)
        for target, own, positions in zip(dense, scores, _positions(heads), strict=True):
            target[positions.long()] = own
        return self._ranks.whole(dense)

    def _places(self, heads: Iterable[Head]) -> list[Tensor]:
        """The positions that all heads hold, those of other ranks too."""
        return self._ranks.whole_ragged(_positions(heads))

    def _sliding_room(self, window: int) -> int:
        """Context tokens that a sliding layer still needs: behind the last chunk the question takes some of them."""
        shortest = min(map(len, self.planned.prompt.questions))
        return max(0, window - shortest) if self._chunk.final else window

    def _store(self, layer: int, heads: Sequence[Head], *, settled: bool) -> None:
        """Put a layer into the cache with room for a question; quantised when nothing will change it any more."""
        window = self.decoder.spec.sliding_windows[layer]
        question = self.planned.prompt.longest_question if self._chunk.final else 0
        reserve = question if window is None else min(question, window)
        self.cache.store(layer, heads, reserve=reserve, quantize=settled and self._chunk.final)

    def _heads(self, layer: int) -> list[Head]:
        held = self.cache.layer(layer)
        return [held.head(i) for i in range(len(held.lengths))]

    def _keep_questions(self, tails: list[list[Head]]) -> None:
        """Several questions wait beside the cache; a single one goes into it when its layer has been cut."""
        if len(tails) == 1:
            self._tails.append(tails)
            return
        self.questions.append(tails)
        self.cache.count_aside(tensor for question in tails for head in question for tensor in head)

    def _retrim(self) -> None:
        """Cut the layers that wait when they hold much more than they will keep."""
        waiting = self._overkeep.scores if self._overkeep.trims else {}
        if self._overkeep.is_wasteful(sum(self.cache.layer(layer).entries for layer in waiting)):
            for layer in waiting:
                heads = self._heads(layer)
                stay = self._ranks.own(self._overkeep.retrim(layer, self._places(heads)))
                self._store(layer, _taken(heads, stay), settled=False)

    def _finish(self) -> None:
        """Cut what waited to its budget; behind the last chunk put the question where it belongs."""
        if self._overkeep.waits:
            self._fit_to_what_is_there()
            agreed = self._overkeep.agreed()
            for layer in self._overkeep.scores:
                heads = self._heads(layer)
                stay = self._ranks.own(self._overkeep.cut(layer, self._places(heads), agreed))
                self._store(layer, _taken(heads, stay), settled=True)
        for layer, (question,) in enumerate(self._tails):
            self.cache.extend(layer, question)

    def _fit_to_what_is_there(self) -> None:
        """Plan anew for layers that hold fewer tokens than the prompt has, because it was thinned before them."""
        if not (self._sieve.active and self._chunk.final):
            return
        own = [max(len(at) for at in _positions(self._heads(i))) for i in range(len(self.cache.layers))]
        longest = self._ranks.counted(self._ranks.highest, own, self.decoder.device)
        self.planned.allocation.fit([count + self.planned.prompt.longest_question for count in longest])

    def context(self, logits: Tensor) -> Context:
        """What was read: a single question's states are the cache's, as its entries are; those of several wait."""
        if self.questions:
            self.cache.count_aside(tensor for states in self.states for tensor in states)
        else:
            (self.cache.states,) = self.states
        context = Context(self.decoder, self.planned.prompt, self.cache, Beside(self.questions, logits, self.states))
        context.standing = () if self._standing is None else tuple(self._standing.shares)
        self._tell_of_thinning(context)
        return context

    def _read_again(self, most: int) -> Context:
        """Read passages of `most` tokens again, right before the questions, as though there were no other text.

        They are compressed as the allocation would a text of their length; entries carry their positions in the whole.
        """
        planned, prompt = self.planned, self.planned.prompt
        always = prompt.context.protected.clone()
        always[len(prompt.context) - prompt.asked :] = True
        at = choose_passages(self._overkeep.found().cpu(), always, most=most)
        self.cache.clear()  # what the first pass held has said what it knew
        part, left_out = replace(prompt, context=prompt.context.take(at)), len(prompt.context) - len(at)
        spent = planned.allocation.narrowed(part.seq_len, part.always_kept)
        once = replace(planned, prompt=part, allocation=spent, chunk_tokens=None, repack=False, reread_tokens=None)
        unthinned = Sieve(NoThinning(), planned.spec, planned.config)
        reader = Reader(self.decoder, replace(once, sieve=unthinned), on_layer=self._on_layer, config=self.cache.config)
        logits = reader.read_chunk(reader.chunks[0], further=left_out)
        behind = len(prompt.context) + torch.arange(prompt.longest_question)
        reader.cache.relabel(torch.cat([at, behind]).to(torch.int32))
        self.cache, self.states = reader.cache, reader.states
        self.questions = [[_behind(heads, left_out) for heads in questions] for questions in reader.questions]
        planned.allocation.plan = replace(spent.plan, seq_len=prompt.seq_len)
        return self.context(logits)

    def _tell_of_thinning(self, context: Context) -> None:
        """Put the share [L] of the context that entered each layer where it is looked for."""
        if self._sieve.active:
            length = len(self.planned.prompt.context)
            context.hidden_kept = tuple(count / length for count in self._sieve.entered)


def _standing_of(planned: Compression, decoder: Decoder) -> Standing | None:
    """What watches the questions, where the preset says which are open in such a text and anything of it may go."""
    preset, tells = planned.preset, planned.prompt.seq_len <= MEASURED_TOKENS
    heads = watched(preset, planned.spec) if preset.open_below and planned.drops and tells else None
    return None if heads is None else Standing(heads, decoder.spec, planned.prompt, decoder.ranks)


def _positions(heads: Iterable[Head]) -> list[Tensor]:
    return [positions for _, _, positions in heads]


def _taken(heads: Sequence[Head], stay: Sequence[Tensor]) -> list[Head]:
    """The entries `stay[g]` of each head."""
    return [(keys[at], values[at], places[at]) for (keys, values, places), at in zip(heads, stay, strict=True)]


def _behind(heads: Sequence[Head], tokens: int) -> list[Head]:
    """The same entries, as many tokens further on in the text."""
    return [(keys, values, places + tokens) for keys, values, places in heads]


def _last(head: Head, count: int) -> Head:
    keys, values, positions = head
    first = max(0, len(positions) - count)
    return keys[first:], values[first:], positions[first:]
