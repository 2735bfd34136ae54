"""`uncomp chat` from its options to its end: the session's file, the model, the documents, then the conversation.

A session goes on with what it was saved with; an option that the user gives wins.
"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uncomp_cli.asking.dialogue import exchanges
from uncomp_cli.asking.doubts import HELD_BACK, check_calibrated
from uncomp_cli.asking.preset_choice import CHAT_PRESET, PresetChoice
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.asking.startup import check_context_fits, check_grows, lengthen_for_growth, load
from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.chat.commands import candidates
from uncomp_cli.cli.chat.history import read_files, restore
from uncomp_cli.cli.chat.inspection import status_line
from uncomp_cli.cli.chat.loop import Loop
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.sessions.folder import SessionFile, open_session
from uncomp_cli.sessions.transcript import Transcript
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import line_reader
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.models.runnable import LoadedModel


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
    check_grows(job.model, "a conversation")
    documents = read_files(job.paths, terminal) if job.paths else None
    with loading(terminal, "preparing"):
        preset = job.choice.stored()  # a slip in it must not wait for the model
        if job.escalates:
            check_calibrated(preset, "--escalate")
    talk = open_talk(job, show(load(job.model), terminal), terminal)
    loop = Loop(talk, file, saved)
    talk.say(f"{talk.chat.loaded.info.name} · /help shows the commands, Ctrl-D leaves")
    if saved is not None:
        restore(talk, saved)  # what stops it leaves the file as it is
        talk.chat.dialogue.system = job.system
        loop.guarded(lambda: _go_on(job, talk))
    if documents is not None:
        talk.show(talk.chat.add(documents.documents))
    loop.run(
        line_reader(
            terminal,
            completer=lambda line: candidates(talk, line),
            status=lambda: status_line(talk),
            history=_history(job),
        )
    )


def open_talk(job: ChatJob, loaded: "LoadedModel", terminal: Terminal) -> Talk:
    """The chat with this model, before anything is said; what the preset and the length came to is told."""
    from uncomp_cli.asking.chat import Chat
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.models.runnable import fingerprint

    loaded = show(lengthen_for_growth(loaded, job.model.rope_choice), terminal)
    preset, notes = job.choice.settled(fingerprint(loaded), any_question=True)
    check_context_fits(job.model, loaded, preset)
    session = Engine(loaded, sampling=job.sampling, limits=job.limits, matmul=job.matmul).conversation(preset)
    talk = Talk(Chat(session, job.choice, system=job.system, name=_lasting_name(job.model.name)), terminal)
    if job.escalates:
        talk.chat.set(escalate=True)
        notes = [*notes, HELD_BACK]
    for note in notes:
        talk.say(note)
    return talk


def _go_on(job: ChatJob, talk: Talk) -> None:
    """Read the conversation that was saved."""
    dialogue = talk.chat.dialogue
    if dialogue.entries:
        talk.show(talk.chat.read_again(f"session {job.session}: {exchanges(len(dialogue.exchanges))}"))


def _lasting_name(name: str) -> str:
    """A model in a directory or a file is found again from another place."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _history(job: ChatJob) -> Path | None:
    from uncomp_cli.ui.line_editor import history_path

    return history_path() if job.keeps_history else None
