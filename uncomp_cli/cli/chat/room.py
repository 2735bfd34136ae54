"""Room in a chat: how it is made when the context is full, chosen by the user; nothing falls out by itself."""

from uncomp_cli.cli.chat.said import spoken
from uncomp_cli.cli.chat.state import Chat

__all__ = ["hint_in_chat", "ways_out"]

_SHOWN = 30


def hint_in_chat(chat: Chat, hint: str | None) -> str:
    """How what does not fit is mended from inside a chat."""
    if hint is None or "--rope" in hint:  # the context is full
        return ways_out(chat)
    return hint


def ways_out(chat: Chat) -> str:
    """How room is made, chosen by the user: nothing falls out by itself."""
    exchanges = chat.dialogue.exchanges
    if not exchanges:
        return "use something shorter, or leave and come back with a larger --context"
    oldest = spoken(exchanges[0][0]).split("\n")[0]
    shown = oldest if len(oldest) <= _SHOWN else oldest[: _SHOWN - 1] + "…"
    return f"/forget 1 drops the oldest exchange ({shown}), /undo the latest, /clear all"
