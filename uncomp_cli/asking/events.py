"""What happens on the road from questions to answers, as frozen records; who takes the road decides what is shown.

    Planned → Progress… → Began → Piece… → Done        a text is read, then each question about it has its turn
    Working · Pace · Noted · Warned · Refused          come where they happen; Stopped, after Ctrl-C, is the last

Answers come in the order of the questions, one whole answer after another, however many are written side by side.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from uncomp_cli.errors import failure_of
from uncomp_cli.steps import Progress, Working

if TYPE_CHECKING:
    from uncomp_cli.asking.account import Spent
    from uncomp_cli.asking.doubts import Risk, Try
    from uncomp_cli.asking.readout import About
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.places import Evidence
    from uncomp_cli.engine.records import RunStats
    from uncomp_cli.errors import DoesNotFitError, ThresholdError

T = TypeVar("T")
_OPENED, _CLOSED = "<think>", "</think>"
_TAIL_TOKENS = 8


def thinks_behind(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether the template has begun the thoughts already, at the end of a prompt of these tokens."""
    return bool(str(tokenizer.decode(list(ids[-_TAIL_TOKENS:]))).rstrip().endswith(_OPENED))


@dataclass(frozen=True, slots=True)
class Noted:
    """A remark, which who wants it quiet leaves out."""

    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """What changes the meaning of an answer, and must not go unsaid; `more` are the lines of it for who wants all."""

    text: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the answers are that are being written, `rows` side by side."""

    tokens: int
    elapsed_s: float
    kv_bytes: int
    rows: int = 1
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be kept of a text, before it is read; `lines` say that, how it is read, and what is pinned.

    A plan of a policy that measures live is final once the text has been read.
    """

    preset: "Preset"
    plan: "BudgetPlan"
    lines: tuple[str, ...] = ()
    chunk_tokens: int | None = None
    reread_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What asking would take, of a text that is not read: the JSON object, and why it would be refused, if so."""

    record: dict[str, Any]
    refusal: "DoesNotFitError | None" = None


@dataclass(frozen=True, slots=True)
class Turn:
    """Which question, by its number from 0, of how many; `document` is its path where each is asked by itself."""

    question: str
    number: int = 0
    count: int = 1
    document: str | None = None

    @property
    def titles(self) -> list[str]:
        """What tells it from the others."""
        numbered = f"question {self.number + 1} of {self.count}"
        return [*([] if self.document is None else [self.document]), *([numbered] if self.count > 1 else [])]


@dataclass(frozen=True, slots=True)
class Began:
    """The answer to a question has its turn."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next of the answer whose turn it is; an escalated answer is one piece, when it is final."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """What comes next of what a model thinks before it answers; it is no part of the answer."""

    text: str


class Spoken:
    """Tells thoughts from what is said: a model that thinks begins with <think>, or behind one, and ends with </think>.

    What may become a mark is held back until it is known. Marks elsewhere are text.
    """

    def __init__(self, *, thinks: bool = False) -> None:
        self._held, self._state = "", "thinks" if thinks else "begins"

    def push(self, text: str) -> Iterator[Piece | Thought]:
        """What is known with this text."""
        self._held += text
        if self._state == "begins":
            begun = self._held.lstrip()
            if _OPENED.startswith(begun):
                return
            self._state = "thinks" if begun.startswith(_OPENED) else "says"
            self._held = begun.removeprefix(_OPENED) if self._state == "thinks" else self._held
        if self._state == "thinks":
            thought, closed, rest = self._held.partition(_CLOSED)
            sure = len(thought) if closed else len(thought) - _begun(thought, _CLOSED)
            if sure or closed:
                yield Thought(thought[:sure] + ("\n" if closed else ""))
            self._state = "ends" if closed else "thinks"
            self._held = rest if closed else thought[sure:]
        if self._state == "ends":  # blank lines behind the thoughts
            self._held = self._held.lstrip()
            self._state = "says" if self._held else "ends"
        if self._state == "says" and self._held:
            yield Piece(self._held)
            self._held = ""

    def rest(self) -> Iterator[Piece | Thought]:
        """What was held back, at the end."""
        if self._held:
            yield Thought(f"{self._held}\n") if self._state == "thinks" else Piece(self._held)
        self._held = ""


def _begun(text: str, mark: str) -> int:
    """How many last letters of `text` may begin the mark."""
    return next((count for count in range(len(mark) - 1, 0, -1) if text.endswith(mark[:count])), 0)


@dataclass(frozen=True, slots=True)
class Done:
    """An answer that is complete, or was stopped, and all that is to be said of it.

    `ids` are its tokens, the one that ends it among them; `context_limit` is what prompt and answer may have. `doubts`
    are warnings, `tries` what escalation tried, `short` why it is not known to be as likely right as --fail-under wants
    it. `is_last`: of those about its text. `all_kept`: nothing of the text was dropped.
    """

    turn: Turn
    text: str
    ids: tuple[int, ...]
    stats: "RunStats"
    preset: "Preset"
    risk: "Risk"
    context_limit: int
    doubts: tuple[str, ...] = ()
    evidence: "tuple[Evidence, ...]" = ()
    tries: "tuple[Try, ...] | None" = None
    spent: "Spent | None" = None
    short: "ThresholdError | None" = None
    about: "About | None" = None
    is_last: bool = True
    all_kept: bool = False

    @property
    def ending(self) -> str | None:
        """Why the answer ended where it did not end by itself, or that there is none."""
        from uncomp_cli.asking.readout import ending

        if self.stats.finish_reason == "stop" and not self.text.strip():
            return "the model ended its answer without a word; another question, or a larger --budget, may help"
        return ending(self.stats, self.context_limit)

    def readout(self, *, verbose: bool = False) -> str:
        """What it took, in a line; `verbose`: all of it."""
        from uncomp_cli.asking.readout import details, loss_text, readout

        if verbose:
            held = "" if self.about is None else loss_text(self.about.loaded)
            return details(self.stats, self.risk, whole=self.all_kept, context_limit=self.context_limit) + held
        return readout(self.stats, self.risk, whole=self.all_kept)

    def record(self) -> dict[str, Any]:
        """The JSON object of the answer, which --json writes. Raises ValueError where nothing is known of its text."""
        from uncomp_cli.asking.readout import answer_record

        if self.about is None:
            raise ValueError("how the text was read is not known")
        return answer_record(
            self.about,
            self.preset,
            self.stats,
            question=self.turn.question,
            answer=self.text,
            doubts=self.doubts,
            evidence=self.evidence,
            tries=self.tries,
            spent=self.spent,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """Something went wrong, and what is beside it goes on; `turns` are the questions that have no answer for it."""

    error: Exception
    title: str = ""
    turns: Sequence[Turn] = ()

    @classmethod
    def of(cls, turn: Turn, error: Exception) -> Self:
        """A question that has no answer."""
        return cls(error, ": ".join(turn.titles), (turn,))

    def records(self) -> list[dict[str, Any]]:
        """The JSON objects of the questions that have no answer."""
        from uncomp_cli.asking.readout import failure_record

        failure = failure_of(self.error)
        return [failure_record(turn.question, failure, path=turn.document) for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Ctrl-C was pressed: what was said stays, and nothing follows."""


Event = (
    Noted | Warned | Working | Progress | Pace | Planned | Foreseen | Began | Piece | Thought | Done | Refused | Stopped
)


def drained(events: Generator[Event, None, T], notes: list[str]) -> T:
    """What a generator of events returns; what they say is added to `notes`."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(event, (Noted, Warned)):
            notes.append(event.text)
        elif isinstance(event, Planned):
            notes += event.lines
