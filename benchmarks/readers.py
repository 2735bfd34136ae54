"""What our readers read of files, held against a second reader: words, numbers, order, pace.

    python benchmarks/readers.py FOLDER [FOLDER or FILE ...] [--show 10]

Of each file whose format has a second reader on this machine: which share of the second reader's words is in our text
(as often as there), which share of its pairs of neighbouring words (the order), whether its numbers are there, and our
seconds: a table for each format, files by their names alone. Numbers are equal where none is missing, as often as the
second reader has it, and none is in our text that neither it has at all nor the file's source (second readers leave out
titles, alternative texts, headers): a long table's header stands there again, a spanned cell in each of its rows. Of
mail its attachments are left out. `--show N` names the most frequent differences, to see which reader is right: none
of the second readers always is. Words are compared without case, marks of exponents, commands of TeX and hyphens at
line ends; an ideograph is a word. Each reader of ours runs here, without the child that `uncomp` gives it. The last
line of standard output is the JSON.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from html import unescape
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from uncomp_cli.documents.formats import format_of, read_format
from uncomp_cli.documents.text import NO_WISHES
from uncomp_cli.errors import UncompError
from uncomp_cli.table import Table

# By format: commands that write a file's text to standard output, the first that is installed; packages of Debian, and
# pdfminer.six and docx2txt of PyPI.
COMMANDS = {
    "pdf": ("pdftotext {file} -", "mutool draw -F text {file}", "pdf2txt.py {file}"),
    "html": ("w3m -dump -cols 10000 -O UTF-8 -T text/html {file}", "lynx -dump -nolist -width 1000 {file}"),
    "word": ("pandoc --from docx --to plain --wrap none --track-changes accept {file}", "docx2txt {file}"),
    "epub": ("pandoc --from epub --to plain --wrap none {file}",),
    "opendocument": ("pandoc --from odt --to plain --wrap none {file}",),
    "richtext": ("pandoc --from rtf --to plain --wrap none {file}",),
    "notebook": ("pandoc --from ipynb --to plain --wrap none {file}",),
    "latex": ("pandoc --from latex --to plain --wrap none {file}",),
}
_WORD = re.compile(r"[\u2e80-\uffef]|[^\W\u2e80-\uffef]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ESCAPE = re.compile(r"\\(?:(?=[^\w\s]|_)|[A-Za-z]+)")
_MARK = re.compile(r"(?<=\S)[\^_](?:(?=[\w+−-])|\(([^()\s]{1,12})\))")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SPLIT = re.compile(r"(?<=\w)[-\u2010\u00ad]\n\s*(?=[^\W\d_])")
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file read twice: shares of the second reader's words and word pairs, numbers that only one of both has."""

    file: str
    format: str
    producer: str
    second: str
    pages: int
    words: int
    recall: float
    order: float
    numbers: int
    numbers_missing: int
    numbers_added: int
    seconds: float
    losses: tuple[str, ...]
    differences: tuple[str, ...]

    def row(self) -> list[str]:
        """As a row of the table."""
        numbers = "equal" if not self.numbers_missing + self.numbers_added else ""
        return [
            self.file,
            self.producer,
            f"{self.pages}",
            f"{self.words:,}",
            f"{self.recall:.3f}",
            f"{self.order:.3f}",
            numbers or f"-{self.numbers_missing} +{self.numbers_added}",
            f"{self.seconds:.2f}",
            f"{self.pages / max(self.seconds, 1e-9):,.0f}",
        ]


HEADS = ("FILE", "PRODUCER", "PAGES", "WORDS", "RECALL", "ORDER", "NUMBERS", "SECONDS", "PAGES/S")


def compare(path: Path, *, show: int = 0) -> Comparison:
    """Read a file with our reader and a second one. UncompError: ours refuses it; ValueError: there is no other."""
    data = path.read_bytes()
    chosen = format_of(data, path.suffix.lower())
    second, theirs = read_second(chosen.module if chosen.module != "encoding" else path.suffix.strip("."), path, data)
    begun = time.perf_counter()
    found = read_format(chosen, data, NO_WISHES)
    seconds = time.perf_counter() - begun
    attached = (place.line for place in found.places if re.match(r"attachment (?!mail \d)", place.name))
    ours = plain("\n".join(found.text.split("\n")[: next(attached, len(found.text)) - 1]))
    pages = max(
        (int(name[1:]) for name, _ in (place.parts for place in found.places) if re.fullmatch(r"p\d+", name)), default=1
    )
    words, pairs, numbers = counts(theirs), counts(theirs, size=2), Counter(_NUMBER.findall(theirs))
    own = Counter(_NUMBER.findall(ours))
    known = {*numbers, *_NUMBER.findall(plain(source_of(chosen.module, data)))}
    return Comparison(
        file=path.name,
        format=chosen.module,
        producer=producer_of(chosen.module, data),
        second=second,
        pages=pages,
        words=words.total(),
        recall=share(words, counts(ours)),
        order=share(pairs, counts(ours, size=2)),
        numbers=numbers.total(),
        numbers_missing=(numbers - own).total(),
        numbers_added=sum(count for number, count in own.items() if number not in known),
        seconds=seconds,
        losses=tuple(map(str, found.losses)),
        differences=tuple(differences(theirs, ours, show)) if show else (),
    )


def source_of(format_: str, data: bytes) -> str:
    """What a file has as text that second readers may leave out: titles of pages, headers of Word."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            parts = [archive.read(name).decode("utf-8", "replace") for name in archive.namelist() if "ml" in name]
        parts += [re.sub(r"<[^>]*>", between, part) for part in parts for between in ("", " ")]
        return " ".join(parts)
    return unescape(data.decode("utf-8", "replace")) if format_ == "html" else ""


def plain(text: str) -> str:
    """A text as it is compared: words whole, signs in their plain form, no marks of exponents."""
    text = _SPLIT.sub("", text.replace("\r\n", "\n").replace("\f", "\n"))
    return unicodedata.normalize("NFKC", _MARK.sub(r"\1", _ESCAPE.sub("", _UNSEEN.sub("", text)))).casefold()


def counts(text: str, *, size: int = 1) -> Counter[str]:
    """How often each word of a text comes, or each pair of neighbours."""
    words = _WORD.findall(text)
    return Counter(words if size == 1 else map(" ".join, pairwise(words)))


def share(wanted: Counter[str], found: Counter[str]) -> float:
    """Which share of `wanted` is found."""
    return (wanted & found).total() / wanted.total() if wanted else 1.0


def differences(theirs: str, ours: str, most: int) -> Iterator[str]:
    """The words and numbers that only one of both has, the most frequent first."""
    for noun, pattern in (("words", _WORD), ("numbers", _NUMBER)):
        wanted, found = Counter(pattern.findall(theirs)), Counter(pattern.findall(ours))
        for sign, left in (("-", wanted - found), ("+", found - wanted)):
            if left:
                yield f"{sign} {noun}: " + ", ".join(f"{word} {count}" for word, count in left.most_common(most))


def read_second(name: str, path: Path, data: bytes) -> tuple[str, str]:
    """Which second reader reads a format, and its text, ready to be compared. ValueError: none is here."""
    if name in ("mail", "eml"):
        return "email (Python)", plain(_mail(data))
    if name == "html" and importlib.util.find_spec("inscriptis"):
        return "inscriptis", plain(_page(data))
    for command in COMMANDS.get(name, ()):
        program, *arguments = command.split()
        if shutil.which(program):
            run = [program, *(argument.format(file=path) for argument in arguments)]
            done = subprocess.run(run, capture_output=True, timeout=_TIMEOUT_S, check=False)
            return program, plain(done.stdout.decode("utf-8", "replace"))
    raise ValueError(f"no second reader for {name} is installed")


def _page(data: bytes) -> str:
    """A page without what a browser does not show, laid out by inscriptis."""
    from inscriptis import Inscriptis
    from lxml import html

    text = data.decode("utf-8", "replace")
    page = html.fromstring(
        data if "\ufffd" in text else text.encode(),
        parser=html.HTMLParser(encoding=None if "\ufffd" in text else "utf-8"),
    )
    for element in page.xpath("//script|//style|//noscript|//template|//select|//iframe|//video|//audio|//*[@hidden]"):
        if element.getparent() is not None:
            element.drop_tree()
    return re.sub(r"(?m)^\s*[o*+] ", "", Inscriptis(page).get_text())  # without its points of lists


def _mail(data: bytes) -> str:
    """The headers that a reader looks for, and the text parts in order: of several forms of one the plain."""
    mail = message_from_bytes(data, policy=policy.default)
    assert isinstance(mail, EmailMessage)  # noqa: S101
    return "\n".join(_said(mail))


def _said(mail: EmailMessage) -> Iterator[str]:
    """What a mail says, and mails within it."""
    dates = [f"Date: {value}" for name, value in mail.raw_items() if name.lower() == "date"]
    yield from [f"{name}: {mail[name]}" for name in ("From", "To", "Cc", "Subject") if mail[name]] + dates
    waiting = [mail]
    while waiting:
        part = waiting.pop()
        inner = [one for one in part.iter_parts() if isinstance(one, EmailMessage)] if part.is_multipart() else []
        plain_ones = [one for one in inner if one.get_content_type() == "text/plain"]
        if part.get_content_type() == "message/rfc822":
            yield from (text for one in inner for text in _said(one))
        elif part.get_content_type() == "message/delivery-status":
            yield "\n".join(map(str, inner))
        elif inner:
            waiting += plain_ones[:1] or inner[-1:] if part.get_content_subtype() == "alternative" else inner[::-1]
        elif part.get_content_maintype() == "text" and not part.is_attachment():
            text = part.get_content()
            is_page = part.get_content_subtype() == "html"
            yield unescape(re.sub(r"(?s)<style.*?</style>|<[^<>]*>", " ", text)) if is_page else text


_GENERATORS = (
    rb"""<meta[^<>]*name\s*=\s*["']?generator["']?[^<>]*content\s*=\s*["']([^"'<>]*)""",
    rb"""<meta[^<>]*content\s*=\s*["']([^"'<>]*)["'][^<>]*name\s*=\s*["']?generator""",
    rb"(?m)^(?:X-Mailer|User-Agent):([^\r\n]*)",
    rb"\\generator ([^;}]*)",
)
_INSIDE = {"docProps/app.xml": rb"<Application>([^<]*)", "meta.xml": rb"<meta:generator>([^<]*)"}


def producer_of(format_: str, data: bytes) -> str:
    """What wrote a file, where it says so."""
    if format_ == "pdf":
        import pypdfium2

        document = pypdfium2.PdfDocument(data)
        said = document.get_metadata_dict()
        document.close()
        return _short(said.get("Producer") or said.get("Creator") or "")
    found = [match for pattern in _GENERATORS if (match := re.search(pattern, data[:100_000], re.IGNORECASE))]
    if data.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            inside = [(pattern, archive.read(name)) for name, pattern in _INSIDE.items() if name in archive.namelist()]
        found = [match for pattern, part in inside if (match := re.search(pattern, part))]
    return _short(found[0][1].decode("utf-8", "replace") if found else "")


def _short(text: str) -> str:
    return " ".join(text.split())[:40]


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that are named, and those in folders, sorted."""
    for path in paths:
        yield from sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, what was refused, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--show", type=int, default=0, help="how many differences to name of each kind")
    wanted = parser.parse_args(arguments)
    done: list[Comparison] = []
    refused: list[str] = []
    for path in files_below(wanted.paths):
        try:
            done.append(compare(path, show=wanted.show))
        except (UncompError, ValueError, RuntimeError) as error:
            refused.append(f"{path.name}: {error}")
        print(path.name, file=sys.stderr)
    for format_ in dict.fromkeys(one.format for one in done):
        of_format = [one for one in done if one.format == format_]
        good = sum(one.recall >= 0.98 for one in of_format)
        equal = sum(not one.numbers_missing + one.numbers_added for one in of_format)
        title = f"{format_} against {of_format[0].second}: of {len(of_format)} files {good} with a recall of 0.98, "
        notes = [f"{one.file} {line}" for one in of_format for line in one.differences]
        rows = [one.row() for one in of_format]
        print(Table(HEADS, rows, title=title + f"{equal} with equal numbers", notes=notes).markdown())
    print(json.dumps({"files": [asdict(one) for one in done], "refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
