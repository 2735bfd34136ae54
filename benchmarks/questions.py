"""Questions that the words of an answer are fitted to and judged on: half of each has no answer in its text.

    fit     Natural Questions and HotpotQA (half of each, by the question's digest), facts planted in generated prose
    test    the other halves, facts of other kinds planted in plays

A planted fact is asked for in the text's words and in others in turn; in every second pair the text has a look-alike:
the same said of another. `whole` questions ask for a summary or a list, and are neither right nor wrong. `TALK` is
what people say in a conversation about what was said, and not about the document: of each half its own.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from uncomp_cli.calibrate.observation import without_evidence
from uncomp_cli.evals.tasks import Task, choose_subtasks
from uncomp_cli.evals.tasks.facts import ADJECTIVES, CITIES, FIRST_NAMES, MONTHS, NOUNS, OBJECTS, OCCUPATIONS, surname
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack
from uncomp_cli.evals.tasks.quiz import DEPTHS
from uncomp_cli.evals.tasks.task import Query, Request, Sample, border_at, random_borders

Words = Callable[[random.Random], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is said of `who`, the value that is asked for, and the question in the text's words and in others."""

    said: str
    who: Words
    value: Words
    asked: tuple[str, str]


def _name(chance: random.Random) -> str:
    return f"{chance.choice(FIRST_NAMES)} {surname(chance)}"


def _house(*kinds: str) -> Words:
    return lambda chance: f"{chance.choice(CITIES)} {chance.choice(kinds)}"


def _number(low: int, high: int) -> Words:
    return lambda chance: f"{chance.randrange(low, high):,}"


def _date(chance: random.Random) -> str:
    return f"{chance.randrange(1, 29)} {chance.choice(MONTHS)} {chance.randrange(1760, 1990)}"


def _day(chance: random.Random) -> str:
    return f"{chance.randrange(1, 29)} {chance.choice(MONTHS)}"


def _time(chance: random.Random) -> str:
    return f"{chance.randrange(6, 23)}:{chance.randrange(10, 60)}"


def _phrase(chance: random.Random) -> str:
    return f"{chance.choice(ADJECTIVES)} {chance.choice(NOUNS)}"


def _one_of(words: Sequence[str]) -> Words:
    return lambda chance: chance.choice(words)


_SCHOOL, _WORKS, _CLUB = (
    _house("academy", "lyceum"),
    _house("ironworks", "sawmill"),
    _house("rowing club", "chess club"),
)
FIT = (
    Kind("The {who} was founded by {value}.", _SCHOOL, _name, ("Who founded the {who}?", "Whose idea was the {who}?")),
    Kind("{who} was born on {value}.", _name, _date, ("When was {who} born?", "What is the birthday of {who}?")),
    Kind(
        "The ferry to {who} departs from pier {value}.",
        _one_of(CITIES),
        _number(3, 90),
        ("From which pier does the ferry to {who} depart?", "Where do I board the boat to {who}?"),
    ),
    Kind(
        "The {who} spends {value} crowns a year.",
        _WORKS,
        _number(20_000, 900_000),
        ("How many crowns does the {who} spend a year?", "What is the yearly budget of the {who}?"),
    ),
    Kind(
        "{who} is employed as a {value}.",
        _name,
        _one_of(OCCUPATIONS),
        ("As what is {who} employed?", "What is the job of {who}?"),
    ),
    Kind(
        "The {who} stands in {value} Street.",
        _SCHOOL,
        surname,
        ("In which street does the {who} stand?", "What is the address of the {who}?"),
    ),
    Kind(
        "The slogan of the {who} is: {value}.",
        _CLUB,
        _phrase,
        ("What is the slogan of the {who}?", "With which words does the {who} advertise?"),
    ),
    Kind(
        "The {who} disappeared in {value}.",
        _phrase,
        _one_of(CITIES),
        ("Where did the {who} disappear?", "In which town did the {who} get lost?"),
    ),
    Kind(
        "{who} is married to {value}.",
        _name,
        _name,
        ("To whom is {who} married?", "What is the name of the spouse of {who}?"),
    ),
    Kind(
        "The assembly of the {who} begins at {value}.",
        _CLUB,
        _time,
        ("When does the assembly of the {who} begin?", "At what time do the members of the {who} come together?"),
    ),
    Kind(
        "The key of the {who} hangs behind the {value}.",
        lambda chance: f"{chance.choice(NOUNS)} room",
        _one_of(OBJECTS),
        ("Where does the key of the {who} hang?", "How do I unlock the {who}?"),
    ),
    Kind(
        "The crew of the {who} consists of {value} persons.",
        lambda chance: f"schooner {chance.choice(FIRST_NAMES)}",
        _number(11, 99),
        ("Of how many persons does the crew of the {who} consist?", "How many people sail on the {who}?"),
    ),
)
_PLACE = _house("aquarium", "ballroom", "brewery", "cinema", "circus", "clinic", "hotel", "pharmacy", "zoo")
TEST = (
    Kind(
        "The {who} opened on {value}.",
        _PLACE,
        _date,
        ("When did the {who} open?", "Since when can one visit the {who}?"),
    ),
    Kind("The {who} is run by {value}.", _PLACE, _name, ("Who runs the {who}?", "Who is in charge of the {who}?")),
    Kind(
        "The motto of the {who} is: {value}.",
        _PLACE,
        _phrase,
        ("What is the motto of the {who}?", "Which two words does the {who} live by?"),
    ),
    Kind(
        "The account of the {who} is {value}.",
        _PLACE,
        _number(100_000, 999_999),
        ("What is the account of the {who}?", "Under which number does the {who} bank?"),
    ),
    Kind(
        "{who} plays the {value}.",
        _name,
        _one_of(OBJECTS),
        ("What does {who} play?", "What instrument did {who} learn?"),
    ),
    Kind(
        "The carnival of {who} is held on {value}.",
        _one_of(CITIES),
        _day,
        ("When is the carnival of {who} held?", "On which day do people celebrate in {who}?"),
    ),
)
WHOLE = (
    "Summarise the document.",
    "What is this document about?",
    "Give a short summary.",
    "List all persons who are named in the document.",
    "List all the places that the text mentions.",
    "What are the main points?",
    "Write an abstract of this text in three sentences.",
    "Which numbers occur in the document? List them all.",
)
TALK = {
    "fit": (
        "Thank you.",
        "Say it shorter.",
        "Are you sure?",
        "And in French?",
        "Can you explain that in simple words?",
        "What do you mean by that?",
        "Could you rephrase your last answer?",
        "Why do you think so?",
        "That's not what I asked.",
        "Give me an example.",
        "Please repeat that.",
        "Go on.",
        "Tell me more.",
        "Is that everything?",
        "Translate it into German.",
        "OK, great.",
        "How do you know?",
        "Where did you read that?",
        "Put it in one sentence.",
        "I don't understand.",
        "Can you be more specific?",
        "Make a table of it.",
        "What was my first question?",
        "Try again.",
        "You already said that.",
        "And what else?",
        "Quote the sentence, please.",
        "That was helpful, thanks a lot!",
        "Which line is that from?",
        "Can I ask you something else?",
    ),
    "test": (
        "Thanks, that's perfect.",
        "Shorter, please.",
        "Is that really true?",
        "Now in Spanish.",
        "Explain it like I'm five.",
        "What does that mean?",
        "Can you say that in other words?",
        "What makes you think that?",
        "You misunderstood my question.",
        "For example?",
        "Sorry, once again?",
        "Continue.",
        "Could you elaborate on that?",
        "Anything else?",
        "Can you translate your answer to Italian?",
        "Good morning!",
        "How certain are you?",
        "Which page is it on?",
        "Write it as bullet points.",
        "That doesn't make sense to me.",
        "Give me more details.",
        "Answer with yes or no.",
        "What did you say before?",
        "That's wrong, check again.",
        "You are contradicting yourself.",
        "What about the rest?",
        "Show me the exact words.",
        "Never mind, forget it.",
        "Who are you?",
        "Let's talk about something else.",
    ),
}


def _says(context: str, query: Query) -> bool:
    return any(answer.casefold() in context.casefold() for answer in query.accepted)


@dataclass(frozen=True, slots=True)
class Half:
    """What is asked of one half: kinds of facts, the task of Natural Questions, and of others' tasks from which on."""

    name: str
    planted: tuple[Kind, ...]
    natural: str
    seed: int
    first: int = 0

    def has(self, question: str) -> bool:
        """Whether a question of a task that has no halves of its own is of this one."""
        return bool(hashlib.sha256(question.encode()).digest()[0] % 2) == (self.name == "test")


HALVES = {
    "fit": Half("fit", FIT, "nq/development", 20_261_130),
    "test": Half("test", TEST, "nq/test", 20_261_201, first=16),  # what comes before was asked for an earlier report
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples of one half come from."""

    half: Half
    outside: Sequence[Task]
    haystack: Haystack
    count_tokens: CountTokens

    def samples(self, lengths: Sequence[int], *, natural: int, hotpot: int, planted: int) -> Iterator[Sample]:
        """So many of each in turn, four of a length; of every second what it asks for is not in the text."""
        found = self._of_each(lengths, natural, hotpot, planted)
        while any(found):
            yield from [each.pop(0) for each in found if each]

    def shared(self, lengths: Sequence[int], *, natural: int, hotpot: int, planted: int) -> Iterator[Sample]:
        """The same, four samples one behind the other in one text, which is asked all four questions."""
        for each in self._of_each(lengths, natural, hotpot, planted):
            for at in range(0, len(each) - 3, 4):
                four = each[at : at + 4]
                context = SEPARATOR.join(sample.context for sample in four)
                asked = [sample.queries[0] for sample in four]
                there = [one for one in asked if one.evidence or not _says(context, one)]
                yield replace(four[0], context=context, queries=tuple(there), system="")

    def _of_each(self, lengths: Sequence[int], natural: int, hotpot: int, planted: int) -> list[list[Sample]]:
        return [
            list(self._outside(self.half.natural, natural, lengths)),
            list(self._outside("hotpot/test", hotpot, lengths)),
            [self._planted(number, lengths[number // 4 % len(lengths)]) for number in range(planted)],
        ]

    def talk(self, lengths: Sequence[int], count: int) -> Iterator[Sample]:
        """What is said in a conversation, all of it about each of `count` texts of the same kinds."""
        said = tuple(Query(words, " ", ("\0",), max_new_tokens=48) for words in TALK[self.half.name])
        given = self.samples(lengths, natural=count, hotpot=0, planted=count)
        for _, sample in zip(range(count), given, strict=False):
            yield replace(sample, subtask=f"talk/{sample.task}", queries=said, system="")

    def wholes(self, lengths: Sequence[int], count: int) -> Iterator[Sample]:
        """Questions for a summary or a list of texts of the same kinds."""
        given = self.samples(lengths, natural=count, hotpot=0, planted=count)
        for number, sample in zip(range(count), given, strict=False):
            query = Query(WHOLE[number % len(WHOLE)], " ", ("\0",), max_new_tokens=48)
            yield replace(sample, subtask=f"whole/{sample.task}", queries=(query,), system="")

    def _outside(self, subtask: str, count: int, lengths: Sequence[int]) -> Iterator[Sample]:
        ((task, _),) = choose_subtasks([subtask], self.outside)
        index, made = self.half.first, 0
        while made < count:
            tokens = lengths[made // 4 % len(lengths)]
            request = Request(subtask, index, tokens, self.haystack, self.count_tokens, self.half.seed)
            sample, index = task.sample(request), index + 1
            if sample.queries[0].evidence and (task.name != "hotpot" or self.half.has(sample.queries[0].question)):
                sample = replace(sample, queries=sample.queries[:1])
                yield without_evidence(sample) if made % 2 else sample
                made += 1

    def _planted(self, number: int, tokens: int) -> Sample:
        """Kinds in turn; of four of a kind the second and fourth lack the fact, the latter two are in other words."""
        kind = self.half.planted[number // 2 % len(self.half.planted)]
        turn = number // 2 // len(self.half.planted)
        request = Request("planted", number, tokens, self.haystack, self.count_tokens, self.half.seed)
        chance = request.chance()
        who, other, value = kind.who(chance), kind.who(chance), kind.value(chance)
        facts = [kind.said.format(who=who, value=value)]
        if (turn + number // 2) // 2 % 2:
            facts.append(kind.said.format(who=other, value=kind.value(chance)))
        question = kind.asked[(turn + number // 2) % 2].format(who=who)
        query = Query(question, f" {value}", (value,), max_new_tokens=48)

        def places(pieces: list[str]) -> list[int]:
            if len(facts) == 1:
                return [border_at(DEPTHS[number // 2 % 5], pieces, count_tokens=self.count_tokens)]
            return random_borders(request.chance("places"), len(facts), len(pieces))

        room = request.room((question,)) - 64
        layout = request.lay_out(facts, places, request.excerpt, room=room)
        sample = request.sample(layout.context, [replace(query, evidence=layout.spans[:1])], system="")
        return without_evidence(sample) if number % 2 else sample
