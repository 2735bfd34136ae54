"""Word documents (.docx and its kin) as Markdown, from their own XML parts: no depth lost, and nothing dropped unsaid.

The text stands as in Word: headers, body, footers, then notes and comments with their marks (manuscript.py). Pictures
are never opened: a linked one would name any file of this machine (CVE-2025-11849). ECMA-376 part 1; strict files
(ISO/IEC 29500) differ in namespaces alone.
"""

from collections.abc import Iterator, Mapping

from uncomp_cli.documents.archive import Archive, Relation, main_part, relations, tree_of, walk_part
from uncomp_cli.documents.charts import chart_text, paragraphs
from uncomp_cli.documents.text import Text, Wishes, counted, running
from uncomp_cli.documents.word.manuscript import Manuscript
from uncomp_cli.documents.word.outline import Story, read_lists, read_styles
from uncomp_cli.errors import DocumentError

_KIND = "Word document"


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a Word document."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    main = main_part(archive)
    if main not in archive.names:
        raise DocumentError(f"it is no {_KIND}, or a damaged one (it has no main part)", hint="save it again in Word")
    parts = relations(archive, main)
    styles = read_styles(tree_of(archive, _part(parts, "styles")))
    story = Story(styles, read_lists(tree_of(archive, _part(parts, "numbering")), styles))
    for kind in ("footnotes", "endnotes", "comments"):
        walk_part(archive, _part(parts, kind), Manuscript(story))
    texts = {
        kind: [_walked(archive, part, story, wishes) for part in _all(parts, kind)] for kind in ("header", "footer")
    }
    body = _walked(archive, main, story, wishes)
    whole = [*running(texts["header"]), body, *running(texts["footer"]), *story.notes()]
    return Text("\n\n".join(filter(None, whole)), (), counted(story.lost))


def _part(parts: Mapping[str, Relation], kind: str) -> str:
    return next(iter(_all(parts, kind)), "")


def _all(parts: Mapping[str, Relation], kind: str) -> list[str]:
    return list(dict.fromkeys(relation.target for relation in parts.values() if relation.kind == kind))


def _drawn(archive: Archive, part: str) -> Iterator[tuple[str, str]]:
    """What charts and diagrams of a part say, by the names of their relations."""
    for name, relation in relations(archive, part).items():
        if relation.kind == "chart":
            yield name, chart_text(tree_of(archive, relation.target))
        elif relation.kind == "diagramData":
            yield name, paragraphs(tree_of(archive, relation.target), "pt")


def _walked(archive: Archive, part: str, story: Story, wishes: Wishes) -> str:
    walk = Manuscript(story, dict(_drawn(archive, part)))
    walk_part(archive, part, walk, wishes.progress)
    return walk.out.text()
