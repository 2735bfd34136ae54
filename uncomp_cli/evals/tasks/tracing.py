"""RULER's variable tracking (arXiv 2404.06654, section 3): a chain of assignments, every name with one value asked.

`VAR QWERT = 48213`, then four times `VAR NEXT = VAR BEFORE`, in document order among noise. A short worked example
stands first, as in RULER; its names and its value are others.
"""

import random
from itertools import pairwise, repeat

from uncomp_cli.evals.tasks.request import Request, fill, random_borders
from uncomp_cli.evals.tasks.retrieval_facts import NOISE
from uncomp_cli.evals.tasks.sample import Query, Sample
from uncomp_cli.evals.tasks.words import list_items

__all__ = ["tracing_sample"]

_HOPS = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEAD = "Follow the assignments of variables that stand in this text."


def tracing_sample(request: Request) -> Sample:
    """One chain of five names."""
    chance = request.chance()
    names = _names(chance, 2 * (_HOPS + 1))
    value, shown_value = (str(number) for number in chance.sample(range(10_000, 100_000), 2))
    shown, names = names[: _HOPS + 1], names[_HOPS + 1 :]
    example = _worked_example(shown, shown_value)
    question = _question(value)
    layout = request.lay_out(
        _assignments(names, value),
        lambda pieces: random_borders(request.chance("places"), len(names), len(pieces)),
        lambda tokens: fill(repeat(NOISE), tokens, count_tokens=request.count_tokens, separator="\n"),
        room=request.room((question,)) - request.count_tokens(example),
        separator="\n",
    )
    evidence = tuple((begin + len(example), end + len(example)) for begin, end in layout.spans)
    answer = f" {list_items(names)}"
    query = Query(question, answer, names, max_new_tokens=request.new_tokens(answer), evidence=evidence)
    return request.sample(example + layout.context, (query,))


def _worked_example(names: tuple[str, ...], value: str) -> str:
    lines = "\n".join(f"{assignment}\n{NOISE}" for assignment in _assignments(names, value))
    return f"{_HEAD}\n{lines}{_question(value)} {list_items(names)}\n\n{_HEAD}\n"


def _assignments(names: tuple[str, ...], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]


def _question(value: str) -> str:
    return (
        f"\n\nQuestion: Find all variables that are assigned the value {value} in the text above.\n"
        f"Answer: By the assignments in the text above, {_HOPS + 1} variables are assigned the value {value}:"
    )


def _names(chance: random.Random, number: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < number:
        names["".join(chance.choices(_LETTERS, k=5))] = None
    return tuple(names)
