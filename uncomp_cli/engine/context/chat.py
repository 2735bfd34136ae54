"""A conversation: every turn prefills only what was not read yet, and the cache stays in its budget.

The new token ids are compared with those that were read (messages.py); what both begin with stays, the rest is
forgotten and prefilled. So an interrupted answer, a changed system prompt or a template that rewrites earlier turns are
all right without special cases. While an answer is written the cache is cut every few tokens (kept.py).

What is kept goes by no question. So before a question is read, the passages that its words point at (coverage.py) are
looked up: what was evicted of them is read again where it stands (recall.py), and they stay until the next question.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.coverage import missing_passages, tokens_of
from uncomp_cli.engine.context.kept import KeptContext
from uncomp_cli.engine.context.recall import recall_note
from uncomp_cli.engine.context.session import RunStats
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import Matmul
from uncomp_cli.engine.look.attended import attended_by
from uncomp_cli.engine.look.watching import AnswerWatch, Watched, held_in, watched
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak
from uncomp_cli.engine.tokens.messages import Message, Script, render_messages
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.generate import generate, stop_tokens
from uncomp_cli.engine.write.sampling import Sampler
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.loading import LoadedModel

__all__ = ["BLOCK_TOKENS", "ChatSession"]

BLOCK_TOKENS = 32
"""Tokens of an answer that are written before the cache is cut again."""


@dataclass(slots=True)
class _Turn:
    """What the running turn has measured so far."""

    prompt_tokens: int
    cached_tokens: int
    spans: Sequence[range]
    prefill_s: float = 0.0


class ChatSession:
    """A chat over what is kept of it.

    `stats`, `answer_ids` and `tokens` are those of the latest turn, also when it was interrupted; `notes` what was
    done in it that was not asked for. `pinned` are ranges of characters in the texts of all messages, one behind the
    other, that are never evicted. Nothing is read again for a question while `recalls` is False. `watched` is what is
    watched while an answer is written, `watching` the watch of the latest one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        preset: Preset,
        sampling: SamplingConfig,
        limits: Limits | None = None,
        *,
        matmul: Matmul = "float32",
    ) -> None:
        self.loaded = loaded
        self.sampling = sampling
        self.limits = limits or Limits()
        self.decoder = Decoder(loaded.model, loaded.spec, matmul=matmul)
        self.stats: RunStats | None = None
        self.answer_ids: list[int] = []
        self.tokens = Tokens.of()
        self.notes: list[str] = []
        self.pinned: tuple[tuple[int, int], ...] = ()
        self.recalls = True
        self.watched: Watched | None = None
        self.watching: AnswerWatch | None = None
        self.use(preset)

    @property
    def preset(self) -> Preset:
        """How what is read is compressed."""
        return self.context.preset

    @property
    def cached_tokens(self) -> int:
        """Tokens that were read."""
        return len(self.context)

    @property
    def kv_bytes(self) -> int:
        """Allocated bytes of the cache."""
        return self.context.cache.nbytes

    @property
    def kv_full_bytes(self) -> int:
        """Bytes of a full cache of the tokens that were read."""
        return self.loaded.spec.full_kv_bytes(len(self.context))

    @property
    def budget_bytes(self) -> int:
        """Bytes that the budget gives to what was read."""
        return self.context.budget_bytes() if len(self.context) else 0

    def use(self, preset: Preset) -> None:
        """Compress by another preset: what was read is forgotten, and read again when it is needed.

        A cache that grows token by token is held in the model's own number format, whatever the preset says.
        """
        if preset.kv_bits != 16:
            self.notes.append(f"preset {preset.name} holds {preset.kv_bits} bits; a chat's cache is not quantised")
            preset = replace(preset, kv_bits=16)
        self.context = KeptContext(self.decoder, preset, self.limits)
        self.watched = watched(preset, self.loaded.spec)
        if self.context.note is not None:
            self.notes.append(self.context.note)

    def clear(self) -> None:
        """Forget everything that was cached."""
        self.context.clear()

    def turn(self, messages: Sequence[Message]) -> Iterator[PrefillStep | DecodeStep]:
        """Answer the last of `messages`; raises DoesNotFitError before any work when the context is full."""
        self.stats, self.answer_ids = None, []
        script = render_messages(self.loaded.tokenizer, messages)
        text, room = script.tokens, self._room(script.tokens)
        asked, held = _question_from(script, messages[-1]), len(self.context)
        pins = [tokens_of(text.offsets, pin) for pin in self.pinned]
        if not self.context.can_recall and self._lost(pins):
            self.context.clear()
        wanted = self._passages(text, messages, common=self.context.common(text), asked=asked)
        self.context.budget.guard_from = asked
        self.context.budget.pinned = _mask(len(text), [*pins, *wanted])
        self.context.answer_tokens = self.sampling.max_new_tokens
        steps = self.context.extend(text, reserve=BLOCK_TOKENS)
        if held and not len(self.context):
            self.notes.append("the conversation is read again from its text")
        self.tokens = text
        turn = _Turn(prompt_tokens=len(text), cached_tokens=len(self.context), spans=[*pins, *wanted])
        return self._run(turn, steps, min(room, self.sampling.max_new_tokens))

    def check_pins(self) -> None:
        """Raise DoesNotFitError when the budget cannot hold what is pinned of what was read."""
        if len(self.tokens) and len(self.context):
            pins = [tokens_of(self.tokens.offsets, pin) for pin in self.pinned]
            self.context.check_pinned(_mask(len(self.context), pins))

    def read_ahead(self, messages: Sequence[Message]) -> Iterator[PrefillStep]:
        """Read as much of `messages` as is certain: the last one's first part will have more behind it.

        Raises DoesNotFitError before any work when the context is full.
        """
        script = render_messages(self.loaded.tokenizer, messages)
        self._room(script.tokens)
        return self._read_on(_first_part(script, messages[-1]))

    def reread(self, messages: Sequence[Message]) -> Iterator[PrefillStep]:
        """Read all of `messages` anew. Raises DoesNotFitError before any work when the context is full."""
        self.context.clear()
        return self.read_ahead(messages)

    def survival(self) -> Tensor:
        """The share [S] of heads that still hold each token of `tokens`."""
        share, length = self.context.survival(), len(self.tokens)
        return pad(share[:length], (0, max(0, length - len(share))))

    def attended(self) -> Tensor:
        """Attention [S] of the latest answer on each token of `tokens`, by the heads that are trusted; no sinks."""
        if not (len(self.tokens) and self.answer_ids) or len(self.context) < len(self.tokens):
            return torch.zeros(len(self.tokens))
        first = len(self.tokens) - 1
        ids = [self.tokens.ids[first], *self.answer_ids[:-1]]
        sinks = self.preset.scorer.sinks
        mass = attended_by(self.decoder, self.context.cache, ids, first, heads=self.context.trust(), sinks=sinks)
        return pad(mass, (0, 1))

    def _passages(self, tokens: Tokens, messages: Sequence[Message], *, common: int, asked: int) -> list[range]:
        """Tokens, in front of token `asked`, of passages that the question points at and that are mostly not held.

        Those behind token `common` are yet to be read, and will be held when they are.
        """
        if not (self.recalls and self.context.can_recall):
            return []
        text = "".join(message.text for message in messages)
        question = messages[-1].parts[-1] if messages[-1].parts else messages[-1].text
        held = self.context.survival()[: min(common, asked)]
        survival = pad(held, (0, asked - len(held)))
        return missing_passages(text[: len(text) - len(question)], question, offsets=tokens.offsets, survival=survival)

    def _lost(self, spans: Sequence[range]) -> list[range]:
        """Those of `spans` that were read and that not every head holds whole."""
        survives = self.context.survival()
        read = (span for span in spans if len(span) and span.stop <= len(self.context))
        return [span for span in read if float(survives[span.start : span.stop].min()) < 1]

    def _recall(self, spans: Sequence[range]) -> None:
        """Put back what was evicted of `spans`, and say so."""
        begun, lost = time.perf_counter(), self._lost(spans)
        if lost:
            self.context.recall(lost)
            self.notes.append(recall_note(lost, time.perf_counter() - begun))

    def _read_on(self, tokens: Tokens) -> Generator[PrefillStep, None, None]:
        self.context.budget.guard_from = len(tokens)
        self.context.budget.pinned = _mask(len(tokens), [tokens_of(tokens.offsets, pin) for pin in self.pinned])
        self.tokens = tokens
        yield from self.context.extend(tokens, reserve=BLOCK_TOKENS)

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
        self, turn: _Turn, prefill: Generator[PrefillStep, None, Tensor], max_new_tokens: int
    ) -> Iterator[PrefillStep | DecodeStep]:
        reset_peak(self.decoder.device)
        begun = time.perf_counter()
        self._recall(turn.spans)
        logits = yield from prefill
        turn.prefill_s = time.perf_counter() - begun
        cache = self.context.cache
        watch = None if self.watched is None else AnswerWatch(self.watched, held_in(cache), self.loaded.spec)
        self.watching = watch
        steps = generate(
            self.decoder,
            cache,
            logits,
            torch.tensor([[turn.prompt_tokens]]),
            tokenizer=self.loaded.tokenizer,
            sampler=Sampler(self.sampling),
            stop_ids=stop_tokens(self.loaded.model, self.loaded.tokenizer),
            max_new_tokens=max_new_tokens,
            watch=watch,
        )
        for step in steps:
            for token in self.answer_ids[-1:]:  # it has been put into the cache to get here
                self.context.appended(token)
            if step.index and step.index % BLOCK_TOKENS == 0:
                self.context.fit(BLOCK_TOKENS)
            self.answer_ids.append(step.token_ids[0])
            self._measure(turn, step, time.perf_counter() - begun)
            yield step

    def _measure(self, turn: _Turn, step: DecodeStep, elapsed_s: float) -> None:
        completed = step.index + 1
        ttft_s = elapsed_s if self.stats is None else self.stats.ttft_s
        self.stats = RunStats(
            prompt_tokens=turn.prompt_tokens,
            cached_tokens=turn.cached_tokens,
            completion_tokens=completed,
            prefill_s=turn.prefill_s,
            ttft_s=ttft_s,
            decode_s=elapsed_s - ttft_s,
            kv_bytes=self.kv_bytes,
            kv_full_bytes=self.loaded.spec.full_kv_bytes(turn.prompt_tokens + completed - 1),
            peak_bytes=peak_bytes(self.decoder.device),
            finish_reason=step.finish_reasons[0] or "interrupted",
            attention_entropy=None if self.watching is None else self.watching.value,
        )


def _mask(length: int, spans: Sequence[range]) -> Tensor:
    """bool [length]: True at the tokens of `spans`."""
    mask = torch.zeros(length, dtype=torch.bool)
    for span in spans:
        mask[span.start : span.stop] = True
    return mask


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
