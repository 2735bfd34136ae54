"""Formulas in one line: x^2, (a)/(b), √(x), ∑_(i=1)^n. Of MathML and of Word's OMML, which both nest prefix notation.

Each element folds the texts of its children when it ends, so that nothing recurses; past a depth that no formula has,
elements are transparent.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uncomp_cli.documents.superscripts import grouped

_DEEPEST = 100
_ATOM = re.compile(r"[\w.,']+|.?\(.*\)|\[[^\[\]]*\]")
_APPLY = str.maketrans({"\u2061": " ", "\u2062": "", "\u2063": "", "\u2064": ""})
_CHARACTERS = frozenset(("begChr", "endChr", "sepChr", "chr"))


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: dict[str, str]
    parts: list[str] = field(default_factory=list)


class Equation:
    """A formula under construction: `start`, `write` and `end` as its elements come, then `text`."""

    def __init__(self) -> None:
        self._open = [_Element("", {})]
        self._ignored = 0
        self._properties = 0  # how deep in an element of properties, which has no text

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins, by its name without a prefix."""
        if self._properties or tag.endswith("Pr"):
            self._properties += 1
            if tag in _CHARACTERS:
                self._open[-1].attributes[tag] = attributes.get("val", "")
        elif len(self._open) > _DEEPEST:
            self._ignored += 1
        else:
            self._open.append(_Element(tag, dict(attributes)))

    def write(self, text: str) -> None:
        """Text in an element."""
        inner = self._open[-1]
        text = text if inner.tag in ("t", "mtext") else text.strip()
        inner.parts += [text.translate(_APPLY)] * bool(text and not self._properties)

    def end(self, tag: str) -> None:
        """It ends: its text becomes a part of what it stands in."""
        if self._properties:
            self._properties -= 1
        elif self._ignored:
            self._ignored -= 1
        elif len(self._open) > 1:
            self._fold()

    def _fold(self) -> None:
        ended = self._open.pop()
        fold = _FOLDS.get(ended.tag)
        parts = [*ended.parts, "", "", ""]
        text = "".join(ended.parts) if fold is None else fold(parts, ended.attributes)
        if text or self._open[-1].tag in _FOLDS:  # an empty part has its place: √ with no degree
            self._open[-1].parts.append(text)

    def text(self) -> str:
        """The line."""
        while len(self._open) > 1:
            self._fold()
        return " ".join("".join(self._open[0].parts).split())


_Fold = Callable[[Sequence[str], Mapping[str, str]], str]


class Formula(Equation):
    """A formula that is an object of its own; what it is written from in its program is left out."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        super().start("annotationPr" if tag == "annotation" else tag, attributes)

    def data(self, text: str) -> None:
        self.write(text)


def _base(text: str) -> str:
    return text if len(text) < 2 or _ATOM.fullmatch(text) else f"({text})"


def _index(sign: str, text: str) -> str:
    return sign + grouped(text) if text else ""


def _indices(low: str, high: str) -> str:
    return _index("_", low) + _index("^", high)


def _over(parts: Sequence[str], _: Mapping[str, str]) -> str:
    is_accent = len(parts[1]) == 1 and not parts[1].isalnum()
    return _base(parts[0]) + (parts[1] if is_accent else _index("^", parts[1]))


def _root(radicand: str, degree: str) -> str:
    return f"({radicand})^(1/{grouped(degree)})" if degree else f"\u221a({radicand})"


def _delimited(parts: Sequence[str], attributes: Mapping[str, str]) -> str:
    begin = attributes.get("begChr", attributes.get("open", "("))
    end = attributes.get("endChr", attributes.get("close", ")"))
    between = attributes.get("sepChr", attributes.get("separators", "|" if "begChr" in attributes else ","))[:1]
    return begin + between.join(filter(None, parts)) + end


# MathML to the left, OMML to the right: m:rad has its degree first, m:nary its limits, m:sPre what stands before.
_FOLDS: dict[str, _Fold] = {
    **dict.fromkeys(("mfrac", "f"), lambda parts, _: f"({parts[0]})/({parts[1]})"),
    **dict.fromkeys(("msup", "sSup", "limUpp"), lambda parts, _: _base(parts[0]) + _index("^", parts[1])),
    **dict.fromkeys(("msub", "munder", "sSub", "limLow"), lambda parts, _: _base(parts[0]) + _index("_", parts[1])),
    **dict.fromkeys(("msubsup", "munderover", "sSubSup"), lambda parts, _: _base(parts[0]) + _indices(*parts[1:3])),
    "mover": _over,
    "msqrt": lambda parts, _: "\u221a(" + "".join(parts) + ")",
    "mroot": lambda parts, _: _root(parts[0], parts[1]),
    "rad": lambda parts, _: _root(parts[1], parts[0]),
    "nary": lambda parts, attributes: f"{attributes.get('chr', '∫')}{_indices(*parts[:2])} {parts[2]} ",
    "sPre": lambda parts, _: _indices(*parts[:2]) + parts[2],
    **dict.fromkeys(("mfenced", "d"), _delimited),
    "func": lambda parts, _: f"{parts[0]} {parts[1]}",
    **dict.fromkeys(("acc", "groupChr"), lambda parts, attributes: _base(parts[0]) + attributes.get("chr", "\u0302")),
    "bar": lambda parts, _: _base(parts[0]) + "\u0305",
    **dict.fromkeys(("mtr", "mr"), lambda parts, _: ", ".join(parts[:-3])),
    **dict.fromkeys(("mtable", "m"), lambda parts, _: "[" + "; ".join(filter(None, parts)) + "]"),
    "eqArr": lambda parts, _: "; ".join(filter(None, parts)),
    **dict.fromkeys(("mstack", "mlongdiv", "msgroup", "msrow"), lambda parts, _: " ".join(filter(None, parts))),
    "mspace": lambda _, __: " ",
}
