"""Documents as damage and malice leave them, of every format that is read: kinds of tests/fuzz.py.

They are read as a command reads them, the formats with parsers by children that are kept (documents/crew.py), whose
memory the operating system bounds. A packed format is damaged inside its members too, which are packed again.
"""

import atexit
import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from support.documents import make_docx, make_epub, make_html, make_mail, sample_pdf
from support.mutation import damage_bytes
from support.tongues import TONGUES, sentences
from uncomp_cli.asking.pipeline import gather_questions
from uncomp_cli.asking.request import Request
from uncomp_cli.documents.crew import Crew
from uncomp_cli.documents.formats import format_of, read_format, with_words
from uncomp_cli.documents.text import NO_WISHES

_WORDS = (
    '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Lease</w:t></w:r></w:p>'
    "<w:p><w:r><w:t>x</w:t></w:r><w:r><w:rPr><w:vertAlign w:val='superscript'/></w:rPr><w:t>2</w:t></w:r></w:p>"
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>wicks</w:t></w:r></w:p></w:tc><w:tc><w:tcPr><w:gridSpan w:val='2'/></w:tcPr>"
    "<w:p><w:r><w:t>144</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
    "<w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>"
)
_CHAPTERS = ("<h1>One</h1><p>The lamp is lit.</p>", "<h1>Two</h1><table><tr><td>1</td><td>2</td></tr></table>")
_REPEATS = (3, 100, 3000)


def _word_file() -> bytes:
    parts = {"footnotes": "<w:footnote w:id='1'><w:p><w:r><w:t>note</w:t></w:r></w:p></w:footnote>"}
    return make_docx(_WORDS, header="<w:p><w:r><w:t>head</w:t></w:r></w:p>", **parts)


def _texts() -> bytes:
    return "\n".join(sentences(tongue, words=20, seed=1) for tongue in TONGUES).encode()


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "text": (".txt", _texts),
    "html": (".html", make_html),
    "pdf": (".pdf", sample_pdf),
    "docx": (".docx", _word_file),
    "mail": (".eml", make_mail),
    "epub": (".epub", lambda: make_epub(*_CHAPTERS)),
}
"""The kinds of documents, with their suffix and a seed to damage."""


@cache
def _crew() -> Crew:
    """The one of this process."""
    made = Crew()
    atexit.register(made.__exit__)
    return made


class Documents:
    """Files of one format."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._suffix, make = FORMATS[name]
        self._seed = make()

    def prepare(self, folder: Path) -> None:
        """Children that read."""
        self._crew = _crew()

    def mutate(self, chance: Random) -> bytes:
        """A damaged file: its bytes, or those of a member that are packed again."""
        if self._seed.startswith(b"PK") and chance.random() < 0.7:
            return _with_member_damaged(self._seed, chance)
        return _damaged(self._seed, chance)

    def use(self, data: bytes) -> None:
        """Read it."""
        chosen = format_of(data, self._suffix)
        read: Any = self._crew.read if chosen.apart else lambda data, chosen, wishes: read_format(chosen, data, wishes)
        with_words(read(data, chosen, NO_WISHES)).text.encode()


class Questions:
    """Files of questions."""

    name = "questions"

    def prepare(self, folder: Path) -> None:
        """A folder for them."""
        self._path = folder / "asked.txt"
        self._seed = _texts()

    def mutate(self, chance: Random) -> bytes:
        """Other bytes, in another encoding now and then."""
        encoding = chance.choice(("utf-8", "utf-8", "utf-16", "utf-16-le", "utf-32", "koi8-r", "windows-1250"))
        return _damaged(self._seed.decode().encode(encoding, "replace"), chance)

    def use(self, data: bytes) -> None:
        """Gather them."""
        self._path.write_bytes(data)
        for _ in gather_questions(Request(questions_file=self._path)):
            pass


def _damaged(data: bytes, chance: Random) -> bytes:
    """Changed bytes; now and then a part of them again and again, so that it nests or grows."""
    changed = damage_bytes(data, chance)
    if chance.random() > 0.2 or not changed:
        return changed
    at = chance.randrange(len(changed))
    until = at + chance.randint(1, 40)
    return changed[:at] + changed[at:until] * chance.choice(_REPEATS) + changed[until:]


def _with_member_damaged(data: bytes, chance: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        damaged = chance.choice(names)
        for name in names:
            content = source.read(name)
            target.writestr(name, _damaged(content, chance) if name == damaged else content)
    return file.getvalue()
