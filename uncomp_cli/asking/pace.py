"""How fast a model last read a text on this machine: what a long reading would take, before a weight is loaded.

One number a model, tokens a second, in the user's state directory; nothing is said of a model that was not measured.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import platformdirs

from uncomp_cli.files import write_whole
from uncomp_cli.numerals import format_seconds

_LEAST_TOKENS = 200
"""A shorter text is read in the time that it takes to begin."""


def remember_pace(model: str, record: Mapping[str, Any]) -> None:
    """Keep the pace of an answer's `record`, where a text was read for it that is long enough to tell."""
    usage, speed = record["usage"], record["timing"]["prefill_tok_s"]
    if speed and usage["prompt_tokens"] - usage["cached_tokens"] >= _LEAST_TOKENS:
        with suppress(OSError):
            path = _path(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{speed:.3g}\n".encode())


def takes(model: str, tokens: int) -> str:
    """`about 3 min at the pace of the last reading`; nothing where none was measured."""
    try:
        seconds = tokens / float(_path(model).read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return ""
    return f"about {format_seconds(seconds)} at the pace of the last reading" if 0 < seconds < math.inf else ""


def _path(model: str) -> Path:
    return platformdirs.user_state_path("uncomp") / "pace" / sha256(model.encode("utf-8", "surrogatepass")).hexdigest()
