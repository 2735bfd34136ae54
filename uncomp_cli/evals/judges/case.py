"""A case: one sample as the model has read it once (prefill.py), from which every setting evicts; judges start here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.distances import Reach
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt, completion_prompt, encode
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import DoesNotFitError, ModelError
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.judges.forced_rows import Rows
from uncomp_cli.evals.judges.prefill import Reading, read_by_each, read_once
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Regime, Sample, Span


@dataclass(frozen=True, slots=True)
class Compressed:
    """A setting's cache of one row, weighed; `outcome` waits for its metrics.

    `logits` [1, vocab] follow what the setting read: everybody's, unless it thinned hidden states on the way. `trust`
    [L][G] is how far its policy trusts each head, None when it measures nothing.
    """

    cache: RaggedKVCache
    logits: Tensor
    outcome: Outcome
    trust: tuple[tuple[float, ...], ...] | None = None

    def judged(self, metrics: dict[str, float], *, answer: str | None = None) -> Outcome:
        """The outcome with `metrics` beside those that compression itself gave."""
        return replace(self.outcome, metrics={**metrics, **self.outcome.metrics}, answer=answer)


@dataclass(frozen=True, slots=True)
class Case:
    """A sample and its one exact prefill.

    `prompt` has all questions, `reading` was done with the first; `answers[q]` are the reference's ids. `evidence`
    [E] are the context tokens that hold the answers.
    """

    sample: Sample
    tokenizer: Any
    decoder: Decoder
    prompt: Prompt
    answers: tuple[tuple[int, ...], ...]
    evidence: Tensor
    reading: Reading

    @property
    def context_len(self) -> int:
        """Tokens of the context."""
        return len(self.prompt.context)

    def seen_tokens(self, regime: Regime) -> int:
        """Tokens that compression saw: with the question or without it."""
        return self.context_len + (len(self.prompt.questions[0]) if regime == "aware" else 0)

    def compress(self, settings: Sequence[Setting], regime: Regime) -> tuple[list[Compressed], list[Outcome]]:
        """Every setting's cache, equal budgets side by side, and the outcomes of settings that were refused."""
        done: list[Compressed] = []
        refused: list[Outcome] = []
        for setting in sorted(settings, key=lambda setting: setting.budget):
            try:
                left = self.reading.leave(setting, regime, beside=settings)
            except (DoesNotFitError, ModelError) as refusal:  # or a scorer that this model cannot have
                refused.append(replace(self._outcome(setting, regime, kv_bytes=0), refused=refusal.message))
                continue
            outcome = self._weighed(setting, regime, left.cache)
            done.append(Compressed(left.cache, left.logits, outcome, left.trust))
        return done, refused

    def begin(self, compressed: Sequence[Compressed], regime: Regime, query: int, *, room: int) -> tuple[Rows, Tensor]:
        """The caches as rows behind question `query`, and the logits [B, vocab] of the token that follows it.

        There is room for `room` more tokens.
        """
        question, caches = self.prompt.questions[query], [one.cache for one in compressed]
        rows = Rows(self.decoder, caches, position=self.seen_tokens(regime), reserve=len(question) + room)
        if regime == "aware":
            return rows, torch.cat([one.logits for one in compressed])
        return rows, rows.feed(question, last=1)[:, -1]

    def writer(self, rows: Rows, logits: Tensor, query: int, *, max_new_tokens: int, stop_ids: Sequence[int]) -> Writer:
        """What writes every row's greedy answer to question `query`, behind which it stands, after `logits`."""
        return rows.writer(logits, self.prompt, query, self.tokenizer, max_new_tokens=max_new_tokens, stop_ids=stop_ids)

    def _weighed(self, setting: Setting, regime: Regime, cache: RaggedKVCache) -> Outcome:
        outcome = self._outcome(setting, regime, kv_bytes=cache.nbytes)
        if len(self.evidence) == 0:
            return outcome
        shares = coverage(cache, self.evidence)
        mean = float(torch.tensor(shares).mean())
        return replace(outcome, metrics={"coverage": mean}, coverage_by_head=shares)

    def _outcome(self, setting: Setting, regime: Regime, *, kv_bytes: int) -> Outcome:
        kept = kv_bytes / self.decoder.spec.full_kv_bytes(self.seen_tokens(regime))
        return replace(Outcome.of(self.sample, setting, regime), kept_fraction=kept, kv_bytes=kv_bytes)


def read_case(
    decoder: Decoder,
    tokenizer: Any,
    sample: Sample,
    *,
    reach: Callable[[Prompt, int], Reach | None] = lambda prompt, answer_tokens: None,
) -> Case:
    """Tokenise and read `sample`; `reach` says of a prompt and the tokens of its answer whether it is re-packed."""
    prompt, answers = tokenise(tokenizer, sample)
    room = max(max(len(ids), query.max_new_tokens) for ids, query in zip(answers, sample.queries, strict=True))
    decoder.fix_regime(prompt.seq_len + room)
    one, within = replace(prompt, questions=prompt.questions[:1]), reach(prompt, room)
    if within is None or one.seq_len <= within.tokens:
        reading = read_once(decoder, one)
    else:
        reading = read_by_each(decoder, one, within)
    spans = (span for query in sample.queries for span in query.evidence)
    return Case(sample, tokenizer, decoder, prompt, answers, evidence_tokens(prompt.context.offsets, spans), reading)


def tokenise(tokenizer: Any, sample: Sample) -> tuple[Prompt, tuple[tuple[int, ...], ...]]:
    """The prompt with all questions of a sample, and the ids of every answer."""
    answers = tuple(tuple(encode(tokenizer, query.answer, special=False)) for query in sample.queries)
    return _prompt(tokenizer, sample, answers), answers


def coverage(cache: RaggedKVCache, evidence: Tensor) -> list[list[float]]:
    """Share of the `evidence` tokens whose entries a one-row cache still holds: [L][G], 0 to 1."""
    wanted = evidence.to(torch.int32)
    return [
        [float(torch.isin(wanted, layer.head(g)[2].cpu()).float().mean()) for g in range(cache.num_kv_heads)]
        for layer in (cache.layer(index) for index in range(len(cache.layers)))
    ]


def _prompt(tokenizer: Any, sample: Sample, answers: Sequence[tuple[int, ...]]) -> Prompt:
    sinks = ScorerConfig().sinks
    if sample.system is not None:
        told = bool(tokenizer.chat_template)
        questions = [f"{q.question}\n{q.instruction}" if told else q.question for q in sample.queries]
        return chat_prompt(tokenizer, sample.context, questions, system=sample.system or None, sinks=sinks)
    questions = [query.question for query in sample.queries]
    prompt = completion_prompt(tokenizer, sample.context, questions[0], sinks=sinks)
    # A text that is only continued has no question: its first token stands for one, so that the prefill has an end.
    branches = tuple(
        tuple(encode(tokenizer, text, special=False)) or ids[:1] for text, ids in zip(questions, answers, strict=True)
    )
    return replace(prompt, questions=branches)


def evidence_tokens(offsets: Tensor, spans: Iterable[Span]) -> Tensor:
    """Tokens [E] that overlap a range of `spans`, ascending; `offsets` [S, 2] are their characters, -1 for none."""
    found = torch.zeros(len(offsets), dtype=torch.bool)
    for begin, end in spans:
        found |= (offsets[:, 0] >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return found.nonzero()[:, 0]
