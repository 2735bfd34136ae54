"""Peers' results and ours, on the samples that all of them ran: a Markdown table for each regime, and the page around.

A sample is (subtask, tokens, index); its score is the mean over its queries. Likelihood: mean over samples, each
subtask weighing the same, with a bootstrap 95 % interval. Exact matches: rate with Wilson's interval. What a source
did not run is left out for all, so that every row of a table is about the same samples; a row with fewer (a run that
was stopped, prompts that a setting refused) says so in its n.
"""

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from records import RESULTS, cpu_name, read_lines

from uncomp_cli import __version__
from uncomp_cli.evals.tables.statistics import Interval, stratified_mean, wilson

Line = dict[str, Any]
SAME = {"seed", "haystack_sha256", "model"}
SampleKey = tuple[str, int, int]
HEADINGS = ("budget", "of", "setting", "kept, claimed", "kept, allocated", "NLL (95 %)", "exact (95 %)", "n")


@dataclass(frozen=True, slots=True)
class Source:
    """One results file: who it is of, what the samples were made with, how it was run, and its lines."""

    name: str
    samples: Line
    run: Line
    lines: list[Line]

    def in_regime(self, regime: str) -> list[Line]:
        return [line for line in self.lines if line["regime"] == regime]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of one source. `refused` is the number of samples that it did not take, and why the first."""

    source: str
    setting: str
    budget: str
    kept_claimed: float | None
    kept_fraction: float
    nll: Interval | None
    exact: Interval | None
    samples: int
    refused: tuple[int, str]


def load_peer(path: Path) -> Source:
    """A file of run_kvpress.py or run_llamacpp.py. Ends the program when it is another kind."""
    header, lines = read_lines(path)
    if header.get("kind") != RESULTS:
        raise SystemExit(f"{path}: a file of {header.get('kind')!r}, not of {RESULTS!r}")
    settings = header["settings"]
    return Source(settings["peer"], settings["samples"], settings["run"], lines)


def load_ours(path: Path) -> Source:
    """A results file of `uncomp eval`: it claims nothing beside what it has allocated."""
    if not path.is_file():
        raise SystemExit(f"there is no {path}; make it with: uncomp eval --out {path}")
    header, lines = read_lines(path)
    if header.get("kind") != "uncomp eval":
        raise SystemExit(f"{path} is no results file of uncomp eval; make one with: uncomp eval --out {path}")
    return Source("uncomp", header["settings"], {}, lines)


def check_same_samples(sources: Sequence[Source]) -> None:
    """End the program when two sources ran different samples under the same names."""
    first, *others = sources
    for other in others:
        for name in sorted(first.samples.keys() & other.samples.keys() & SAME):
            a, b = first.samples[name], other.samples[name]
            if a != b:
                raise SystemExit(f"{first.name} ran samples with {name} {a!r}, {other.name} with {b!r}; run one again")
    ids: dict[tuple[Any, ...], tuple[str, str]] = {}
    for source in sources:
        for line in source.lines:
            if "ids_sha256" in line:
                known = ids.setdefault((*sample_key(line), line["query"]), (line["ids_sha256"], source.name))
                if known[0] != line["ids_sha256"]:
                    where = f"{line['subtask']}, {line['tokens']} tokens, sample {line['index']}"
                    raise SystemExit(f"{known[1]} and {source.name} ran other token ids as {where}; run one again")


def sample_key(line: Line) -> SampleKey:
    return line["subtask"], line["tokens"], line["index"]


def common_samples(sources: Iterable[Source], regime: str) -> set[SampleKey]:
    """The samples that every source with results in this regime has."""
    found = [{sample_key(line) for line in source.in_regime(regime)} for source in sources]
    return set.intersection(*(keys for keys in found if keys)) if any(found) else set()


def rows(sources: Sequence[Source], regime: str) -> list[Row]:
    """Every setting of every source on the common samples, by falling budget."""
    common = common_samples(sources, regime)
    made = []
    for source in sources:
        by_setting: dict[str, list[Line]] = defaultdict(list)
        for line in source.in_regime(regime):
            if sample_key(line) in common:
                by_setting[line["setting"]].append(line)
        made += [_row(source.name, lines) for lines in by_setting.values()]
    return sorted(made, key=lambda row: _budget_order(row.budget))


def _budget_order(budget: str) -> tuple[int, float, str]:
    """Full first, percentages falling, other units after them."""
    if budget == "full":
        return 0, 0.0, ""
    return (1, -float(budget.rstrip("%")), "") if budget.endswith("%") else (2, 0.0, budget)


def _row(source: str, lines: list[Line]) -> Row:
    refusals = {sample_key(line): line["refused"] for line in lines if line.get("refused")}
    taken = [line for line in lines if sample_key(line) not in refusals]
    claims = [line["kept_claimed"] for line in taken if "kept_claimed" in line]
    exact = _by_sample(taken, "exact")
    losses: dict[str, list[float]] = defaultdict(list)
    for (subtask, _, _), value in _by_sample(taken, "nll").items():
        losses[subtask].append(value)
    return Row(
        source=source,
        setting=lines[0]["contestant"],
        budget=lines[0]["budget"],
        kept_claimed=fmean(claims) if claims else None,
        kept_fraction=fmean(line["kept_fraction"] for line in taken) if taken else 0.0,
        nll=stratified_mean(list(losses.values())) if losses else None,
        exact=wilson(sum(value == 1 for value in exact.values()), len(exact)) if exact else None,
        samples=len({sample_key(line) for line in taken}),
        refused=(len(refusals), next(iter(refusals.values()), "")),
    )


def _by_sample(lines: Iterable[Line], metric: str) -> dict[SampleKey, float]:
    """The mean over each sample's queries, of the samples that have the metric."""
    values: dict[SampleKey, list[float]] = defaultdict(list)
    for line in lines:
        if metric in line["metrics"]:
            values[sample_key(line)].append(line["metrics"][metric])
    return {key: fmean(found) for key, found in values.items()}


def table(found: Sequence[Row]) -> str:
    """Markdown, a row a setting."""
    head = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*head, *(f"| {' | '.join(_cells(row))} |" for row in found)])


def _cells(row: Row) -> list[str]:
    names = [row.budget, row.source, row.setting]
    count, reason = row.refused
    if not row.samples:
        return [*names, "–", "–", f"refused: {reason}", "–", "0"]
    several = row.samples > 1
    samples = f"{row.samples} ({count} refused)" if count else str(row.samples)
    kept = ["–" if share is None else f"{100 * share:.1f} %" for share in (row.kept_claimed, row.kept_fraction)]
    return [*names, *kept, _nll(row.nll, several=several), _rate(row.exact), samples]


def _nll(interval: Interval | None, *, several: bool) -> str:
    if interval is None:
        return "–"
    # A likelihood of few samples may have an interval that reaches below the least there can be.
    spread = f" ({max(0.0, interval.low):.3f}–{interval.high:.3f})" if several else ""
    return f"{interval.mean:.3f}{spread}"


def _rate(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval.mean:.0f} % ({100 * max(0.0, interval.low):.0f}–{100 * interval.high:.0f})"


REGIMES = {
    "aware": "Query-aware: the question is seen when the cache is compressed",
    "agnostic": "Query-agnostic: the question is not seen when the cache is compressed",
}
NOTES = """\
- *kept, allocated*: bytes of keys and values that are allocated after the compression, over those of a full cache of
  the tokens that it saw: context and question, or the context alone. kvpress and uncomp ran in fp32, over fp32: of a
  16-bit cache, uncomp's 8bit and 4bit rows keep twice the share that is shown.
  llama.cpp's bytes are the size of its serialised sequence state (`llama_state_seq_get_size`) after context and
  question, over a 16-bit cache; a few bytes of bookkeeping a token put f16 a little above 100 %.
- *kept, claimed*: the entries that attention still sees, over all. AdaKV in kvpress masks entries and frees
  nothing. uncomp claims nothing beside what is allocated.
- NLL: nats per token of the right answer, from its second token on. exact: argmax gives every token of the answer.
- llama.cpp keeps the whole cache, so its two regimes are one measurement. Its weights are the Q4_1 GGUF from which our
  safetensors were made: the numbers are the same, the arithmetic is not (it multiplies them with 8-bit activations).
- kvpress presses were given the recorded prefill layer by layer, by their own hooks; `run_kvpress.py --check` compares
  that with a prefill under the press. Where kvpress's caches differ in length by layer, or are masked, the tokens after
  the prompt went through one by one, which is exact; transformers' causal mask is not, for several tokens at once."""


def page(sources: Sequence[Source], *, command: str) -> str:
    """The Markdown page. Ends the program when the sources ran different samples."""
    check_same_samples(sources)
    lines = ["# Peers on the same samples", "", *_runs(sources, command=command)]
    for regime, title in REGIMES.items():
        found = rows(sources, regime)
        if found:
            lines += ["", f"## {title}", "", _coverage(sources, regime), "", table(found)]
    return "\n".join([*lines, "", "## How to read it", "", NOTES, ""])


def _coverage(sources: Sequence[Source], regime: str) -> str:
    """How many samples the table is about, and what was left out."""
    common = common_samples(sources, regime)
    subtasks = ", ".join(sorted({f"{subtask} at {tokens:,} tokens" for subtask, tokens, _ in common}))
    return f"{len(common)} samples that all sources ran: {subtasks or 'none'}."


def _runs(sources: Sequence[Source], *, command: str) -> list[str]:
    ours = {name: version(name) for name in ("torch", "transformers")}
    lines = [f"- joined by `{command}`, uncomp {__version__} ({_spoken(ours)}), Python {platform.python_version()}"]
    made = {source.run["samples_command"] for source in sources if source.run.get("samples_command")}
    lines += [f"- samples: `{text}`" for text in sorted(made)]
    for source in sources:
        if source.run:
            run = source.run
            where = f"{run['cpu']}, {run['cores']} cores, OMP_NUM_THREADS {run['threads']}"
            lines.append(f"- {source.name}: `{run['command']}` ({_spoken(run['versions'])}; {where})")
        else:
            lines.append(f"- {source.name}: {_spoken(source.samples)} (this machine: {cpu_name()})")
    return lines


def _spoken(values: dict[str, Any]) -> str:
    """`name value, ...`; a sha256 by its first digits."""
    shown = {name: value[:12] if name.endswith("sha256") else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
