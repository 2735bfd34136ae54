"""A session: one loaded model, one way of compressing, one way of sampling, and the prompt it has read.

    read(prompt) → PrefillStep…      plans the budget, refuses what does not fit, prefills and evicts
    answer(question) → DecodeStep…   generates behind the context and that question

Both are generators of records; what was measured on the way is in `stats`.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits, SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import Matmul
from uncomp_cli.engine.look.watching import AnswerWatch, Watched, held_in, watched
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.records import DecodeStep, FinishReason, PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.spend.compression import Compression, check_length, plan_compression
from uncomp_cli.engine.spend.memory import free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.spend.reach import Reach
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.generate import generate, stop_tokens
from uncomp_cli.engine.write.sampling import Sampler
from uncomp_cli.errors import OutOfMemoryError, is_out_of_memory
from uncomp_cli.models.loading import LoadedModel

__all__ = ["RunStats", "Session"]


@dataclass(frozen=True, slots=True)
class RunStats:
    """What one answer took. `kv_full_bytes` is a full cache of the same tokens; `ttft_s` counts from the prefill.

    `attention_entropy` is the signal of the heads that were watched (watching.py); None where none was, or before the
    answer's first token has been read.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_s: float
    ttft_s: float
    decode_s: float
    kv_bytes: int
    kv_full_bytes: int
    peak_bytes: int
    finish_reason: FinishReason
    attention_entropy: float | None = None

    @property
    def kept_fraction(self) -> float:
        """Allocated bytes over full-cache bytes."""
        return self.kv_bytes / self.kv_full_bytes

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens per second after the first; None when there was only one."""
        return (self.completion_tokens - 1) / self.decode_s if self.completion_tokens > 1 and self.decode_s else None


class Session:
    """Reads one prompt at a time and answers its questions.

    `watch` is what is watched while it answers: True for what the preset has to go by (watching.py), which may be
    nothing. `watching` is the watch of the latest answer. Prompts whose rows are to be written in one batch need one
    regime of RoPE: `regime_tokens`, set before the first is read, are those of the longest with its answer.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        preset: Preset,
        sampling: SamplingConfig,
        limits: Limits | None = None,
        *,
        matmul: Matmul = "float32",
        watch: Watched | bool = True,
    ) -> None:
        self.loaded = loaded
        self.preset = preset
        self.watched = watched(preset, loaded.spec) if watch is True else watch or None
        self.watching: AnswerWatch | None = None
        self.regime_tokens = 0
        self.sampling = sampling
        self.limits = limits or Limits()
        self.decoder = Decoder(loaded.model, loaded.spec, matmul=matmul)
        self.compression: Compression | None = None
        self.stats: RunStats | None = None
        self._read: Context | None = None
        self._prefill_s = 0.0

    def read(self, prompt: Prompt) -> Iterator[PrefillStep]:
        """Prefill `prompt`. Raises DoesNotFitError before any work when it is too long or too large."""
        spec, device = self.loaded.spec, self.decoder.device
        check_length(spec, prompt, trained_length=self.loaded.info.trained_length)
        available = free_bytes(device)
        self.compression = plan_compression(
            spec,
            self.preset,
            prompt,
            available=available,
            limits=self.limits,
            reach=Reach.of(
                self.loaded.rope,
                prompt.seq_len,
                trained_length=self.loaded.info.trained_length,
                answer_tokens=self.sampling.max_new_tokens,
            ),
        )
        self.decoder.fix_regime(max(self.regime_tokens, prompt.seq_len + self.sampling.max_new_tokens))
        reset_peak(device)
        self._read = None
        return self._prefill(self.compression)

    def _prefill(self, compression: Compression) -> Generator[PrefillStep, None, None]:
        begun = time.perf_counter()
        try:
            self._read = yield from Reader(self.decoder, compression).read()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(compression) from error
        self._prefill_s = time.perf_counter() - begun

    def _out_of_memory(self, compression: Compression) -> OutOfMemoryError:
        """The error of a prefill for which memory did not suffice, with a chunk that needs half of it."""
        at_once = compression.chunk_tokens or compression.prompt.flat_len
        smaller = max(LEAST_CHUNK_TOKENS, at_once // 2)
        hint = f"--chunk {smaller} needs about half of that" if smaller < at_once else "use a smaller --budget"
        return OutOfMemoryError(f"memory ran out while {at_once:,} tokens were read at once", hint=hint)

    @property
    def allocation(self) -> Allocation | None:
        """How many tokens the heads of each layer keep of the prompt that is read."""
        return None if self.compression is None else self.compression.allocation

    @property
    def hidden_kept(self) -> tuple[float, ...]:
        """The share [L] of the context that entered each layer."""
        return self._prompt_read().hidden_kept

    @property
    def plan(self) -> BudgetPlan | None:
        """What every head keeps; of a policy that measures live, it is final once the prompt has been read."""
        return None if self.allocation is None else self.allocation.plan

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The values that the plan was made from."""
        return None if self.allocation is None else self.allocation.uncertainty

    @property
    def measured(self) -> Literal["live", "profile"] | None:
        """Where those values come from."""
        if self.allocation is None or (self.allocation.uncertainty is None and not self.allocation.live):
            return None
        return "live" if self.allocation.live else "profile"

    def layer_bytes(self) -> list[int]:
        """Bytes that each layer of the cache has allocated."""
        return [self._prompt_read().cache.layer(layer).nbytes for layer in range(self.loaded.spec.num_layers)]

    def _prompt_read(self) -> Context:
        if self._read is None:
            raise RuntimeError("nothing has been read: exhaust read() first")
        return self._read

    def answer(self, question: int = 0) -> Iterator[DecodeStep]:
        """Generate the answer to one question of the prompt that was read, which may be asked again."""
        read = self._prompt_read()
        self.stats = None
        return self._generate(read, question)

    def predict(self, ids: Sequence[int], question: int = 0) -> Tensor:
        """Logits [N, vocab] of each of `ids` given those before it, behind a question of the prompt that was read."""
        read = self._prompt_read()
        read.begin_question(question)
        logits = read.logits[question : question + 1]
        if len(ids) > 1:
            positions = read.next_positions(question) + torch.arange(len(ids) - 1)
            state = AppendState(read.cache, positions.to(self.decoder.device))
            following = self.decoder.forward(torch.tensor([ids[:-1]]), positions, state, len(ids) - 1)[0]
            logits = torch.cat([logits, following])
        return logits

    def _generate(self, read: Context, question: int) -> Iterator[DecodeStep]:
        prompt, spec = read.prompts[0], self.loaded.spec
        begun = time.perf_counter()
        read.begin_question(question)
        seq_len = len(prompt.context) + len(prompt.questions[question])
        watch = None if self.watched is None else AnswerWatch(self.watched, held_in(read.cache), spec)
        self.watching = watch
        steps = generate(
            self.decoder,
            read.cache,
            read.logits[question : question + 1],
            read.next_positions(question),
            tokenizer=self.loaded.tokenizer,
            sampler=Sampler(replace(self.sampling, seed=self.sampling.seed + question)),
            stop_ids=stop_tokens(self.loaded.model, self.loaded.tokenizer),
            max_new_tokens=min(self.sampling.max_new_tokens, spec.trained_length - seq_len),
            watch=watch,
        )
        prefill_s = self._prefill_s if question == 0 else 0.0  # one pass read all questions
        first_s = 0.0
        for step in steps:
            first_s = first_s or time.perf_counter() - begun
            completed = step.index + 1
            self.stats = RunStats(
                prompt_tokens=seq_len,
                cached_tokens=0 if question == 0 else len(prompt.context),
                completion_tokens=completed,
                prefill_s=prefill_s,
                ttft_s=prefill_s + first_s,
                decode_s=time.perf_counter() - begun - first_s,
                kv_bytes=read.cache.nbytes,
                kv_full_bytes=spec.full_kv_bytes(seq_len + completed - 1),
                peak_bytes=peak_bytes(self.decoder.device),
                finish_reason=step.finish_reasons[0] or "interrupted",
                attention_entropy=None if watch is None else watch.value,
            )
            yield step
