"""Running one `uncomp rope`: from its options to a request, measured with progress, and what is shown of it."""

import hashlib
import json
import shlex
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from uncomp_cli.cli.ask.prepare import ModelChoice, choose_preset, load, settle_preset
from uncomp_cli.cli.judge.rope_report import draw, record, write_tables
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count, format_seconds
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.live import loading
from uncomp_cli.ui.meter import Meter, Reading

if TYPE_CHECKING:
    from uncomp_cli.budget import presets
    from uncomp_cli.evals.rope.cells import RopeCell
    from uncomp_cli.evals.rope.sweep import RopeRequest, RopeStep
    from uncomp_cli.evals.tasks.haystack import Haystack
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["RopeJob", "run_rope", "show_results"]


@dataclass(frozen=True, slots=True)
class RopeJob:
    """Everything that one `uncomp rope` was told about what to measure and where to write."""

    paths: tuple[str, ...]
    kinds: str
    tokens: str | None
    depths: int
    samples: int
    budget: str
    compress: bool
    preset: str | None
    out: Path | None
    plot: Path | None
    seed: int
    as_json: bool


def show_results(source: Path, job: RopeJob, terminal: Terminal) -> None:
    """Tables and pictures of an existing results file; no model is needed."""
    from uncomp_cli.evals.rope.rope_results import read_rope_results

    settings, cells = read_rope_results(source)
    if not cells:
        raise UsageError(f"{source} holds no results yet", hint="run the same command with --out in place of --from")
    _report(cells, source, settings, {}, job, terminal)


def run_rope(job: RopeJob, choice: ModelChoice, terminal: Terminal) -> None:
    """Run one `uncomp rope`."""
    with loading(terminal, "preparing"):
        preset = _preset(job)
        _check_words(job)
    loaded = load(choice, terminal)
    request = _request(job, preset, loaded, terminal)
    from uncomp_cli.evals.rope import sweep as rope_sweep
    from uncomp_cli.evals.rope.estimate import probe
    from uncomp_cli.evals.rope.rope_results import RopeResults

    settings = rope_sweep.rope_settings(request, loaded)
    path = job.out or _default_path(settings)
    with RopeResults.open(path, settings) as results:
        terminal.note(f"results: {path} ({len(results.done):,} there)")
        with loading(terminal, "timing a short text"):
            cost = probe(loaded)
        left_s = rope_sweep.expected_seconds(request, loaded, results, cost)
        terminal.note(f"about {format_seconds(left_s)} to go on this machine; stop it and it goes on from there")
        _watch(rope_sweep.run_rope(request, loaded, results, cost=cost), terminal)
        cells = rope_sweep.asked_for(request, results.cells)
    _report(cells, path, settings, _made(), job, terminal)


def _check_words(job: RopeJob) -> None:
    """A slip in a length or a kind is found before anything is loaded."""
    from uncomp_cli.evals.rope.arms import parse_arms, parse_lengths

    longest = max(parse_lengths(job.tokens)) if job.tokens is not None else 2
    parse_arms(job.kinds, longest=longest, unscaled_length=longest, budget=job.budget, compress=job.compress)


def _preset(job: RopeJob) -> "presets.Preset":
    return choose_preset(job.preset, budget=job.budget, policy=None, scorer=None, seed=job.seed)


def _request(job: RopeJob, preset: "presets.Preset", loaded: "LoadedModel", terminal: Terminal) -> "RopeRequest":
    from uncomp_cli.evals.rope.arms import parse_arms, parse_lengths, unread
    from uncomp_cli.evals.rope.sweep import RopeRequest, check_arms, check_memory, lengths_of
    from uncomp_cli.models.identity import fingerprint

    known = lengths_of(loaded)
    trained = known.trained
    lengths = (trained, 2 * trained) if job.tokens is None else parse_lengths(job.tokens)
    longest, budget = max(lengths), job.budget
    arms = parse_arms(job.kinds, longest=longest, unscaled_length=known.unscaled, budget=budget, compress=job.compress)
    check_arms(arms, loaded)
    for sentence in unread(arms, lengths, known):
        terminal.note(sentence)
    preset, note = settle_preset(
        preset,
        fingerprint(loaded),
        named=job.preset is not None,
        choose=lambda name: choose_preset(name, budget=budget, policy=None, scorer=None, seed=job.seed),
    )
    if note is not None:
        terminal.note(note)
    depths = tuple(at / (job.depths - 1) if job.depths > 1 else 0.5 for at in range(job.depths))
    check_memory(arms, lengths, preset, loaded)  # before so much text is made
    haystack = _haystack(job, max(longest, trained), terminal)
    return RopeRequest(arms, lengths, depths, job.samples, job.seed, haystack, preset)


def _haystack(job: RopeJob, longest: int, terminal: Terminal) -> "Haystack":
    from uncomp_cli.documents.documents import read_documents
    from uncomp_cli.evals.tasks.haystack import Haystack

    if not job.paths:
        return Haystack.generated_for(longest, seed=job.seed)
    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    found = read_documents(job.paths, stdin=None if stdin is None else stdin.buffer)
    for path, reason in found.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return Haystack.of_documents(found.documents)


def _default_path(settings: dict[str, object]) -> Path:
    from platformdirs import user_data_path

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return user_data_path("uncomp") / "evals" / f"rope-{digest}.jsonl"


def _watch(steps: "Generator[RopeStep, None, None]", terminal: Terminal) -> None:
    """Show which cell is under way and how long is left."""
    with Meter(terminal) as meter:
        try:
            for step in steps:
                done = f"{format_count(step.index)} of {format_count(step.total)}"
                meter.show(Reading(step.label, step.fraction, done, step.elapsed_s))
        finally:
            steps.close()


def _made() -> dict[str, object]:
    """What made the results: known of a run alone, since a file that is shown again may come from another machine."""
    import os
    from importlib.metadata import version

    from uncomp_cli.bench.ratios import cpu_name

    versions = {name: version(name) for name in ("torch", "transformers")}
    command = shlex.join(["uncomp", *sys.argv[1:]])
    return {"cpu": cpu_name(), "cores": os.cpu_count(), **versions, "command": command}


def _report(
    cells: "list[RopeCell]",
    path: Path,
    settings: dict[str, Any],
    made: dict[str, object],
    job: RopeJob,
    terminal: Terminal,
) -> None:
    """Tables or JSON on standard output, and pictures where they were asked for."""
    from uncomp_cli.evals.rope.rope_summary import summarise_rope

    summary = summarise_rope(cells, trained_length=int(settings["trained_length"]))
    if job.as_json:
        terminal.write_json(record(summary, cells, results=path, settings=settings, made=made))
    else:
        write_tables(summary, terminal)
    if job.plot is not None:
        with loading(terminal, "drawing"):
            drawn = draw(summary, cells, job.plot)
        terminal.note(f"{len(drawn)} pictures in {job.plot}")
