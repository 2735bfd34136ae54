"""Files that are ZIP archives (.docx, .xlsx, .epub, …), and the XML in them: its events, small parts as trees.

What an archive's directory says of sizes is a claim of whoever wrote it: members are read through a counter, all of one
archive together. An archive within an archive is not opened. Names of elements come without their prefixes:
transitional and strict files differ in those alone. A part that defines entities is refused (they make bombs, and
office files have none); external ones are never fetched.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Protocol
from urllib.parse import unquote
from xml.parsers import expat

from uncomp_cli.documents.text import Limits
from uncomp_cli.errors import DocumentError

_BLOCK_BYTES = 2**20
# What zipfile raises for a damaged archive; NotImplementedError is its word for a compression that it does not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, ValueError)


class Archive:
    """The members of a ZIP file by name; DocumentError where it is none, or damaged, or locked by a password."""

    def __init__(self, data: bytes, limits: Limits, *, kind: str) -> None:
        self._limits, self.kind, self._read_bytes = limits, kind, 0
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
        except DAMAGE as error:
            raise damaged(kind, error) from error
        limits.check_pages(len(self._zip.namelist()), "members")

    @property
    def names(self) -> Sequence[str]:
        """All members, in the archive's order."""
        return self._zip.namelist()

    def read(self, name: str) -> bytes:
        """A member's bytes. KeyError: there is no such member. DoesNotFitError: the archive unpacks to too much."""
        parts: list[bytes] = []
        try:
            with self._zip.open(name) as member:
                while block := member.read(_BLOCK_BYTES):
                    self._read_bytes += len(block)
                    self._limits.check_expanded(self._read_bytes)
                    parts.append(block)
        except RuntimeError as error:  # what zipfile says of a password
            raise DocumentError(f"it is a {self.kind} locked by a password", hint="save it without one") from error
        except DAMAGE as error:
            raise damaged(self.kind, error) from error
        return b"".join(parts)


def damaged(kind: str, error: Exception) -> DocumentError:
    """A file that its reader cannot make sense of."""
    detail = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return DocumentError(f"it is no {kind}, or a damaged one ({detail})", hint="open it in a viewer and save it again")


class Handler(Protocol):
    """What hears of elements, by their names without prefixes, and of text."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None: ...
    def data(self, text: str) -> None: ...
    def end(self, tag: str) -> None: ...


def in_blocks(data: bytes, progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    """Data in blocks, of which `progress` hears where there are several: to read them may take long."""
    count = max(-(-len(data) // _BLOCK_BYTES), 1)
    for number in range(count):
        yield data[number * _BLOCK_BYTES : (number + 1) * _BLOCK_BYTES]
        if progress is not None and count > 1:
            progress(number + 1, count)


def walk_xml(data: bytes, handler: Handler, *, kind: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Tell the handler what begins and ends. Raises DocumentError for what is no XML."""
    parser = expat.ParserCreate()
    parser.buffer_text = True
    begin, finish, plain = handler.start, handler.end, _Plain()

    def start(tag: str, attributes: dict[str, str]) -> None:
        begin(plain[tag], {plain[name]: value for name, value in attributes.items()} if attributes else attributes)

    def end(tag: str) -> None:
        finish(plain[tag])

    def doctype(name: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            hint = "open it in the program it is from, and save it again"
            raise DocumentError(f"it is no {kind}, or a hostile one (its XML defines entities)", hint=hint)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = handler.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        for block in in_blocks(data, progress):
            parser.Parse(block, False)
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter of encodings
        raise damaged(kind, error) from error


class _Plain(dict[str, str]):
    """Names without their prefixes, each parted once."""

    def __missing__(self, name: str) -> str:
        self[name] = name.rpartition(":")[2]
        return self[name]


@dataclass(slots=True)
class Node:
    """An element of a small part."""

    tag: str
    attributes: Mapping[str, str]
    children: list["Node"] = field(default_factory=list)
    text: str = ""

    def each(self, tag: str) -> Iterator["Node"]:
        """The children of a name."""
        return (child for child in self.children if child.tag == tag)

    def at(self, *path: str) -> "Node":
        """The first descendant at a path of names, or a node without anything."""
        node = self
        for tag in path:
            node = next(node.each(tag), _NOTHING)
        return node

    @property
    def value(self) -> str:
        """What Word says most things by: the attribute `val`."""
        return self.attributes.get("val", "")


_NOTHING = Node("", {})


class _Tree:
    """Builds the tree of a part."""

    def __init__(self) -> None:
        self.open = [Node("", {})]

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        node = Node(tag, attributes)
        self.open[-1].children.append(node)
        self.open.append(node)

    def data(self, text: str) -> None:
        self.open[-1].text += text

    def end(self, tag: str) -> None:
        self.open.pop()


def walk_part(
    archive: Archive, name: str, handler: Handler, progress: Callable[[int, int], None] | None = None
) -> None:
    """The same of a part; nothing where the archive has none of that name."""
    if name in archive.names:
        walk_xml(archive.read(name), handler, kind=archive.kind, progress=progress)


def tree_of(archive: Archive, name: str) -> Node:
    """The root of a small part; one without anything where the archive has no such part."""
    tree = _Tree()
    walk_part(archive, name, tree)
    return tree.open[0].children[0] if tree.open[0].children else _NOTHING


@dataclass(frozen=True, slots=True)
class Relation:
    """What a part refers to: the kind (the last word of its type), and the other part's name."""

    kind: str
    target: str


def relations(archive: Archive, part: str) -> dict[str, Relation]:
    """By their ids, the parts that a part (the whole package: "") refers to, in the file's order."""
    folder, name = posixpath.split(part)
    root = tree_of(archive, posixpath.join(folder, "_rels", f"{name}.rels"))
    found = {}
    for node in root.each("Relationship"):
        if node.attributes.get("TargetMode") != "External":
            target = within(folder, node.attributes.get("Target", ""))
            relation = Relation(node.attributes.get("Type", "").rpartition("/")[2], target)
            found[node.attributes.get("Id", "")] = relation
    return found


def main_part(archive: Archive, usual: str = "") -> str:
    """The part that an office file is about; the `usual` one where it does not say which."""
    found = (each.target for each in relations(archive, "").values() if each.kind == "officeDocument")
    return next(found, "") or usual


def within(folder: str, reference: str) -> str:
    """The archive's name of what is referred to from a folder."""
    path = unquote(reference.partition("#")[0])
    return posixpath.normpath(posixpath.join("/", folder, path)).lstrip("/")
