"""What a user asked for, parsed once: documents, questions, model, preset, pins, limits, sampling.

A preset is a stored one with what the user changed in it, settled for the model that runs. The next question is not
known when a conversation is compressed, so a chat's default preset is `unseen`, and a scorer that looks at the question
gives way to `unseen`'s (engine/context/growth.py). Nothing heavy is imported here, and no document is read: what cannot
be is found out later, by who needs it.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import FAMILY, Preset, list_presets, preset
from uncomp_cli.config import (
    AGNOSTIC_PRESET,
    DEFAULT_CACHE_SIZE,
    DEFAULT_MODEL,
    DEFAULT_TEXT_CACHE,
    LIVE_PRESET,
    Limits,
    Matmul,
    SamplingConfig,
    Side,
    Weights,
)
from uncomp_cli.documents.cabinet import Cabinet
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.documents.text import NO_WISHES, Wishes
from uncomp_cli.errors import UncompError, UsageError, check_address_space
from uncomp_cli.numerals import format_count

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Shelf
    from uncomp_cli.engine.tokens.prompt import Said
    from uncomp_cli.models.extension import RopeChoice
    from uncomp_cli.uncertainty.profile import ModelFingerprint


CHAT_PRESET = AGNOSTIC_PRESET
LEAST_TOKENS = 256
"""Tokens a head that a budget in per cent keeps at least: a share of what has hardly begun is nothing."""
_TIMES = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*[xX×]")


def choose_preset(name: str | None = None, **given: Any) -> Preset:
    """`preset` of budget/presets.py; it also refuses a scorer that there is not."""
    check_address_space()
    chosen = preset(name, **given)
    from uncomp_cli.cache.scorers import make_scorer  # imports torch, so cheaper mistakes are found before

    make_scorer(chosen.scorer)
    return chosen


def settle_preset(
    preset: Preset, model: "ModelFingerprint", *, named: bool, choose: Callable[[str], Preset]
) -> tuple[Preset, str | None]:
    """The preset to run this model with, and a note when it is not the one that was chosen.

    A preset whose profile was measured on another model is refused when the user named it, with both values. The
    default one gives way to the user's own that was calibrated for this model, else to `live`, in the bits of the
    default one: `choose(name)` is `choose_preset` with the user's other options.
    """
    from uncomp_cli.uncertainty.profile import load_profile

    path = preset.profile_path
    if path is None:
        return preset, None
    measured = load_profile(path).fingerprint
    try:
        measured.check(model)
    except UsageError as error:
        if named:
            message = f"preset {preset.name} is not for this model: {error.message}"
            raise UsageError(message, hint=f"--preset {LIVE_PRESET}, or {error.hint}") from error
        if (own := _calibrated_for(model, preset.name)) is not None:
            return choose(own), f"preset {own} is used: it was calibrated for {model.name}"
        note = f"preset {preset.name} was measured on {measured.name}; for {model.name} preset {LIVE_PRESET} is used"
        return replace(choose(LIVE_PRESET), kv_bits=preset.kv_bits), note
    return preset, None


def _calibrated_for(model: "ModelFingerprint", like: str) -> str | None:
    """The preset that was calibrated last for this model, of those that are to it what shipped preset `like` is."""
    from uncomp_cli.uncertainty.profile import load_profile

    suffix, found = next((suffix for suffix, name in FAMILY.items() if name == like), ""), []
    for each in list_presets():
        path = each.profile_path
        if path is not None and each.name == f"{each.profile}{suffix}":
            with suppress(UncompError, OSError):
                load_profile(path).fingerprint.check(model)
                found.append((path.stat().st_mtime, each.name))
    return max(found)[1] if found else None


def _loss_note(preset: Preset, max_loss: str) -> str:
    """Which budget --max-loss chose, and the measured loss that it holds by."""
    point = next(point for point in preset.quality if Budget.parse(point.budget) == preset.budget)
    return (
        f"--max-loss {max_loss}: budget {preset.budget}, measured loss {100 * point.loss:.2f} % "
        f"({100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %, {format_count(point.samples)} samples)"
    )


@dataclass(frozen=True, slots=True)
class PresetChoice:
    """A preset's name, None for the usual one, and what replaces its own; None leaves it.

    `usual` is taken when none is named. `floor_tokens` go with a budget in per cent: what a head keeps at least.
    """

    name: str | None = None
    budget: Budget | None = None
    policy: str | None = None
    scorer: str | None = None
    kv_bits: int | None = None
    thinning: str | None = None
    max_loss: str | None = None
    seed: int = 0
    usual: str | None = None
    floor_tokens: int | None = None

    def stored(self, name: str | None = None) -> Preset:
        """The preset with the user's changes, whatever the model is. Raises UsageError for what cannot be."""
        chosen = choose_preset(
            name or self.name or self.usual,
            budget=self.budget,
            policy=self.policy,
            scorer=self.scorer,
            kv_bits=self.kv_bits,
            thinning=self.thinning,
            max_loss=self.max_loss,
            seed=self.seed,
        )
        if self.floor_tokens is None or self.budget is None or chosen.budget.kind != "fraction":
            return chosen
        return replace(chosen, floor_tokens=self.floor_tokens)

    def settled(self, model: "ModelFingerprint", *, grows: bool = False) -> tuple[Preset, list[str]]:
        """The preset for this model, for a text that `grows` one for questions that nobody has asked yet.

        The notes say what was changed, and what --max-loss came to.
        """
        chosen, changed = settle_preset(self.stored(), model, named=self.name is not None, choose=self.stored)
        notes = [changed]
        if grows:
            from uncomp_cli.engine.context.growth import for_any_question

            chosen, changed = for_any_question(chosen, grows=True)
            notes.append(changed)
        if self.max_loss is not None:
            notes.append(_loss_note(chosen, self.max_loss))
        return chosen, [note for note in notes if note is not None]


CHAT_CHOICE = PresetChoice(usual=CHAT_PRESET, floor_tokens=LEAST_TOKENS)
"""What a conversation goes by when nothing is named."""


def times(choice: PresetChoice, text: str, *, now: Preset) -> PresetChoice:
    """`choice` with a budget as typed, or `2x` of what there is now, its floor too.

    Raises UsageError when that cannot be multiplied.
    """
    factor = _TIMES.fullmatch(text.strip())
    if factor is None:
        return replace(choice, budget=Budget.parse(text), floor_tokens=LEAST_TOKENS)
    budget = now.budget.times(float(factor[1]))
    if budget is None:
        raise UsageError(f"budget {now.budget} cannot be taken {text}", hint="name an amount, such as /budget 30%")
    if budget.kind == "full":
        return replace(choice, budget=budget)
    return replace(choice, budget=budget, floor_tokens=round(now.floor_tokens * float(factor[1])))


def preset_line(preset: Preset) -> str:
    """`preset unseen · budget 30%, at least 1,024 tokens, in 4 bits · policy uncertain · scorer distinct`."""
    least = f", at least {format_count(preset.floor_tokens)} tokens" if preset.floor_tokens else ""
    scorer = "" if preset.policy == "full" else f" · scorer {preset.scorer.name}"
    bits = "" if preset.kv_bits == 16 else f", in {preset.kv_bits} bits"
    return f"preset {preset.name} · budget {preset.budget}{least}{bits} · policy {preset.policy}{scorer}"


AUTOMATIC = "auto"
"""--cache by what was read: no cache is named."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A part of a document: lines, such as `10-40`, or a place, such as `p3` (documents/places.py reads it)."""

    path: str
    where: str

    def __str__(self) -> str:
        return f"{self.path}:{self.where}"


def parse_pin(text: str) -> Pin:
    """The pin that `FILE:10-40`, `FILE:10` or `FILE:p3` writes; raises UsageError for anything else."""
    path, _, where = text.strip().rpartition(":")
    if not (path and where):
        raise UsageError(f"--pin '{text}' names no lines of a file", hint="write --pin FILE:10-40, or --pin FILE:p3")
    return Pin(path, where)


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
    matmul: Matmul = "auto"
    weights: Weights = "auto"
    ranks: int = 1

    @property
    def rope_choice(self) -> "RopeChoice | None":
        """How a text longer than trained is read; raises UsageError for what cannot be."""
        from uncomp_cli.models.extension import parse_rope

        return parse_rope(self.rope, context=self.context, force=self.force)


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a question about documents was asked with; `earlier` is what was said about them before.

    A `plain` question is a text that is to go on, without chat format and documents.
    """

    paths: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    questions_file: Path | None = None
    truncate: Side | None = None
    dry_run: bool = False
    model: ModelChoice = field(default_factory=ModelChoice)
    preset: PresetChoice = field(default_factory=PresetChoice)
    system: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    as_json: bool = False
    explain_budget: bool = False
    limits: Limits = field(default_factory=Limits)
    each: bool = False
    evidence: bool = False
    pins: tuple[Pin, ...] = ()
    save_cache: str | None = None
    reuse: str | None = None
    cache_size: str = DEFAULT_CACHE_SIZE
    escalate: bool = False
    fail_under: float | None = None
    for_any: bool = False
    wishes: Wishes = NO_WISHES
    earlier: "tuple[Said, ...]" = ()
    plain: bool = False

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
    def weighs(self) -> bool:
        """Whether it goes by how often such answers are wrong."""
        return self.escalate or self.fail_under is not None

    @property
    def names_a_cache(self) -> bool:
        """Whether a saved cache is named, which holds a document."""
        return self.reuse not in (None, AUTOMATIC)

    def without_pins(self) -> "Request":
        """The same with nothing pinned."""
        return replace(self, pins=())

    def contexts(self, documents: DocumentSet) -> list[DocumentSet]:
        """What is read as one: all documents together, or every one by itself."""
        return apart(documents) if self.each else [documents]


def apart(documents: DocumentSet) -> list[DocumentSet]:
    """Every document by itself."""
    return [DocumentSet((document,)) for document in documents.documents]


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


def cabinet_of(size: str = DEFAULT_TEXT_CACHE) -> Cabinet:
    """Where texts and tokens of documents are kept, which have `size` together; UsageError for what is no size."""
    from uncomp_cli.models.sources import cache_dir

    hint = "use --text-cache 512MiB, or 0 to keep none"
    limit = 0 if size.strip() == "0" else bytes_of(size, "text-cache", "disk space", hint=hint)
    return Cabinet(cache_dir() / "texts", limit)


def saved_or_new(name: str | None, size: str) -> dict[str, str | None]:
    """What --cache means: `auto`, a saved cache of this name that is asked, or a new one."""
    if name is None:
        return {}
    is_known = name == AUTOMATIC or any(entry.name == name for entry in shelf_of(size).entries())
    return {"reuse": name} if is_known else {"save_cache": name}


def bytes_of(text: str, flag: str, what: str, *, hint: str) -> int:
    """The bytes in an amount. Raises UsageError, with `hint`, for what is none, and for a share or tokens."""
    try:
        amount = Budget.parse(text)
    except UsageError as error:
        raise UsageError(f"{flag} '{text}' is not an amount of {what}", hint=hint) from error
    if amount.kind != "bytes":
        raise UsageError(f"{flag} '{text}' is no amount of {what} in bytes", hint=hint)
    return int(amount.amount)
