"""What stands above or below the line, in one line: 10^6, x^(n+1), H_2O; and marks of notes, no powers: $40[1].

Which of both a raised figure is depends on what stands around it, and on whether a note of that mark stands further
down. So a walk leaves marks in the text (characters that no text may have, `clean`), and `resolve` turns them into
text when all of it is there.
"""

import re
from functools import partial

_SUP, _SUB, _NOTE, _END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_MARKED = re.compile(f"([{_SUP}{_SUB}{_NOTE}])([^{_SUP}-{_END}]*){_END}")
_FOREIGN = re.compile("[\0\ufdd0-\ufddf]")
_MOST_NESTED = 4
_BEFORE = 24  # characters in front of a mark that tell what it is

_BRACKETED = re.compile(r"\[.{1,12}\]")
_FIGURES = re.compile(r"\d{1,3}(?:\s?[,;\u2013-]\s?\d{1,3})*")
_SYMBOLS = re.compile(r"[*\u2020\u2021\u00a7\u00b6#]{1,3}")
_LETTER = re.compile(r"[a-z]")
_SIMPLE = re.compile(r"[-+\u2212\u2013]?(?:[\w']+|\d[\d.,]*\d)|[*'\u2032+\u2212-]|\([^()]*\)")
_ENDINGS = "st nd rd th er re \u00e8re \u00e8me eme o a"
_ORDINALS = frozenset(_ENDINGS.split())
_TRADE = frozenset(("TM", "SM", "\u2122", "\u00ae", "\u00a9", "\u00b0", "R"))
_BASE = re.compile(r"([^\W\d_]+|\d+)$")
_MONEY = re.compile(r"[$\u20ac\u00a3\u00a5\u20b9]\s?[\d.,]*$")
_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh log exp det min max mol rad bar var vol dim arc"
_UNITS = "m cm mm km dm nm pm ft in yd mi s ms ns g kg mg j kj k w kw pa n hz l ml a v t ha sq cu"
_RAISED = frozenset((_FUNCTIONS + " " + _UNITS).split())
# Elements whose isotopes are written of, without those that are words too (As, At, He, I, In, No).
_ELEMENTS = "H|Li|B|C|N|O|F|Na|Mg|Al|Si|P|S|Cl|K|Ca|Fe|Co|Ni|Cu|Kr|Sr|Y|Tc|Ru|Xe|Cs|Ba|Pb|Bi|Po|Rn|Ra|Th|U|Np|Pu"
_ISOTOPE = re.compile(rf"(?:{_ELEMENTS})(?![a-z])")


def clean(text: str) -> str:
    """A text without the characters that mark here, and without NUL."""
    return _FOREIGN.sub("", text)


def raised(content: str, *, alone: bool, linked: bool) -> str:
    """The mark of a superscript: `alone` where nothing stands before it in its paragraph, `linked` to a note."""
    content = content.strip()
    if linked or _BRACKETED.fullmatch(content):
        return content if _BRACKETED.fullmatch(content) else f"[{content}]"
    return f"{_NOTE if alone else _SUP}{content}{_END}" if content else ""


def lowered(content: str) -> str:
    """The mark of a subscript."""
    return f"{_SUB}{content.strip()}{_END}" if content.strip() else ""


def resolve(text: str) -> str:
    """The text with its marks written out."""
    if _END not in text:
        return text
    starts = (match for match in _MARKED.finditer(text) if match[1] == _NOTE and not _is_isotope(match))
    notes = {match[2] for match in starts if _is_mark(match[2])}
    for _ in range(_MOST_NESTED):
        text = _MARKED.sub(partial(_written, notes), text)
    return re.sub(f"[{_SUP}-{_END}]", "", text)


def _written(notes: set[str], match: re.Match[str]) -> str:
    kind, content = match[1], match[2]
    start, end = match.span()
    before, after = match.string[max(0, start - _BEFORE) : start], match.string[end : end + 3]
    if kind == _SUB:
        return content if before[-2:-1] == _END and before[-1] in "/\u2044" else "_" + grouped(content, after)
    if kind == _NOTE and _is_mark(content) and not _is_isotope(match):
        return f"[{content}]" + (" " if after[:1].isalnum() else "")
    if after[:1] in ("/", "\u2044") and after[1:2] == _SUB:  # a fraction: 3 1/2
        return (" " if before[-1:].isdigit() else "") + content
    if (content in _ORDINALS and before[-1:].isdigit()) or content in _TRADE:
        return content
    return f"[{content}]" if _is_note(content, before, after, notes) else "^" + grouped(content, after)


def grouped(content: str, after: str = "") -> str:
    """An exponent or index, in brackets where it would be read with what follows it, or is more than one thing."""
    last, following = content[-1:], after[:1]
    runs_on = (last.isdigit() and following.isdigit()) or (last.isalpha() and following.isalpha())
    return content if _SIMPLE.fullmatch(content) and not runs_on else f"({content})"


def _is_mark(content: str) -> bool:
    """Whether it looks like the mark of a note: figures, * and its like, one letter."""
    return any(kind.fullmatch(content) for kind in (_FIGURES, _SYMBOLS, _LETTER))


def _is_isotope(match: re.Match[str]) -> bool:
    """The 14 of 14C."""
    return match[2].isdigit() and _ISOTOPE.match(match.string, match.end()) is not None


def _is_note(content: str, before: str, after: str, notes: set[str]) -> bool:
    """Whether a raised mark is a note's: words are raised to no power, and 10 and 2 often are."""
    if not _is_mark(content):
        return False
    base = _BASE.search(before)
    if base is None:
        return _is_note_behind(content, before[-1:], after, notes)
    word = base[1]
    if _SYMBOLS.fullmatch(content):
        return len(word) > 1
    if word.isdigit():
        is_money = _MONEY.search(before) is not None
        return (is_money and content.isdigit()) or (content in notes and (is_money or word not in ("10", "2")))
    if word.lower() in _RAISED or len(word) == 1:
        return False
    return content in notes or (len(word) > 2 and content[0].isdigit())


def _is_note_behind(content: str, last: str, after: str, notes: set[str]) -> bool:
    """Behind a space or a sign: a note's, unless a bracket was raised, or the figure belongs to what follows (14C)."""
    if last in (")", "]", "}", _END, "|"):
        return content in notes
    return not after[:1].isalnum() and not _LETTER.fullmatch(content)
