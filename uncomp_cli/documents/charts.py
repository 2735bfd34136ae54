"""Charts of office files (DrawingML, ECMA-376 part 1, 21.2): the numbers that they draw, as a table.

A chart keeps what it draws in a cache, with the format that its numbers are shown in.
"""

import re
from collections.abc import Sequence

from uncomp_cli.documents.archive import Node
from uncomp_cli.documents.display import GENERAL, display
from uncomp_cli.documents.grid import Cell, table_lines

_MOST_POINTS = 10_000
_FILE_NAME = re.compile(r"\.\w{3,4}$")


def is_said(words: str) -> bool:
    """Whether the words about a picture tell of it: one word, or the name of a file, is what programs write."""
    return " " in words and _FILE_NAME.search(words) is None


def paragraphs(root: Node, within: str) -> str:
    """The words below elements of a name, a line for each."""
    lines: list[str] = []
    nodes: list[tuple[Node, bool]] = [(root, False)]
    while nodes:
        node, inside = nodes.pop()
        if node.tag == "p" and inside:
            lines.append("")
        if node.tag == "t" and lines and inside:
            lines[-1] += node.text
        nodes += [(child, inside or child.tag == within) for child in reversed(node.children)]
    return "\n".join(line.strip() for line in lines if line.strip())


def chart_text(root: Node) -> str:
    """A chart's title and the numbers that it draws, a column a series."""
    title = " ".join(paragraphs(root.at("chart", "title"), "rich").split())
    rows: dict[str, list[str]] = {}
    names: list[str] = []
    for plot in root.at("chart", "plotArea").children:
        for series in plot.each("ser"):
            names.append(_values(series.at("tx")).get("0", "") or f"series {len(names) + 1}")
            labels = _values(series.at("cat")) or _values(series.at("xVal"))
            for index, value in (_values(series.at("val")) or _values(series.at("yVal"))).items():
                row = rows.setdefault(labels.get(index, index), [])
                row += [""] * (len(names) - 1 - len(row)) + [value]
    if not rows:
        return f"Chart: {title}" if title else ""
    table = [[Cell([cell], header=True) for cell in ("", *names)]]
    table += [[Cell([cell]) for cell in (label, *values)] for label, values in rows.items()]
    return "\n".join([f"Chart: {title}".removesuffix(": "), "", *table_lines(table)])


def _values(node: Node) -> dict[str, str]:
    """The points of a series by their index: they lie in a cache two or three elements down."""
    caches: Sequence[Node] = [node]
    for _ in range(3):
        points = [(point, cache) for cache in caches for point in cache.each("pt")]
        if points:
            return {point.attributes.get("idx", ""): _shown(point, cache) for point, cache in points[:_MOST_POINTS]}
        caches = [child for cache in caches for child in cache.children]
    return {"0": node.at("v").text} if node.at("v").text else {}


def _shown(point: Node, cache: Node) -> str:
    """A number in its format; any other text as it is."""
    stored = point.at("v").text
    return display(stored, cache.at("formatCode").text or GENERAL) if cache.tag.startswith("num") else stored
