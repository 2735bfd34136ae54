"""Everything that one `uncomp ask` was told, as it goes from the command line to what reads, answers and tells."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from uncomp_cli.budget.presets import AGNOSTIC_PRESET
from uncomp_cli.cli.ask.pins import Pin
from uncomp_cli.cli.ask.prepare import ModelChoice
from uncomp_cli.cli.declare.options import DEFAULT_CACHE_SIZE
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.documents.collection import DocumentSet

__all__ = ["AUTOMATIC", "AskJob"]

AUTOMATIC = "auto"
"""--reuse by what was read: no cache is named."""


@dataclass(frozen=True, slots=True)
class AskJob:
    """Everything that one `uncomp ask` was told."""

    paths: tuple[str, ...]
    include: tuple[str, ...]
    questions: tuple[str, ...]
    questions_file: Path | None
    truncate: Literal["head", "middle", "tail"] | None
    dry_run: bool
    model: ModelChoice
    preset: str | None
    budget: str | None
    policy: str | None
    scorer: str | None
    kv_bits: int | None
    system: str | None
    sampling: SamplingConfig
    as_json: bool
    max_loss: str | None = None
    explain_budget: bool = False
    thinning: str | None = None
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

    @property
    def saves_context(self) -> bool:
        """Whether what is read is kept on the disk, or was."""
        return self.save_cache is not None or self.reuse is not None

    @property
    def usual_preset(self) -> str | None:
        """The preset that is taken when none is named; what is saved must serve questions nobody has asked yet."""
        return AGNOSTIC_PRESET if self.saves_context and self.policy is None and self.max_loss is None else None

    @property
    def names_a_cache(self) -> bool:
        """Whether a saved cache is named, which holds a document."""
        return self.reuse not in (None, AUTOMATIC)

    def without_pins(self) -> "AskJob":
        """The same with nothing pinned."""
        return replace(self, pins=())

    def contexts(self, documents: DocumentSet) -> list[DocumentSet]:
        """What is read as one: all documents together, or every one by itself."""
        return [DocumentSet((document,)) for document in documents.documents] if self.each else [documents]
