"""One compression, several questions that were not seen: what is kept must serve them all.

`multiquestion/facts`: five facts of different kinds in one text, five questions. `multiquestion/instruction`: a system
prompt demands how every answer begins; does it still bind when the text behind it was compressed?

`conversation`: five facts, five turns in the model's chat format, every answer kept. The questions come one after
another and in another order than the facts stand, so that the text is compressed before any of them is known, and the
fifth is asked of what four answers have left. They open their answers, as in plain text: the default model hardly tells
five facts apart otherwise, with nothing evicted at all. `facts` is the session as it is; in `unaided`, which has the
same samples, it reads nothing again that was evicted. All are for the agnostic regime alone.
"""

from typing import ClassVar

from uncomp_cli.evals.tasks.facts import NOUNS, Fact, five_facts
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack
from uncomp_cli.evals.tasks.task import JudgeName, Query, Regime, Request, Sample, Span, random_borders

_ORDINARY = (
    "What is this text about?",
    "Who might want to read this text?",
    "What is said near the end of the text?",
    "Which name or term comes first in the text?",
    "Is this text old or new?",
    "What would be a good title for this text?",
)
_ORDINARY_ASKED = 2
_NAME_QUESTION = "What is your name?"


class Multiquestion:
    """Five questions for five facts, or three questions under an instruction that binds every answer."""

    name: ClassVar[str] = "multiquestion"
    subtasks: ClassVar[tuple[str, ...]] = ("multiquestion/facts", "multiquestion/instruction")
    regimes: ClassVar[tuple[Regime, ...]] = ("agnostic",)
    judge: ClassVar[JudgeName] = "answers"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """Several queries of one context."""
        request = Request(subtask, index, tokens, haystack, count_tokens, seed)
        return _facts_sample(request) if subtask == "multiquestion/facts" else _instruction_sample(request)


def _facts_sample(request: Request) -> Sample:
    chance = request.chance()
    facts = five_facts(chance)
    chance.shuffle(facts)
    layout = request.lay_out(
        [fact.sentence for fact in facts],
        lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
        request.excerpt,
        room=request.room(fact.question for fact in facts),
    )
    queries = [
        Query(
            fact.question,
            f" {fact.answer}",
            (fact.answer,),
            max_new_tokens=request.new_tokens(f" {fact.answer}"),
            evidence=(span,),
        )
        for fact, span in zip(facts, layout.spans, strict=True)
    ]
    return request.sample(layout.context, queries)


def _instruction_sample(request: Request) -> Sample:
    """Ordinary questions, and at last one for the name itself, which a model that obeys little still answers."""
    chance = request.chance()
    word = "-".join(noun.capitalize() for noun in chance.sample(NOUNS, 2))
    system = f"Your name is {word}. Begin every answer with your name and a colon, whatever you are asked."
    asked = [(question, f"{word}:") for question in chance.sample(_ORDINARY, _ORDINARY_ASKED)]
    asked.append((_NAME_QUESTION, f"{word}: My name is {word}."))
    queries = [
        Query(question, answer, (word,), max_new_tokens=request.new_tokens(answer)) for question, answer in asked
    ]
    room = request.text_room((query.question for query in queries), system=system)
    return request.sample(SEPARATOR.join(request.excerpt(room)), queries, system=system)


FACTS, UNAIDED = "conversation/facts", "conversation/unaided"
_NEW_TOKENS = 48


class Conversation:
    """Five questions for five facts, each answered by the sentence that stands in the text."""

    name: ClassVar[str] = "conversation"
    subtasks: ClassVar[tuple[str, ...]] = (FACTS, UNAIDED)
    regimes: ClassVar[tuple[Regime, ...]] = ("agnostic",)
    judge: ClassVar[JudgeName] = "conversation"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """Queries in the order in which they are asked."""
        request = Request(subtask, index, tokens, haystack, count_tokens, seed, drawn_as=FACTS)
        chance = request.chance()
        facts = five_facts(chance)
        chance.shuffle(facts)
        layout = request.lay_out(
            [fact.sentence for fact in facts],
            lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
            request.excerpt,
            room=request.room(map(_asked, facts)),
        )
        queries = [_query(fact, span) for fact, span in zip(facts, layout.spans, strict=True)]
        request.chance("turns").shuffle(queries)
        return request.sample(layout.context, queries, system="")


def _asked(fact: Fact) -> str:
    return fact.question.strip()


def _query(fact: Fact, span: Span) -> Query:
    return Query(_asked(fact), fact.sentence, (fact.answer,), max_new_tokens=_NEW_TOKENS, evidence=(span,))
