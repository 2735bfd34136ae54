"""Tables of text (.csv, .tsv): the delimiter found, each row with its header's names, cells as they are.

The delimiter is the one that parts most of the first lines into equally many cells, more than one; quotes are those of
RFC 4180. A comma within a figure (1,50) parts nothing where another delimiter does, or where no comma stands elsewhere,
and where rows have more cells than their header: such files are text as they are. `r7` is the row that the file has as
its seventh, wherever a cell holds line ends.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from uncomp_cli.documents import encoding
from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.ledger import Row, lines_of
from uncomp_cli.documents.text import Text, Wishes, joined

_DELIMITERS = ",;\t|"
_IN_FIGURE = re.compile(r"(?<=\d),(?=\d)")
_BETWEEN = re.compile(r"(?<!\d),(?!\s)|,(?![\d\s])")  # a comma that is in no figure, nor behind a word of a sentence
_SURE = 0.9  # of the lines
_SAMPLE_ROWS = 50
_SAMPLE_CHARS = 2**14
_QUOTED = re.compile(rf'(?:^|(?<=[{_DELIMITERS}]))"(?:[^"]|""){{0,2000}}"(?=[{_DELIMITERS}]|$)', re.MULTILINE)
_LONGEST_CELL = 2**24


def read(data: bytes, wishes: Wishes) -> Text:
    """The rows of a table; a file of one column is text as it is."""
    plain = encoding.read(data, wishes)
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = _delimiter(plain.text)
    if not delimiter:
        return plain
    rows = _rows(plain.text, delimiter)[_names_delimiter(plain.text) :]
    parts = ((f"r{line.number}", line.text) for line in lines_of(rows))
    text, places = joined(parts, between="\n")
    return replace(plain, text=text, places=places)


def _rows(text: str, delimiter: str) -> list[Row]:
    rows = []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), start=1):
            filled = {column: cell.strip() for column, cell in enumerate(cells, start=1) if cell.strip()}
            rows.append(Row(number, filled))
    except csv.Error as error:
        raise damaged("table", error) from error
    return rows


def _names_delimiter(text: str) -> bool:
    """Whether the first line is no row, and says which delimiter the others have."""
    return text[:4].lower() == "sep=" and text[4:5] != "" and text[4] in _DELIMITERS


def _delimiter(text: str) -> str:
    """What parts the cells; "" where nothing does."""
    if _names_delimiter(text):
        return text[4]
    sample = _QUOTED.sub("", text[:_SAMPLE_CHARS])
    if len(text) > _SAMPLE_CHARS:
        sample = sample[: sample.rfind("\n") + 1] or sample
    lines = [line for line in sample.split("\n")[:_SAMPLE_ROWS] if line]
    scores = {delimiter: _score(lines, delimiter) for delimiter in _DELIMITERS}
    if any(map(_IN_FIGURE.search, lines)) and not _commas_part(lines, scores):
        del scores[","]
    best = max(scores, key=lambda delimiter: scores[delimiter])
    return best if scores[best] > (0, 0) else ""


def _commas_part(lines: Sequence[str], scores: Mapping[str, tuple[float, int]]) -> bool:
    """Whether commas part cells though some stand between digits, as those of 1,50 and of 1,234 do."""
    if any(share >= _SURE for delimiter, (share, _) in scores.items() if delimiter != ","):
        lines = [_IN_FIGURE.sub("", line) for line in lines]
        return _score(lines, ",") >= max(score for delimiter, score in scores.items() if delimiter != ",")
    header = next((width for line in lines if (width := line.count(",") + 1) > 1), 0)
    return any(map(_BETWEEN.search, lines)) and header >= scores[","][1]


def _score(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """How large a share of the lines has the commonest number of cells, and that number; zeros where it is one."""
    widths = Counter(line.count(delimiter) + 1 for line in lines)
    width, count = max(widths.items(), key=lambda item: item[1], default=(0, 0))
    return (round(count / len(lines), 1), width) if width > 1 else (0, 0)
