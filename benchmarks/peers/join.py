"""Peers' results and ours: a Markdown table for each peer and regime on the samples that both ran, and the page around.

A sample is (subtask, tokens, index); its score is the mean over its queries. Every row is compared on the same samples
with our full cache, and a peer's with ours at equal or fewer bytes: of the settings of ours that are shown the one that
keeps most without keeping more, so that nothing is chosen by its result. Differences are the row's minus the other's,
with paired bootstrap intervals in which each subtask weighs the same (uncomp_cli/evals/tables/statistics.py). What one
of the two did not run is left out for both; a setting that has not all of the samples says how many in brackets.

Bytes are shares of a 16-bit cache of what the compression saw. Ours are those that were allocated, where float32 counts
twice; kvpress, which ran in float32 as well, gets its entries as if they were in 16 bits, also those it only masks.
A peer that gives no likelihood is compared by what it finds alone.
"""

import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from records import RESULTS, read_lines

from uncomp_cli import __version__
from uncomp_cli.evals.tables.statistics import Interval, paired_difference

Line = dict[str, Any]
SAME = {"seed", "haystack_sha256", "model", "data"}
SampleKey = tuple[str, int, int]
OURS, FULL = "uncomp", "full"
TOLERANCE = 1e-3  # nats a token, between two full caches of the same samples
ROUNDING = 0.005  # of a 16-bit cache: a peer that keeps that much less has as many bytes


@dataclass(frozen=True, slots=True)
class Source:
    """One results file: who it is of, what the samples were made with, how it was run, and its lines."""

    name: str
    samples: Line
    run: Line
    lines: list[Line]

    def in_regime(self, regime: str) -> list[Line]:
        return [line for line in self.lines if line["regime"] == regime]

    @property
    def of_16_bits(self) -> float:
        """What makes a share of this source's own full cache one of a 16-bit cache."""
        return 2.0 if self.samples.get("dtype") == "float32" else 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of one source: by sample its likelihood and the share found. `kept` is of a 16-bit cache.

    `refused` is the number of samples that it did not take, and why the first.
    """

    source: str
    setting: str
    kept: float
    nll: dict[SampleKey, float]
    found: dict[SampleKey, float]
    refused: tuple[int, str]


def load_peer(path: Path) -> Source:
    """A file of a peer's run_….py. Ends the program when it is another kind."""
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
    return Source(OURS, header["settings"], {}, lines)


def merged(ours: Sequence[Source]) -> Source:
    """Several files of ours of the same samples as one; what two of them have is the first one's."""
    check_same_samples(ours)
    lines: dict[tuple[Any, ...], Line] = {}
    for source in ours:
        for line in source.lines:
            lines.setdefault((sample_key(line), line["regime"], line["setting"]), line)
    return replace(ours[0], lines=[*lines.values()])


def check_same_samples(sources: Sequence[Source]) -> None:
    """End the program when two sources ran different samples under the same names."""
    for other in sources[1:]:
        first = sources[0]
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


def subtask_of(key: SampleKey) -> str:
    return key[0]


def common_samples(sources: Iterable[Source], regime: str) -> set[SampleKey]:
    """The samples that every source with results in this regime has."""
    found = [{sample_key(line) for line in source.in_regime(regime)} for source in sources]
    return set.intersection(*(keys for keys in found if keys)) if any(found) else set()


def rows(sources: Sequence[Source], regime: str, *, shown: Sequence[str] = ()) -> list[Row]:
    """Every setting of every source on the common samples, what keeps most first.

    Of ours only those in `shown` and the full cache; none is all. Of equal bytes the one that is named first is first.
    """
    common = common_samples(sources, regime)
    made = []
    for source in sources:
        by_setting: dict[str, list[Line]] = defaultdict(list)
        for line in source.in_regime(regime):
            name = _plain(line["setting"])
            if sample_key(line) in common and (source.name != OURS or not shown or name in (FULL, *shown)):
                by_setting[name].append(line)
        made += [_row(source, name, lines) for name, lines in by_setting.items()]
    order = {name: place for place, name in enumerate(shown)}
    return sorted(_judged_alike(made), key=lambda row: (-round(row.kept / ROUNDING), order.get(row.setting, 0)))


def _judged_alike(found: Sequence[Row]) -> Sequence[Row]:
    """Likelihoods of the samples alone that ours has one of: one token has none when the question was seen."""
    judged = next((row.nll.keys() for row in found if (row.source, row.setting) == (OURS, FULL)), None)
    if judged is None:
        return found
    return [replace(row, nll={key: row.nll[key] for key in row.nll if key in judged}) for row in found]


def _plain(setting: str) -> str:
    """A setting's name without the digest of its preset or profile."""
    words = setting.split(" ")
    return " ".join(word.partition("#")[0] for word in words)


def _row(source: Source, setting: str, lines: list[Line]) -> Row:
    refusals = {sample_key(line): line["refused"] for line in lines if line.get("refused")}
    taken = [line for line in lines if sample_key(line) not in refusals]
    kept = fmean(min(line["kept_fraction"], line.get("kept_claimed", inf)) for line in taken) if taken else 0.0
    return Row(
        source=source.name,
        setting=setting,
        kept=kept * source.of_16_bits,
        nll=_by_sample(taken, "nll"),
        found=_by_sample(taken, "match"),
        refused=(len(refusals), next(iter(refusals.values()), "")),
    )


def _by_sample(lines: Iterable[Line], metric: str) -> dict[SampleKey, float]:
    """The mean over each sample's queries, of the samples that have the metric."""
    values: dict[SampleKey, list[float]] = defaultdict(list)
    for line in lines:
        if metric in line["metrics"]:
            values[sample_key(line)].append(line["metrics"][metric])
    return {key: fmean(found) for key, found in values.items()}


def rival(row: Row, found: Sequence[Row]) -> Row | None:
    """Our setting that a peer's row is held against: of `rows` the first that keeps no more."""
    ours = (one for one in found if one.source == OURS and one.kept <= row.kept + ROUNDING)
    return next(ours, None) if row.source != OURS else None


def table(found: Sequence[Row]) -> str:
    """Markdown, a row a setting."""
    subtasks = sorted({subtask_of(key) for row in found for key in row.nll})
    samples = max(len(row.found) for row in found)
    short = [name.partition("/")[0 if name.endswith(("/test", "/pages")) else 2] for name in subtasks]
    head = ["kept", "of", "setting", *short, "less full", "found", "ours", "less ours", "found"]
    full = next((row for row in found if (row.source, row.setting) == (OURS, FULL)), None)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in found:
        cells = [f"{100 * row.kept:.0f} %", row.source, _named(row, samples)]
        if row.found:
            against = rival(row, found)
            nlls = [_mean([value for key, value in row.nll.items() if subtask_of(key) == name]) for name in subtasks]
            cells += [*nlls, *_less(row, full), against.setting if against else "", *_less(row, against)]
        else:
            cells += [f"refused: {row.refused[1]}", *[""] * (len(head) - 4)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def check_full(found: Sequence[Row]) -> str:
    """How near a peer's full cache is to ours, said. Ends the program when they did not read the same."""
    fulls = {row.source: row for row in found if row.setting == FULL}
    ours = fulls.pop(OURS, None)
    said = []
    for name, row in fulls.items() if ours else ():
        apart = max(abs(loss - ours.nll[key]) for key, loss in row.nll.items())
        if apart > TOLERANCE:
            raise SystemExit(f"the full caches of {OURS} and {name} are {apart:.3f} nats apart; run one again")
        same = sum(share == ours.found[key] for key, share in row.found.items())
        said.append(f"{name}'s full cache: within {apart:.0e} nats of ours, found alike in {same} of {len(row.found)}.")
    return " ".join(said)


def _doubled(row: Row) -> bool:
    """A peer's full cache in our arithmetic: our own row shows it."""
    return row.source != OURS and row.setting == FULL


def _named(row: Row, samples: int) -> str:
    """The setting, with the number of its samples where it has not all."""
    name = f"**{row.setting}**" if row.source == OURS else row.setting
    return name if len(row.found) in (samples, 0) else f"{name} ({len(row.found)})"


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}" if values else "–"


def _less(row: Row, other: Row | None) -> list[str]:
    """The differences of likelihood and of the share found to another row, on the samples of both."""
    if other is None:
        return ["", ""]
    share = _interval(_paired(row.found, other.found, binary=True), lambda value: f"{100 * value:+.0f}")
    if row is other:
        return ["", f"{100 * fmean(row.found.values()):.0f} %"]
    return [_interval(_paired(row.nll, other.nll), lambda value: f"{value:+.2f}"), share]


def _paired(ours: dict[SampleKey, float], others: dict[SampleKey, float], *, binary: bool = False) -> Interval | None:
    if not ours.keys() & others.keys():
        return None
    return paired_difference(ours, others, stratum=subtask_of, binary=binary)


def _interval(found: Interval | None, spoken: Callable[[float], str]) -> str:
    if found is None:
        return "–"
    sure = "\\*" if found.count > 1 and (found.low > 0 or found.high < 0) else ""
    return f"{spoken(found.mean)}{sure} ({spoken(found.low)}…{spoken(found.high)})"


REGIMES = {
    "aware": "Question seen when the cache is compressed",
    "agnostic": "Question unseen when the cache is compressed",
}
NOTES = """\
- *Kept* is of a 16-bit cache of what the compression saw. Ours is what was allocated, in float32 where nothing is
  quantised; kvpress ran in float32 as well and gets its entries as if they took 16 bits, also KVzip's, which are masked
  and not freed. llama.cpp's is the size of its serialised sequence state behind context and question.
- By task the NLL of the right answer, nats a token from its second token on. *Less full*: the row minus our full cache
  in float32. *Ours*: of our settings that keep no more than the peer's the one that keeps most; *less ours*: the row
  minus it. *Found*, behind either: points of samples with an accepted answer in what greedy decoding writes. Above 0
  nats and below 0 points the row is the worse one. Paired 95 % intervals, \\* excludes 0; fewer samples of a row in
  brackets.
- llama.cpp keeps the whole cache, and runs the Q4_1 GGUF from which our safetensors were made: the numbers are the
  same, the arithmetic is not (it multiplies them with 8-bit activations), which is what its f16 row is away from full.
- kvpress presses were given the recorded prefill layer by layer, by their own hooks; `run_kvpress.py --check` compares
  that with a prefill under the press. KVzip reads the context a second time behind the first to score it.
- OpenVINO GenAI gives no likelihood of a right answer: what it found is compared alone. *Kept* is the blocks in use
  after its eviction, with the scales of 8 bits; the prompt, with the question, and the answer's first two tokens have
  the whole cache. It runs the same numbers in 16 bits, and no document without its question."""


def page(sources: Sequence[Source], *, command: str, shown: Sequence[str] = ()) -> str:
    """The Markdown page. Ends the program when the sources ran different samples."""
    lines = ["# Peers on the same samples", "", *_runs(sources, command=command)]
    our = [source for source in sources if source.name == OURS]
    for regime, title in REGIMES.items():
        there = [source for source in sources if source.in_regime(regime)]
        check_same_samples(there)
        lines += ["", f"## {title}"] if there else []
        for peer in (source for source in there if source.name != OURS):
            pair = [*our, peer]
            found = rows(pair, regime, shown=shown)
            told = f"{peer.name}, {_coverage(pair, regime)} {check_full(found)}".strip()
            lines += ["", told, "", table([row for row in found if not _doubled(row)])]
    return "\n".join([*lines, "", "## How to read it", "", NOTES, ""])


def _coverage(sources: Sequence[Source], regime: str) -> str:
    """How many samples the table is about, and what was left out."""
    common = common_samples(sources, regime)
    lengths = " and ".join(f"{length:,}" for length in sorted({tokens for _, tokens, _ in common}))
    of_each = Counter(subtask for subtask, _, _ in common)
    parts = ", ".join(f"{count} of {name}" for name, count in sorted(of_each.items()))
    return f"{len(common)} samples of {lengths} tokens ({parts})." if common else "no sample of ours."


def _runs(sources: Sequence[Source], *, command: str) -> list[str]:
    ours = {name: version(name) for name in ("torch", "transformers")}
    lines = [f"- joined by `{command}`, uncomp {__version__} ({_spoken(ours)}), Python {platform.python_version()}"]
    made = {source.run["samples_command"] for source in sources if source.run.get("samples_command")}
    lines += [f"- samples: `{text}`" for text in sorted(made)]
    for source in sources:
        if source.run:
            run = source.run
            processors = dict.fromkeys([run["cpu"], *(line["cpu"] for line in source.lines if "cpu" in line)])
            where = f"{' and '.join(processors)}, {run['cores']} cores, OMP_NUM_THREADS {run['threads']}"
            lines.append(f"- {source.name}: `{run['command']}` ({_spoken(run['versions'])}; {where})")
    return lines


def _spoken(values: dict[str, Any]) -> str:
    """`name value, ...`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
