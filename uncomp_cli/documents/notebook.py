"""Jupyter notebooks (.ipynb): Markdown as it is, code and what it wrote fenced, cell by cell; `c3` is the third cell.

Of the forms of one output the best to read is taken: Markdown, a table of HTML, plain text. Pictures are losses.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from uncomp_cli.documents import encoding
from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.encoding import normalise_newlines
from uncomp_cli.documents.html import to_markdown
from uncomp_cli.documents.text import PICTURE, Text, Wishes, Words, counted, joined
from uncomp_cli.errors import DocumentError

_KIND = "Jupyter notebook"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FENCE = re.compile("`{3,}")


def read(data: bytes, wishes: Wishes) -> Text:
    """A notebook's cells in order."""
    plain = encoding.read(data, wishes)
    try:
        book = json.loads(plain.text)
    except (ValueError, RecursionError) as error:
        raise damaged(_KIND, error) from error
    cells = _cells(book)
    wishes.limits.check_pages(len(cells), "cells")
    language, lost = _language(book), Counter[Words]()
    parts = ((f"c{number}", _cell(cell, language, lost)) for number, cell in enumerate(cells, start=1))
    text, places = joined(parts)
    return replace(plain, text=text, places=places, losses=(*plain.losses, *counted(lost)))


def _cells(book: Any) -> list[Mapping[str, Any]]:
    """The cells; those of notebooks of version 3 lie in a work sheet."""
    found = book if isinstance(book, dict) else {}
    sheets = found.get("worksheets")
    if "cells" not in found and isinstance(sheets, list) and sheets and isinstance(sheets[0], dict):
        found = sheets[0]
    cells = found.get("cells")
    if not isinstance(cells, list):
        raise DocumentError(f"it is no {_KIND} (it has no cells)", hint="if it is other JSON, name it FILE.json")
    return [cell for cell in cells if isinstance(cell, dict)]


def _language(book: Mapping[str, Any]) -> str:
    found: Any = book.get("metadata")
    for keys in (("kernelspec", "language"), ("language_info", "name")):
        named = _at(found, *keys)
        if isinstance(named, str) and re.fullmatch(r"[\w+#-]{1,20}", named):
            return named
    return "python"


def _at(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _words(source: Any) -> str:
    """Text that notebooks have as one string or as a list of lines."""
    lines = source if isinstance(source, list) else [source]
    return normalise_newlines("".join(line for line in lines if isinstance(line, str)))


def _cell(cell: Mapping[str, Any], language: str, lost: Counter[Words]) -> str:
    source = _words(cell.get("source", cell.get("input"))).strip("\n")
    attached = cell.get("attachments")
    lost[PICTURE] += len(attached) if isinstance(attached, dict) else 0
    if cell.get("cell_type") != "code":
        level = cell.get("level") if cell.get("cell_type") == "heading" else None
        return "#" * min(level, 6) + " " + source if isinstance(level, int) and level > 0 else source
    outputs = cell.get("outputs")
    written = [_output(one, lost) for one in outputs if isinstance(one, dict)] if isinstance(outputs, list) else []
    return "\n\n".join(part for part in (_fenced(source, language), *_merged(written)) if part)


def _merged(outputs: list[tuple[str, bool]]) -> Iterator[str]:
    """Outputs, those of plain text that follow each other in one fence."""
    plain = ""
    for text, is_plain in [*outputs, ("", False)]:
        if is_plain:
            plain += text if not plain or plain.endswith("\n") else "\n" + text
            continue
        yield _fenced(plain, "", before="Output:\n\n")
        plain = ""
        yield text


def _output(output: Mapping[str, Any], lost: Counter[Words]) -> tuple[str, bool]:
    """The text of an output, and whether it is plain."""
    if output.get("output_type") == "stream":
        return _ESCAPES.sub("", _words(output.get("text"))), True
    if output.get("output_type") in ("error", "pyerr"):
        trace = output.get("traceback")
        told = _words([f"{line}\n" for line in trace if isinstance(line, str)] if isinstance(trace, list) else "")
        return _ESCAPES.sub("", told) or f"{output.get('ename')}: {output.get('evalue')}", True
    data = output.get("data")
    forms: Mapping[str, Any] = data if isinstance(data, dict) else output
    return _best(forms, lost)


def _best(forms: Mapping[str, Any], lost: Counter[Words]) -> tuple[str, bool]:
    """The form of an output that reads best."""
    if any(name.startswith("image/") or name in ("png", "jpeg", "svg") for name in forms):
        lost[PICTURE] += 1
        return "", False
    if markdown := _words(forms.get("text/markdown")):
        return markdown.strip("\n"), False
    page = _words(forms.get("text/html", forms.get("html")))
    if "<table" in page:
        return to_markdown(page)[0], False
    text = _words(forms.get("text/plain", forms.get("text", forms.get("text/latex"))))
    if not text and page:
        return to_markdown(page)[0], False
    if not text and forms:
        lost["output without text", "outputs without text"] += 1
    return _ESCAPES.sub("", text), True


def _fenced(text: str, language: str, *, before: str = "") -> str:
    text = text.strip("\n")
    if not text.strip():
        return ""
    fence = "`" * max([3, *(len(run) + 1 for run in _FENCE.findall(text))])
    return f"{before}{fence}{language}\n{text}\n{fence}"
