"""What a pull reports while it works: frozen records, yielded by generators.

Nothing here prints; the command line and the tests consume the same stream.
"""

from dataclasses import dataclass

__all__ = ["PullStep"]


@dataclass(frozen=True, slots=True)
class PullStep:
    """One report of a pull. `stage` is download, verify, convert or save; `done` and `total` are bytes."""

    stage: str
    done: int
    total: int | None
