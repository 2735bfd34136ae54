"""What a Word document's parts share: styles and numbering, notes and their marks, and what is known of a paragraph.

Styles say which paragraph is a heading or an item of a list. A label is nowhere in the text: it is counted, by the
pattern of its level ("%1.%2"), through the whole document.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from uncomp_cli.documents.archive import Node
from uncomp_cli.documents.enumeration import Level, Numbered
from uncomp_cli.documents.text import Words
from uncomp_cli.documents.walk import End

_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_LONGEST_CHAIN = 32
_KINDS = {"lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I", "decimalZero": "01"}
_KINDS |= {"bullet": "bullet", "none": "none"}
_NO_OUTLINE = 9
_LEAST_SHIFT = 1.5  # points


@dataclass(frozen=True, slots=True)
class Style:
    """What a style says of a paragraph or a run, with the styles that it is based on."""

    heading: int = 0
    number: str = ""
    level: int = 0
    shift: str = ""
    hidden: bool = False
    struck: bool = False


def read_styles(root: Node) -> dict[str, Style]:
    """The styles of a document by their ids."""
    nodes = {node.attributes.get("styleId", ""): node for node in root.each("style")}
    return {name: _style(name, nodes) for name in nodes}


def _style(name: str, nodes: Mapping[str, Node]) -> Style:
    heading, number, level, shift, hidden, struck = 0, "", -1, "", False, False
    for _ in range(_LONGEST_CHAIN):  # styles may be based on each other in a ring
        node = nodes.get(name)
        if node is None:
            break
        heading = heading or _heading(node)
        number = number or node.at("pPr", "numPr", "numId").value
        level = level if level >= 0 else integer(node.at("pPr", "numPr", "ilvl").value, -1)
        shift = shift or node.at("rPr", "vertAlign").value or moved(node.at("rPr", "position").value)
        struck = struck or is_on(node.at("rPr", "strike")) or is_on(node.at("rPr", "dstrike"))
        hidden = hidden or is_on(node.at("rPr", "vanish"))
        name = node.at("basedOn").value
    return Style(max(heading, 0), number, max(level, 0), shift, hidden, struck)


def moved(half_points: str) -> str:
    """The name of what a run's position makes of it: a fitting of letters to each other is no shift."""
    points = integer(half_points, 0) / 2
    return "" if abs(points) < _LEAST_SHIFT else "superscript" if points > 0 else "subscript"


def _heading(node: Node) -> int:
    name = node.at("name").value
    found = _HEADING.fullmatch(name)
    if found or name.lower() == "title":
        return int(found[1]) if found else 1
    level = integer(node.at("pPr", "outlineLvl").value, _NO_OUTLINE)
    return level + 1 if level < _NO_OUTLINE else 0


def is_on(node: Node) -> bool:
    """Whether a property of a run is there and not switched off."""
    return bool(node.tag) and is_true(node.attributes)


def is_true(attributes: Mapping[str, str]) -> bool:
    """Whether a property that is there is not switched off."""
    return attributes.get("val", "1") not in ("0", "false", "off", "none")


def integer(text: str, default: int) -> int:
    """A number as files have it."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) else default


def read_lists(root: Node, styles: Mapping[str, Style]) -> dict[str, Numbered]:
    """The lists of a document by their numbers, which count as its paragraphs come."""
    abstract = {node.attributes.get("abstractNumId", ""): node for node in root.each("abstractNum")}
    nums = {node.attributes.get("numId", ""): node for node in root.each("num")}
    shared: dict[str, Numbered] = {}
    lists: dict[str, Numbered] = {}
    for name, node in nums.items():
        of = node.at("abstractNumId").value
        linked = styles.get(abstract[of].at("numStyleLink").value) if of in abstract else None
        if linked is not None and linked.number in nums:
            of = nums[linked.number].at("abstractNumId").value
        overrides = list(node.each("lvlOverride"))
        if of in abstract and (overrides or of not in shared):
            made = Numbered({level: _level(found) for level, found in _levels(abstract[of], overrides).items()})
            for override in overrides:
                start = override.at("startOverride").value
                level = integer(override.attributes.get("ilvl", ""), 0)
                if start and level in made.levels:
                    made.levels[level].start = integer(start, 1)
            shared.setdefault(of, made)
            lists[name] = made
        elif of in shared:
            lists[name] = shared[of]
    return lists


def _levels(abstract: Node, overrides: list[Node]) -> dict[int, Node]:
    nodes = [*abstract.each("lvl"), *(node for override in overrides for node in override.each("lvl"))]
    return {integer(node.attributes.get("ilvl", ""), 0): node for node in nodes}


def _level(node: Node) -> Level:
    kind = node.at("numFmt").value
    return Level(_KINDS.get(kind, "1"), node.at("lvlText").value, integer(node.at("start").value, 1))


NO_STYLE = Style()


@dataclass(slots=True)
class Story:
    """What the parts of a document share: styles, lists, notes, and what was lost."""

    styles: Mapping[str, Style]
    lists: Mapping[str, Numbered]
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes, by kind and id
    marks: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes that were met, in order
    counts: Counter[str] = field(default_factory=Counter)  # of marks, by kind
    lost: Counter[Words] = field(default_factory=Counter)

    def mark(self, kind: str, name: str) -> str:
        """The mark of a note at its place in the text."""
        known = self.marks.get((kind, name))
        if known is None:
            self.counts[kind] += 1
            number = self.counts[kind]
            known = {"footnote": f"[^{number}]", "endnote": f"[^e{number}]"}.get(kind, f"[comment {number}]")
            self.marks[kind, name] = known
        return known

    def notes(self) -> list[str]:
        """The notes, in the order of their marks; then those without one."""
        for key in self.texts:
            self.mark(*key)
        written = ((self.texts.get(key, ""), mark) for key, mark in self.marks.items())
        return [mark + (": " if "^" in mark else " ") + text for text, mark in written if text]


@dataclass(slots=True)
class Paragraph:
    """What is known of a paragraph so far."""

    style: Style = NO_STYLE
    number: str = ""
    level: int = -1
    heading: int = 0
    boxes: list[list[str]] = field(default_factory=list)  # texts that float beside it
    end: End = None
    is_item: bool = False
    is_drop: bool = False  # a first letter as large as some lines: a paragraph of its own, for Word
