"""A conversation: every turn prefills only what the cache does not hold yet.

The conversation is rendered with the model's own template and tokenized piece by piece: template text may contain
special tokens, people's text never does, and the model's own answers keep the very tokens it generated. The new ids
are compared with the cached ones; what both begin with stays, the rest is forgotten and prefilled. So an interrupted
answer, a changed system prompt or a template that rewrites earlier turns are all right without special cases.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.decode import AppendState
from uncomp_cli.engine.generate import generate, stop_tokens
from uncomp_cli.engine.memory import activation_bytes, free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.prompt import Message, render_chat
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.engine.sampling import Sampler
from uncomp_cli.engine.session import RunStats
from uncomp_cli.engine.worker import stream
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.load import LoadedModel

__all__ = ["ChatSession"]


@dataclass(slots=True)
class _Turn:
    """What the running turn has measured so far."""

    prompt_tokens: int
    cached_tokens: int
    prefill_s: float = 0.0


class ChatSession:
    """A chat over a full cache; `stats` and `answer_ids` are those of the latest turn, also when it was interrupted."""

    def __init__(self, loaded: LoadedModel, sampling: SamplingConfig) -> None:
        self.loaded = loaded
        self.sampling = sampling
        self.decoder = Decoder(loaded.model, loaded.spec)
        self.stats: RunStats | None = None
        self.answer_ids: list[int] = []
        self.clear()

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return len(self._ids)

    @property
    def kv_bytes(self) -> int:
        """Allocated bytes of the cache."""
        return self._cache.nbytes

    def clear(self) -> None:
        """Forget everything that was cached."""
        spec = self.loaded.spec
        self._ids: list[int] = []
        self._cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)

    def turn(self, messages: Sequence[Message]) -> Iterator[PrefillStep | DecodeStep]:
        """Answer the last of `messages`; raises DoesNotFitError before any work when the context is full."""
        self.stats, self.answer_ids = None, []
        ids = render_chat(self.loaded.tokenizer, messages)
        limit = self.loaded.spec.trained_length
        room = limit - len(ids)
        if room < 1:
            raise DoesNotFitError(
                f"the conversation would have {len(ids):,} tokens, the context holds {limit:,}",
                hint="ask something shorter, start again with /clear, or leave and come back with a larger --rope",
            )
        self._check_memory(ids)
        return self._run(ids, min(room, self.sampling.max_new_tokens))

    def _check_memory(self, ids: Sequence[int]) -> None:
        """Everything is kept, in sliding layers too; what is new passes through the model at once."""
        spec = self.loaded.spec
        cache = max(0, spec.kv_bytes_per_token * len(ids) - self._cache.nbytes)
        needed = cache + activation_bytes(spec, len(ids) - self._common(ids))
        available = free_bytes(self.decoder.device)
        if needed > available:
            raise DoesNotFitError(
                f"the turn needs about {needed / 2**20:,.0f} MiB more, {available / 2**20:,.0f} are free",
                hint="/clear starts again",
            )

    def _run(self, ids: list[int], max_new_tokens: int) -> Iterator[PrefillStep | DecodeStep]:
        kept = self._keep_common(ids)
        turn = _Turn(prompt_tokens=len(ids), cached_tokens=kept)
        reset_peak(self.decoder.device)
        begun = time.perf_counter()
        logits = yield from self._prefill(ids[kept:], begun)
        self._ids = list(ids)
        turn.prefill_s = time.perf_counter() - begun
        steps = generate(
            self.decoder,
            self._cache,
            logits,
            torch.tensor([[len(ids)]]),
            tokenizer=self.loaded.tokenizer,
            sampler=Sampler(self.sampling),
            stop_ids=stop_tokens(self.loaded.model, self.loaded.tokenizer),
            max_new_tokens=max_new_tokens,
        )
        for step in steps:
            # The token before this one has been put into the cache to get here.
            self._ids += self.answer_ids[-1:]
            self.answer_ids.append(step.token_ids[0])
            self._measure(turn, step, time.perf_counter() - begun)
            yield step

    def _keep_common(self, ids: Sequence[int]) -> int:
        """Drop cached tokens from the first that differs; the last of `ids` is always prefilled, for its logits."""
        common = self._common(ids)
        self._ids = self._ids[:common]
        if common == 0:
            self.clear()
        else:
            self._cache.forget_from(common)
        return common

    def _common(self, ids: Sequence[int]) -> int:
        """How many first tokens of `ids`, its last one left out, are cached."""
        pairs = zip(self._ids, ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _prefill(self, ids: Sequence[int], begun: float) -> Generator[PrefillStep, None, Tensor]:
        spec, first = self.loaded.spec, self.cached_tokens
        positions = torch.arange(first, first + len(ids))[None]

        def work(emit: Callable[[PrefillStep], None]) -> Tensor:
            def on_layer(layer: int) -> None:
                elapsed = time.perf_counter() - begun
                emit(PrefillStep(layer + 1, spec.num_layers, len(ids), elapsed, self._cache.nbytes))

            state = AppendState(self._cache, positions.to(self.decoder.device), on_layer=on_layer)
            return self.decoder.forward(torch.tensor([ids]), positions, state, 1)[:, -1]

        return (yield from stream(work))

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
            kv_bytes=self._cache.nbytes,
            kv_full_bytes=self.loaded.spec.full_kv_bytes(turn.prompt_tokens + completed - 1),
            peak_bytes=peak_bytes(self.decoder.device),
            finish_reason=step.finish_reasons[0] or "interrupted",
        )
