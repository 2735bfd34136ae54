"""`uncomp chat` from its options to its end: the session's file, the model, the documents, then the conversation.

A session goes on with what it was saved with; an option that the user gives wins. The loop reads a text, runs a command
or a turn, and keeps the session's file as it now is. Ctrl-C at the prompt leaves; while something runs it stops that
and the chat goes on. What fails is told in two lines, and the conversation is as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.dialogue import exchanges
from uncomp_cli.asking.doubts import check_calibrated, held_back
from uncomp_cli.asking.request import (
    AUTOMATIC,
    CHAT_PRESET,
    ModelChoice,
    PresetChoice,
    Request,
    check_text,
    saved_or_new,
    shelf_of,
)
from uncomp_cli.asking.startup import check_context_fits, check_grows, lengthen_for_growth, load
from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.chat.commands import candidates, is_command, run_command
from uncomp_cli.cli.chat.controls import status_line
from uncomp_cli.cli.chat.history import exchange_lines, read_files, restore
from uncomp_cli.cli.chat.talk import NOT_KEPT, Talk, as_commands
from uncomp_cli.cli.declare.advice import advise_model, advise_unsaved
from uncomp_cli.cli.declare.failures import ended_by, show_failure
from uncomp_cli.config import DEFAULT_CACHE_SIZE, Limits, SamplingConfig
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.documents.text import NO_WISHES, Wishes
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.numerals import format_bytes, format_count
from uncomp_cli.sessions.folder import SessionFile, keep_unsaved, open_session
from uncomp_cli.sessions.transcript import Transcript
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import is_typed, line_reader
from uncomp_cli.ui.interrupts import Interrupts
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Entry
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.models.runnable import LoadedModel


_LATER = "…"
"""In the place of the first question, which nobody has asked yet."""


@dataclass(frozen=True, slots=True)
class ChatJob:
    """Everything that one `uncomp chat` was told; `named` are the options that the user gave himself."""

    paths: tuple[str, ...]
    session: str | None
    keeps_history: bool
    model: ModelChoice
    choice: PresetChoice
    limits: Limits
    system: str | None
    sampling: SamplingConfig
    escalates: bool = False
    cache: str | None = None
    wishes: Wishes = NO_WISHES
    include: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()

    def request(self) -> Request:
        """What is read before anything is said, and kept."""
        kept: dict[str, Any] = saved_or_new(self.cache, DEFAULT_CACHE_SIZE)
        return Request(paths=self.paths, preset=self.choice, system=self.system, limits=self.limits, **kept)

    def going_on(self, saved: Transcript) -> "ChatJob":
        """The job with the session's model, preset, system prompt and sampling where the user names no other."""
        model = self.model if "model" in self.named else replace(self.model, name=saved.model)
        choice = self.choice
        if choice.name is None:
            held = None if saved.budget is None else Budget.parse(saved.budget)
            budget = held if choice.budget is None else choice.budget
            name = None if saved.preset == CHAT_PRESET else saved.preset
            choice = replace(choice, name=name, budget=budget)
        kept = {key: value for key, value in saved.sampling.items() if key not in self.named}
        system = saved.system if self.system is None else self.system
        sampling = SamplingConfig(**{**asdict(self.sampling), **kept})
        return replace(self, model=model, choice=choice, system=system, sampling=sampling)


def run_chat(job: ChatJob, terminal: Terminal) -> None:
    """Run one `uncomp chat` until it is left."""
    with open_session(job.session) if job.session is not None else nullcontext() as file:
        saved = None if file is None else file.load()
        _talk(job if saved is None else job.going_on(saved), saved, file, terminal)


def _talk(job: ChatJob, saved: Transcript | None, file: SessionFile | None, terminal: Terminal) -> None:
    if job.cache is not None and saved is not None and saved.entries:
        message = f"session {job.session} goes on with its own documents, and --cache {job.cache} begins with another"
        raise UsageError(message, hint="leave one of the two out")
    check_grows(job.model, "a conversation")
    if job.cache is not None:
        _check_cache(job)
    documents = read_files(job.paths, terminal, job.wishes, job.include) if job.paths else None
    with loading(terminal, "preparing"):
        preset = job.choice.stored()  # a slip in it must not wait for the model
        if job.escalates:
            check_calibrated(preset, "--escalate")
    talk = open_talk(job, show(load(job.model), terminal), terminal, documents)
    loop = Loop(talk, file, saved, asks=is_typed(terminal))
    talk.say(f"{talk.chat.loaded.info.name} · /help shows the commands, Ctrl-D leaves")
    advise_model(terminal, job.model.name)
    advise_unsaved(terminal)
    if saved is not None:
        restore(talk, saved)  # what stops it leaves the file as it is
        talk.chat.dialogue.system = job.system
    with loop.interrupts, loop.kept_when_ended() if job.keeps_history else nullcontext():
        if saved is not None:
            loop.guarded(lambda: _go_on(job, talk))
        if documents is not None and not talk.chat.dialogue.pending:  # which were opened otherwise
            with loop.interrupts.armed():
                talk.show(talk.chat.add(documents.documents))
        loop.run(
            line_reader(
                terminal,
                loop.interrupts,
                completer=lambda line: candidates(talk, line),
                status=lambda: status_line(talk),
                history=_history(job),
            )
        )


def _check_cache(job: ChatJob) -> None:
    """Find a slip in --cache before a model is loaded."""
    if job.paths:
        from uncomp_cli.asking.deposit import check_saving

        check_saving(job.request())
    elif job.cache == AUTOMATIC:
        message = "--cache auto goes by what is read, and no document is named"
        raise UsageError(message, hint="uncomp chat -f report.pdf --cache auto; `uncomp cache list` shows the names")
    else:
        shelf_of().find(str(job.cache))


def open_talk(job: ChatJob, loaded: "LoadedModel", terminal: Terminal, documents: DocumentSet | None = None) -> Talk:
    """The chat with this model, before anything is said; what the preset and the length came to is told."""
    from uncomp_cli.asking.chat import Chat
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.engine.tokens.messages import check_template
    from uncomp_cli.models.runnable import fingerprint

    check_template(loaded.tokenizer)
    loaded = show(lengthen_for_growth(loaded, job.model.rope_choice), terminal)
    preset, notes = job.choice.settled(fingerprint(loaded), grows=True)
    check_context_fits(job.model, loaded, preset)
    engine = Engine(loaded, sampling=job.sampling, limits=job.limits, matmul=job.model.matmul)
    session = engine.conversation(preset)
    chat = Chat(session, job.choice, system=job.system, name=_lasting_name(job.model.name))
    talk = Talk(chat, terminal, job.wishes, job.include)
    if job.cache is not None:
        notes = [*notes, *_open(job, talk, engine, documents)]
    if job.escalates:
        talk.chat.set(escalate=True)
        notes = [*notes, *held_back(preset)]
    for note in notes:
        talk.say(note)
    return talk


def _open(job: ChatJob, talk: Talk, engine: "Engine", documents: DocumentSet | None) -> Iterator[str]:
    """Begin behind the saved document that was named, or behind these, which are saved; nothing where that failed."""
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.engine.tokens.tokens import Tokens

    shelf, session = shelf_of(), talk.chat.session
    entry = shelf.find(str(job.cache)) if documents is None else _kept(job, talk, engine, documents)
    if entry is None:
        return
    system = entry.manifest.record.system
    if job.system not in (None, system):
        message = f"cache '{entry.name}' was saved with the system prompt {system!r}, not {job.system!r}"
        raise UsageError(message, hint="leave --system out, or read the document anew: -f")
    talk.chat.open(engine.open(shelf, entry, Prompt(Tokens.of(), ((),)), session.preset, as_saved=True), entry.name)
    tokens, size = format_count(session.cached_tokens), format_bytes(session.kv_bytes)
    yield f"opened {entry.name}: {tokens} tokens · KV {size} · the next question may be about it"


def _kept(job: ChatJob, talk: Talk, engine: "Engine", documents: DocumentSet) -> "Entry | None":
    """What is on the shelf of these documents: read now, and kept, unless that was done before."""
    from uncomp_cli.asking.subject import Reader

    reader = Reader(engine, talk.chat.session.preset, (_LATER,), job.request())
    (item,) = talk.show(reader.read(documents))
    context = item.subject.context
    record = context.account.record or engine.origin(context.prompt, context.account.preset)
    return shelf_of().with_key(record.key)


def _go_on(job: ChatJob, talk: Talk) -> None:
    """Read the conversation that was saved."""
    dialogue = talk.chat.dialogue
    if dialogue.entries:
        for line in exchange_lines(dialogue.exchanges[-1]):
            talk.say(line)
        talk.show(talk.chat.read_again(f"session {job.session}: {exchanges(len(dialogue.exchanges))}"))


def _lasting_name(name: str) -> str:
    """A model in a directory or a file is found again from another place."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _history(job: ChatJob) -> Path | None:
    from uncomp_cli.ui.line_editor import history_path

    return history_path() if job.keeps_history else None


class Loop:
    """A chat that goes on until it is left; `file` is saved after whatever changed the conversation.

    With `asks`, who would lose a conversation by leaving is told so once.
    """

    def __init__(
        self, talk: Talk, file: SessionFile | None = None, saved: Transcript | None = None, *, asks: bool = False
    ) -> None:
        self.talk = talk
        self.interrupts = Interrupts()
        self._file, self._saved, self._asks = file, saved, asks

    def run(self, read_text: Callable[[], str]) -> None:
        """Take texts until they end, /exit, or Ctrl-C on an empty line; what fails is told and the chat goes on."""
        while ended_by() is None:
            self.interrupts.take()  # what came until now was meant for what ran before
            try:
                text = read_text()
            except (EOFError, KeyboardInterrupt):
                if self._may_leave():
                    return
            except UncompError as error:
                show_failure(error, self.talk.terminal)
            else:
                if self.interrupts.take() is not None:
                    self._drop(text)
                elif not self.guarded(partial(self.take, text)) and self._may_leave():
                    return

    @contextmanager
    def kept_when_ended(self) -> Iterator[None]:
        """What would be lost becomes a session where a signal ends the block, as of a terminal that is closed."""
        try:
            yield
        finally:
            if ended_by() is not None and self._asks and self._file is None and not self.talk.chat.is_saved:
                keep_unsaved(self.talk.chat.transcript())

    def _may_leave(self) -> bool:
        """Whether nothing is lost, or that has been said since it was."""
        chat = self.talk.chat
        if not self._asks or self._file is not None or chat.is_saved or ended_by() is not None:
            return True
        self.talk.tell("the conversation is not saved: /save talk.json keeps it; leave again to lose it")
        chat.given_up = list(chat.dialogue.entries)
        return False

    def _drop(self, text: str) -> None:
        """Ctrl-C came before anything was done with a text."""
        self.talk.say("[stopped]")
        if text.strip() and not is_command(text.strip()):
            self.talk.chat.draft = text
            self.talk.say(NOT_KEPT)

    def guarded(self, work: Callable[[], None]) -> bool:
        """Do `work` and save; False when it was to leave. Ctrl-C, however often, and failures end the work alone."""
        try:
            with self.interrupts.armed():
                work()
        except EOFError:
            return False
        except KeyboardInterrupt:
            self.talk.say("[stopped]")
        except Exception as error:
            if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and not self._asks):
                raise  # nobody reads any more, or sees that all that follows will fail too
            show_failure(_in_chat(error), self.talk.terminal)
        finally:
            self._save()
        return True

    def take(self, text: str) -> None:
        """One text: a command, or a message to the model. Raises EOFError to leave."""
        check_text(text, "the line")
        text = text.strip()
        if is_command(text):
            run_command(self.talk, text)
        elif text:
            self.talk.ask(text)

    def _save(self) -> None:
        """Write the session when it is not as it was written; a failure is told, and tried again next time."""
        if self._file is None:
            return
        chat, updated = self.talk.chat, "" if self._saved is None else self._saved.updated
        now = replace(chat.transcript(), updated=updated)
        if now == self._saved or (self._saved is None and not now.entries):
            return
        try:
            self._saved = self._file.save(now)
            chat.created = self._saved.created
        except UncompError as error:
            self.talk.terminal.warn(f"{error.message}; {error.hint}")


def _in_chat(error: Exception) -> Exception:
    """`error` that names commands in the place of flags."""
    if isinstance(error, UncompError):
        error.message = as_commands(error.message)
        error.hint = None if error.hint is None else as_commands(error.hint)
    return error
