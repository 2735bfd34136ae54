"""A conversation as a library: texts and documents go in, events come out, and the dialogue is as it then is.

    say, retry     Progress… → Piece… → Done; Stopped in place of Done when Ctrl-C came before the answer began
    add, use       Progress… → Noted: documents are read ahead of their question; all is read again by another preset

Nothing happens before the events are taken. Ctrl-C is a KeyboardInterrupt in here, or one that is thrown into the
events by who shows them. An answer that was stopped stays, marked; what fails, or is left early, changes nothing.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import Spent
from uncomp_cli.asking.dialogue import Dialogue, documents_behind, documents_in
from uncomp_cli.asking.doubts import check_calibrated, risk_of, risk_warnings
from uncomp_cli.asking.events import Done, Event, Noted, Stopped, Turn
from uncomp_cli.asking.material import opened_documents
from uncomp_cli.asking.readout import all_kept
from uncomp_cli.asking.reply import Earlier, Events, Reply, escalated, written
from uncomp_cli.asking.request import CHAT_CHOICE, CHAT_PRESET, PresetChoice, preset_line
from uncomp_cli.asking.startup import length_warnings
from uncomp_cli.documents.collection import Document
from uncomp_cli.documents.places import Evidence, Places, find_evidence
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UncompError, UsageError, is_out_of_memory
from uncomp_cli.files import write_whole
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.sessions.transcript import Entry, Pin, Transcript

if TYPE_CHECKING:
    from uncomp_cli.engine.context.context import Context
    from uncomp_cli.engine.context.session import Conversation
    from uncomp_cli.engine.tokens.messages import Message
    from uncomp_cli.models.runnable import LoadedModel


Answering = Generator[Event, None, Done | None]
"""The events of a turn; it returns the answer, if there is one."""

_SUFFIXES = (".json", ".md")
_CHARS_TO_COUNT = 16
"""Characters a token of the context that are counted at most: what has more tokens than that is long for sure."""
_FREES = "/clear frees what the conversation takes; so does leaving and coming back with --quantize int8"


class Chat:
    """A conversation that goes on, over `session`; `choice` is what its preset was chosen by, `name` the model's.

    Without a choice it is the session's own preset that a transcript names.

    `draft` is a message that got no answer, `latest` the latest answer; `escalates` says that flagged ones are asked
    for again.
    """

    def __init__(
        self, session: "Conversation", choice: PresetChoice | None = None, *, system: str | None = None, name: str = ""
    ) -> None:
        preset = session.preset
        self.session = session
        self.choice = choice or replace(
            CHAT_CHOICE, name=preset.name, budget=preset.budget, floor_tokens=preset.floor_tokens
        )
        self.name = name or session.loaded.info.name
        self.dialogue = Dialogue(system)
        self.draft, self.created = "", ""
        self.escalates = False
        self.latest: Done | None = None
        self._retries = 0  # answers to the same question, so that another seed is drawn
        self._read_text = ""  # what the session was given last
        self._answered = False  # whether that is what the latest answer was to
        self._written: dict[Path, tuple[bytes, list[Entry]]] = {}
        self.given_up: list[Entry] = []

    @property
    def loaded(self) -> "LoadedModel":
        """The model."""
        return self.session.loaded

    @property
    def is_saved(self) -> bool:
        """Whether leaving loses nothing that was not given up: what is in a file, or was said to be lost."""
        return self.dialogue.entries in ([], self.given_up)

    # Turns

    def say(self, text: str) -> Answering:
        """Answer `text` and the documents that wait for it; both stay as they were when nothing was answered."""
        self.draft, self._retries = text, 0
        done = yield from self._answer(self.dialogue.question(text))
        if done is not None:
            self.draft = ""
            self.dialogue.pending.clear()
            yield done
        return done

    def retry(self) -> Answering:
        """Answer the latest question again, with another seed; the earlier answer stays when there is no new one."""
        before = self.dialogue.entries
        if not before:
            raise UsageError("nothing has been asked yet", hint="type a question")
        question, *answer = self.dialogue.exchanges[-1]
        self.dialogue.entries = before[: -1 - len(answer)]
        chosen, done = self.session.sampling, None
        self._retries += 1
        try:
            self.session.sampling = replace(chosen, seed=(chosen.seed + self._retries) % 2**63)
            done = yield from self._answer(question)
        finally:
            self.session.sampling = chosen
            if done is None:
                self.dialogue.entries = before
        if done is not None:
            yield done
        return done

    def _answer(self, question: Entry) -> Answering:
        """Answer `question` behind the conversation; both join it when there is an answer."""
        session, before = self.session, self.session.preset
        write = escalated if self.escalates else written
        try:
            reply = yield from write(session, self.messages(question))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError("memory ran out; the message was not kept", hint=_FREES) from error
        if session.preset != before:  # what was read by the last one that was tried is there
            preset = session.preset
            self.choice = replace(self.choice, budget=preset.budget, floor_tokens=preset.floor_tokens)
        if reply is None:
            yield Stopped()
            return None
        ids = reply.ids[:-1] if reply.stats.finish_reason == "stop" else reply.ids
        kept = None if reply.thought else ids  # thoughts are no part of a conversation
        self.dialogue.entries += [question, Entry("assistant", reply.text, ids=kept, interrupted=reply.stopped)]
        self._answered = True
        self.latest = self._done(question, reply)
        return self.latest

    def _done(self, question: Entry, reply: Reply) -> Done:
        session, stats = self.session, reply.stats
        if reply.stopped:
            stats = session.stats = replace(stats, finish_reason="interrupted")
        risk = risk_of(session.preset, stats, self.loaded)
        doubts = [*risk_warnings(risk)]
        if stats.cached_tokens <= self.loaded.info.trained_length:  # once, on the way past it
            doubts += length_warnings(self.loaded, stats.prompt_tokens)
        limit = self.loaded.spec.trained_length
        return Done(
            Turn(question.spoken),
            reply.text,
            reply.ids,
            stats,
            session.preset,
            risk,
            limit,
            tuple(doubts),
            all_kept=all_kept(session.growth.account().plan, self.loaded.spec),
        )

    # What is read ahead, and how

    def messages(self, newest: Entry | None = None) -> "list[Message]":
        """What the model is to read now; the pins among it are told to the session."""
        messages = self.dialogue.messages(newest)
        self.session.pinned = self.dialogue.pinned(newest)
        self._answered, self._read_text = False, "".join(message.text for message in messages)
        return messages

    def add(self, documents: "Sequence[Document]") -> Events:
        """Read documents behind the conversation; a question about them follows. Ctrl-C takes them out again.

        Those that are part of it already are left out. Raises DoesNotFitError for what is longer than the context.
        """
        new = self.unknown(documents)
        yield from (Noted(f"{each.path} is part of the conversation already") for each in documents if each not in new)
        if not new:
            return
        self._check_length(new)
        pending, names = list(self.dialogue.pending), ", ".join(document.path for document in new)
        self.dialogue.add(new)
        try:
            yield from self._read_ahead(names)
        except KeyboardInterrupt:
            self.dialogue.pending = pending
            self.forget_unsaid()
            yield Noted(f"stopped: {names} was not added")
        except BaseException:  # also when the events are left early
            self.dialogue.pending = pending
            raise

    def open(self, context: "Context", name: str) -> None:
        """Begin behind saved documents, and read nothing of them again; where their texts are lost, by its tokens."""
        saved, record = context.prompt.context, context.account.record
        first = saved.protected.tolist().index(False)
        text = self.loaded.tokenizer.decode(list(saved.ids[first:]), clean_up_tokenization_spaces=False)
        self.dialogue = Dialogue(None if record is None else record.system)
        bare = Document(name, str(text), "" if record is None else record.context_sha256, bare=True)
        self.dialogue.pending = documents_behind(opened_documents(context.account).documents, str(text)) or [bare]
        self.session.growth.adopt(context)
        self.forget_unsaid()

    def unknown(self, documents: "Sequence[Document]") -> "list[Document]":
        """Those that are not part of the conversation yet."""
        known = {page.sha256 for page in self.dialogue.pages()}
        return [document for document in documents if document.sha256 not in known]

    def _read_ahead(self, names: str) -> Events:
        session, begun_s, before = self.session, time.perf_counter(), self.session.cached_tokens
        for step in session.read_ahead(self.messages(self.dialogue.waiting())):
            yield step.progress
        tokens = format_count(max(0, session.cached_tokens - before))
        elapsed, kept = format_seconds(time.perf_counter() - begun_s), f"KV {format_bytes(session.kv_bytes)}"
        yield Noted(f"{names}: {tokens} tokens read in {elapsed} · {kept} · the next question may be about it")

    def _check_length(self, documents: "Sequence[Document]") -> None:
        """Refuse documents that are longer than the whole context, without tokenizing all of them."""
        from uncomp_cli.engine.tokens.prompt import count_tokens

        limit = self.loaded.spec.trained_length
        for document in documents:
            begun = document.text[: _CHARS_TO_COUNT * limit]
            if len(begun) < len(document.text) and (tokens := count_tokens(self.loaded.tokenizer, begun)) > limit:
                share = format_decimal(100 * len(begun) / len(document.text))
                raise DoesNotFitError(
                    f"the first {share} % of {document.path} has {format_count(tokens)} tokens already, "
                    f"the context holds {format_count(limit)}",
                    hint="add the part that matters, or leave and come back with a larger --context",
                )

    def use(self, choice: PresetChoice) -> Events:
        """Take another preset and read the conversation with it at once; on failure the one before is back."""
        from uncomp_cli.models.runnable import fingerprint

        session, earlier, bytes_before = self.session, Earlier(self.session), self.session.kv_bytes
        preset, notes = choice.settled(fingerprint(self.loaded), grows=True)
        session.use(preset)
        try:
            yield from self.read_again(preset_line(preset), bytes_before=bytes_before, begun=earlier.let_go)
        except BaseException:
            earlier.take_back()
            raise
        named_anew, self.choice = choice.name != self.choice.name, choice
        yield from (Noted(note) for note in notes if named_anew)

    def read_again(self, what: str, *, bytes_before: int = 0, begun: Callable[[], None] = lambda: None) -> Events:
        """Read the conversation now from its text, and say what it took; Ctrl-C leaves that to the next turn.

        `bytes_before` is what the cache took until now; `begun` is called when nothing was refused and it began.
        """
        session, newest, begun_s = self.session, self.dialogue.waiting(), time.perf_counter()
        if not self.dialogue.entries and newest is None:
            yield Noted(f"{what} · nothing has been said yet")
            return
        try:
            for step in session.reread(self.messages(newest)):
                begun()
                yield step.progress
        except KeyboardInterrupt:
            yield Noted(f"{what} · stopped: the next turn reads the conversation")
            return
        before = f"{format_bytes(bytes_before)} → " if bytes_before else ""
        yield Noted(
            f"{what} · read {format_count(session.cached_tokens)} tokens in "
            f"{format_seconds(time.perf_counter() - begun_s)} · KV {before}{format_bytes(session.kv_bytes)}"
        )

    def set(self, **values: Any) -> None:
        """Change how answers are made: fields of SamplingConfig; `recall` and `escalate` are True or False.

        Raises UsageError for a value that cannot be, and for escalation where no error rates were measured.
        """
        recall, escalate = (values.pop(name, None) for name in ("recall", "escalate"))
        if escalate:
            check_calibrated(self.session.preset, "escalate")
        self.session.sampling = replace(self.session.sampling, **values)
        self.session.recalls = self.session.recalls if recall is None else recall
        self.escalates = self.escalates if escalate is None else escalate

    # What was said

    def undo(self, count: int = 1) -> list[list[Entry]]:
        """Take back the latest exchanges; `draft` is the first question of them."""
        gone = self.dialogue.drop_last(count)
        self.draft = gone[0][0].spoken
        self.latest = self.session.stats = None
        self.forget_unsaid()
        return gone

    def forget_unsaid(self) -> None:
        """Forget of what was read all that is not said any more, so that what is told of the cache is so."""
        dialogue, waiting = self.dialogue, self.dialogue.waiting()
        self.session.keep_common(dialogue.messages(waiting) if dialogue.entries or waiting else [])

    def clear(self) -> None:
        """Forget the conversation and its documents; system prompt, settings and preset stay."""
        self.dialogue = Dialogue(self.dialogue.system)
        self.session.clear()
        self.latest = self.session.stats = None

    def pin(self, place: str) -> Pin:
        """Keep lines of a document, `FILE:10-40`, whatever the budget drops."""
        wanted, pins = self.dialogue.pin_of(place), self.dialogue.pins
        if wanted in pins:
            raise UsageError(f"{wanted.label} is pinned already", hint="/pin lists the pins")
        pins.append(wanted)
        self.session.pinned = self.dialogue.pinned()
        try:
            self.session.check_pins()
        except DoesNotFitError as error:
            pins.remove(wanted)
            hint = "pin fewer lines, /unpin others, or take a larger /budget"
            raise DoesNotFitError(f"{wanted.label} cannot be pinned: {error.message}", hint=hint) from error
        return wanted

    # What is kept of it, and what an answer looked at

    def places(self) -> Places:
        """Documents and earlier questions among the tokens of the latest turn; what has moved since is left out."""
        sources = self.dialogue.sources()
        found = [each for each in sources if self._read_text.startswith(each.text.strip(), each.first_char)]
        return Places(found, self.session.tokens.ranges())

    def kept_shares(self) -> dict[str, float]:
        """The share of its keys and values that every document has left; of those that were read."""
        survival: list[float] = self.session.survival().tolist()
        shares: dict[str, list[float]] = {}
        for passage in self.places().passages():
            kept = survival[passage.tokens.start : passage.tokens.stop]
            shares.setdefault(passage.path, []).extend(kept)
        return {path: sum(values) / len(values) for path, values in shares.items() if values}

    def evidence(self) -> list[Evidence]:
        """The passages that the latest answer attended to, and how much of them is kept.

        Raises UsageError unless the conversation ends with an answer to what was read last, as it was read.
        """
        said = "".join(message.text for message in self.dialogue.messages()[:-1])
        if not (self._answered and said == self._read_text):
            hint = "ask something, or /retry; then /evidence"
            raise UsageError("there is no answer to what was read last", hint=hint)
        return find_evidence(self.session.attended().tolist(), self.session.survival().tolist(), self.places())

    def spent(self) -> Spent:
        """What every layer and head holds, and what was measured to decide it."""
        session, spec = self.session, self.loaded.spec
        if not session.cached_tokens:
            raise UsageError("nothing has been read yet", hint="type a question, or add a document with /file")
        account, layer_bytes = session.growth.account(), session.growth.context.layer_bytes()
        return Spent(account.plan, spec, layer_bytes, account.uncertainty)

    # Transcripts

    def transcript(self) -> Transcript:
        """All that is needed to go on another day; documents that wait for a question are not part of it."""
        dialogue = self.dialogue
        return Transcript(
            model=self.name,
            preset=self.choice.name or CHAT_PRESET,
            budget=None if self.choice.budget is None else str(self.choice.budget),
            system=dialogue.system,
            entries=tuple(dialogue.entries),
            pins=tuple(pin for pin in dialogue.pins if pin.entry < len(dialogue.entries)),
            sampling=asdict(self.session.sampling),
            created=self.created,
        )

    def restore(self, transcript: Transcript) -> int:
        """Take a transcript's conversation over, with its system prompt and pins; settings are the caller's business.

        The ids of an answer are taken over when they spell its text with this model's tokenizer; otherwise (another
        model, or a file that was edited) the text itself is read: returns of how many. A last question without an
        answer becomes the draft.
        """
        entries = [_known(entry, self.loaded.tokenizer) for entry in transcript.entries]
        changed = sum(new.ids != old.ids for new, old in zip(entries, transcript.entries, strict=True))
        self.dialogue = Dialogue(transcript.system)
        if entries and entries[-1].role == "user":
            question = entries.pop()
            self.draft, self.dialogue.pending = question.spoken, documents_in(question)
        self.dialogue.entries = entries
        self.dialogue.pins = [pin for pin in transcript.pins if pin.entry < len(entries)]
        self.created, self.given_up = transcript.created, list(self.dialogue.entries)
        return changed

    def save(self, path: Path) -> None:
        """Write the conversation to a file: .md to be read, .json to be loaded again; no file of others is replaced."""
        kind = path.suffix.lower()
        if kind not in _SUFFIXES:
            raise UsageError(f"{path} ends in neither .md nor .json", hint=f"/save {path.stem or 'notes'}.md")
        transcript = self.transcript()
        text = transcript.to_json() if kind == ".json" else transcript.to_markdown()
        content = text.encode(errors="backslashreplace")
        try:
            if path.exists():
                self._check_replaced(path)
            write_whole(path, content, owner_only=True)
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror or error}"
            raise UncompError(message, hint="name another place; the conversation goes on") from error
        self.given_up = list(self.dialogue.entries)
        self._written[path.resolve()] = sha256(content).digest(), self.given_up

    def _check_replaced(self, path: Path) -> None:
        """Refuse to lose what is in a file: this chat may go on with what it wrote there itself, no more."""
        digest, entries = self._written.get(path.resolve(), (b"", []))
        if sha256(path.read_bytes()).digest() == digest and self.dialogue.entries[: len(entries)] == entries:
            return
        why = "holds something else" if digest else "is there already, and this chat did not write it"
        raise UsageError(f"{path} {why}", hint=f"name another file, such as /save {path.stem}-2{path.suffix}")


def _known(entry: Entry, tokenizer: Any) -> Entry:
    """The entry without ids that do not spell its text, or that hold a mark of the model's own: a file is data."""
    from uncomp_cli.engine.tokens.prompt import control_ids, decode

    if entry.ids is None:
        return entry
    is_text = all(token < len(tokenizer) for token in entry.ids) and control_ids(tokenizer).isdisjoint(entry.ids)
    spelled = decode(tokenizer, entry.ids) if is_text else None
    same = spelled is not None and spelled.rstrip("\ufffd").strip() == entry.text.rstrip("\ufffd").strip()
    return entry if same else replace(entry, ids=None)
