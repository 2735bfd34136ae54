"""The options that save a read document and use it again, the folder where it lies, and how its size is written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.options import COMPRESSION_PANEL
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.errors import UsageError

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Shelf

__all__ = ["DEFAULT_CACHE_SIZE", "CacheSize", "Reuse", "SaveCache", "cache_names", "shelf_of"]

DEFAULT_CACHE_SIZE = "2GiB"


def cache_names(incomplete: str) -> list[str]:
    """Completions of a saved cache's name."""
    return [entry.name for entry in shelf_of().entries() if entry.name.startswith(incomplete)]


def _reusable(incomplete: str) -> list[str]:
    return [name for name in ("auto", *cache_names(incomplete)) if name.startswith(incomplete)]


def shelf_of(size: str = DEFAULT_CACHE_SIZE) -> "Shelf":
    """The user's saved caches, which may have `size` together. Raises UsageError for what is no size."""
    from uncomp_cli.cache.shelf import Shelf
    from uncomp_cli.models.sources import cache_dir

    return Shelf(_folder(cache_dir()), limit_bytes=_size_bytes(size))


def _folder(cache: Path) -> Path:
    return cache / "documents"


def _size_bytes(text: str) -> int:
    hint = "use --cache-size 2GiB, 500MiB, …"
    try:
        amount = Budget.parse(text)
    except UsageError as error:
        raise UsageError(f"cache-size '{text}' is not an amount of disk space", hint=hint) from error
    if amount.kind != "bytes":
        raise UsageError(f"cache-size '{text}' is no amount of disk space in bytes", hint=hint)
    return int(amount.amount)


SaveCache = Annotated[
    str | None,
    option(
        "--save-cache",
        help="Save the compressed document under this name; later: --reuse NAME.",
        metavar="NAME",
        panel=COMPRESSION_PANEL,
        show_default=False,
    ),
]
Reuse = Annotated[
    str | None,
    option(
        "--reuse",
        help="Answer from a saved document instead of reading it: by name (then -f is not needed), or auto: one that "
        "was made from just this, which is saved when there is none. Kept by preset unseen, unless another is named.",
        metavar="NAME|auto",
        panel=COMPRESSION_PANEL,
        show_default=False,
        autocompletion=_reusable,
    ),
]
CacheSize = Annotated[
    str,
    option(
        "--cache-size",
        help="Most that all saved documents may take on the disk; those not used for longest go.",
        metavar="AMOUNT",
        panel=COMPRESSION_PANEL,
    ),
]
