"""A document that is read once, compressed for any question, saved, loaded and asked again and again.

    read(prompt) → PrefillStep…            the context alone, ranked without any question
    save(shelf, name) · load(shelf, entry, prompt)
    answer(question) → DecodeStep…         the question and its answer lie behind the context until the next one

What is read is laid out as what is loaded, so both give the same logits, bit by bit. The budget is the context's;
questions and answers come on top of it, in the model's own number format.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.ragged import survival
from uncomp_cli.cache.shelf import Entry, Shelf
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.coverage import missing_passages
from uncomp_cli.engine.context.kept import KeptContext
from uncomp_cli.engine.context.origin import Origin, origin_of
from uncomp_cli.engine.context.recall import recall, recall_note
from uncomp_cli.engine.context.saved_context import (
    HeldContext,
    preset_of,
    prompt_of,
    record_of,
    tensors_of,
    text_of,
    uncertainty_of,
)
from uncomp_cli.engine.context.session import RunStats
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import Matmul
from uncomp_cli.engine.look.watching import AnswerWatch, held_in, watched
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.engine.spend.compression import check_length
from uncomp_cli.engine.spend.memory import activation_bytes, free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.generate import generate, stop_tokens
from uncomp_cli.engine.write.sampling import Sampler
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.loading import LoadedModel

__all__ = ["ReusedSession"]

_AUTO_NAME_LETTERS = 16
_USUAL_QUESTION_TOKENS = 128


class _Taken:
    """What an answer takes: getting the context counts for the first one, as reading unless it was loaded."""

    def __init__(self, held: HeldContext, watch: AnswerWatch | None, *, is_first: bool) -> None:
        self._held, self.watch = held, watch
        self._was_read = is_first and held.record is None
        self._before_s = held.seconds if is_first else 0.0
        self._begun = time.perf_counter()
        self._prefill_s = self._first_s = 0.0

    def prefilled(self) -> None:
        """The question has been read."""
        self._prefill_s = self._elapsed() + (self._before_s if self._was_read else 0.0)

    def stats(self, step: DecodeStep, seq_len: int, *, kv_full_bytes: int, peak: int) -> RunStats:
        """All of it up to the token of `step`."""
        self._first_s = self._first_s or self._elapsed()
        return RunStats(
            prompt_tokens=seq_len,
            cached_tokens=0 if self._was_read else len(self._held.prompt.context),
            completion_tokens=step.index + 1,
            prefill_s=self._prefill_s,
            ttft_s=self._before_s + self._first_s,
            decode_s=self._elapsed() - self._first_s,
            kv_bytes=self._held.cache.nbytes,
            kv_full_bytes=kv_full_bytes,
            peak_bytes=peak,
            finish_reason=step.finish_reasons[0] or "interrupted",
            attention_entropy=None if self.watch is None else self.watch.value,
        )

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begun


class ReusedSession:
    """One context at a time, read or loaded, and answers to questions about it.

    `preset` is the one that the context is compressed with: a loaded one's is its own. `note` says how what is read
    differs from the preset that was given, `recalled` what was read again for the latest question.
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
        self.loaded, self.sampling, self.limits = loaded, sampling, limits or Limits()
        self.matmul: Matmul = matmul
        self.decoder = Decoder(loaded.model, loaded.spec, matmul=matmul)
        kept = KeptContext(self.decoder, preset, self.limits)
        self._wanted, self.note = kept.preset, kept.note
        self.preset = self._wanted
        self.stats: RunStats | None = None
        self.recalled: str | None = None
        self._held: HeldContext | None = None
        self._answers = 0

    @property
    def held(self) -> HeldContext:
        """What was read or loaded."""
        if self._held is None:
            raise RuntimeError("nothing has been read: exhaust read() or call load() first")
        return self._held

    @property
    def measured(self) -> Literal["live", "profile"] | None:
        """Where the values come from that the budget was spread by."""
        if self.held.uncertainty is None:
            return None
        record = self.held.record
        profile = self.preset.profile if record is None else record["compression"]["profile_sha256"]
        return "live" if profile is None else "profile"

    def trust(self) -> tuple[tuple[float, ...], ...] | None:
        """How far each KV head of each layer is trusted to say what matters; None when nothing was measured."""
        if self.held.uncertainty is None:
            return None
        weights = make_policy(self.preset.policy).weights(self.loaded.spec, self.held.uncertainty)
        return tuple(tuple(weight**2 for weight in layer) for layer in weights)

    def origin(self, prompt: Prompt) -> Origin:
        """What the context of `prompt` is made from when it is read now."""
        return origin_of(self.loaded, self._wanted, prompt, limits=self.limits, matmul=self.matmul)

    def read(self, prompt: Prompt) -> Iterator[PrefillStep]:
        """Read the context of `prompt`. Raises DoesNotFitError before any work when it does not fit."""
        check_length(self.loaded.spec, prompt, trained_length=self.loaded.info.trained_length)
        self.preset = self._wanted
        kept = KeptContext(self.decoder, self.preset, self._limits_beside(prompt))
        kept.budget.guard_from = len(prompt.context)  # nothing of a document is more recent than the rest
        reset_peak(self.decoder.device)
        self._held = None
        return self._read(prompt, kept, kept.read(prompt.context, reserve=0))

    def _read(
        self, prompt: Prompt, kept: KeptContext, steps: Generator[PrefillStep, None, Tensor]
    ) -> Iterator[PrefillStep]:
        begun = time.perf_counter()
        yield from steps
        kept.cache.lay_out_anew(reserve=prompt.longest_question)
        self._hold(HeldContext.of(prompt, kept.cache, kept.uncertainty, time.perf_counter() - begun))

    def save(self, shelf: Shelf, name: str | None, *, about: Mapping[str, Any]) -> tuple[Entry, list[Entry]]:
        """Save the context under `name`, or under how its hash begins; `about` is put into the record.

        Returns it, and what was removed from the shelf to make room.
        """
        held = self.held
        held.begin()
        record = held.record or record_of(held, self.origin(held.prompt), self.preset, self.loaded)
        chosen = name or str(record["key"])[:_AUTO_NAME_LETTERS]
        return shelf.save(chosen, held.cache, tensors=tensors_of(held.prompt), record={**record, **about})

    def load(self, shelf: Shelf, entry: Entry, prompt: Prompt, *, as_saved: bool = False) -> None:
        """Take a saved context and the questions of `prompt`, whose context must be the same unless it is `as_saved`.

        Raises UsageError, with both values, when another model or other text made it, DoesNotFitError when it does not
        fit, UncompError when it is damaged.
        """
        record, begun = entry.manifest.record, time.perf_counter()
        origin = self.origin(prompt)
        origin.check_model(entry.name, record.get("model", {}))
        if not as_saved:
            origin.check_context(entry.name, str(record.get("context_sha256")))
        self._check_memory(entry, prompt)
        reset_peak(self.decoder.device)
        self._held = None
        cache, tensors, _ = shelf.load(entry, device=self.decoder.device, reserve=prompt.longest_question)
        whole = prompt_of(tensors, prompt)
        check_length(self.loaded.spec, whole, trained_length=self.loaded.info.trained_length)
        self.preset = preset_of(self._wanted, record)
        seconds = time.perf_counter() - begun
        self._hold(HeldContext.of(whole, cache, uncertainty_of(record), seconds, record))

    def _hold(self, held: HeldContext) -> None:
        self._held, self._answers = held, 0

    def begin(self, question: int = 0, *, words: str = "") -> Tensor:
        """Put a question behind the context, in the latest one's place; returns the logits [1, vocab] behind it.

        What was evicted of the passages that its `words` point at is read again first; without words nothing is.
        """
        held, first = self.held, len(self.held.prompt.context)
        self.decoder.fix_regime(None)  # in which a context is read that anyone may ask about
        held.begin()
        self._recall(words)
        ids = held.prompt.questions[question]
        positions = torch.arange(first, first + len(ids))[None]
        state = AppendState(held.cache, positions.to(self.decoder.device))
        return self.decoder.forward(torch.tensor([ids]), positions, state, 1)[:, -1]

    def _recall(self, words: str) -> None:
        """Read again what the question needs and the cache lacks, and note it."""
        self.recalled = None
        spec, cache, begun = self.loaded.spec, self.held.cache, time.perf_counter()
        if not words or cache.kv_bits != 16 or len(spec.full_layers) < spec.num_layers:
            return
        context = self.held.prompt.context
        text, offsets = text_of(self.loaded.tokenizer, self.held.prompt)
        share = survival(cache, len(context))
        spans = missing_passages(text, words, offsets=offsets, survival=share)
        if spans:
            positions = torch.tensor(sorted({at for span in spans for at in span}))
            recall(self.decoder, cache, context.take(positions).ids, positions)
            self.recalled = recall_note(spans, time.perf_counter() - begun)

    def answer(self, question: int = 0, *, words: str = "") -> Iterator[DecodeStep]:
        """Generate the answer to a question of the prompt, which may be asked again; `words` as in `begin`."""
        held, spec = self.held, self.loaded.spec
        self.stats = None
        what = watched(self.preset, spec)
        watch = None if what is None else AnswerWatch(what, held_in(held.cache), spec)
        taken = _Taken(held, watch, is_first=self._answers == 0)
        self._answers += 1
        logits = self.begin(question, words=words)
        taken.prefilled()
        seq_len = len(held.prompt.context) + len(held.prompt.questions[question])
        steps = generate(
            self.decoder,
            held.cache,
            logits,
            torch.tensor([[seq_len]]),
            tokenizer=self.loaded.tokenizer,
            sampler=Sampler(replace(self.sampling, seed=self.sampling.seed + question)),
            stop_ids=stop_tokens(self.loaded.model, self.loaded.tokenizer),
            max_new_tokens=min(self.sampling.max_new_tokens, spec.trained_length - seq_len),
            watch=watch,
        )
        for step in steps:
            full = spec.full_kv_bytes(seq_len + step.index)
            self.stats = taken.stats(step, seq_len, kv_full_bytes=full, peak=peak_bytes(self.decoder.device))
            yield step

    def _limits_beside(self, prompt: Prompt) -> Limits:
        """The limits of the context: a cap on the cache has room for a question and its answer too."""
        if self.limits.kv_bytes is None:
            return self.limits
        left = self.limits.kv_bytes - self._beside_bytes(prompt)
        if left <= 0:
            raise DoesNotFitError(
                f"a question and its answer need {self._beside_bytes(prompt) / 2**20:,.1f} MiB of KV cache, --kv-mem "
                f"allows {self.limits.kv_bytes / 2**20:,.1f}",
                hint="use a larger --kv-mem, or a smaller --max-new-tokens",
            )
        return replace(self.limits, kv_bytes=left)

    def _beside_bytes(self, prompt: Prompt) -> int:
        """Room for a question and its answer; for a usual one, so that the next, a little longer, fits too."""
        question = max(_USUAL_QUESTION_TOKENS, prompt.longest_question)
        return self.loaded.spec.kv_bytes_per_token * (question + self.sampling.max_new_tokens)

    def _check_memory(self, entry: Entry, prompt: Prompt) -> None:
        """Refuse a saved context that does not fit, or not under the cap on the cache."""
        size, available = entry.manifest.tensor_bytes, free_bytes(self.decoder.device)
        needed = size + self._beside_bytes(prompt) + activation_bytes(self.loaded.spec, prompt.longest_question)
        cap = self._limits_beside(prompt).kv_bytes
        if needed > available or (cap is not None and size > cap):
            bound = f"{available / 2**20:,.1f} are free" if cap is None else f"--kv-mem leaves it {cap / 2**20:,.1f}"
            raise DoesNotFitError(
                f"cache '{entry.name}' has {size / 2**20:,.1f} MiB, {bound}",
                hint="use a larger --kv-mem, or read the document with a smaller --budget",
            )
