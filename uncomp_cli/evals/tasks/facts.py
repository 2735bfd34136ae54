"""Five facts of different kinds for one text: what several questions about it can be asked for.

A fact opens its sentence with the words that open its answer (`The night train to Oulu leaves at 04:17.`), so that it
can be asked in plain text, where a model continues the opening, and in a chat, where the sentence is the answer.
"""

import random
from dataclasses import dataclass

from uncomp_cli.evals.tasks.words import CITIES, FIRST_NAMES, NOUNS, OBJECTS, OCCUPATIONS, compound, digits, surname

__all__ = ["Fact", "five_facts"]


@dataclass(frozen=True, slots=True)
class Fact:
    """`begun` opens the sentence that `answer` ends; `asked` is the question for it."""

    begun: str
    answer: str
    asked: str

    @property
    def sentence(self) -> str:
        """What the text says."""
        return f"{self.begun} {self.answer}."

    @property
    def question(self) -> str:
        """Plain text to continue: the question, and the opening of its answer."""
        return f"\n\nQuestion: {self.asked}\nAnswer: {self.begun}"


def five_facts(chance: random.Random) -> list[Fact]:
    """A trade, a time, a place, a password and a number."""
    name = f"{chance.choice(FIRST_NAMES)} {surname(chance)}"
    trade, city, object_ = (chance.choice(words) for words in (OCCUPATIONS, CITIES, OBJECTS))
    time = f"{chance.randrange(24):02}:{chance.randrange(60):02}"
    first, second = chance.sample(NOUNS, 2)
    hall = f"{surname(chance)} Hall"
    return [
        Fact(f"{name} earns a living as a", trade, f"How does {name} earn a living?"),
        Fact(f"The night train to {city} leaves at", time, f"When does the night train to {city} leave?"),
        Fact(f"The spare {first} is kept behind the", object_, f"Where is the spare {first} kept?"),
        Fact(f"The password of the {second} club is", compound(chance), f"What is the password of the {second} club?"),
        Fact(f"The telephone number of {hall} is", digits(chance, 7), f"What is the telephone number of {hall}?"),
    ]
