"""A conversation about one text: five facts in it, five turns in the model's chat format, every answer kept.

The questions come one after another and in another order than the facts stand, so that the text is compressed before
any of them is known, and the fifth is asked of what four answers have left. They open their answers, as in plain text:
the default model hardly tells five facts apart otherwise, with nothing evicted at all. `facts` is the session as it is;
in `unaided`, which has the same samples, it reads nothing again that was evicted. For the agnostic regime alone.
"""

from typing import ClassVar

from uncomp_cli.evals.tasks.facts import Fact, five_facts
from uncomp_cli.evals.tasks.haystack import CountTokens, Haystack
from uncomp_cli.evals.tasks.request import Request, random_borders
from uncomp_cli.evals.tasks.sample import JudgeName, Query, Regime, Sample, Span

__all__ = ["UNAIDED", "Conversation"]

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
