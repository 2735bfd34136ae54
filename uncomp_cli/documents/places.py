"""Places: which tokens a line of a document is, which passages tokens belong to, and which ones an answer looked at.

    text that was tokenized   … [a.md]\nFirst line\nSecond …        offsets[t] = (begin, end) of token t in it
    source                    where a document's text, stripped, begins in that text

Lines are those of the file as the user has it: they end at "\n", and blank ones before the text count. Where they are
ours and not the file's, a place says where they stand: `p3`, `Sales!A7`, `body` (text.py). A passage is a line, or of
a long line its sentences, or of a long sentence as many words as make no long line.

Evidence is the passages that an answer looked at most:

    attention_share = attention on the passage's tokens / attention on all tokens of the documents
    kept_fraction   = mean over its tokens of the share of KV heads that still hold them

What was attended to is not what the answer must be true of: a share says where the model looked, not that it read
well. What was evicted could not be looked at, so a passage that is mostly gone is named as such.
"""

import difflib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from uncomp_cli.documents.text import Place
from uncomp_cli.errors import UsageError, did_you_mean

LONG_LINE_CHARS = 400
MOSTLY_EVICTED = 0.1
"""A cited passage of which less than this share of keys and values is left is warned of.

Of needles that were found by the default model, with a third of the cache or less, 14 % or more were left.
"""
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=\S)|(?<=[。！？])(?=.)")
_LINES = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NUMBERED = re.compile(r"(.*?)([0-9]+)")
_RUN = re.compile(rf".{{1,{LONG_LINE_CHARS}}}(?=\s|$)|.{{1,{LONG_LINE_CHARS}}}")


@dataclass(frozen=True, slots=True)
class Source:
    """A document: its text as in the file, and the character at which that text, stripped, was put."""

    path: str
    text: str
    first_char: int
    places: tuple[Place, ...] = ()

    @property
    def shift(self) -> int:
        """What is added to a place in `text` to get its place in the text that was tokenized."""
        return self.first_char - (len(self.text) - len(self.text.lstrip()))

    @property
    def lines(self) -> list[str]:
        """Without line ends; the text's last line end begins no line."""
        return self.text.removesuffix("\n").split("\n")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as lines (the first is 1) and as the range of its tokens.

    `place` is the lines' page, and `page_label` how that is numbered in print, where otherwise.
    """

    path: str
    line_start: int
    line_end: int
    text: str
    tokens: range
    place: str | None = None
    page_label: str | None = None


class Places:
    """The places of `sources` among tokens whose character ranges are `offsets`; (-1, -1) for the template's."""

    def __init__(self, sources: Sequence[Source], offsets: Iterable[Sequence[int]]) -> None:
        self._sources = tuple(sources)
        self._offsets = offsets

    @cached_property
    def _known(self) -> tuple[list[int], list[int], list[int]]:
        """The tokens that are of the text, and where they begin and end; found out when somebody asks."""
        known = [(token, begin, end) for token, (begin, end) in enumerate(self._offsets) if begin >= 0]
        # Ranges never go back, but several tokens may share one character.
        begins = list(accumulate((begin for _, begin, _ in known), max))
        return [token for token, _, _ in known], begins, list(accumulate((end for _, _, end in known), max))

    def tokens_of(self, path: str, where: str) -> range:
        """Every token of the lines that `where` names, as `lines_at` reads it; empty where they were cut or are blank.

        Raises UsageError for a document that is not there, and for lines and places that it does not have.
        """
        source = self._source(path)
        lines = source.lines
        first_line, last_line = lines_at(where, path=path, count=len(lines), places=source.places)
        begin = sum(len(line) + 1 for line in lines[: first_line - 1])
        text = "\n".join(lines[first_line - 1 : last_line])
        return self._between(*_trimmed(text, begin + source.shift))

    def passages(self) -> tuple[Passage, ...]:
        """All passages that have tokens, in the order of the text; no token is in two."""
        return tuple(passage for source in self._sources for passage in self._passages(source))

    def _passages(self, source: Source) -> Iterator[Passage]:
        at, taken = source.shift, 0
        begun = [place.line for place in source.places]
        for number, line in enumerate(source.lines, start=1):
            for begin, text in _pieces(line):
                tokens = self._between(*_trimmed(text, at + begin))
                tokens = range(max(tokens.start, taken), tokens.stop)
                if len(tokens):
                    taken = tokens.stop
                    at_place = bisect_right(begun, number) - 1
                    name, label = source.places[at_place].parts if at_place >= 0 else ("", "")
                    yield Passage(source.path, number, number, text.strip(), tokens, name or None, label or None)
            at += len(line) + 1

    def _source(self, path: str) -> Source:
        """The latest one of this path: in a chat a file may have been given again."""
        found = next((source for source in reversed(self._sources) if source.path == path), None)
        if found is None:
            paths = dict.fromkeys(source.path for source in self._sources)
            hint = did_you_mean(path, paths, f"there is {', '.join(paths) or 'none'}", cutoff=0.4)
            raise UsageError(f"no document '{path}' was read", hint=hint)
        return found

    def _between(self, begin: int, end: int) -> range:
        """Tokens that share a character with [begin, end)."""
        tokens, begins, ends = self._known
        first, last = bisect_right(ends, begin), bisect_left(begins, end)
        return range(tokens[first], tokens[last - 1] + 1) if first < last else range(0)


def _pieces(line: str) -> Iterator[tuple[int, str]]:
    """(first character, text) of a line's pieces: itself, or its sentences when it is long."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)] if len(line) > LONG_LINE_CHARS else []
    for begin, end in zip([0, *ends], [*ends, len(line)], strict=True):
        yield from ((begin + match.start(), match[0]) for match in _RUN.finditer(line[begin:end]))


def _trimmed(text: str, begin: int) -> tuple[int, int]:
    """Where `text`, which begins at `begin`, has its first and behind its last character that is no space."""
    if not text.strip():
        return begin, begin
    return begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())


def lines_at(where: str, *, path: str, count: int, places: Sequence[Place], write: str = "write ") -> tuple[int, int]:
    """The first and the last line of `10-40`, `p3`, `p3-5`, `Sales!A7-9`, or `Sales`, of a text of `count` lines.

    Raises UsageError for what is not there; `write` stands before what its hint wants written.
    """
    lines = _LINES.fullmatch(where)
    if lines is not None:
        first, last = int(lines[1]), int(lines[2] or lines[1])
        if not 1 <= first <= last <= count:
            hint = f"{write}{path}:{_shown(*_nearest(first, last, count))}"
            raise UsageError(f"{path} has lines 1 to {count}, not {_shown(first, last)}", hint=hint)
        return first, last
    names = [place.parts[0] for place in places]
    span = _span(where, names)
    if span is None:
        near = [*difflib.get_close_matches(where, names, n=1, cutoff=0.5), *names, _shown(1, count)][0]
        raise UsageError(f"{path} has {_listed(names)}lines 1 to {count}, not {where}", hint=f"{write}{path}:{near}")
    end = places[span[1] + 1].line - 1 if span[1] + 1 < len(places) else count
    return places[span[0]].line, max(end, places[span[1]].line)


def _span(where: str, names: Sequence[str]) -> tuple[int, int] | None:
    """The first and the last of the places that are meant, by their numbers."""
    whole = _places_of(where, names)
    if whole is not None:
        return whole
    for dash in (i for i, letter in enumerate(where) if letter == "-"):
        first, last = where[:dash], where[dash + 1 :]
        numbered = _NUMBERED.fullmatch(first)
        begins = ("", f"{first.rpartition('!')[0]}!", numbered[1] if numbered else "")
        ends = [_places_of(begin + last, names) for begin in begins]
        start, end = _places_of(first, names), next((each for each in ends if each is not None), None)
        if start is not None and end is not None and start[0] <= end[1]:
            return start[0], end[1]
    return None


def _places_of(name: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Where a place begins and ends among all, or the places of a sheet."""
    wanted = name.casefold()
    folded = [each.casefold() for each in names]
    found = [i for i, each in enumerate(folded) if each == wanted]
    found = found or [i for i, each in enumerate(folded) if each.startswith(f"{wanted}!")]
    return (found[0], found[-1]) if found else None


def _listed(names: Sequence[str]) -> str:
    """`p1, p2, p3 … p12 and `; nothing where there are none."""
    shown = ", ".join(dict.fromkeys(names)) if len(names) <= 4 else f"{', '.join(names[:3])} … {names[-1]}"
    return f"{shown} and " if names else ""


def _joined(first: str | None, last: str | None) -> str | None:
    """`p3`, `p3-5`, `Sales!A7-9`: places as `lines_at` reads them."""
    if first is None or last is None or first == last:
        return first
    begun, ended = _NUMBERED.fullmatch(first), _NUMBERED.fullmatch(last)
    return f"{first}-{ended[2] if begun and ended and begun[1] == ended[1] else last}"


def _shown(first_line: int, last_line: int) -> str:
    return str(first_line) if first_line == last_line else f"{first_line}-{last_line}"


def _nearest(first_line: int, last_line: int, count: int) -> tuple[int, int]:
    """The lines that were probably meant: turned round where the last came first, and within the document."""
    first, last = sorted((first_line, last_line))
    return min(max(first, 1), count), min(max(last, 1), count)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage, the share of the attention on the documents that it had, and the share of its KV that is left."""

    path: str
    line_start: int
    line_end: int
    text: str
    attention_share: float
    kept_fraction: float
    place: str | None = None
    page_label: str | None = None

    @property
    def where(self) -> str:
        """`report.pdf:p3`, where there are no places `handbook.md:120-121`, or `handbook.md:120`: as a pin names it."""
        return f"{self.path}:{self.place or _shown(self.line_start, self.line_end)}"

    @property
    def shown(self) -> str:
        """The same, and how the page is numbered in print where otherwise: `report.pdf:p3 (page iv)`."""
        return f"{self.where} (page {self.page_label})" if self.page_label else self.where

    @property
    def mostly_evicted(self) -> bool:
        """Whether hardly anything of it was left to look at."""
        return self.kept_fraction < MOSTLY_EVICTED


def find_evidence(mass: Sequence[float], survival: Sequence[float], places: Places, *, most: int = 3) -> list[Evidence]:
    """At most `most` passages, the most attended first; neighbours among them become one.

    `mass` [S] is the answer's attention by token, `survival` [S] the share of heads that hold each; a token past their
    ends has none. Empty when nothing of the documents was attended to.
    """
    passages = places.passages()
    weights = [sum(_values(mass, passage.tokens)) for passage in passages]
    total = sum(weights)
    ranked = sorted((i for i, weight in enumerate(weights) if weight > 0), key=lambda i: -weights[i])[:most]
    runs = _neighbours(ranked, passages)
    found = [_evidence([passages[i] for i in run], sum(weights[i] for i in run) / total, survival) for run in runs]
    return sorted(found, key=lambda evidence: -evidence.attention_share)


def _neighbours(chosen: Iterable[int], passages: Sequence[Passage]) -> list[list[int]]:
    """The chosen passages, in order, with those of one document that follow each other together."""
    runs: list[list[int]] = []
    for i in sorted(chosen):
        before = runs[-1][-1] if runs else None
        if before == i - 1 and passages[before].path == passages[i].path and _touch(passages[before], passages[i]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _touch(before: Passage, after: Passage) -> bool:
    """Whether no blank line lies between."""
    return after.line_start - before.line_end <= 1


def _evidence(run: Sequence[Passage], share: float, survival: Sequence[float]) -> Evidence:
    kept = [value for passage in run for value in _values(survival, passage.tokens)]
    tokens = sum(len(passage.tokens) for passage in run)
    text = run[0].text
    for before, after in pairwise(run):
        text += ("\n" if after.line_start > before.line_end else " ") + after.text
    lines, place = (run[0].line_start, run[-1].line_end), _joined(run[0].place, run[-1].place)
    labels = [each for each in (run[0].page_label, run[-1].page_label) if each]
    label = "-".join(dict.fromkeys(labels)) or None
    return Evidence(run[0].path, *lines, text, share, sum(kept) / tokens, place, label)


def _values(values: Sequence[float], tokens: range) -> Sequence[float]:
    return values[tokens.start : tokens.stop]
