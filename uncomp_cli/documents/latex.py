r"""LaTeX (.tex) as a reader sees it where that is simple, as its source where it is not.

A model reads formulas as their source, and is misled by nothing but noise: `\%`, `~`, `\,` and `\emph{…}` become what
they print, headings, lists and tables Markdown, footnotes `[^1]`. Macros are put in (macros.py), numbers
with units are as they are printed (quantities.py). Comments, pictures and files that are named are losses.
What stands before the document are settings, but for its title.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from uncomp_cli.documents import encoding, quantities
from uncomp_cli.documents.grid import Cell, table_lines
from uncomp_cli.documents.macros import Macro, defined, expanded
from uncomp_cli.documents.superscripts import clean, lowered, raised, resolve
from uncomp_cli.documents.text import Loss, Text, Wishes

_OPTION = r"(?:\[[^\]\n]{0,200}\])?"
_BEGIN = re.compile(r"\\begin\{([A-Za-z]{1,30}\*?)\}" + _OPTION)
_VERB = re.compile(r"\\(?:verb\*?|lstinline" + _OPTION + r")([|!+@/])([^\n]{0,200}?)\1")
_ADDRESS = re.compile(r"\\(?:url|path|nolinkurl|href)\s*\{[^{}\n]*\}")
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*)?")
_NESTED = r"\{((?:[^{}\\]|\\.|\{[^{}]*\})*)\}"
_HEAD = re.compile(r"\\(?:title|author|date)" + _OPTION + _NESTED)
_COMMAND = re.compile(r"\\([A-Za-z]+)(\*?)(" + _OPTION + r")[ \t]*\{((?:[^{}\\]|\\.)*)\}")
_CITED = re.compile(r"\\(cite[A-Za-z]*)\*?((?:\[[^\]\n]{0,200}\]){1,2})[ \t]*\{([^{}]*)\}")
_WIDE = re.compile(r"\s*\\multicolumn\s*\{(\d{1,3})\}\s*\{[^{}]*\}\s*\{(.*)\}\s*", re.DOTALL)
_TALL = re.compile(
    r"\s*\\multirow(?:\s*\[[^\]]*\])?\s*\{(\d{1,3})\}(?:\s*\[[^\]]*\])?\s*\{[^{}]*\}(?:\s*\[[^\]]*\])?\s*\{(.*)\}\s*",
    re.DOTALL,
)
_HALF = re.compile(r"(\d?)\\(?:[dt]?frac|[sn]ice?frac|sfrac)[ \t]*\{(\d{1,9})\}[ \t]*\{(\d{1,9})\}")
_COLUMNS = re.compile(r"\s*(?:\[[^\]\n]{0,200}\]\s*)?\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")
_RULES = re.compile(
    r"\\(?:hline|(?:top|mid|bottom)rule|end(?:first|last)?(?:head|foot)|c(?:mid)?(?:line|rule)(?:\([lr]*\))?\{[^{}]*\})"
)
_ROW_END = re.compile(r"\\\\" + _OPTION + r"|\\tabularnewline")
_BORDER = re.compile(r"(\\(?:begin|end)\{[A-Za-z]{1,30}\*?\}" + _OPTION + r"|\\item\b" + _OPTION + ")")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([A-Za-z]+)\*?\}" + _OPTION)
_FILE = re.compile(
    r"\\(?:input|include|subfile|bibliography|addbibresource|lstinputlisting|verbatiminput|includepdf|(?:sub)?import\s*"
    r"\{[^{}\n]*\})\s*" + _OPTION + r"\s*\{([^{}\n]*)\}|\\input\s+([^\s{}\\]+)"
)
_PICTURE = re.compile(r"\\includegraphics\*?" + _OPTION + r"\{[^{}]*\}")
_LINK = re.compile(r"\\href\s*\{[^{}]*\}")
_DOLLARS = re.compile(r"(?<![\\$])\$([^$\\]{1,40})\$(?!\$)")
_ACCENT = re.compile(r"""\\(["'`^~=.]|[uvHcdbkr](?=[{ ]))\s*(?:\{\\?([A-Za-z])\}|\\?([A-Za-z]))""")
_SPACES = re.compile(
    r"\\(?:[,;:! ]|(?:quad|qquad|noindent|newpage|clearpage|centering|maketitle|tableofcontents|par|small|large"
    r"|smallskip|medskip|bigskip)\b)[ \t]*"
)

_COMBINING = (0x308, 0x301, 0x300, 0x302, 0x303, 0x304, 0x307, 0x306, 0x30C, 0x30B, 0x327, 0x323, 0x331, 0x328, 0x30A)
_MARKS = dict(zip("\"'`^~=.uvHcdbkr", map(chr, _COMBINING), strict=True))
_SIGNS = (
    "ss ß o ø O Ø ae æ AE Æ oe œ OE Œ aa å AA Å l ł L Ł i i j j ldots … dots … LaTeX LaTeX TeX TeX textpm ± texteuro € "
    "euro € pounds £ copyright © S § degree ° textdegree ° textperiodcentered ·"
)
_LETTERS = dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True))
_LETTER = re.compile(
    rf"\\({'|'.join(sorted(_LETTERS, key=len, reverse=True))})(?![A-Za-z])(?:\{{\}}|[ \t]+(?=[^\s\\$]))?"
)
_HEADINGS = {"part": 1, "chapter": 1, "title": 1, "section": 1, "subsection": 2, "subsubsection": 3, "paragraph": 4}
_SHOWN_NAMES = (
    "textbf textit textsl textsc textrm textsf texttt textnormal textmd textup emph underline mbox fbox text uline url "
    "path num ensuremath"
)
_GONE_NAMES = (
    "label vspace hspace pagestyle thispagestyle bibliographystyle setlength usepackage documentclass setcounter index "
    "addcontentsline"
)
_SECOND_SHOWN = "textcolor colorbox raisebox parbox scalebox texorpdfstring"
_THIRD_SHOWN = "fcolorbox resizebox multirow"
_REFERENCES = ("cite", "ref", "eqref", "autoref", "cref", "Cref", "pageref", "bibitem")
_LISTS = frozenset(("itemize", "enumerate", "description"))
_LAYOUT_NAMES = "center figure table quote quotation thebibliography flushleft flushright minipage titlepage frame"
_SECOND, _THIRD = frozenset(_SECOND_SHOWN.split()), frozenset(_THIRD_SHOWN.split())
_PART = r"[ \t]*\{([^{}]*)\}"
_TWO = re.compile(rf"\\({'|'.join(sorted(_SECOND | quantities.TWO))})\*?{_OPTION}{_PART}{_PART}")
_THREE = re.compile(rf"\\({'|'.join(sorted(_THIRD | quantities.THREE))})\*?{_OPTION}{_PART}{_PART}{_PART}")
_SEVERAL = _SECOND | _THIRD | quantities.TWO | quantities.THREE
_LAYOUT = frozenset(_LAYOUT_NAMES.split())
_OF_A_WIDTH = frozenset(("tabular*", "tabularx"))
_TABLES = _OF_A_WIDTH | {"tabular", "longtable"}
_CODE = frozenset(("verbatim", "verbatim*", "lstlisting", "minted", "comment"))
_DRAWINGS = frozenset(("tikzpicture", "pgfpicture", "picture"))
_DEEPEST = 8
_MOST_PASSES = 12

# What is finished stands in for itself until the end, so that no later step takes it for source.
_KEPT = {ord(sign): 0xE000 + number for number, sign in enumerate("\\{}$%&~\n-`'#_ ")}
_FREED = {private: sign for sign, private in _KEPT.items()}
_PER_CENT = chr(_KEPT[ord("%")])
_OPEN, _CLOSE = chr(_KEPT[ord("{")]), chr(_KEPT[ord("}")])


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a LaTeX file."""
    plain = encoding.read(data, wishes)
    source = _Source(plain.text)
    text = source.text()
    return replace(plain, text=text, losses=(*plain.losses, *source.losses))


class _Source:
    """A source on its way to its text; each step takes something out of it."""

    def __init__(self, source: str) -> None:
        self.losses: list[Loss] = []
        self._notes: list[str] = []
        self._source = source

    def text(self) -> str:
        """The text; `losses` are complete then."""
        source = _replaced(
            clean(self._source), _CODE, lambda name, code: "" if name == "comment" else _fenced(name, code)
        )
        source = _VERB.sub(lambda found: found[2].translate(_KEPT), source)
        source = _ADDRESS.sub(lambda found: found[0].replace("%", _PER_CENT), source)
        source = self._counted(_COMMENT, r"\1", source, "comment")
        body, macros = self._body(source)
        body = _replaced(expanded(body, macros), _DRAWINGS, lambda *_: "\\includegraphics{}")
        body = self._counted(_PICTURE, "", body, "picture")
        self._name_files(body)
        body = _replaced(_FILE.sub("", body), _TABLES, self._table)
        body = _finished(_unwrapped(_environments(body), self._command))
        notes = "\n".join(f"[^{number}]: {' '.join(note.split())}" for number, note in enumerate(self._notes, start=1))
        return resolve("\n\n".join(part for part in (body, _finished(notes)) if part))

    def _counted(self, pattern: re.Pattern[str], put: str, source: str, what: str) -> str:
        source, count = pattern.subn(put, source)
        if count:
            self.losses.append(Loss.of((what, f"{what}s"), count))
        return source

    def _body(self, source: str) -> tuple[str, dict[str, Macro]]:
        """What stands in the document, its title first; and the macros that were defined."""
        macros, source = defined(source)
        before, begun, after = source.partition("\\begin{document}")
        if not begun:
            return source, macros
        kept = [found[0] for found in _HEAD.finditer(before)]
        return "\n\n".join([*kept, after.partition("\\end{document}")[0]]), macros

    def _name_files(self, body: str) -> None:
        names = [found[1] or found[2] for found in _FILE.finditer(body)]
        if names:
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            self.losses.append(Loss.of(("file that it takes in", "files that it takes in"), len(names), shown))

    def _table(self, name: str, content: str) -> str:
        """A tabular as a Markdown table, its first row its header."""
        for _ in range(1 + (name in _OF_A_WIDTH)):
            columns = _COLUMNS.match(content)
            content = content[columns.end() :] if columns else content
        rows = [row for row in _ROW_END.split(_RULES.sub("", content)) if row.strip()]
        split = [re.split(r"(?<!\\)&", row) for row in rows]
        cells = [[self._cell(cell, number == 0) for cell in row] for number, row in enumerate(split)]
        return "\n\n" + "\n".join(table_lines(_hung(cells))).translate(_KEPT) + "\n\n"

    def _cell(self, source: str, header: bool) -> Cell:
        columns = rows = 1
        if wide := _WIDE.fullmatch(source):
            columns, source = int(wide[1]), wide[2]
        if tall := _TALL.fullmatch(source):
            rows, source = int(tall[1]), tall[2]
        text = _finished(_unwrapped(source, self._command))
        return Cell([" ".join(text.split())], columns=columns, rows=rows, header=header)

    def _command(self, found: re.Match[str]) -> str:
        """What a command with an argument prints; itself, with other braces, where it is not known."""
        name, content = found[1], found[4]
        if name in _SEVERAL:
            return found[0]
        if name == "footnote":
            self._notes.append(content)
            return f"[^{len(self._notes)}]"
        if name in _PRINTED:
            return _PRINTED[name](content)
        if name.startswith(_REFERENCES):
            return f"[{content}]"
        return f"\\{name}{found[2]}{found[3]}{_OPEN}{content}{_CLOSE}"


def _heading(content: str, *, level: int) -> str:
    return "\n\n" + f"{'#' * level} ".translate(_KEPT) + " ".join(content.split()) + "\n\n"


_PRINTED: dict[str, Callable[[str], str]] = {
    **{name: partial(_heading, level=level) for name, level in _HEADINGS.items()},
    **{name: lambda content: f"\n\n{content}\n\n" for name in ("caption", "author", "date")},
    **{name: partial(quantities.shown, name) for name in quantities.ONE},
    **dict.fromkeys(_SHOWN_NAMES.split(), str),
    **dict.fromkeys(_GONE_NAMES.split(), lambda _: ""),
    "textsuperscript": partial(raised, alone=False, linked=False),
    "textsubscript": lowered,
}


def _replaced(source: str, names: frozenset[str], put: Callable[[str, str], str]) -> str:
    """The source with environments of these names replaced; one that does not end stays."""
    parts: list[str] = []
    at, endless = 0, set[str]()
    for found in _BEGIN.finditer(source):
        name = found[1]
        if found.start() < at or name not in names or name in endless:
            continue
        end = source.find(f"\\end{{{name}}}", found.end())
        if end < 0:
            endless.add(name)
            continue
        parts += [source[at : found.start()], put(name, source[found.end() : end])]
        at = end + len(f"\\end{{{name}}}")
    return "".join([*parts, source[at:]])


def _fenced(name: str, code: str) -> str:
    code = re.sub(r"\A\{\w*\}", "", code) if name == "minted" else code
    return "\n\n" + f"```\n{code.strip(chr(10))}\n```".translate(_KEPT) + "\n\n"


def _environments(body: str) -> str:
    """Lists as Markdown; the borders of what only lays out are taken away, those of formulas stay."""
    kinds: list[tuple[str, int]] = []
    parts: list[str] = []
    for piece in _BORDER.split(body):
        found = _ENVIRONMENT.fullmatch(piece)
        if found and found[2] in _LISTS:
            if found[1] == "begin":
                kinds.append((found[2], 0))
            elif kinds:
                kinds.pop()
            parts.append("\n" if kinds and len(kinds) > (found[1] == "begin") else "\n\n")
        elif piece.startswith("\\item") and kinds:
            kind, count = kinds.pop()
            kinds.append((kind, count + 1))
            label = piece.partition("[")[2].rstrip("]")
            mark = "  " * min(len(kinds) - 1, _DEEPEST) + (f"{count + 1}. " if kind == "enumerate" else "- ")
            parts[-1] = parts[-1].rstrip()
            parts.append(
                ("\n" if count or len(kinds) > 1 else "\n\n") + mark.translate(_KEPT) + (label and label + ": ")
            )
        elif found and found[2] == "abstract":
            parts.append("\n\n" + "## ".translate(_KEPT) + "Abstract\n\n" if found[1] == "begin" else "\n\n")
        elif found and found[2] in _LAYOUT:
            parts.append("\n\n")
        else:
            parts.append(piece.lstrip(" \t"))
    return "".join(parts)


def _unwrapped(body: str, command: Callable[[re.Match[str]], str]) -> str:
    """Commands with an argument as what they print, the innermost first, a few deep."""
    body = _LETTER.sub(lambda found: _LETTERS[found[1]], _ACCENT.sub(_accented, _LINK.sub("", body)))
    body = _HALF.sub(lambda found: f"{found[1]}{' ' * bool(found[1])}{found[2]}/{found[3]}", body)
    body = _CITED.sub(_cited, body)
    for _ in range(_MOST_PASSES):
        before = body
        body = _COMMAND.sub(command, _TWO.sub(_of_several, _THREE.sub(_of_several, body)))
        if body == before:
            break
    return body


def _of_several(found: re.Match[str]) -> str:
    """What a command with several arguments prints: a quantity, or the last of them."""
    name, *parts = found.groups()
    return parts[-1] if name in _SECOND | _THIRD else quantities.shown(name, *parts)


def _cited(found: re.Match[str]) -> str:
    r"""`\cite[see][p.~5]{key}` as `[see key, p. 5]`."""
    notes = re.findall(r"\[([^\]]*)\]", found[2])
    before, after = notes if len(notes) == 2 else ("", notes[0])
    return f"[{before and before + ' '}{found[3]}{after and ', ' + after}]"


def _hung(rows: list[list[Cell]]) -> list[list[Cell]]:
    """The rows; an empty cell below one that reaches so far goes on with it."""
    reach: dict[int, int] = {}
    for row in rows:
        column = 0
        for cell in row:
            if reach.get(column, 0) and not cell.text:
                reach[column] -= 1
                cell.above = True
            else:
                reach[column] = cell.rows - 1
            column += cell.columns
            cell.rows = 1
    return rows


def _accented(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", (found[2] or found[3]) + _MARKS[found[1]])


def _finished(body: str) -> str:
    """Spaces, dashes, quotes and signs as they are printed; short formulas without a command lose their dollars."""
    body = re.sub(r"\\([%&#])", lambda found: found[1].translate(_KEPT), _SPACES.sub(" ", body))
    body = _DOLLARS.sub(r"\1", body).replace("{,}", ",")
    body = re.sub(r"\\([$_{}])", lambda found: found[1].translate(_KEPT), body)
    body = body.replace("~", " ").replace("---", "—").replace("--", "–").replace("``", "“").replace("''", "”")
    body = re.sub(r"\\\\\*?" + _OPTION + r"(?=\s)", "\n", body)
    body = re.sub(rf"(?<![\\\w^_}}{_CLOSE}])\{{([^{{}}\\]*)\}}", r"\1", body)
    body = re.sub(r" ?\n ?", "\n", re.sub(r"[ \t]+", " ", body)).translate(_FREED)
    return re.sub(r"\n{3,}", "\n\n", body).strip()
