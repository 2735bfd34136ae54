"""One fact in a long text, at a depth of a grid: is what was hidden still found?

`digits7`, `digits16` and `uuid` are completed (`The special magic number for X mentioned in the text is`), `chat` is
asked in the model's chat format. The longer the value, the more tokens must survive together.
"""

import random
from typing import ClassVar, Literal

from uncomp_cli.evals.haystack import CountTokens, Haystack
from uncomp_cli.evals.sample import Query, Regime, Sample
from uncomp_cli.evals.tasks.magic import magic_question, magic_sentence
from uncomp_cli.evals.tasks.request import Request, border_at
from uncomp_cli.evals.words import CITIES, compound, digits, uuid_text

__all__ = ["DEPTHS", "Needle"]

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
    judge: ClassVar[Literal["answers", "fidelity", "perplexity"]] = "answers"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One fact, one question."""
        request = Request(subtask, index, tokens, haystack, count_tokens, seed)
        fact, question, answer, value = _fact(subtask, request.chance())
        depth = DEPTHS[index % len(DEPTHS)]
        layout = request.lay_out(
            (fact,),
            lambda pieces: [border_at(depth, pieces, count_tokens=count_tokens)],
            request.excerpt,
            room=request.room((question,)),
        )
        query = Query(question, answer, (value,), max_new_tokens=request.new_tokens(answer), evidence=layout.spans)
        return request.sample(layout.context, (query,), depth=depth, system="" if subtask == "needle/chat" else None)


def _fact(subtask: str, chance: random.Random) -> tuple[str, str, str, str]:
    """The sentence, the question, the answer's text and what must be in an answer."""
    if subtask == "needle/chat":
        asked = f"{chance.choice(_THINGS)} of the {chance.choice(CITIES)} {chance.choice(_PLACES)}"
        value = digits(chance, 7)
        fact = f"The {asked} is {value}."
        return fact, f"What is the {asked}?", fact, value
    kind = "uuid" if subtask == "needle/uuid" else "number"
    key = compound(chance)
    value = uuid_text(chance) if kind == "uuid" else digits(chance, 16 if subtask == "needle/digits16" else 7)
    return magic_sentence(key, value, kind=kind), magic_question((key,), kind=kind), f" {value}", value
