"""A batch from beginning to end: the manifest is looked through, what is missing is answered, rows come into order.

    for event in run(Batch(inputs=("reports/",), out=Path("results.jsonl"), request=Request(questions=("Who?",)))): …

Before anything is begun it is seen whether the questions, every line of the manifests, the settings of earlier rows and
the model's size are right. `Summary` is what it returns.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from uncomp_cli.asking.events import Event, Foreseen, Noted, Warned
from uncomp_cli.asking.forecast import forecast, takes
from uncomp_cli.asking.pipeline import gather_questions
from uncomp_cli.asking.queue import ROWS_TO_WAIT_FOR
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.startup import during, fetch, weigh
from uncomp_cli.batch.cluster import (
    WINDOW,
    Crew,
    check_installed,
    check_workers,
    connected,
    crew_of,
    open_ledger,
    this_node,
    window_rows,
)
from uncomp_cli.batch.manifest import Entry, entries, source_of
from uncomp_cli.batch.results import Results, places_of
from uncomp_cli.batch.worker import Asking, Maker
from uncomp_cli.config import LOCAL, CrewConfig
from uncomp_cli.documents.collection import Document, DocumentSet, documents_of
from uncomp_cli.documents.intake import TELL_S
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.files import absolute
from uncomp_cli.numerals import format_count, format_decimal
from uncomp_cli.steps import Progress, Working

_SAMPLES = 32
_ROOM = 2
"""Times its weights that an actor is given room for: the cache and what is computed on the way stand beside them."""
_REASONS = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """What is asked of which documents, where the rows go, and who answers; `make` stands for the model where it is."""

    inputs: tuple[str, ...]
    out: Path
    request: Request
    resume: bool = False
    crew: CrewConfig = field(default_factory=CrewConfig)
    make: Maker | None = None

    def entries(self, skipped: Counter[str]) -> Iterator[Entry]:
        """Its documents, from the beginning."""
        own = set(map(absolute, places_of(self.out)))
        return entries(self.inputs, include=self.request.include, skipped=skipped, own=own)


@dataclass(slots=True)
class Summary:
    """How many documents there are, how many of them had a row before, were answered now, and of these failed."""

    documents: int = 0
    before: int = 0
    answered: int = 0
    failed: int = 0
    elapsed_s: float = 0.0

    @property
    def pace(self) -> str:
        """`1.8 a second`, or `62.4 s each`."""
        per_s = self.answered / self.elapsed_s
        return f"{format_decimal(per_s)} a second" if per_s >= 1 else f"{format_decimal(1 / per_s)} s each"

    @property
    def line(self) -> str:
        """`1,000 documents: 597 answered (1.2 s each), 3 failed, 400 were there`."""
        rate = f" ({self.pace})" if self.answered else ""
        parts = [f"{format_count(self.answered - self.failed)} answered{rate}", f"{format_count(self.failed)} failed"]
        parts += [f"{format_count(self.before)} were there"] if self.before else []
        return f"{format_count(self.documents, 'document')}: {', '.join(parts)}"

    def record(self) -> dict[str, Any]:
        """The same as JSON data."""
        return asdict(self)


def settings_of(request: Request, questions: Sequence[str]) -> dict[str, Any]:
    """What an answer depends on, by its flag."""
    names = {"chunk_tokens": "chunk", "kv_bytes": "kv-mem", "thinning": "thin"}
    groups: dict[str, Mapping[str, Any]] = {
        "model": asdict(request.model),
        "preset": asdict(request.preset),
        "": {**asdict(request.sampling), **asdict(request.limits)},
    }
    found: dict[str, Any] = {"--questions": list(questions)}
    for group, values in groups.items():
        found |= {
            f"--{group if key == 'name' else names.get(key, key.replace('_', '-'))}": value
            for key, value in values.items()
            if key not in ("offline", "usual", "floor_tokens", "force", "ranks")
        }
    found["--budget"] = None if request.preset.budget is None else str(request.preset.budget)
    found |= {"--system": request.system, "--truncate": request.truncate, "--encoding": request.wishes.encoding}
    found |= {"--evidence": request.evidence}
    return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


def run(batch: Batch) -> Generator[Event, None, Summary]:
    """Answer what has no row yet."""
    check_installed()
    questions = yield from gather_questions(batch.request)
    batch.request.choice.stored()  # a slip in it must not wait
    summary = Summary()
    with Results(batch.out, settings_of(batch.request, questions), resume=batch.resume) as results:
        yield from _look_through(batch, results, summary)
        if summary.documents > summary.before:
            needs_bytes = (yield from _needed(batch)) if batch.make is None else 0
            make = batch.make or partial(Asking, batch.request, tuple(questions))
            yield from _answer(batch, results, summary, make, needs_bytes)
            results.check_whole()
        yield Working("bringing rows into order")
        results.finish()
        yield Working(None)
    return summary


def _needed(batch: Batch) -> Generator[Event, None, int]:
    """Bytes that an actor takes; the model is fetched, and refused where it does not fit, before Ray is started."""
    path = yield from fetch(batch.request.model)
    weighed = yield from during("measuring", partial(weigh, batch.request.model, path))
    return _program_bytes() + _ROOM * (weighed.weights_bytes + weighed.passing_bytes)


def _program_bytes() -> int:
    """What a process takes without a model, measured on this one, which has the same libraries loaded by now."""
    import torch

    from uncomp_cli.engine.spend.memory import resident_bytes

    return resident_bytes(torch.device("cpu"))


def _look_through(batch: Batch, results: Results, summary: Summary) -> Iterator[Event]:
    """Note every document. Raises UsageError for a name that two rows of manifests have."""
    skipped, begun_s = Counter[str](), time.monotonic()
    told_s = begun_s
    for number, entry in enumerate(batch.entries(skipped)):
        known = results.wants(entry.name, entry.place)
        if known is not None and entry.line:
            message = f"{entry.place} has the name {entry.name[:80]!r} that {known} has"
            raise UsageError(message, hint="give each row a `name` of its own")
        now_s = time.monotonic()
        if now_s - told_s > TELL_S:
            told_s = now_s
            yield Progress(f"looking through {format_count(number + 1, 'document')}", None, None, now_s - begun_s)
    if skipped:
        reasons = "; ".join(f"{format_count(count)} × {reason}" for reason, count in skipped.most_common(_REASONS))
        more = "; …" if len(skipped) > _REASONS else ""
        yield Warned(f"left out {format_count(skipped.total())} files and folders: {reasons}{more}")
    summary.documents, summary.before = results.counts


def _answer(batch: Batch, results: Results, summary: Summary, make: Maker, needs_bytes: int) -> Iterator[Event]:
    yield Working("starting Ray" if batch.crew.ray == LOCAL else f"joining Ray at {batch.crew.ray}")
    with connected(batch.crew.ray, readers=batch.crew.readers) as nodes:
        todo, begun_s, said = summary.documents - summary.before, time.monotonic(), set[str]()
        crew = crew_of(nodes, batch.crew, needs_bytes=needs_bytes).shared(todo)
        check_workers(nodes, make)
        ledger = open_ledger()
        yield Working(None)
        actors, threads = format_count(crew.actors, "actor"), format_count(crew.threads, "thread")
        gpus = f", {crew.gpus:g} GPU" if crew.gpus else ""
        yield Noted(f"{actors} of {threads}{gpus}, {format_count(crew.batch_size, 'document')} a batch")
        missing = (entry for entry in batch.entries(Counter()) if results.take(entry.name))
        while window := list(islice(missing, WINDOW * crew.actors)):
            for lines, notes in window_rows(window, make, crew, batch.request.wishes, ledger):
                results.add((line.name, line.data) for line in lines)
                summary.answered += len(lines)
                summary.failed += sum(line.failed for line in lines)
                yield from (Noted(note) for note in notes if note not in said)
                said.update(notes)
                summary.elapsed_s = time.monotonic() - begun_s
                yield _progress(summary, todo)


def _progress(summary: Summary, todo: int) -> Progress:
    done, failed = summary.answered, f", {format_count(summary.failed)} failed" if summary.failed else ""
    label = f"{format_count(done)} of {format_count(todo, 'document')}{failed}"
    return Progress(label, done / todo, summary.pace, summary.elapsed_s)


def _peak_bytes(records: Sequence[dict[str, Any]], crew: Crew, *, questions: int) -> int:
    """What an actor takes: its program (of a CPU's memory), a document being read, and the caches that wait for it."""
    held = min(crew.batch_size, -(-ROWS_TO_WAIT_FOR // questions))
    caches = sorted(each.get("kv_planned_bytes", 0) for each in records)[-held:]
    reading = max(each.get("expected_peak_bytes", each["weights_bytes"]) for each in records)
    return int((0 if crew.gpus else _program_bytes()) + reading + sum(caches[:-1]))


def estimate(batch: Batch) -> Generator[Event, None, dict[str, Any]]:
    """What the batch would take, from some of its documents; nothing is loaded or written."""
    questions = yield from gather_questions(batch.request)
    skipped, count = Counter[str](), len({entry.name for entry in batch.entries(Counter())})
    some = islice(batch.entries(skipped), 0, None, max(1, count // _SAMPLES))
    tried = list(islice(some, _SAMPLES))
    found = documents_of([source_of(entry) for entry in tried], batch.request.wishes)
    failed = [
        f"{entry.name}: {each}" for entry, each in zip(tried, found, strict=True) if isinstance(each, UncompError)
    ]
    yield from map(Warned, failed[:_REASONS])
    readable = [DocumentSet((each,)) for each in found if isinstance(each, Document)]
    if not readable:
        raise UsageError(
            f"{format_count(len(found), 'document')} tried, and none can be read", hint="uncomp ask -f one of them"
        )
    records = list[dict[str, Any]]()
    for event in forecast(batch.request, readable, questions):
        if isinstance(event, Foreseen):
            records.append(event.record)
        else:
            yield event
    weighed_bytes = records[0]["weights_bytes"]
    here = nullcontext([this_node(batch.crew.readers)])
    with here if batch.crew.ray == LOCAL else connected(batch.crew.ray) as nodes:
        crew = crew_of(nodes, batch.crew, needs_bytes=_program_bytes() + _ROOM * weighed_bytes).shared(count)
    of_all = count * len(readable) / len(found) / len(records)
    tokens = round(sum(each["prompt_tokens"] for each in records) * of_all)
    again = round(sum(each.get("repeated_tokens", 0) for each in records) * of_all)
    peak = _peak_bytes(records, crew, questions=len(questions))
    return {
        "documents": count,
        "sampled": len(found),
        "unreadable": len(found) - len(readable),
        "refused": sum(not each["fits"] for each in records),
        "questions": len(questions),
        "prompt_tokens": tokens,
        "longest_prompt_tokens": max(each["prompt_tokens"] for each in records),
        "actors": crew.actors,
        "threads": crew.threads,
        "gpus": crew.gpus,
        "actor_peak_bytes": peak,
        "all_actors_peak_bytes": peak * crew.actors,
        "free_bytes": records[0]["free_bytes"],
        "reading": takes(batch.request.model.name, (tokens + again) // crew.actors) or "not measured here yet",
    }
