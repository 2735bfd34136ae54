"""Hyphens at line ends: whether one belongs to its word, by what the whole document says, else by the word's halves.

No dictionary: a word that stands elsewhere in the document decides. Where none does, halves decide that a hyphen nearly
always stands between (well-known, two-thirds, day-to-day, e-mail); any other was the line's and goes.
"""

import re
from collections.abc import Sequence

HYPHEN = "\u00ad"  # stands for a hyphen at a line's end, until the whole document says whether it belongs to the word
_SPLIT = re.compile(rf"([-\u2010]?)(?<![^\W\d_])([^\W\d_]+){HYPHEN}([^\W\d_]+)(?=([-\u2010]?))")
_WORDS = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_CLOSED = re.compile(
    r"self(?:ish|less|ie|hood|same)|well(?:ness|ing|er)|cross(?:ing|ed|es|over|word|road|bar|bow|wise|talk|fire)"
    r"|ill(?:ness|us|eg|it|og)|half(?:way|penny|back|heart|time)|quarter(?:ly|ing|ed|back|master|final|deck)"
    r"|multi(?:p|tud|medi|nation|lingual|later|cultur|color|colour|core|thread|process|dimension|fari)"
)
_NUMBER_ENDS = re.compile(r"fold|teen|ty$|some|score|pence|penny|ths?$")
_SUSPENDED_WORDS = "und oder bzw sowie and or to et ou y o e ed en och og"
_LINK_WORDS = "of the to in on up at by and or for a an de du la le"
_FIRST_HALVES = "well self cross ill half quarter multi quasi"
_NUMBER_WORDS = "two three four five six seven eight nine twenty thirty forty fifty sixty seventy eighty ninety"
_SECOND_HALVES = (
    "known based called old term level free related driven specific oriented aware defined sized dependent like ended "
    "made led style scale side class quality"
)
_CLOSED_HALVES = (
    "over under inter multi auto super counter semi anti infra intra trans mini micro meta nation world bath busi like "
    "home hand news after fore child"
)
_SUSPENDED, _LINKS = frozenset(_SUSPENDED_WORDS.split()), frozenset(_LINK_WORDS.split())
_FIRST, _NUMBERS = frozenset(_FIRST_HALVES.split()), frozenset(_NUMBER_WORDS.split())
_SECOND, _PREFIXES = frozenset(_SECOND_HALVES.split()), frozenset(_CLOSED_HALVES.split())
_BEFORE_SECOND = 4  # letters: un-known, in-dependent, dis-oriented and re-defined are one word


def rejoined(texts: Sequence[str]) -> list[str]:
    """The texts with each `HYPHEN` gone, or a hyphen, by what the words of all texts together say of both halves."""
    whole_words = (word for text in texts for word in text.split() if HYPHEN not in word)
    known = {part.casefold() for word in whole_words for part in _WORDS.findall(word)}

    def decide(match: re.Match[str]) -> str:
        before, left, right, after = match.groups()
        if right in _SUSPENDED and left + right not in known and not after:
            return f"{before}{left}- {right}"
        whole = (left + right).casefold() in known
        apart = {left.casefold(), right.casefold()} <= known or f"{left}-{right}".casefold() in known
        compound = apart or _is_compound(left.casefold(), right.casefold(), before=bool(before), after=bool(after))
        return f"{before}{left}-{right}" if compound and not whole else before + left + right

    return [_SPLIT.sub(decide, text).replace(HYPHEN, "-") if HYPHEN in text else text for text in texts]


def _is_compound(left: str, right: str, *, before: bool, after: bool) -> bool:
    """Whether two halves have a hyphen between them in any document; `before` and `after`: others stand around them."""
    if len(left) == 1 or len(right) == 1:  # no line is broken behind a word's first letter, nor before its last
        return True
    if (before and left in _LINKS) or (after and right in _LINKS):
        return True
    if left in _FIRST:
        return not _CLOSED.match(left + right)
    if left in _NUMBERS:
        return not _NUMBER_ENDS.match(right)
    return right in _SECOND and len(left) >= _BEFORE_SECOND and left not in _PREFIXES
