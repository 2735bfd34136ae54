"""A conversation: every turn prefills only what was not read yet, and the cache stays in its budget.

The new token ids are compared with those that were read (messages.py); what both begin with stays, the rest is
forgotten and prefilled. So an interrupted answer, a changed system prompt or a template that rewrites earlier turns are
all right without special cases. While an answer is written the cache is cut every few tokens (growth.py).

A turn lays the layers out anew, in other sizes than before, which leaves holes all over the heap: what is free is given
back behind it (5 ms; in 60 turns up to 74 MiB beside a cache of 75).

What is kept goes by no question. So before a question is read, the passages that its words point at are looked
up: what was evicted of them is read again where it stands (recall.py), and they stay until the next question.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind
from uncomp_cli.engine.context.growth import Growth
from uncomp_cli.engine.context.recall import missing_passages, recall_note, spans_mask, tokens_of
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.replay import attended_by
from uncomp_cli.engine.look.watch import watched
from uncomp_cli.engine.records import DecodeStep, PrefillStep, RunStats
from uncomp_cli.engine.spend.memory import reset_peak
from uncomp_cli.engine.tokens.messages import Message, Script, render_messages
from uncomp_cli.engine.tokens.prompt import encode_words
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.kernels.library import give_back
from uncomp_cli.models.runnable import LoadedModel

Step = TypeVar("Step", PrefillStep, PrefillStep | DecodeStep)

BLOCK_TOKENS = 32
"""Tokens of an answer that are written before the cache is cut again."""
_MOST_PARTS = 256
"""Parts of messages whose tokens are still there in the next turn."""


class Conversation:
    """A chat over what is kept of it.

    `stats`, `answer_ids` and `tokens` are those of the latest turn, also when it was interrupted; `notes` what was
    done in it that was not asked for. `pinned` are ranges of characters in the texts of all messages, one behind the
    other, that are never evicted. Nothing is read again for a question while `recalls` is False. `watched` is what is
    watched while an answer is written, `writer` what writes the latest one. `growth` is what was read, and can be put
    back where another preset has failed.
    """

    def __init__(
        self, loaded: LoadedModel, decoder: Decoder, preset: Preset, sampling: SamplingConfig, limits: Limits
    ) -> None:
        self.loaded, self.decoder, self.sampling, self.limits = loaded, decoder, sampling, limits
        self._words = lru_cache(_MOST_PARTS)(partial(encode_words, loaded.tokenizer, strip=False))
        self.answer_ids: list[int] = []
        self.tokens = Tokens.of()
        self.notes: list[str] = []
        self.pinned: tuple[tuple[int, int], ...] = ()
        self.recalls, self._asked, self._documents = True, (0, ""), ""
        self.stats: RunStats | None = None
        self.writer: Writer | None = None
        self.use(preset)

    @property
    def preset(self) -> Preset:
        """How what is read is compressed."""
        return self.growth.preset

    @property
    def cached_tokens(self) -> int:
        """Tokens that were read."""
        return len(self.growth)

    @property
    def kv_bytes(self) -> int:
        """Allocated bytes of the cache."""
        return self.growth.cache.nbytes

    @property
    def kv_full_bytes(self) -> int:
        """Bytes of a full cache of the tokens that were read."""
        return self.loaded.spec.full_kv_bytes(len(self.growth))

    @property
    def budget_bytes(self) -> int:
        """Bytes that the budget gives to what was read."""
        return self.growth.budget_bytes() if len(self.growth) else 0

    def use(self, preset: Preset) -> None:
        """Compress by another preset: what was read is forgotten, and read again when it is needed."""
        self.growth, self._is_short = Growth(self.decoder, preset, self.limits, reserve=BLOCK_TOKENS), False
        self.watched = watched(preset, self.loaded.spec)
        if self.growth.note is not None:
            self.notes.append(self.growth.note)

    def clear(self) -> None:
        """Forget everything that was cached."""
        self.growth.clear()
        self._words.cache_clear()

    def turn(self, messages: Sequence[Message]) -> Iterator[PrefillStep | DecodeStep]:
        """Answer the last of `messages`; raises DoesNotFitError before any work when the context is full."""
        self.stats, self.answer_ids = None, []
        script = self._render(messages)
        text, room = script.tokens, self._room(script.tokens)
        asked, held = _question_from(script, messages[-1]), len(self.growth)
        pins = [tokens_of(text.offsets, pin) for pin in self.pinned]
        if not self.growth.can_recall and self._lost(pins):
            self.growth.clear()
        question = messages[-1].parts[-1] if messages[-1].parts else messages[-1].text
        wanted = self._passages(text, messages, question, common=self.growth.common(text), asked=asked)
        self.growth.budget.guard_from = asked
        self.growth.budget.pinned = spans_mask(len(text), [*pins, *wanted])
        self.growth.answer_tokens, self._asked = self.sampling.max_new_tokens, (asked, question)
        self._documents = "".join(part for message in messages for part in message.parts[:-1])
        steps = self.growth.extend(text)
        shortage = self.growth.budget.shortage
        if shortage is not None and not self._is_short:
            self.notes.append(shortage)
        self._is_short = shortage is not None
        if held and not len(self.growth):
            self.notes.append("the conversation is read again from its text")
        self.tokens = text
        return _giving_back(self._run(steps, [*pins, *wanted], min(room, self.sampling.max_new_tokens)))

    def check_pins(self) -> None:
        """Raise DoesNotFitError when the budget cannot hold what is pinned of what was read."""
        if len(self.tokens) and len(self.growth):
            pins = [tokens_of(self.tokens.offsets, pin) for pin in self.pinned]
            self.growth.check_pinned(spans_mask(len(self.growth), pins))

    def read_ahead(self, messages: Sequence[Message]) -> Iterator[PrefillStep]:
        """Read as much of `messages` as is certain: the last one's first part will have more behind it.

        Raises DoesNotFitError before any work when the context is full.
        """
        script = self._render(messages)
        self._room(script.tokens)
        return self._read_on(_first_part(script, messages[-1]))

    def keep_common(self, messages: Sequence[Message]) -> None:
        """Forget what was read beyond what `messages` begin with; without any, everything."""
        text = self._render(messages).tokens if messages else Tokens.of()
        common = self.growth.common(text)
        if common < len(self.growth):
            self.growth.forget_from(common) if common else self.growth.clear()

    def reread(self, messages: Sequence[Message]) -> Iterator[PrefillStep]:
        """Read all of `messages` anew. Raises DoesNotFitError before any work when the context is full."""
        self.growth.clear()
        return self.read_ahead(messages)

    def survival(self) -> Tensor:
        """The share [S] of heads that still hold each token of `tokens`."""
        share, length = self.growth.survival(), len(self.tokens)
        return pad(share[:length], (0, max(0, length - len(share))))

    def attended(self) -> Tensor:
        """Attention [S] of the latest answer on each token of `tokens`, by the heads that are trusted; no sinks."""
        if not (len(self.tokens) and self.answer_ids) or len(self.growth) < len(self.tokens):
            return torch.zeros(len(self.tokens))
        first = len(self.tokens) - 1
        ids = [self.tokens.ids[first], *self.answer_ids[:-1]]
        sinks = self.preset.scorer.sinks
        mass = attended_by(self.decoder, self.growth.cache, ids, first, heads=self.growth.account().trust, sinks=sinks)
        return pad(mass, (0, 1))

    def _passages(
        self, tokens: Tokens, messages: Sequence[Message], question: str, *, common: int, asked: int
    ) -> list[range]:
        """Tokens, in front of token `asked`, of passages that the question points at and that are mostly not held.

        Those behind token `common` are yet to be read, and will be held when they are.
        """
        if not (self.recalls and self.growth.can_recall):
            return []
        text = "".join(message.text for message in messages)
        held = self.growth.survival()[: min(common, asked)]
        survival = pad(held, (0, asked - len(held)))
        return missing_passages(text[: len(text) - len(question)], question, offsets=tokens.offsets, survival=survival)

    def _lost(self, spans: Sequence[range]) -> list[range]:
        """Those of `spans` that were read and that not every head holds whole."""
        survives = self.growth.survival()
        read = (span for span in spans if len(span) and span.stop <= len(self.growth))
        return [span for span in read if float(survives[span.start : span.stop].min()) < 1]

    def _recall(self, spans: Sequence[range]) -> None:
        """Put back what was evicted of `spans`, and say so."""
        begun, lost = time.perf_counter(), self._lost(spans)
        if lost:
            self.growth.recall(lost)
            self.notes.append(recall_note(lost, time.perf_counter() - begun))

    def _read_on(self, tokens: Tokens) -> Generator[PrefillStep, None, None]:
        self.growth.budget.guard_from = len(tokens)
        self.growth.budget.pinned = spans_mask(len(tokens), [tokens_of(tokens.offsets, pin) for pin in self.pinned])
        self.tokens = tokens
        yield from _giving_back(self.growth.extend(tokens))

    def _render(self, messages: Sequence[Message]) -> Script:
        return render_messages(self.loaded.tokenizer, messages, self._words)

    def _room(self, tokens: Tokens) -> int:
        """Tokens that an answer may have."""
        limit = self.loaded.spec.trained_length
        if len(tokens) >= limit:
            raise DoesNotFitError(
                f"the conversation would have {len(tokens):,} tokens, the context holds {limit:,}",
                hint="ask something shorter, /undo the latest turns, start again with /clear, or leave and come back "
                "with a larger --rope",
            )
        return limit - len(tokens)

    def _run(
        self, prefill: Generator[PrefillStep, None, Tensor], spans: Sequence[range], max_new_tokens: int
    ) -> Iterator[PrefillStep | DecodeStep]:
        """Put back what was evicted of `spans`, read what is new, and write the answer."""
        reset_peak(self.decoder.device)
        begun, cached = time.perf_counter(), len(self.growth)
        self._recall(spans)
        logits = yield from prefill
        seconds = time.perf_counter() - begun
        self.growth.context.questions = Behind(Begun(logits, cached, seconds, seconds))
        end, words = self._asked
        asked = Asked(
            self.growth.context,
            0,
            max_new_tokens,
            words,
            on_token=self._wrote,
            pause_tokens=BLOCK_TOKENS,
            text_end=end,
            documents=self._documents,
        )
        self.writer = Writer(self.decoder, self.loaded.tokenizer, self.sampling, [asked], watch=self.watched)
        for step in self.writer.write():
            self.answer_ids.append(step.token)
            self.stats = self.writer.stats()
            yield step

    def _wrote(self, index: int, token: int) -> None:
        """Token `index` of the answer has been put into the cache."""
        self.growth.appended(token)
        if (index + 1) % BLOCK_TOKENS == 0:
            self.growth.fit()


def _giving_back(steps: Iterator[Step]) -> Generator[Step, None, None]:
    """The steps; what they have freed goes back to the system at their end, however they end."""
    try:
        yield from steps
    finally:
        give_back()


def _question_from(script: Script, message: Message) -> int:
    """The first token of the last part of the last message."""
    last = len(message.parts[-1]) if message.parts else len(message.text)
    return _token_at(script, script.first_chars[-1] + len(message.text) - last)


def _first_part(script: Script, message: Message) -> Tokens:
    """All up to the end of the first part of the last message."""
    first = len(message.parts[0]) if message.parts else len(message.text)
    return script.tokens[: _token_at(script, script.first_chars[-1] + first)]


def _token_at(script: Script, char: int) -> int:
    """The first token at or behind a character of the last message; its end where there is none."""
    of_message, first = torch.arange(len(script)) >= script.first_tokens[-1], script.tokens.offsets[:, 0]
    before = of_message & (first >= 0) & (first < char)
    found = before.nonzero()
    return int(found[-1]) + 1 if len(found) else script.first_tokens[-1]
