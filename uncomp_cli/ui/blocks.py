'''Texts of several lines: a block begins and ends with three double quotes.

    """What do these two
    paragraphs have in common?"""

Only a text that begins with the quotes is a block, so quotes inside of a line mean themselves.
'''

__all__ = ["CONTINUATION", "PROMPT", "QUOTES", "is_open", "without_quotes"]

PROMPT = "> "
CONTINUATION = ". "
QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether `text` begins a block and does not end it."""
    body = text.strip()
    return body.startswith(QUOTES) and not _is_closed(body)


def without_quotes(text: str) -> str:
    """What stands between the quotes of a whole block; any other text as it is."""
    body = text.strip()
    return body.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n") if _is_closed(body) else text


def _is_closed(body: str) -> bool:
    return len(body) >= 2 * len(QUOTES) and body.startswith(QUOTES) and body.endswith(QUOTES)
