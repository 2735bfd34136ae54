"""Books (.epub): their chapters in the order of the spine, each by way of html.py; a place is a chapter, `ch1`."""

from collections import Counter
from collections.abc import Iterator
from posixpath import dirname

from uncomp_cli.documents.archive import Archive, Node, tree_of, within
from uncomp_cli.documents.attributes import StyleSheet
from uncomp_cli.documents.html import walk
from uncomp_cli.documents.text import Text, Wishes, counted, joined
from uncomp_cli.errors import DocumentError

_KIND = "EPUB book"
_LOCKS = "META-INF/encryption.xml"
# Fonts that are only scrambled, which keeps nobody from the text.
_SCRAMBLED = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_READ = ("xhtml", "html", "htm", "xml", "svg")
_MISSING = ("chapter that is not in the file", "chapters that are not in the file")


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a book, below its title and authors."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    _check_unlocked(archive)
    container = tree_of(archive, "META-INF/container.xml")
    name = container.at("rootfiles", "rootfile").attributes.get("full-path", "")
    package = tree_of(archive, name)
    if not package.children:
        raise DocumentError(f"it is no {_KIND}, or a damaged one (it has no list of chapters)", hint="convert it again")
    lost: Counter[tuple[str, str]] = Counter()
    wishes.limits.check_pages(sum(1 for _ in package.at("spine").each("itemref")), "chapters")
    chapters = [text for text in _chapters(archive, package, dirname(name), wishes, lost) if text.strip()]
    named = [("", _about(package)), *((f"ch{number}", text) for number, text in enumerate(chapters, start=1))]
    text, places = joined(named)
    return Text(text, tuple(place for place in places if place.name), counted(lost))


def _check_unlocked(archive: Archive) -> None:
    locks = tree_of(archive, _LOCKS)
    methods = (node.at("EncryptionMethod").attributes.get("Algorithm", "") for node in locks.each("EncryptedData"))
    if any(method not in _SCRAMBLED for method in methods):
        raise DocumentError(f"it is an {_KIND} locked by its seller (DRM)", hint="name a copy that has no lock")


def _about(package: Node) -> str:
    metadata = package.at("metadata")
    about = (metadata.at("dc-metadata") if metadata.at("dc-metadata").children else metadata).children
    titles = [f"# {' '.join(node.text.split())}" for node in about if node.tag.lower() == "title" and node.text.strip()]
    authors = [" ".join(node.text.split()) for node in about if node.tag.lower() == "creator"]
    return "\n\n".join(filter(None, [*titles[:1], ", ".join(filter(None, authors))]))


def _chapters(
    archive: Archive, package: Node, folder: str, wishes: Wishes, lost: Counter[tuple[str, str]]
) -> Iterator[str]:
    items = {node.attributes.get("id", ""): node.attributes.get("href", "") for node in package.at("manifest").children}
    order = [items.get(node.attributes.get("idref", ""), "") for node in package.at("spine").each("itemref")]
    present = frozenset(archive.names)
    sheet = StyleSheet()
    for name in (within(folder, href) for href in items.values() if href.lower().endswith(".css")):
        sheet.add(archive.read(name).decode(errors="replace") if name in present else "")
    for number, reference in enumerate(dict.fromkeys(order), start=1):
        name = within(folder, reference)
        wishes.progress(number, len(order))
        if not reference or name not in present:
            lost[_MISSING] += 1
        elif name.lower().rpartition(".")[2] in _READ:
            yield walk(archive.read(name), wishes, lost, titled=False, sheet=sheet)
