"""Can a sample be solved at all? An oracle reads context and question as a careful person would, and must agree.

It uses patterns and counting alone, never the sample's own answers, so it also finds out when a user's text happens to
hold a second fact of the same wording. What it finds is compared with the accepted answers, in document order.
"""

import re
from collections import Counter
from collections.abc import Callable

from uncomp_cli.errors import UncompError
from uncomp_cli.evals.tasks.task import Query, Sample

Answers = tuple[str, ...]

_LAST_LIST = re.compile(r"numbered list of words[^\n]*\n([^\n]*)$")
_MOST_COMMON, _MOST_FREQUENT = 10, 3
_VALUE = r"(\w[\w:-]*)"


# A question's form, and that of the sentence that answers it, where `{}` is what the question names. The values follow
# in one form, so each sentence is found whatever value it has: a second one is a contradiction.
_PLAIN_FORMS = (
    (r"When did the ([\w ]+) open\?", r"The {} opened on ([\w ]+)\."),
    (r"Who runs the ([\w ]+)\?", r"The {} is run by ([\w ]+)\."),
    (r"What is (the motto of the [\w ]+)\?", r"(?i:{}) is ([\w, ]+)\."),
    (r"What is the ((?:[\w-]+ )+of the [\w -]+)\?", rf"The {{}} is {_VALUE}\."),
    (r"In which city does (?!the employer)([\w -]+) live\?", rf"\b{{}} lives in {_VALUE}\."),
    (r"What is the trade of ([\w -]+)\?", rf"\b{{}} is a {_VALUE} by trade\."),
    (r"What does ([\w -]+) own\?", rf"\b{{}} owns a {_VALUE}\."),
    (r"Who employs ([\w -]+)\?", r"The employer of {} is ([\w ]+)\."),
    (r"How does ([\w -]+) earn a living\?", rf"\b{{}} earns a living as a {_VALUE}\."),
    (r"When does the night train to (\w+) leave\?", rf"The night train to {{}} leaves at {_VALUE}\."),
    (r"Where is the spare (\w+) kept\?", rf"The spare {{}} is kept behind the {_VALUE}\."),
    (r"What is the telephone number of (\w+ Hall)\?", rf"The telephone number of {{}} is {_VALUE}\."),
)
_MAGIC_QUESTION = re.compile(r"the special magic (number|uuid)s? for (.+?) mentioned in the text\?")


def solve(sample: Sample) -> tuple[Answers, ...]:
    """For each query the answers that its context holds.

    What has no solver is taken as it is: text that is only continued, records that others made, tasks of packages.
    """
    solver = _SOLVERS.get(sample.subtask) or _SOLVERS.get(sample.task)
    return tuple(solver(sample, query.question) if solver else query.accepted for query in sample.queries)


def check_solvable(sample: Sample) -> None:
    """Raise UncompError when the oracle's answers, or the places of the evidence, are not those of the sample."""
    for number, (found, query) in enumerate(zip(solve(sample), sample.queries, strict=True)):
        if found != query.accepted:
            expected, got = (", ".join(answers) or "nothing" for answers in (query.accepted, found))
            raise _unsolvable(sample, f"question {number + 1} has the answer {expected}, its text says {got}")
        if sample.task in _CHECKED and not _is_evident(sample.context, query):
            raise _unsolvable(sample, f"the evidence of question {number + 1} does not hold its answer")


def _unsolvable(sample: Sample, reason: str) -> UncompError:
    return UncompError(
        f"{sample.subtask}, sample {sample.index} at {sample.tokens:,} tokens, cannot be solved: {reason}",
        hint="the text holds sentences like the planted ones: choose another --file or another --seed",
    )


def _is_evident(context: str, query: Query) -> bool:
    """The spans lie in the context, one after the other, hold every answer, and none is idle or cut."""
    if not query.evidence:
        return True
    ends = [0, *(end for _, end in query.evidence)]
    ordered = all(before <= begin < end for before, (begin, end) in zip(ends, query.evidence, strict=False))
    texts = [context[begin:end] for begin, end in query.evidence]
    held = all(any(answer in text for text in texts) for answer in query.accepted)
    needed = all(any(answer in text for answer in query.accepted) for text in texts)
    idle = len(texts) >= len(query.accepted) > 1 and not needed
    return ordered and ends[-1] <= len(context) and held and not idle


def _magic(sample: Sample, question: str) -> Answers:
    """Values of all the keys that a question names."""
    asked = _MAGIC_QUESTION.search(question)
    if not asked:
        return ()
    kind, keys = asked[1], re.split(r", and | and |, ", asked[2])
    named = "|".join(re.escape(key) for key in keys)
    pattern = rf"special magic {kind}s? for (?:{named}) (?:is|are) {_VALUE}"
    return tuple(re.findall(pattern, sample.context, re.IGNORECASE))


def _plain(sample: Sample, question: str) -> Answers:
    """What the sentences say that have the form of the question's answer."""
    for form, sentence in _PLAIN_FORMS:
        if asked := re.search(form, question):
            return tuple(re.findall(sentence.replace("{}", re.escape(asked[1])), sample.context))
    return ()


def _two_hops(sample: Sample, question: str) -> Answers:
    """The city of each works that employs the person."""
    asked = re.search(r"In which city does the employer of ([\w -]+) stand\?", question)
    if not asked:
        return ()
    employers = re.findall(rf"The employer of {re.escape(asked[1])} is ([\w ]+)\.", sample.context)
    cities = (re.findall(rf"\b{re.escape(name)} stands in {_VALUE}\.", sample.context) for name in employers)
    return tuple(city for found in cities for city in found)


def _trace(sample: Sample, question: str) -> Answers:
    """Follow every assignment from the value that is asked for, until no name is new."""
    value = re.search(r"assigned the value (\w+)", question)
    assignments = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", sample.context, re.MULTILINE)
    reached = {value[1]} if value else set()
    names: list[str] = []
    while new := [name for name, source in assignments if source in reached and name not in reached]:
        names += new
        reached.update(new)
    order = [name for name, _ in assignments]
    return tuple(sorted(names, key=order.index))


def _common_words(sample: Sample, question: str) -> Answers:
    """The words that come most often in the last list, in the order of their first place; () without a clear border."""
    listed = _LAST_LIST.search(sample.context)
    entries = re.findall(r"\d+\. ([\w-]+)", listed[1]) if listed else []
    return tuple(sorted(_most_common(entries, _MOST_COMMON), key=entries.index))


def _frequent_words(sample: Sample, question: str) -> Answers:
    """The three most frequent coined words, the most frequent first."""
    return _most_common(re.findall(r"\b[a-z]{6}\b", sample.context.partition("\n\n")[2]), _MOST_FREQUENT)


def _most_common(words: list[str], number: int) -> Answers:
    ranked = Counter(words).most_common(number + 1)
    if len(ranked) > number and ranked[number - 1][1] == ranked[number][1]:
        return ()
    return tuple(word for word, _ in ranked[:number])


def _opening_word(sample: Sample, question: str) -> Answers:
    """What the system prompt demands, whatever is asked."""
    return tuple(re.findall(r"Your name is ([\w-]+)\. Begin every answer with your name", sample.system or ""))


def _listed(sample: Sample, question: str) -> Answers:
    """The values of all sentences of the kind that a list is asked of."""
    form = r"The [\w ]+ opened in (\d{4})\." if "years" in question else r"The [\w ]+ is run by ([\w ]+)\."
    return tuple(re.findall(form, sample.context))


_SOLVERS: dict[str, Callable[[Sample, str], Answers]] = {
    "needle": _magic,
    "needle/chat": _plain,
    "needle/values": _plain,
    "ruler": _magic,
    "ruler/vt": _trace,
    "ruler/cwe": _common_words,
    "ruler/fwe": _frequent_words,
    "ruler/qa_1": _plain,
    "ruler/qa_2": _two_hops,
    "list": _listed,
    "evidence": _magic,
    "evidence/chat": _plain,
    "conversation": _plain,
    "multiquestion/facts": _plain,
    "multiquestion/instruction": _opening_word,
}
_CHECKED = {subtask.partition("/")[0] for subtask in _SOLVERS}
