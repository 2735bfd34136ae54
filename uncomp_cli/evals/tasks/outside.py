"""Tasks from records that others made: questions that people asked, with the right answers, and often their passage.

A file's form is known by the keys of its records, whatever the file is called; `FORMS` has them all. A form makes items
of its records; an item has what must stand in the context and what may, and a request says how long it is to be:

    Among       passages between others, as many as the length holds: nq, kv, hotpot
    Excerpt     the lines that are needed and as many around them as the length holds: leval, qmsum, qa

All are asked in the model's chat format. Scores are the benchmarks' own (judges/answers.py): accepted strings found and
token F1 (Natural Questions, HotpotQA, L-Eval; in the place of ROUGE for QMSum), the likeliest choice (L-Eval's exams).
Of `nq` one half, told apart by the question's digest, is there to choose by (`nq/development`), the other to report.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uncomp_cli.documents.text import NO_WISHES, Wishes
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks import BOTH, Task
from uncomp_cli.evals.tasks.benchmarks import Records, read_records, record_files
from uncomp_cli.evals.tasks.haystack import SEPARATOR
from uncomp_cli.evals.tasks.quiz import DEPTHS
from uncomp_cli.evals.tasks.task import JudgeName, Query, Regime, Request, Sample, Span, border_at, fill, random_borders
from uncomp_cli.schema import inside, text, value_of

_BRIEFLY = "Answer in as few words as possible."
_LETTER = "Answer with the letter of the right choice alone."
_SHORT_ANSWER, _LONG_ANSWER = 48, 96  # tokens
_MOST_QUESTIONS = 6
_TEMPLATE_TOKENS = 64  # room for the chat format


@dataclass(frozen=True, slots=True)
class Among:
    """`facts` stand between as many `others` as fit, at the share `depth` of them (None: each at its own place)."""

    facts: tuple[str, ...]
    others: Callable[[random.Random], Iterator[str]]
    depth: float | None = None

    @property
    def least(self) -> str:
        """What has to have room."""
        return SEPARATOR.join(self.facts)

    def lay(self, request: Request, room: int) -> tuple[str, tuple[Span, ...], float | None]:
        """A context of `room` tokens, the range of each fact in it, and the share of it before a single one."""
        order = request.chance("order").sample(range(len(self.facts)), len(self.facts))
        depth = DEPTHS[request.index % len(DEPTHS)] if self.depth is None else self.depth

        def places(pieces: list[str]) -> list[int]:
            if len(order) == 1:
                return [border_at(depth, pieces, count_tokens=request.count_tokens)]
            return random_borders(request.chance("places"), len(order), len(pieces))

        def filler(tokens: int) -> list[str]:
            return fill(self.others(request.chance("others")), tokens, count_tokens=request.count_tokens)

        layout = request.lay_out([self.facts[fact] for fact in order], places, filler, room=room)
        spans = dict(zip(order, layout.spans, strict=True))
        return layout.context, tuple(spans[fact] for fact in sorted(order)), depth if len(order) == 1 else None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """`lines` of a text with those of `needed`, and as many before and after them as fit."""

    lines: Sequence[str]
    needed: range

    @property
    def least(self) -> str:
        """What has to have room."""
        return "\n".join(self.lines[self.needed.start : self.needed.stop])

    def lay(self, request: Request, room: int) -> tuple[str, tuple[Span, ...], float | None]:
        """A context of at most `room` tokens, and the range of the needed lines in it."""
        costs = [request.count_tokens(line + "\n") for line in self.lines]
        begin, end = self._around(costs, room)
        before = sum(len(line) + 1 for line in self.lines[begin : self.needed.start])
        return "\n".join(self.lines[begin:end]), ((before, before + len(self.least)),), None

    def _around(self, costs: Sequence[int], room: int) -> tuple[int, int]:
        """The lines that are taken: the whole text where it fits, else from its beginning if that holds the needed."""
        begin, end = self.needed.start, self.needed.stop
        left = room - sum(costs[begin:end])
        if sum(costs[:end]) <= room:
            begin, left = 0, room - sum(costs[:end])
        while (fits_before := begin > 0 and costs[begin - 1] <= left / 2) or (end < len(costs) and costs[end] <= left):
            begin, end = (begin - 1, end) if fits_before else (begin, end + 1)
            left -= costs[begin] if fits_before else costs[end - 1]
        return begin, end


@dataclass(frozen=True, slots=True)
class Item:
    """What is asked of one context. `marks[q]` are the ranges of query q's evidence, each within a fact: (fact, range).

    Of an `excerpt` that is cut only those queries are asked whose answers are left.
    """

    queries: tuple[Query, ...]
    body: Among | Excerpt
    marks: tuple[tuple[tuple[int, Span], ...], ...] = ()
    cut: bool = False

    def fits(self, request: Request) -> bool:
        """Whether what has to stand in the context has room at the length that is asked for."""
        return request.count_tokens(self.body.least) <= self._room(request)

    def make(self, request: Request) -> Sample:
        """The sample of the length that is asked for."""
        context, facts, depth = self.body.lay(request, self._room(request))
        queries = [
            replace(query, evidence=tuple(sorted(_within(facts[fact], span) for fact, span in marks)))
            for query, marks in zip(self.queries, self.marks or ((),) * len(self.queries), strict=True)
            if not self.cut or _holds(context, query.accepted)
        ]
        return request.sample(context, queries[:_MOST_QUESTIONS], depth=depth, system="")

    def _room(self, request: Request) -> int:
        return request.room(query.question for query in self.queries) - _TEMPLATE_TOKENS


def _within(fact: Span, span: Span) -> Span:
    return fact[0] + span[0], fact[0] + span[1]


def _holds(text: str, answers: Sequence[str]) -> bool:
    return any(answer.lower() in text.lower() for answer in answers)


@dataclass(frozen=True, slots=True)
class Form:
    """One form of records, told by its `keys`; `parts` makes the items of each subtask.

    Several questions of one context are asked of a context that saw none of them. `cited`: the evidence can be judged.
    """

    name: str
    keys: frozenset[str]
    regimes: tuple[Regime, ...]
    cited: bool
    parts: "Parts"


class _Supply:
    """The items of one file by subtask, and which of them have room at a length."""

    def __init__(self, form: Form, records: Records) -> None:
        self._items = {name: items for name, items in form.parts(records).items() if items}
        self._form = form
        self._fitting: dict[tuple[str, int], list[Item]] = {}

    def task(self, name: str, judge: JudgeName) -> Task:
        """The task of that name over the items."""
        subtasks = tuple(f"{name}/{part}" for part in self._items)
        return Task(name, subtasks, self._form.regimes, judge, self._sample, lambda request: len(self._fit(request)))

    def _fit(self, request: Request) -> list[Item]:
        part = request.subtask.partition("/")[2]
        key = part, request.tokens
        if key not in self._fitting:
            self._fitting[key] = [item for item in self._items[part] if item.fits(request)]
        return self._fitting[key]

    def _sample(self, request: Request) -> Sample:
        fitting = self._fit(request)
        if request.index >= len(fitting):
            message = f"{request.subtask} has {len(fitting):,} samples that fit into {request.tokens:,} tokens"
            raise UsageError(message, hint="use more --tokens, or fewer --samples")
        return fitting[request.index].make(request)


def outside_tasks(paths: Sequence[Path], wishes: Wishes = NO_WISHES) -> tuple[list[Task], dict[str, str], list[str]]:
    """The tasks of the files named and of the directories', the digest of each form's file, and what is of no form.

    Raises UsageError where there is none at all, DocumentError for a broken file.
    """
    tasks: dict[str, Task] = {}
    digests: dict[str, str] = {}
    unknown = []
    for path in (found for named in paths for found in record_files(named)):
        records = replace(read_records(path), wishes=wishes)
        form = _form_of(records)
        if form is None:
            unknown.append(f"'{path}' has records of no form that is known")
            continue
        supply = _Supply(form, records)
        found = [supply.task(form.name, "answers"), *([supply.task(f"{form.name}-cited", "evidence")] * form.cited)]
        tasks |= {subtask: task for task in found for subtask in task.subtasks}
        digests[path.name] = records.sha256
    if not tasks:
        forms = "; ".join(f"{form.name}: {', '.join(sorted(form.keys))}" for form in FORMS)
        reason = unknown[0] if unknown else "there are no files of JSON lines"
        raise UsageError(f"no tasks: {reason}", hint=f"write {_OWN}; others are known by their keys: {forms}")
    return list({id(task): task for task in tasks.values()}.values()), digests, unknown


def _form_of(records: Records) -> Form | None:
    keys = records.objects[0].keys() if records.objects else frozenset[str]()
    return next((form for form in FORMS if form.keys <= keys), None)


_OWN = '{"question": "Who signed?", "answers": ["Ada"], "path": "report.pdf"}'
"""A record of one's own, as --qa takes it; the path begins where the file is."""

Parts = Callable[[Records], Mapping[str, list[Item]]]
"""Items by subtask; raises UsageError where a record has not what its form has."""


def _items_of(records: Records, make: Callable[[dict[str, Any]], Iterator[Item]]) -> list[Item]:
    """The items of all records; one that has not what the form has is named by its number."""
    items: list[Item] = []
    for number, record in enumerate(records.objects, 1):
        try:
            with inside(f"record {number:,} of '{records.path}'"):
                items += make(record)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
            lack = (
                f"no {error}"
                if isinstance(error, KeyError)
                else f"not what its form has: {type(error).__name__} {error}"
            )
            message = f"record {number:,} of '{records.path}' has {lack}"
            raise UsageError(message, hint=f"take it out, or write it as {_OWN}") from error
    return items


def _asked(question: str, answers: Sequence[str], *, how: str = _BRIEFLY, tokens: int = _SHORT_ANSWER) -> Query:
    """A question that any of `answers` is right for; the first one's likelihood is judged."""
    wanted = tuple(answer.strip() for answer in answers if answer.strip())
    if not wanted or not question.strip():
        raise ValueError("without question or answer")
    asked = question.strip()
    return Query(asked, wanted[0], wanted, need="any", max_new_tokens=tokens, whole=True, instruction=how)


def _titled(title: str, body: str) -> str:
    return f"# {' '.join(title.split())}\n{' '.join(body.split())}"


def _natural_questions(records: Records) -> Mapping[str, list[Item]]:
    """Questions that people asked a search engine, each with its passage; others' passages stand around it.

    Lost in the Middle (arXiv 2307.03172): the passage's place is known, what stands around it holds no answer.
    """
    passages: list[str] = []
    halves: dict[str, list[Item]] = {"development": [], "test": []}

    def items(record: dict[str, Any]) -> Iterator[Item]:
        gold, query = _gold(record), _asked(record["question"], record["answers"])
        passages.append(gold)

        def others(chance: random.Random) -> Iterator[str]:
            shuffled = chance.sample(passages, len(passages))
            return (one for one in shuffled if one != gold and not _holds(one, query.accepted))

        item = Item((query,), Among((gold,), others), (((0, (gold.index("\n") + 1, len(gold))),),))
        halves["test" if hashlib.sha256(query.question.encode()).digest()[0] % 2 else "development"].append(item)
        yield item

    _items_of(records, items)
    return halves


def _gold(record: dict[str, Any]) -> str:
    found = next(passage for passage in record["ctxs"] if passage.get("isgold"))
    return _titled(found["title"], found["text"])


def _key_values(records: Records) -> Mapping[str, list[Item]]:
    """Pairs of UUIDs, one of them asked for, at its place among as many others as fit (arXiv 2307.03172)."""

    def items(record: dict[str, Any]) -> Iterator[Item]:
        pairs = [(str(key), str(value)) for key, value in record["ordered_kv_records"]]
        place = [key for key, _ in pairs].index(record["key"])
        pair, *others = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in [pairs.pop(place), *pairs]]
        question = f"What is the value of the key {json.dumps(record['key'])}?"
        how = "Answer with the value alone."  # most say the key again first
        query = _asked(question, [record["value"]], how=how, tokens=_LONG_ANSWER)
        body = Among((pair,), lambda _: iter(others), place / max(1, len(others)))
        yield Item((query,), body, (((0, (0, len(pair))),),))

    return {"test": _items_of(records, items)}


def _hotpot(records: Records) -> Mapping[str, list[Item]]:
    """Questions that need two paragraphs, with the sentences that support the answer (arXiv 1809.09600).

    Where a record's own distractors are too few for the length, those of other records follow.
    """
    everyones: list[str] = []

    def items(record: dict[str, Any]) -> Iterator[Item]:
        own = [_sentences(title, sentences)[0] for title, sentences, *_ in record["distractors"]]
        everyones.extend(own)
        (first, first_spans), (second, second_spans) = (
            _sentences(record[f"title_{side}"], record[f"para_{side}"]) for side in "ab"
        )

        def others(chance: random.Random) -> Iterator[str]:
            shuffled = [*chance.sample(own, len(own)), *chance.sample(everyones, len(everyones))]
            return (one for one in dict.fromkeys(shuffled) if one not in (first, second))

        named = zip((first_spans, second_spans), record["supporting_facts"], strict=True)
        marks = tuple((fact, spans[number]) for fact, (spans, numbers) in enumerate(named) for number in numbers)
        yield Item((_asked(record["question"], [record["answer"]]),), Among((first, second), others), (marks,))

    return {"test": _items_of(records, items)}


def _sentences(title: str, sentences: Sequence[str]) -> tuple[str, list[Span]]:
    """A paragraph below its title, and where each sentence stands in it."""
    written, spans = _titled(title, ""), []
    for sentence in sentences:
        clean = " ".join(sentence.split())
        spans.append((len(written), len(written) + len(clean)))
        written += f"{clean} "
    return written.rstrip(), spans


_BLOCK_TAG = re.compile(r" (?=<(?:P|H\d|Table|Tr|Ul|Ol|Dl|Li)[ >_])")


def _l_eval(records: Records) -> Mapping[str, list[Item]]:
    """Long pages with several questions each, and lectures with choices (L-Eval, arXiv 2307.11088).

    A page that is too long is cut to what stands around the first answer; a lecture is read whole or not at all.
    """
    pages = _items_of(records, lambda record: iter(()) if record.get("evaluation") == "exam" else _page(record))
    lectures = _items_of(records, lambda record: _lecture(record) if record.get("evaluation") == "exam" else iter(()))
    return {"pages": pages, "lectures": lectures}


def _page(record: dict[str, Any]) -> Iterator[Item]:
    lines = _BLOCK_TAG.sub("\n", record["input"]).split("\n")
    pairs = zip(record["instructions"], record["outputs"], strict=True)
    asked = [_asked(question, [answer.replace("``", "").replace("''", "")]) for question, answer in pairs]
    places = [next((place for place, line in enumerate(lines) if _holds(line, one.accepted)), None) for one in asked]
    known = [place for place in places if place is not None]
    if known:
        yield Item(tuple(asked), Excerpt(lines, range(known[0], known[0] + 1)), cut=True)


def _lecture(record: dict[str, Any]) -> Iterator[Item]:
    lines = [line for line in re.split(r"(?<=[.?!]) ", record["input"]) if line]
    queries = tuple(map(_choice, record["instructions"], record["outputs"]))
    for first in range(0, len(queries), _MOST_QUESTIONS):
        yield Item(queries[first : first + _MOST_QUESTIONS], Excerpt(lines, range(len(lines))))


def _choice(question: str, answer: str) -> Query:
    letters = tuple(re.findall(r"^([A-Z])[.)] ", question, re.MULTILINE))
    letter = answer.strip()[:1]
    if letter not in letters:
        raise ValueError(f"the answer {answer!r} is none of its choices")
    return replace(_asked(question, [letter], how=_LETTER), max_new_tokens=4, choices=letters, whole=False)


def _meetings(records: Records) -> Mapping[str, list[Item]]:
    """Questions about meetings, with the turns that hold what is asked for (QMSum, arXiv 2104.05938).

    Those whose turns follow one another.
    """

    def items(record: dict[str, Any]) -> Iterator[Item]:
        turns = [f"{turn['speaker']}: {' '.join(turn['content'].split())}" for turn in record["meeting_transcripts"]]
        for asked in record["specific_query_list"]:
            (first, last), *more = [(int(first), int(last) + 1) for first, last in asked["relevant_text_span"]]
            if not more and 0 <= first < last <= len(turns):
                body = Excerpt(turns, range(first, last))
                query = _asked(asked["query"], [asked["answer"]], how="", tokens=_LONG_ANSWER)
                yield Item((query,), body, (((0, (0, len(body.least))),),))

    return {"test": _items_of(records, items)}


def _own_questions(records: Records) -> Mapping[str, list[Item]]:
    """A user's own: `question`, `answers`, and `document` (its text) or `path` (a file, from the records' folder on).

    Each file is read once.
    """
    texts: dict[str, str] = {}

    def items(record: dict[str, Any]) -> Iterator[Item]:
        answers = value_of(tuple[str, ...], record["answers"], "answers")
        if "document" in record:
            written = text(record["document"], "document")
        else:
            path = text(record["path"], "path")
            written = texts[path] = texts.get(path) or _document(records.path.parent / path, records.wishes)
        lines = written.split("\n")
        yield Item((_asked(text(record["question"], "question"), answers),), Excerpt(lines, range(len(lines))))

    return {"test": _items_of(records, items)}


def _document(path: Path, wishes: Wishes) -> str:
    from uncomp_cli.documents.collection import read_documents

    return "\n".join(document.text for document in read_documents([str(path)], stdin=None, wishes=wishes).documents)


def _form(name: str, keys: str, regimes: tuple[Regime, ...], cited: bool, parts: Parts) -> Form:
    return Form(name, frozenset(keys.split()), regimes, cited, parts)


FORMS = (
    _form("nq", "question answers ctxs", BOTH, True, _natural_questions),
    _form("kv", "ordered_kv_records key value", BOTH, False, _key_values),
    _form("hotpot", "para_a para_b supporting_facts distractors", BOTH, True, _hotpot),
    _form("leval", "instructions outputs input", ("agnostic",), False, _l_eval),
    _form("qmsum", "specific_query_list meeting_transcripts", BOTH, True, _meetings),
    _form("qa", "question answers", BOTH, False, _own_questions),
)
