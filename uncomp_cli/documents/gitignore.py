"""What git leaves out below a folder: the rules of gitignore(5), and the globs that they are made of.

    layers     .git/info/exclude and every .gitignore from the repository's folder down to the one that is looked into
    a path     the last rule that matches decides, the innermost layer first; `!` takes a file in again

A folder that is left out is not looked into, so nothing in it can be taken in again. Patterns become regular
expressions in which only the last star of a part looks further than its first match, so that none takes long.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from uncomp_cli.files import absolute

_NAME = ".gitignore"
_MOST_BYTES = 2**20
_PIECE = re.compile(r"\\.|\*+|\?|\[[!^]?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    excludes: bool
    folders_only: bool


@dataclass(frozen=True, slots=True)
class Ignored:
    """The rules in force in a folder: (folder that they are of, its rules), the innermost first."""

    layers: tuple[tuple[str, tuple[_Rule, ...]], ...] = ()

    @classmethod
    def above(cls, root: Path) -> "Ignored":
        """The rules that the repository around `root` has for what lies below it; none where they leave it out."""
        folder = absolute(root)
        above = [str(each) for each in Path(folder).parents]
        top = next((at for at, each in enumerate([folder, *above]) if Path(each, ".git").exists()), None)
        if top is None:
            return cls()
        chain = [folder, *above][top::-1]
        rules = cls().joined(chain[0], Path(chain[0], ".git", "info", "exclude"))
        for outer, inner in pairwise(chain):
            rules = rules.within(outer)
            if rules.leaves_out(inner, is_folder=True):
                return cls()
        return rules

    def within(self, folder: str) -> "Ignored":
        """The rules in a folder, which may have some of its own."""
        return self.joined(folder, Path(folder, _NAME))

    def joined(self, folder: str, file: Path) -> "Ignored":
        """These rules, and before them those that stand in `file` for what lies below `folder`."""
        found = tuple(_rules(_lines(file)))
        return Ignored(((folder.rstrip("/") + "/", found[::-1]), *self.layers)) if found else self

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """Whether git would not take in this file or folder, which lies below all layers; the path is absolute."""
        for folder, rules in self.layers:
            below = path.removeprefix(folder)
            for rule in rules:
                if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(below):
                    return rule.excludes
        return False


def _lines(file: Path) -> list[str]:
    """Of a regular file; nothing of one that cannot be read, as git warns of it and goes on."""
    try:
        if not file.is_file():
            return []
        with file.open("rb") as stream:
            return os.fsdecode(stream.read(_MOST_BYTES)).removeprefix("\ufeff").split("\n")
    except OSError:
        return []


def _rules(lines: list[str]) -> Iterator[_Rule]:
    for line in lines:
        text = line.removesuffix("\r")
        while text.endswith(" ") and not text.endswith("\\ "):
            text = text[:-1]
        excludes = not text.startswith("!")
        text = text.removeprefix("!")
        pattern, folders_only = text.removesuffix("/"), text.endswith("/")
        if pattern and not line.startswith("#"):
            anywhere = "" if "/" in pattern else "**/"
            yield _Rule(glob_pattern(anywhere + pattern.removeprefix("/")), excludes, folders_only)


def glob_pattern(glob: str, *, hidden: bool = True) -> re.Pattern[str]:
    """What matches all of a path with `/` in it; a star stays within a part, and a part `**` is any number of them.

    Without `hidden` no wildcard begins a name that begins with a dot, as in a shell.
    """
    name = "[^/]+" if hidden else r"(?!\.)[^/]+"
    runs: list[list[str]] = [[]]
    for part in glob.split("/"):
        if part != "**":
            runs[-1].append(_part(part, hidden=hidden))
        elif len(runs) == 1 or runs[-1]:
            runs.append([])
    first, *middle, last = [runs[0], *runs[1:-1], runs[-1]] if len(runs) > 1 else [[], runs[0]]
    text = "".join(f"{part}/" for part in first)
    for run in middle:
        text += f"(?>(?:{name}/)*?" + "".join(f"{part}/" for part in run) + ")"
    if len(runs) > 1:
        text += f"(?:{name}/)*"
    return re.compile(text + ("/".join(last) if last else name), re.DOTALL)


def _part(part: str, *, hidden: bool) -> str:
    """One name of a glob as a regular expression."""
    chunks = [""]
    for piece in _PIECE.findall(part):
        if piece.startswith("*"):
            chunks.append("")
        else:
            chunks[-1] += _literal(piece)
    first, *rest = chunks
    text = first + "".join(f"(?>[^/]*?{chunk})" for chunk in rest[:-1]) + (f"[^/]*{rest[-1]}" if rest else "")
    return text if hidden or part.startswith(".") else rf"(?!\.){text}"


def _literal(piece: str) -> str:
    if piece == "?":
        return "[^/]"
    if len(piece) > 2 and piece.startswith("["):
        negated = piece[1] in "!^"
        letters = re.sub(r"\\(.)|(.)", _in_class, piece[2 if negated else 1 : -1], flags=re.DOTALL)
        return f"(?!/)[{'^' if negated else ''}{letters}]" if _is_class(letters) else "(?!)"
    return re.escape(piece.removeprefix("\\") or piece)


def _in_class(found: re.Match[str]) -> str:
    return f"\\{found[1]}" if found[1] else found[2] if found[2] == "-" or found[2].isalnum() else f"\\{found[2]}"


def _is_class(letters: str) -> bool:
    """Whether a class has no range that runs backwards, which matches nothing."""
    try:
        re.compile(f"[{letters}]")
    except re.error:
        return False
    return True
