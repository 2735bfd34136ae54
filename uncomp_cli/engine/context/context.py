"""A context: a text that was read, with its cache, and the ways in which a question comes behind it.

    Beside   questions read together with the text: a single one lies behind it at once, several wait beside the cache
             (and count in its bytes), and none of them is read again
    Unread   nothing of a question is known: it is read when it is asked, in the latest one's place
    Behind   the text ends where an answer begins: a conversation, which grows (growth.py)

Whatever was asked last, `restore` takes the question, its answer and what was read again for it out of the cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.header import Record
from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import Mark, RaggedKVCache, positions_of, survival
from uncomp_cli.cache.states import States
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.recall import Clue, Recall
from uncomp_cli.engine.context.sketch import Sketch, asked_values
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.replay import attended_by
from uncomp_cli.engine.tokens.prompt import Prompt

Trust = tuple[tuple[float, ...], ...] | None
"""How far each KV head of each layer is trusted to say what matters; None where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Account:
    """How a text was read: with which preset, what every head keeps, and in how many `seconds` it was read or loaded.

    `uncertainty` are the values that the plan was made from. It was read `chunk_tokens` at a time (None: in one pass),
    of which `reread_tokens` again in the end, and `repeated_tokens` twice, to rank them; `notes` say what was not done
    as asked for. `record` is that of the file it was opened from, None when it was read, and `texts` are the documents'
    in that file, one behind the other.
    """

    preset: Preset
    plan: BudgetPlan
    uncertainty: Uncertainty | None
    trust: Trust
    seconds: float = 0.0
    chunk_tokens: int | None = None
    reread_tokens: int | None = None
    repeated_tokens: int = 0
    notes: tuple[str, ...] = ()
    record: Record | None = None
    texts: bytes = b""


@dataclass(frozen=True, slots=True)
class Begun:
    """A question that stands behind its context, and what that took before its answer began.

    `logits` [1, vocab] are of the token that follows; `cached_tokens` had been read for an earlier question. Reading
    took `prefill_s`; `waited_s` went by before the row began.
    """

    logits: Tensor
    cached_tokens: int = 0
    prefill_s: float = 0.0
    waited_s: float = 0.0


class Questions(Protocol):
    """How a question comes behind a context."""

    def begin(self, context: "Context", question: int, words: str) -> Begun:
        """Put it there, in the place of what was asked before; `words` are what the user typed."""
        ...


@dataclass(slots=True)
class Beside:
    """Questions that were read beside their context.

    `entries[l][q]` are question q's in layer l, one `Head` for every KV head; empty when there is one question, whose
    entries are in the cache. `logits` [Q, vocab] follow each, and so do `states[q]`, of layers that have one.
    """

    entries: list[list[list[Head]]]
    logits: Tensor
    states: Sequence[States] = ()

    def begin(self, context: "Context", question: int, words: str) -> Begun:
        """What waits is copied behind the context."""
        context.restore()
        for layer, questions in enumerate(self.entries):
            context.cache.extend(layer, questions[question])
        if self.entries:
            context.cache.states = self.states_behind(context, question)
        return self.begun(context, question)

    def states_behind(self, context: "Context", question: int) -> States:
        """The states behind a question, to go on from."""
        return (self.states[question] if self.entries and self.states else context.cache.states).copy()

    def begun(self, context: "Context", question: int) -> Begun:
        """A question that need not be put behind the context: one pass read them all, which counts for the first."""
        logits = self.logits[question : question + 1]
        if question:
            return Begun(logits, cached_tokens=len(context.prompt.context))
        seconds = context.seconds
        return Begun(logits, prefill_s=seconds, waited_s=seconds)


class Unread:
    """Questions that are read when they are asked, each in the latest one's place; what they need is read again first.

    Reading the context counts for the first, unless it was loaded from a file.
    """

    def __init__(self, recall: Recall) -> None:
        self._recall = recall
        self._asked = 0

    def begin(self, context: "Context", question: int, words: str) -> Begun:
        """Read a question, and before it what was evicted of the passages that its words point at."""
        begun, first = time.perf_counter(), len(context.prompt.context)
        context.decoder.fix_regime(None)  # in which a context is read that anyone may ask about
        context.restore()
        asked = Clue(words, partial(context.near, question))
        context.recall(lambda: self._recall(context.decoder, context.cache, context.prompt, question, asked))
        ids = context.prompt.questions[question]
        logits = context.feed(ids, first, last=1)
        own_s = time.perf_counter() - begun
        waited_s = 0.0 if self._asked else context.seconds
        was_read = not self._asked and context.account.record is None
        self._asked += 1
        cached = 0 if was_read else first
        return Begun(logits, cached, own_s + (waited_s if was_read else 0.0), waited_s)


@dataclass(slots=True)
class Behind:
    """A text that ends where an answer begins: `latest` is known from reading it."""

    latest: Begun

    def begin(self, context: "Context", question: int, words: str) -> Begun:
        """Nothing has to be done."""
        return self.latest


class Context:
    """A text that was read: its prompt, and the cache of what is kept of it.

    `hidden_kept` [L] is the share of the text that entered each layer. `regime_tokens` is the regime of RoPE in which
    its keys were turned, where frequencies depend on the length. `standing` [Q] is how far a passage stood out for each
    question (look/standing.py), where it was watched. `recalled` says what was read again for the latest
    question.
    """

    def __init__(self, decoder: Decoder, prompt: Prompt, cache: RaggedKVCache, questions: Questions) -> None:
        self.decoder, self.prompt, self.cache, self.questions = decoder, prompt, cache, questions
        self.hidden_kept: tuple[float, ...] = (1.0,) * len(cache.layers)
        self.regime_tokens = decoder.regime_tokens
        self.recalled: str | None = None
        self.standing: tuple[float, ...] = ()
        self._sketch: Sketch | None = None
        self._account: Account | None = None
        self._mark: Mark | None = None
        self._whole: list[list[Tensor]] = []

    @property
    def account(self) -> Account:
        """How it was read."""
        if self._account is None:
            raise RuntimeError("nobody has given an account of how this context was read")
        return self._account

    @account.setter
    def account(self, account: Account) -> None:
        self._account = account

    @property
    def sketch(self) -> Sketch | None:
        """What its passages are about, where some of them may be gone; counts in the cache's bytes."""
        return self._sketch

    @sketch.setter
    def sketch(self, sketch: Sketch | None) -> None:
        self._sketch = sketch
        self.cache.count_aside(() if sketch is None else sketch.tensors)

    @property
    def seconds(self) -> float:
        """What reading or loading took; 0 when nobody has measured it."""
        return 0.0 if self._account is None else self._account.seconds

    def restore(self) -> None:
        """Take out of the cache what was put behind it since it was restored first: answers, and what was recalled."""
        if self._mark is None:
            self._mark = self.cache.mark()
            self.cache.count_aside(self._mark.states)
        for index, before in enumerate(self._whole):
            held = positions_of(self.cache.layer(index))
            keep = [torch.isin(at, own).nonzero()[:, 0] for at, own in zip(held, before, strict=True)]
            self.cache.retain(index, keep)
        self._whole = []
        self.cache.rollback(self._mark)

    def recall(self, put_back: Callable[[], str | None]) -> None:
        """Let `put_back` put what was evicted among what is held; what is held without it is remembered."""
        layers = map(self.cache.layer, range(len(self.cache.layers)))
        before = [[at.clone() for at in positions_of(layer)] for layer in layers]
        self.recalled = put_back()
        self._whole = [] if self.recalled is None else before

    def near(self, question: int, at: range) -> Tensor | None:
        """How near [P] each passage is to the tokens `at` of a question, which is read for that and forgotten again.

        None without a sketch.
        """
        if self._sketch is None:
            return None
        ids = self.prompt.questions[question]
        self.feed(ids, len(self.prompt.context), last=1)
        values = asked_values(self.cache, self.decoder.spec, [place - len(ids) for place in at])
        self.restore()
        return self._sketch.near(values)

    def begin(self, question: int = 0, *, words: str = "") -> Begun:
        """Put a question behind the context, in the latest one's place."""
        return self.questions.begin(self, question, words)

    def prompt_tokens(self, question: int = 0) -> int:
        """Tokens of the context and a question."""
        return len(self.prompt.context) + len(self.prompt.questions[question])

    def feed(
        self, ids: Sequence[int], first: int, *, last: int, on_layer: Callable[[int], None] | None = None
    ) -> Tensor:
        """Put tokens from position `first` on behind what is held; logits [last, vocab] behind the last of them."""
        positions = torch.arange(first, first + len(ids))[None]
        state = AppendState(self.cache, positions.to(self.decoder.device), prompt=True, on_layer=on_layer)
        return self.decoder.forward(torch.tensor([list(ids)]), positions, state, last)[0]

    def predict(self, ids: Sequence[int], question: int = 0) -> Tensor:
        """Logits [N, vocab] of each of `ids` given those before it, behind a question."""
        logits = self.begin(question).logits
        if len(ids) == 1:
            return logits
        return torch.cat([logits, self.feed(ids[:-1], self.prompt_tokens(question), last=len(ids) - 1)])

    def attended(self, answer: Sequence[int], question: int = 0) -> Tensor:
        """Attention [S] that an answer, its tokens without the one that ends it, paid to what stands before it.

        The cache holds the question still, and is not changed; the question's last token looks already.
        """
        asked, first = self.prompt.questions[question], self.prompt_tokens(question) - 1
        beside = self.questions if isinstance(self.questions, Beside) else Beside([], torch.empty(0))
        waiting = [layer[question] for layer in beside.entries]
        return attended_by(
            self.decoder,
            self.cache,
            (asked[-1], *answer[:-1]),
            first,
            states=beside.states_behind(self, question),
            heads=self.account.trust,
            sinks=self.account.preset.scorer.sinks,
            behind=waiting or None,
        )

    def survival(self, length: int) -> Tensor:
        """The share [length] of heads that still hold each token; sliding layers do not count."""
        ranks, own = self.decoder.ranks, survival(self.cache, length, layers=self.decoder.spec.full_layers)
        return own if ranks.count == 1 else ranks.total(own.to(self.decoder.device)).cpu() / ranks.count

    def layer_bytes(self) -> list[int]:
        """Bytes that each layer of the cache has allocated, on all ranks together."""
        own = [self.cache.layer(layer).nbytes for layer in range(len(self.cache.layers))]
        ranks = self.decoder.ranks
        return ranks.counted(ranks.total, own, self.decoder.device)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question of a context, to be answered in at most `max_new_tokens`; `words` are what the user typed.

    `on_token` is told the number and id of every token of its answer that has been put behind the context; behind each
    `pause_tokens` of them it may change what is held. The text that is asked about ends at token `text_end`, None: with
    the context; `documents` are those in it, where something else is too, empty where there is none.
    """

    context: Context
    question: int
    max_new_tokens: int
    words: str = ""
    on_token: Callable[[int, int], None] | None = None
    pause_tokens: int | None = None
    text_end: int | None = None
    documents: str | None = None
    sampling: SamplingConfig | None = None

    @property
    def text_tokens(self) -> int:
        """Tokens of the text that the question is about, and of the template before it."""
        prompt = self.context.prompt
        return len(prompt.context) - prompt.asked if self.text_end is None else self.text_end

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the context and this question."""
        return self.context.prompt_tokens(self.question)
