"""Lists: all of six facts of one kind that stand apart in a text, asked for at once in the model's chat format.

    list/years    `The Dijon cinema opened in 1893.`        list/names    `The Dijon cinema is run by Ada Fenby.`

Nothing in particular is asked for, so that no passage is worth more than another; `match` is the share that is named.
"""

import random
from dataclasses import replace

from uncomp_cli.evals.tasks.facts import CITIES, FIRST_NAMES, surname
from uncomp_cli.evals.tasks.task import Query, Request, Sample, random_borders

LISTS = ("list/years", "list/names")
_FACTS = 6
_HOUSES = ("aquarium", "brewery", "cinema", "gymnasium", "hotel", "planetarium")
_ASKED = {"years": "List all years in which something opened.", "names": "List the names of all who run something."}


def list_sample(request: Request) -> Sample:
    """One text and one question; what follows the slash in the subtask says for what."""
    kind, chance = request.subtask.partition("/")[2], request.chance()
    cities = chance.sample(CITIES, _FACTS)
    values = chance.sample(range(1860, 1990), _FACTS) if kind == "years" else [_name(chance) for _ in cities]
    said = "opened in" if kind == "years" else "is run by"
    facts = [f"The {city} {chance.choice(_HOUSES)} {said} {value}." for city, value in zip(cities, values, strict=True)]
    asked = _ASKED[kind]
    layout = request.lay_out(
        facts,
        lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
        request.excerpt,
        room=request.room((asked,)),
    )
    answer = ", ".join(map(str, values)) + "."
    query = Query(asked, answer, tuple(map(str, values)), max_new_tokens=request.new_tokens(answer))
    return request.sample(layout.context, (replace(query, evidence=layout.spans),), system="")


def _name(chance: random.Random) -> str:
    return f"{chance.choice(FIRST_NAMES)} {surname(chance)}"
