"""What the commands of a chat work on: the dialogue, the engine's session, the choices, and where it is saved."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uncomp_cli.cli.chat.chat_preset import PresetChoice
from uncomp_cli.cli.chat.said import Dialogue
from uncomp_cli.sessions.transcript import Entry
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.engine.context.chat import ChatSession
    from uncomp_cli.engine.tokens.messages import Message
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["Chat"]


@dataclass(slots=True)
class Chat:
    """A conversation that goes on. `draft` is a message that got no answer: `/edit` begins with it.

    `retries` counts answers to the same question, so that another seed can be drawn. `written` are files that this
    chat saved, and may write again. `read_text` is what the session was given last, `answered` whether that is what the
    latest answer was to. `escalates` says that an answer which is flagged is asked for again, with a larger budget.
    """

    loaded: "LoadedModel"
    session: "ChatSession"
    terminal: Terminal
    choice: PresetChoice
    dialogue: Dialogue = field(default_factory=Dialogue)
    model_name: str = ""
    draft: str = ""
    retries: int = 0
    created: str = ""
    read_text: str = ""
    answered: bool = False
    escalates: bool = False
    written: set[str] = field(default_factory=set)

    def messages(self, newest: Entry | None = None) -> "list[Message]":
        """What the model is to read now; the pins among it are told to the session."""
        messages = self.dialogue.messages(newest)
        self.session.pinned = self.dialogue.pinned(newest)
        self.answered, self.read_text = False, "".join(message.text for message in messages)
        return messages

    def say(self, text: str) -> None:
        """A remark on standard error, unless quiet."""
        self.terminal.note(text)

    def tell(self, text: str) -> None:
        """What a command was asked for, on standard error, also when quiet."""
        replace(self.terminal, quiet=False).note(text)
