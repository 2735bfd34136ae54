"""Documents as damage and malice leave them, of every format that is read: kinds of tests/fuzz.py.

They are read as a command reads them, the formats with parsers by children that are kept (documents/crew.py), whose
memory the operating system bounds. A packed format is damaged inside its members too, which are packed again.
"""

import atexit
import io
import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

from support.documents import (
    make_docx,
    make_epub,
    make_html,
    make_mail,
    make_ods,
    make_odt,
    make_pptx,
    make_xlsx,
    sample_pdf,
)
from support.mutation import damage_bytes
from support.tongues import TONGUES, sentences
from uncomp_cli.asking.pipeline import gather_questions
from uncomp_cli.asking.request import Request
from uncomp_cli.documents.crew import Crew
from uncomp_cli.documents.formats import format_of, read_format, with_words
from uncomp_cli.documents.text import NO_WISHES
from uncomp_cli.errors import UncompError

_WORDS = (
    '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Lease</w:t></w:r></w:p>'
    "<w:p><w:r><w:t>x</w:t></w:r><w:r><w:rPr><w:vertAlign w:val='superscript'/></w:rPr><w:t>2</w:t></w:r></w:p>"
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>wicks</w:t></w:r></w:p></w:tc><w:tc><w:tcPr><w:gridSpan w:val='2'/></w:tcPr>"
    "<w:p><w:r><w:t>144</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
    "<w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>"
)
_CHAPTERS = ("<h1>One</h1><p>The lamp is lit.</p>", "<h1>Two</h1><table><tr><td>1</td><td>2</td></tr></table>")
_ROWS = (
    '<row r="3"><c r="A3"><f>SUM(B1:B2)</f><v>31</v></c><c t="b"><v>1</v></c><c t="e"><v>#N/A</v></c></row>'
    '<row r="900" hidden="1"><c r="AZ900" t="s"><v>0</v></c><c s="0"><v>45000.5</v></c></row>'
)
_OPEN_TABLE = (
    "<table:table table:name='S'><table:table-column table:number-columns-repeated='3'/><table:table-row>"
    "<table:table-cell table:number-columns-spanned='2'><text:p>port</text:p></table:table-cell>"
    "<table:covered-table-cell/></table:table-row><table:table-row table:number-rows-repeated='2'>"
    "<table:table-cell office:value-type='float' office:value='31.5' table:number-columns-repeated='2'>"
    "<text:p>32</text:p></table:table-cell><table:table-cell/></table:table-row></table:table>"
)
_OPEN_TEXT = (
    "<text:h text:outline-level='2'>Lease</text:h><text:p text:style-name='P'>10<text:span text:style-name='U'>6"
    "</text:span><text:s text:c='3'/><text:tab/>x<text:note text:note-class='footnote'><text:note-body>"
    "<text:p>n</text:p></text:note-body></text:note></text:p><text:list><text:list-item><text:p>a</text:p><text:list><text:list-item>"
    "<text:p>b</text:p></text:list-item></text:list></text:list-item></text:list>" + _OPEN_TABLE
)
_OPEN_STYLES = (
    "<style:style style:name='P' style:parent-style-name='Q'/><style:style style:name='Q' style:parent-style-name='P'/>"
    "<style:style style:name='U'><style:text-properties style:text-position='super 58%'/></style:style>"
)
_SHAPES = (
    "<p:sp><p:nvSpPr><p:nvPr><p:ph type='title'/></p:nvPr></p:nvSpPr><p:txBody><a:p><a:r><a:t>Costs</a:t></a:r></a:p>"
    "</p:txBody></p:sp><p:grpSp><p:sp><p:txBody><a:p><a:pPr lvl='1'/><a:r><a:rPr baseline='30000'/><a:t>2</a:t></a:r>"
    "</a:p></p:txBody></p:sp><p:pic/></p:grpSp><p:graphicFrame><a:graphic><a:graphicData><a:tbl><a:tr>"
    "<a:tc gridSpan='2'><a:txBody><a:p><a:r><a:t>wicks</a:t></a:r></a:p></a:txBody></a:tc><a:tc hMerge='1'/></a:tr>"
    "</a:tbl></a:graphicData></a:graphic></p:graphicFrame>"
)
_RICH = (
    rb"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fcharset0 Arial;}{\f1\fcharset204 Arial;}}{\info{\title T}}\pard\f0 "
    rb"A {\b bold} caf\'e9 \u8364? 10{\super 6}\par{\f1 \'cf\'f0}\line {\header H\par}\trowd\cellx100\clmrg\cellx200"
    rb"\intbl 1\cell 2\cell\row\pard{\footnote {\super 1} n}{\pict\pngblip 8950}{\v hidden}{\field{\*\fldinst PAGE}"
    rb"{\fldrslt 3}}\bin3 \{\{{\*\annotation who}\uc2\u-10179??\u-8704??\par}"
)
_LATEX = rb"""\documentclass{article}\newcommand{\rate}{7\%}\def\x{\y}\def\y{\x}\title{Lamp}
\begin{document}\section{One}\label{s} The rate is \rate\footnote{Or \x.} of $x^{2}_1 + \frac{a}{b}$. % said
\begin{itemize}\item a \begin{enumerate}\item b\end{enumerate}\end{itemize}
\begin{tabular}{|l|r|}\hline Port & Tons \\ \multicolumn{2}{c}{East} \\ \end{tabular}
\begin{verbatim}\keep{\end{verbatim}\[ \sum_{i}^{n} \sqrt[3]{x} \]\verb|a|\input{other}\includegraphics{l.png}
\end{document}
"""
_SUBTITLES = (
    b"\xef\xbb\xbf"
    + "".join(
        f"{n}\r\n00:0{n}:01,000 --> 00:0{n}:04,5{n}0 align:start\r\n<i>Ada:</i> row {n} {{\\an8}}\r\n- Yes.\r\n\r\n"
        for n in range(6)
    ).encode()
)
_TABLE = b'name;tons;"said ""so"""\n' + b"".join(b'"East\n%d";%d,5;x\n' % (n, 7 * n) for n in range(40)) + b";;\n"
_OF_THE_CHILD = ("its reader fails", "it ends the program", "it takes more than")
"""How a child says what was unforeseen, too slow or too large: to a user a refusal, here a fault."""
_MANY = 2000
_ODD = ("", "-1", "0", "7", "99999999999", "1e400", "NaN", "x", "../x", "²", "a" * 5000)
_REPEATS = (3, 100, 3000)


def _word_file() -> bytes:
    parts = {"footnotes": "<w:footnote w:id='1'><w:p><w:r><w:t>note</w:t></w:r></w:p></w:footnote>"}
    return make_docx(_WORDS, header="<w:p><w:r><w:t>head</w:t></w:r></w:p>", **parts)


def _texts() -> bytes:
    return "\n".join(sentences(tongue, words=20, seed=1) for tongue in TONGUES).encode()


def _notebook() -> bytes:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a\n", "b"]},
        {
            "output_type": "execute_result",
            "data": {"text/html": ["<table><tr><td>1</td></tr></table>"], "image/png": "iV"},
        },
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mline\x1b[0m"]},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Lamp\n", "![x](attachment:a.png)"], "attachments": {"a.png": {}}},
        {"cell_type": "code", "source": "1 + 1", "outputs": outputs, "execution_count": 3},
        {"cell_type": "raw", "source": []},
    ]
    book = {"cells": cells, "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book).encode()


def _objects() -> bytes:
    each = (
        {"id": n, "user": {"name": f"Zoë {n}", "tags": ["a", 1.5]}, "said": [{"x": None}, [True]]} for n in range(9)
    )
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in each).encode()


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "text": (".txt", _texts),
    "html": (".html", make_html),
    "pdf": (".pdf", sample_pdf),
    "docx": (".docx", _word_file),
    "mail": (".eml", make_mail),
    "epub": (".epub", lambda: make_epub(*_CHAPTERS)),
    "xlsx": (".xlsx", lambda: make_xlsx(extra=_ROWS)),
    "odt": (".odt", lambda: make_odt(_OPEN_TEXT, styles=_OPEN_STYLES)),
    "ods": (".ods", lambda: make_ods(_OPEN_TABLE)),
    "pptx": (".pptx", lambda: make_pptx(_SHAPES, _SHAPES)),
    "rtf": (".rtf", lambda: _RICH),
    "ipynb": (".ipynb", _notebook),
    "srt": (".srt", lambda: _SUBTITLES),
    "tex": (".tex", lambda: _LATEX),
    "csv": (".csv", lambda: _TABLE),
    "jsonl": (".jsonl", _objects),
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
        here: Any = partial(read_format, chosen)
        read = partial(self._crew.read, chosen=chosen) if chosen.is_apart(data) else here
        try:
            with_words(read(data, wishes=NO_WISHES)).text.encode()
        except UncompError as error:
            if error.message.startswith(_OF_THE_CHILD):
                raise RuntimeError(error.message) from error
            raise


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
            target.writestr(name, _rearranged(content, chance) if name == damaged else content)
    return file.getvalue()


def _rearranged(content: bytes, chance: Random) -> bytes:
    """Half the time XML that is still XML: elements gone, doubled, elsewhere, with other values. Else other bytes."""
    try:
        root = ElementTree.fromstring(content) if chance.random() < 0.5 else None
    except ElementTree.ParseError:
        root = None
    if root is None:
        return _damaged(content, chance)
    for _ in range(chance.randint(1, 4)):
        elements = list(root.iter())
        at, other = chance.choice(elements), chance.choice(elements)
        match chance.choice(("remove", "copy", "set", "say")):
            case "remove" if len(at):
                at.remove(chance.choice(list(at)))
            case "copy":
                count = chance.choice((1, 3, 100)) if len(elements) < _MANY else 1
                at.extend([deepcopy(other) for _ in range(count)])
            case "set" if at.attrib:
                at.set(chance.choice(list(at.attrib)), chance.choice(_ODD))
            case _:
                at.text = chance.choice(_ODD)
    return ElementTree.tostring(root)
