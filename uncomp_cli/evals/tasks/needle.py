"""One fact in a long text, at a depth of a grid: is what was hidden still found, and are its passages cited?

`digits7`, `digits16` and `uuid` are completed (`The special magic number for X mentioned in the text is`), `chat` is
asked in the model's chat format. The longer the value, the more tokens must survive together. Of the task `evidence`,
each piece of the text on a line of its own, it is judged whether the line of the fact is among the first passages that
`documents/places.py` finds.
"""

import random
from typing import ClassVar

from uncomp_cli.evals.tasks.facts import CITIES, compound, digits, magic_question, magic_sentence, uuid_text
from uncomp_cli.evals.tasks.haystack import CountTokens, Haystack
from uncomp_cli.evals.tasks.task import JudgeName, Query, Regime, Request, Sample, border_at

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What is numbered, and where: nothing that a licence, a manual or a play speaks of.
_THINGS = (
    "meter reading",
    "parcel number",
    "berth number",
    "membership number",
    "crate number",
    "ticket number",
    "wagon number",
    "locker number",
)
_PLACES = (
    "aquarium",
    "ballroom",
    "brewery",
    "cinema",
    "circus",
    "clinic",
    "dairy",
    "gymnasium",
    "hotel",
    "orchestra",
    "pharmacy",
    "planetarium",
    "zoo",
)


class Needle:
    """Sample `index` stands at depth `DEPTHS[index % 5]`, by the share of the text's tokens before it."""

    name: ClassVar[str] = "needle"
    subtasks: ClassVar[tuple[str, ...]] = ("needle/digits7", "needle/digits16", "needle/uuid", "needle/chat")
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "answers"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One fact, one question."""
        return needle_sample(Request(subtask, index, tokens, haystack, count_tokens, seed))


def needle_sample(request: Request, *, depth: float | None = None) -> Sample:
    """One fact and its question; what follows the slash in the subtask says which kind.

    It stands at `depth`, the share of the text before it; None: where its index puts it on the grid.
    """
    kind = request.subtask.partition("/")[2]
    fact, question, answer, value = _fact(kind, request.chance())
    share = DEPTHS[request.index % len(DEPTHS)] if depth is None else depth
    layout = request.lay_out(
        (fact,),
        lambda pieces: [border_at(share, pieces, count_tokens=request.count_tokens)],
        request.excerpt,
        room=request.room((question,)),
    )
    query = Query(question, answer, (value,), max_new_tokens=request.new_tokens(answer), evidence=layout.spans)
    return request.sample(layout.context, (query,), depth=share, system="" if kind == "chat" else None)


def _fact(kind: str, chance: random.Random) -> tuple[str, str, str, str]:
    """The sentence, the question, the answer's text and what must be in an answer."""
    if kind == "chat":
        asked = f"{chance.choice(_THINGS)} of the {chance.choice(CITIES)} {chance.choice(_PLACES)}"
        value = digits(chance, 7)
        fact = f"The {asked} is {value}."
        return fact, f"What is the {asked}?", fact, value
    called = "uuid" if kind == "uuid" else "number"
    key = compound(chance)
    value = uuid_text(chance) if kind == "uuid" else digits(chance, 16 if kind == "digits16" else 7)
    return magic_sentence(key, value, kind=called), magic_question((key,), kind=called), f" {value}", value


class Evidence:
    """The needles again: `chat` in the model's chat format, the others as plain text to continue."""

    name: ClassVar[str] = "evidence"
    subtasks: ClassVar[tuple[str, ...]] = ("evidence/digits7", "evidence/digits16", "evidence/uuid", "evidence/chat")
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "evidence"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One fact, one question."""
        return needle_sample(Request(subtask, index, tokens, haystack, count_tokens, seed))
