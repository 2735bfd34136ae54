"""`uncomp chat` from its options to its end: the session's file, the model, the documents, then the conversation.

A session goes on with what it was saved with; an option that the user gives wins.
"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uncomp_cli.asking.doubts import check_calibrated
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.cli.ask.lengthening import check_grows, lengthen_for_growth
from uncomp_cli.cli.ask.prepare import check_context_fits, load
from uncomp_cli.cli.chat.chat_escalating import escalate
from uncomp_cli.cli.chat.chat_preset import CHAT_PRESET, PresetChoice
from uncomp_cli.cli.chat.chat_settings import read_again
from uncomp_cli.cli.chat.commands import candidates
from uncomp_cli.cli.chat.files_commands import read_files, take_documents, unknown
from uncomp_cli.cli.chat.inspection import status_line
from uncomp_cli.cli.chat.loop import Conversation
from uncomp_cli.cli.chat.said import exchanges
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.cli.chat.transcripts import restore
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.sessions.folder import SessionFile, open_session
from uncomp_cli.sessions.transcript import Transcript
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import line_reader
from uncomp_cli.ui.meter import loading

if TYPE_CHECKING:
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["ChatJob", "run_chat"]


@dataclass(frozen=True, slots=True)
class ChatJob:
    """Everything that one `uncomp chat` was told; `named` are the options that the user gave himself."""

    paths: tuple[str, ...]
    session: str | None
    keeps_history: bool
    model: ModelChoice
    choice: PresetChoice
    limits: Limits
    matmul: Literal["float32", "bfloat16", "int8"]
    system: str | None
    sampling: SamplingConfig
    escalates: bool = False
    named: frozenset[str] = frozenset()

    def going_on(self, saved: Transcript) -> "ChatJob":
        """The job with the session's model, preset, system prompt and sampling where the user names no other."""
        model = self.model if "model" in self.named else replace(self.model, name=saved.model)
        choice = self.choice
        if choice.name is None:
            budget = saved.budget if choice.budget is None else choice.budget
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
    check_grows(job.model, "a conversation")
    documents = read_files(job.paths, terminal) if job.paths else None
    with loading(terminal, "preparing"):
        preset = job.choice.stored()  # a slip in it must not wait for the model
        if job.escalates:
            check_calibrated(preset, "--escalate")
    chat = _open(job, load(job.model, terminal), terminal)
    conversation = Conversation(chat, file, saved)
    chat.say(f"{chat.loaded.info.name} · /help shows the commands, Ctrl-D leaves")
    if saved is not None:
        restore(chat, saved)  # what stops it leaves the file as it is
        chat.dialogue.system = job.system
        conversation.guarded(lambda: _go_on(job, chat))
    if documents is not None and (new := unknown(chat, documents)):
        take_documents(chat, new)
    conversation.run(
        line_reader(
            terminal,
            completer=lambda line: candidates(chat, line),
            status=lambda: status_line(chat),
            history=_history(job),
        )
    )


def _open(job: ChatJob, loaded: "LoadedModel", terminal: Terminal) -> Chat:
    from uncomp_cli.engine.context.chat import ChatSession
    from uncomp_cli.models.identity import fingerprint

    loaded = lengthen_for_growth(loaded, job.model.rope_choice, terminal)
    preset, notes = job.choice.settled(fingerprint(loaded))
    check_context_fits(job.model, loaded, preset)
    session = ChatSession(loaded, preset, job.sampling, job.limits, matmul=job.matmul)
    chat = Chat(loaded, session, terminal, job.choice, model_name=_lasting_name(job.model.name))
    chat.dialogue.system = job.system
    for note in notes:
        chat.say(note)
    if job.escalates:
        escalate(chat, True)
    return chat


def _go_on(job: ChatJob, chat: Chat) -> None:
    """Read the conversation that was saved."""
    if chat.dialogue.entries:
        read_again(chat, f"session {job.session}: {exchanges(len(chat.dialogue.exchanges))}")


def _lasting_name(name: str) -> str:
    """A model in a directory or a file is found again from another place."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _history(job: ChatJob) -> Path | None:
    from uncomp_cli.ui.line_editor import history_path

    return history_path() if job.keeps_history else None
