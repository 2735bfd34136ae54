"""What a user asked for, parsed once: documents, questions, model, preset, pins, limits, sampling.

Nothing heavy is imported here, and nothing is read: what cannot be is found out later, by who needs it.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uncomp_cli.asking.preset_choice import PresetChoice
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import AGNOSTIC_PRESET
from uncomp_cli.config import DEFAULT_MODEL, Limits, SamplingConfig
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import UsageError

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Shelf
    from uncomp_cli.models.extension import RopeChoice


AUTOMATIC = "auto"
"""--reuse by what was read: no cache is named."""
DEFAULT_CACHE_SIZE = "2GiB"
_PIN = re.compile(r"(?P<path>.+):(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Pin:
    """Lines `first_line` to `last_line`, the first is 1, of a document."""

    path: str
    first_line: int
    last_line: int

    def __str__(self) -> str:
        end = "" if self.first_line == self.last_line else f"-{self.last_line}"
        return f"{self.path}:{self.first_line}{end}"


def parse_pin(text: str) -> Pin:
    """The pin that `FILE:10-40` or `FILE:10` writes; raises UsageError for anything else."""
    match = _PIN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--pin '{text}' names no lines of a file", hint="write --pin FILE:10-40, or --pin FILE:10")
    first = int(match["first"])
    return Pin(match["path"], first, int(match["last"] or first))


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to run, and how: the options of the model panel."""

    name: str = DEFAULT_MODEL
    tokenizer: Path | None = None
    quantize: str = "none"
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    rope: str | None = None
    context: str | None = None
    force: bool = False

    @property
    def rope_choice(self) -> "RopeChoice | None":
        """How a text longer than trained is read; raises UsageError for what cannot be."""
        from uncomp_cli.models.extension import parse_rope

        return parse_rope(self.rope, context=self.context, force=self.force)


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a question about documents was asked with."""

    paths: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    questions_file: Path | None = None
    truncate: Literal["head", "middle", "tail"] | None = None
    dry_run: bool = False
    model: ModelChoice = field(default_factory=ModelChoice)
    preset: PresetChoice = field(default_factory=PresetChoice)
    system: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    as_json: bool = False
    explain_budget: bool = False
    limits: Limits = field(default_factory=Limits)
    each: bool = False
    matmul: Literal["float32", "bfloat16", "int8"] = "float32"
    evidence: bool = False
    pins: tuple[Pin, ...] = ()
    save_cache: str | None = None
    reuse: str | None = None
    cache_size: str = DEFAULT_CACHE_SIZE
    escalate: bool = False
    fail_under: float | None = None
    for_any: bool = False

    @property
    def saves_context(self) -> bool:
        """Whether what is read is kept on the disk, or was."""
        return self.save_cache is not None or self.reuse is not None

    @property
    def choice(self) -> PresetChoice:
        """By what its preset is chosen; what is saved must serve questions nobody has asked yet."""
        usual = self.saves_context and self.preset.policy is None and self.preset.max_loss is None
        return replace(self.preset, usual=AGNOSTIC_PRESET) if usual else self.preset

    @property
    def names_a_cache(self) -> bool:
        """Whether a saved cache is named, which holds a document."""
        return self.reuse not in (None, AUTOMATIC)

    def without_pins(self) -> "Request":
        """The same with nothing pinned."""
        return replace(self, pins=())

    def contexts(self, documents: DocumentSet) -> list[DocumentSet]:
        """What is read as one: all documents together, or every one by itself."""
        return [DocumentSet((document,)) for document in documents.documents] if self.each else [documents]


def check_text(text: str, what: str) -> None:
    """Raise UsageError when `text`, as typed, was no UTF-8: it came as surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not UTF-8 text", hint="type it again in a UTF-8 terminal") from error


def shelf_of(size: str = DEFAULT_CACHE_SIZE) -> "Shelf":
    """The user's saved caches, which may have `size` together. Raises UsageError for what is no size."""
    from uncomp_cli.cache.shelf import Shelf
    from uncomp_cli.models.sources import cache_dir

    limit = bytes_of(size, "cache-size", "disk space", hint="use --cache-size 2GiB, 500MiB, …")
    return Shelf(cache_dir() / "documents", limit_bytes=limit)


def bytes_of(text: str, flag: str, what: str, *, hint: str) -> int:
    """The bytes in an amount. Raises UsageError, with `hint`, for what is none, and for a share or tokens."""
    try:
        amount = Budget.parse(text)
    except UsageError as error:
        raise UsageError(f"{flag} '{text}' is not an amount of {what}", hint=hint) from error
    if amount.kind != "bytes":
        raise UsageError(f"{flag} '{text}' is no amount of {what} in bytes", hint=hint)
    return int(amount.amount)
