"""What our readers read of files, held against a second reader: words, numbers, order, pace.

    python benchmarks/readers.py FOLDER [FOLDER or FILE ...] [--show 10]

Of each file whose format has a second reader on this machine: which share of the second reader's words is in our text
(as often as there), which share of its pairs of neighbouring words (the order), whether the numbers are the same, and
our seconds. `--show N` names the most frequent differences, to see which reader is right: none of the second readers
always is. Words are compared without case, marks of exponents and hyphens at line ends; an ideograph is a word. Each
reader of ours runs here, without the child that `uncomp` gives it. The last line of standard output is the JSON.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path

from uncomp_cli.documents.formats import format_of, read_format
from uncomp_cli.documents.text import NO_WISHES
from uncomp_cli.errors import UncompError
from uncomp_cli.table import Table

# By format: commands that write a file's text to standard output, the first that is installed; packages of Debian.
COMMANDS = {
    "pdf": ("pdftotext {file} -", "mutool draw -F text {file}"),
    "html": ("w3m -dump -cols 10000 -T text/html {file}", "lynx -dump -nolist -width 1000 {file}"),
    "word": ("pandoc --from docx --to plain --wrap none --track-changes all {file}",),
    "epub": ("pandoc --from epub --to plain --wrap none {file}",),
    "opendocument": ("pandoc --from odt --to plain --wrap none {file}",),
    "rtf": ("pandoc --from rtf --to plain --wrap none {file}",),
    "notebook": ("pandoc --from ipynb --to plain --wrap none {file}",),
    "latex": ("pandoc --from latex --to plain --wrap none {file}",),
}
_WORD = re.compile(r"[\u2e80-\uffef]|[^\W\u2e80-\uffef]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ESCAPE = re.compile(r"\\(?=[^\w\s]|_)")
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
            self.producer or self.format,
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
    ours = plain(found.text)
    pages = max((int(place.name[1:]) for place in found.places if re.fullmatch(r"p\d+", place.name)), default=1)
    words, pairs, numbers = counts(theirs), counts(theirs, size=2), Counter(_NUMBER.findall(theirs))
    own = Counter(_NUMBER.findall(ours))
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
        numbers_added=(own - numbers).total(),
        seconds=seconds,
        losses=tuple(map(str, found.losses)),
        differences=tuple(differences(theirs, ours, show)) if show else (),
    )


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
    for command in COMMANDS.get(name, ()):
        program, *arguments = command.split()
        if shutil.which(program):
            run = [program, *(argument.format(file=path) for argument in arguments)]
            done = subprocess.run(run, capture_output=True, timeout=_TIMEOUT_S, check=False)
            return program, plain(done.stdout.decode("utf-8", "replace"))
    raise ValueError(f"no second reader for {name} is installed")


def _mail(data: bytes) -> str:
    """Headers that a reader looks for, and the body that is plain, or else HTML without its tags."""
    mail = message_from_bytes(data, policy=policy.default)
    assert isinstance(mail, EmailMessage)  # noqa: S101
    heads = [f"{name}: {mail[name]}" for name in ("From", "To", "Date", "Subject") if mail[name]]
    body = mail.get_body(("plain", "html"))
    text = body.get_content() if body is not None else ""
    return "\n".join((*heads, re.sub(r"<[^<>]*>", " ", text) if "<html" in text else text))


def producer_of(format_: str, data: bytes) -> str:
    """What wrote a PDF."""
    if format_ != "pdf":
        return ""
    import pypdfium2

    document = pypdfium2.PdfDocument(data)
    said = document.get_metadata_dict()
    document.close()
    return " ".join((said.get("Producer") or said.get("Creator") or "").split())[:40]


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
    notes = [*refused, *(f"{one.file} {line}" for one in done for line in one.differences)]
    title = f"{sum(one.recall >= 0.98 for one in done)} of {len(done)} files: word recall of 0.98 or more"
    print(Table(HEADS, [one.row() for one in done], title=title, notes=notes).markdown())
    print(json.dumps({"files": [asdict(one) for one in done], "refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
