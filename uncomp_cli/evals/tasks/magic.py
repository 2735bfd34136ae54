"""The sentence that is hidden, and the question for it: `The special magic number for amber is 7302846.`

A question ends with the opening of its answer, so that a model which was not made for chat continues it too.
"""

from uncomp_cli.evals.tasks.words import list_items

__all__ = ["magic_question", "magic_sentence"]


def magic_sentence(key: str, value: str, *, kind: str, several: bool = False) -> str:
    """The fact that `key` has `value`; `kind` is number or uuid, `several` says that there are more for the key."""
    if several:
        return f"One of the special magic {kind}s for {key} is {value}."
    return f"The special magic {kind} for {key} is {value}."


def magic_question(keys: tuple[str, ...], *, kind: str, several: bool = False) -> str:
    """Asks for the values of `keys`, more than one value a key where `several`."""
    asked = f"for {list_items(keys)} mentioned in the text"
    if several or len(keys) > 1:
        return f"\n\nWhat are all the special magic {kind}s {asked}? The special magic {kind}s {asked} are"
    return f"\n\nWhat is the special magic {kind} {asked}? The special magic {kind} {asked} is"
