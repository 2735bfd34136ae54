"""Temporary: the engine's coming face (Engine, Reading, Context, Asked, Writer) over the sessions of today."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.ragged import survival
from uncomp_cli.cache.shelf import Entry, Shelf
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.reused import ReusedSession
from uncomp_cli.engine.context.session import RunStats
from uncomp_cli.engine.look.attended import attended_by
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.batch import BatchSession
from uncomp_cli.models.loading import LoadedModel


@dataclass
class Asked:
    context: Any
    question: int
    words: str
    inner: Any


@dataclass
class Step:
    row: int
    index: int
    token: int
    text: str
    finish_reason: Any
    elapsed_s: float
    kv_bytes: int


class Reading:
    def __init__(self, session: Any, prompt: Prompt, preset: Preset) -> None:
        self.session, self.prompt, self.preset = session, prompt, preset
        self.steps = session.read(prompt)
        self._context: Any = None

    @property
    def planned(self) -> Any:
        return getattr(self.session, "compression", None)

    def __iter__(self) -> Iterator[PrefillStep]:
        yield from self.steps
        self._context = any_context(self.session, self.prompt, self.preset)

    @property
    def context(self) -> "Context":
        return self._context  # type: ignore[no-any-return]


def any_context(session: Any, prompt: Prompt, preset: Preset) -> Any:
    return Saved(session) if isinstance(session, ReusedSession) else Context(session, prompt, preset)


class Context:
    record = None
    account = property(lambda self: self)
    recalled: str | None = None

    def __init__(self, session: Any, prompt: Prompt, preset: Preset) -> None:
        self.session, self.prompt, self.preset = session, prompt, preset
        self.read = session._read
        self.asked = session.asked()
        planned = session.compression
        self.chunk_tokens, self.reread_tokens, self.notes = planned.chunk_tokens, planned.reread_tokens, planned.notes
        self.allocation, self.measured, self.hidden_kept = session.allocation, session.measured, session.hidden_kept

    @property
    def plan(self) -> Any:
        return self.allocation.plan

    @property
    def uncertainty(self) -> Any:
        return self.allocation.uncertainty

    def layer_bytes(self) -> list[int]:
        return [self.read.cache.layer(i).nbytes for i in range(self.session.loaded.spec.num_layers)]

    def attended(self, ids: Sequence[int], question: int) -> Any:
        asked = self.asked[question]
        (prompt,) = asked.read.prompts
        waiting = [layer[asked.question] for layer in asked.read.questions]
        first, last = asked.prompt_tokens - 1, prompt.questions[asked.question][-1]
        return attended_by(
            self.session.decoder, asked.read.cache, [last, *ids][:-1], first,
            heads=self.allocation.trust(), sinks=self.preset.scorer.sinks, behind=waiting or None,
        )  # fmt: skip

    def survival(self, length: int) -> Any:
        return survival(self.read.cache, length, layers=self.session.loaded.spec.full_layers)


class Saved:
    account = property(lambda self: self)
    reread_tokens = None
    hidden_kept = ()

    def __init__(self, session: ReusedSession) -> None:
        self.session = session
        self.preset = session.preset
        self.record, self.seconds = session.held.record, session.held.seconds
        self.chunk_tokens, self.notes = None, ()

    prompt = property(lambda self: self.session.held.prompt)
    plan = property(lambda self: self.session.held.plan)
    uncertainty = property(lambda self: self.session.held.uncertainty)
    measured = property(lambda self: self.session.measured)
    recalled = property(lambda self: self.session.recalled)

    def layer_bytes(self) -> list[int]:
        return [self.session.held.cache.layer(i).nbytes for i in range(self.session.loaded.spec.num_layers)]

    def attended(self, ids: Sequence[int], question: int) -> Any:
        held = self.session.held
        asked = held.prompt.questions[question]
        first = len(held.prompt.context) + len(asked) - 1
        self.first = first
        return attended_by(
            self.session.decoder, held.cache, [asked[-1], *ids][:-1], first,
            heads=self.session.trust(), sinks=self.preset.scorer.sinks,
        )  # fmt: skip

    def survival(self, length: int) -> Any:
        return survival(self.session.held.cache, length, layers=self.session.loaded.spec.full_layers)


class Writer:
    def __init__(self, session: Any, asked: Sequence[Asked]) -> None:
        self.asked = list(asked)
        self.session = session
        self.batch = None if isinstance(session, ReusedSession) else session.batch([each.inner for each in asked])
        self.found: dict[int, RunStats | None] = {}
        self.at: int | None = None

    def write(self) -> Iterator[Step]:
        if self.batch is not None:
            for taken in self.batch.answer([each.inner for each in self.asked]):
                s = taken.step
                yield Step(taken.row, s.index, s.token_ids[0], s.texts[0], s.finish_reasons[0], s.elapsed_s, s.kv_bytes)
            return
        for row, each in enumerate(self.asked):
            self.at = row
            for s in self.session.answer(each.question, words=each.words):
                self.found[row] = self.session.stats
                yield Step(row, s.index, s.token_ids[0], s.texts[0], s.finish_reasons[0], s.elapsed_s, s.kv_bytes)

    def stats(self, row: int = 0) -> RunStats | None:
        return self.found.get(row) if self.batch is None else self.batch.stats(row)


class Engine:
    def __init__(
        self, loaded: LoadedModel, *, sampling: SamplingConfig, limits: Limits | None = None, matmul: Any = "float32"
    ) -> None:
        self.loaded, self.sampling, self.limits, self.matmul = loaded, sampling, limits, matmul
        self.spec = loaded.spec
        self.regime_tokens = 0
        self.sessions: list[tuple[Preset, bool, Any]] = []

    def session(self, preset: Preset, for_any: bool) -> Any:
        found = [held for known, any_, held in self.sessions if known == preset and any_ == for_any]
        session = found[0] if found else None
        if session is None:
            kind: Any = ReusedSession if for_any else BatchSession
            session = kind(self.loaded, preset, self.sampling, self.limits, matmul=self.matmul)
            self.sessions = [*self.sessions[:1], (preset, for_any, session)]
        if not for_any:
            session.regime_tokens = self.regime_tokens
        return session

    @property
    def decoder(self) -> Any:
        return self.sessions[0][2].decoder if self.sessions else self._decoder()

    def _decoder(self) -> Any:
        from uncomp_cli.engine.forward.decoder import Decoder

        return Decoder(self.loaded.model, self.loaded.spec, matmul=self.matmul)

    def read(self, prompt: Prompt, preset: Preset, *, for_any: bool = False) -> Reading:
        return Reading(self.session(preset, for_any), prompt, preset)

    def origin(self, prompt: Prompt, preset: Preset) -> Any:
        return self.session(preset, True).origin(prompt)

    def open(self, shelf: Shelf, entry: Entry, prompt: Prompt, preset: Preset, *, as_saved: bool = False) -> Saved:
        session = self.session(preset, True)
        session.load(shelf, entry, prompt, as_saved=as_saved)
        return Saved(session)

    def asked(self, context: Any, *, words: Sequence[str] = ()) -> list[Asked]:
        if isinstance(context, Saved):
            return [Asked(context, i, each, None) for i, each in enumerate(words)]
        return [Asked(context, one.question, word, one) for one, word in zip(context.asked, words, strict=True)]

    def save(self, context: Any, shelf: Shelf, name: str | None, *, about: Mapping[str, Any]) -> Any:
        return context.session.save(shelf, name, about=about)

    def fits(self, asked: Sequence[Asked]) -> bool:
        if isinstance(asked[0].context, Saved):
            return True
        return asked[0].context.session.fits([each.inner for each in asked])  # type: ignore[no-any-return]

    def writer(self, asked: Sequence[Asked]) -> Writer:
        return Writer(asked[0].context.session, asked)
