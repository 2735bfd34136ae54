"""The Python face: a loaded model that documents are given to, as `uncomp_cli.load` returns it.

    engine = load("smollm2-135m")                        context = engine.read(docs, ["Who signed?"], preset)
    plan = engine.plan(docs, ["Who signed?"], preset)    answer = context.answer("Who signed?")
    for event in engine.ask(docs, questions): …          chat = engine.chat(preset)

All of it is the road of `uncomp ask` and `uncomp chat` (pipeline.py, subject.py, chat.py). A library prints nothing:
what these say on the way is in `notes`, or comes as events.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking import startup
from uncomp_cli.asking.chat import Chat
from uncomp_cli.asking.doubts import check_lengths
from uncomp_cli.asking.events import Done, Event, Turn, drained
from uncomp_cli.asking.material import prompt_lengths, resolve, written_down
from uncomp_cli.asking.pipeline import ask, check_questions, check_risk, told
from uncomp_cli.asking.request import CHAT_PRESET, ModelChoice, Request, parse_pin, settle_preset, shelf_of
from uncomp_cli.asking.subject import Answer, Item, Reader, Subject
from uncomp_cli.budget.presets import Preset, preset
from uncomp_cli.cache.shelf import Entry
from uncomp_cli.config import AGNOSTIC_PRESET, Limits, SamplingConfig
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.context.growth import for_any_question
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.compression import Compression
from uncomp_cli.errors import UsageError
from uncomp_cli.models.runnable import fingerprint

if TYPE_CHECKING:
    from torch import Tensor


_NOTHING = DocumentSet(())
_ANY_QUESTION = [""]
"""Holds the place of questions that nobody has asked yet."""


def load(
    name: str = ModelChoice().name, *, sampling: SamplingConfig | None = None, limits: Limits | None = None, **how: Any
) -> "Assistant":
    """A model, fetched when need be and loaded; `how` are fields of ModelChoice: rope, quantize, device, matmul, ….

    Raises UsageError for what cannot be, DoesNotFitError when the weights do not fit the memory.
    """
    choice, notes = ModelChoice(name, **how), list[str]()
    loaded = drained(startup.load(choice), notes)
    engine = Engine(loaded, sampling=sampling, limits=limits, matmul=choice.matmul)
    return Assistant(engine, choice, notes)


@dataclass(slots=True)
class Assistant:
    """A loaded model that can plan, read, open and ask. `notes` are what was said since it was loaded."""

    engine: Engine
    choice: ModelChoice
    notes: list[str] = field(default_factory=list)

    def plan(
        self, documents: DocumentSet, questions: Sequence[str] = (), chosen: Preset | None = None, **asked: Any
    ) -> Compression:
        """How documents and questions would be read: tokens and bytes, shown when it is printed; nothing is read.

        `asked` as in `read`. Raises DoesNotFitError, with numbers, for what does not fit.
        """
        return self._reader(documents, questions, chosen, asked)[0].plan(documents)

    def read(
        self, documents: DocumentSet, questions: Sequence[str] = (), chosen: Preset | None = None, **asked: Any
    ) -> "ReadText":
        """Read documents for these questions; without any, for all that may be asked (preset unseen by default).

        `asked` are `pins` (texts such as "report.pdf:1-20"), `system` and `truncate`. Raises DoesNotFitError before any
        work when it does not fit.
        """
        return self._text(*self._reader(documents, questions, chosen, asked), documents)

    def open(self, name: str, documents: DocumentSet = _NOTHING) -> "ReadText":
        """A context that was saved under `name`; its documents, where they are given, are checked."""
        paths = tuple(document.path for document in documents.documents)
        request = replace(self._request({}), paths=paths, reuse=name, for_any=True)
        reader = Reader(self.engine, self._settled(None, AGNOSTIC_PRESET), _ANY_QUESTION, request)
        return self._text(reader, request, documents)

    def ask(
        self, documents: DocumentSet, questions: Sequence[str], chosen: Preset | None = None, **asked: Any
    ) -> Iterator[Event]:
        """What `uncomp ask` does, as events; `asked` as in `read`, and `each`, `escalate`, `evidence`, `fail_under`, ….

        The answers are the `Done` among them.
        """
        check_questions(questions)
        request, settled = self._request(asked, documents), self._settled(chosen, None)
        check_risk(request, settled)
        lengths = prompt_lengths(request, documents, questions, self.engine.loaded.tokenizer) if request.weighs else []
        check_lengths(settled, lengths, escalate=request.escalate, fail_under=request.fail_under)
        self._use(startup.lengthen_for(self.engine.loaded, request, documents, questions))
        return chain(told(documents), ask(self.engine, documents, questions, settled, request))

    def chat(self, chosen: Preset | None = None, *, system: str | None = None) -> Chat:
        """A conversation; its `add`, `say` and `retry` yield events while they work."""
        startup.check_grows(self.choice, "a conversation")
        rope = self.choice.rope_choice
        if rope is not None and rope.kind == "auto":
            self._use(startup.lengthen_for_growth(self.engine.loaded, rope))
        settled, note = for_any_question(self._settled(chosen, CHAT_PRESET), grows=True)
        self.notes += [] if note is None else [note]
        return Chat(self.engine.conversation(settled), system=system)

    def tokens_of(self, text: str) -> list[int]:
        """Token ids of plain text, in which no special token is meant: what `predict` takes."""
        from uncomp_cli.engine.tokens.prompt import encode

        return encode(self.engine.loaded.tokenizer, text, special=False)

    def _reader(
        self, documents: DocumentSet, questions: Sequence[str], chosen: Preset | None, asked: dict[str, Any]
    ) -> tuple[Reader, Request]:
        any_question = not questions and not isinstance(questions, str)
        if not any_question:
            check_questions(questions)
        request = replace(self._request(asked, documents), for_any=any_question)
        words = _ANY_QUESTION if any_question else list(questions)
        settled = self._settled(chosen, AGNOSTIC_PRESET if any_question else None)
        self._use(startup.lengthen_for(self.engine.loaded, request, documents, words))
        startup.check_context_fits(self.choice, self.engine.loaded, settled)
        return Reader(self.engine, settled, words, request), request

    def _text(self, reader: Reader, request: Request, documents: DocumentSet) -> "ReadText":
        """What the reader reads or opens; the questions that hold a place are left out."""
        notes = [remark.text for remark in documents.remarks]
        items = drained(reader.read(documents), notes)
        return ReadText(self.engine, items[0].subject, [] if request.for_any else items, request, tuple(notes))

    def _request(self, asked: dict[str, Any], documents: DocumentSet = _NOTHING) -> Request:
        """What is asked, as `uncomp ask` would be told."""
        paths = [document.path for document in documents.documents]
        pins = resolve([parse_pin(str(pin)) for pin in asked.get("pins", ())], paths)
        told = {"model": self.choice, "sampling": self.engine.sampling, "limits": self.engine.limits}
        return Request(**{**told, **asked, "paths": tuple(paths), "pins": pins})

    def _settled(self, chosen: Preset | None, usual: str | None) -> Preset:
        """The preset for this model: the one that was chosen, or the usual one, which gives way to `live`."""
        named, model = chosen is not None, fingerprint(self.engine.loaded)
        settled, note = settle_preset(chosen or preset(usual), model, named=named, choose=preset)
        self.notes += [] if note is None else [note]
        return settled

    def _use(self, lengthening: "Generator[Event, None, Any]") -> None:
        """Read by the model as it is turned now."""
        loaded, engine = drained(lengthening, self.notes), self.engine
        if loaded is not engine.loaded:
            self.engine = Engine(loaded, sampling=engine.sampling, limits=engine.limits, matmul=engine.matmul)


@dataclass(slots=True)
class ReadText:
    """A text that was read or opened, ready for its questions; without questions of its own, for any.

    `notes` are what was said of it: the budget, what was cut, what was not done as asked for.
    """

    engine: Engine
    subject: Subject
    items: list[Item]
    request: Request
    notes: tuple[str, ...] = ()

    @property
    def context(self) -> Context:
        """What the engine holds of it: cache, plan, bytes a layer."""
        return self.subject.context

    def answer(self, question: str | None = None, *, evidence: bool = False) -> Done:
        """The answer to a question: `.text .ids .stats .risk .evidence .record()`; by default to the first.

        Raises UsageError for a question that the text was not read for.
        """
        answer = Answer(self._item(question))
        writer = self.engine.writer([answer.item.asked])
        for step in writer.write():
            answer.add(step, writer)
        return answer.done(replace(self.request, evidence=evidence))

    def predict(self, ids: Sequence[int], question: str | None = None) -> "Tensor":
        """Logits [N, vocab] of each of `ids` given those before it, behind a question."""
        asked = self._item(question).asked
        return self.context.predict(ids, asked.question)

    def save(self, name: str) -> Entry:
        """Keep it on the disk under `name`, for `open` and for `uncomp ask --cache`.

        Raises UsageError when it was read for its own questions alone.
        """
        if self.items:
            hint = "read it without questions: engine.read(documents)"
            raise UsageError("what was read for its own questions does not serve others", hint=hint)
        account, subject = self.context.account, self.subject
        about = written_down(subject.documents, subject.about.files(), account)
        about |= {} if account.record is not None else {"system": self.request.system}
        return self.engine.save(self.context, shelf_of(), name, **about)[0]

    def _item(self, question: str | None) -> Item:
        if not self.items:
            return self._any(question)
        for item in self.items:
            if question in (None, item.turn.question):
                return item
        read_for = ", ".join(repr(item.turn.question) for item in self.items)
        hint = f"read the documents with it, or without questions for any; this was read for {read_for}"
        raise UsageError(f"the documents were not read for the question {question!r}", hint=hint)

    def _any(self, question: str | None) -> Item:
        """A question behind a text that was read for any."""
        from uncomp_cli.engine.tokens.prompt import chat_prompt

        if question is None or not question.strip():
            raise UsageError("no question was given", hint="context.answer('What does it say about …?')")
        loaded, context = self.engine.loaded, self.context
        record = context.account.record
        system = self.request.system if record is None else record.system
        questions = chat_prompt(loaded.tokenizer, "", [question], system=system, sinks=0).questions
        prompt = replace(context.prompt, questions=questions)
        self.engine.check_length(prompt)
        context.prompt = prompt
        (asked,) = self.engine.asked(context, words=[question])
        return Item(self.subject, Turn(question), asked, is_last=True)
