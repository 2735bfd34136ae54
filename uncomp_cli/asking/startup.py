"""From a choice of model to one that is loaded: fetched when need be, weighed before, turned for what it shall read.

`--rope auto` becomes one way of turning positions once the length of what is read is known: as trained where all fits;
else re-packing, or yarn where what is read has to serve later questions. What it came to is said, and so is a scaling
of the model's own that had to give way. Heavy imports happen inside functions, behind an event that says what goes on.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from uncomp_cli.asking.events import Event, Noted
from uncomp_cli.asking.material import longest_read
from uncomp_cli.asking.readout import floor_note
from uncomp_cli.asking.request import ModelChoice, Request
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import OutOfMemoryError, UsageError
from uncomp_cli.numerals import format_bytes, format_count
from uncomp_cli.steps import Working, pulled

if TYPE_CHECKING:
    import torch

    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.spend.compression import Compression
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.models.extension import RopeChoice, RopeState
    from uncomp_cli.models.runnable import LoadedModel
    from uncomp_cli.spec import ModelSpec


T = TypeVar("T")
_GROWTH = 2
"""Times the trained length that a chat with --rope auto can grow to when no --context is given."""


def during(what: str, work: Callable[[], T], far: Callable[[], str] = str) -> Generator[Event, None, T]:
    """What `work` returns; that it takes a while, and how `far` it is, is said before, that it is over behind it."""
    yield Working(what, far)
    result = work()
    yield Working(None)
    return result


def fetch(choice: ModelChoice) -> Generator[Event, None, Path]:
    """Make sure that the model is on this machine."""
    from uncomp_cli.models.catalog import ensure_local, local_path

    _ = choice.rope_choice  # a slip in it must not wait for a download
    yield from pulled(ensure_local(choice.name, offline=choice.offline, tokenizer_dir=choice.tokenizer))
    path = local_path(choice.name)
    if path is None:
        raise UsageError(f"model {choice.name} is not on this machine", hint=f"uncomp model pull {choice.name}")
    return path


@dataclass(frozen=True, slots=True)
class Weighed:
    """A model that is not loaded: its shape, how its weights will be held, their bytes and those that are free.

    `passing_bytes` are taken beside the weights while they are made, and may stay taken.
    `notes` are what has to be said of it.
    """

    spec: "ModelSpec"
    weights: str
    weights_bytes: int
    available_bytes: int
    passing_bytes: int = 0
    notes: tuple[str, ...] = ()


def weigh(choice: ModelChoice, path: Path) -> Weighed:
    """What the model will take; nothing is loaded.

    Where its weights do not fit and nothing was said of how to hold them, they are held in fewer bits: the most that
    fit. Raises what loading would raise for the family and the quantization, and OutOfMemoryError for too large
    weights.
    """
    from uncomp_cli.engine.spend.memory import free_bytes
    from uncomp_cli.models.footprint import footprint, has_blocks, narrower
    from uncomp_cli.models.loading import check_quantization, choose_device

    device = choose_device(choice.device)
    if choice.quantize != "none":
        check_quantization(choice.quantize, device)
    how: dict[str, Any] = {"dtype": choice.dtype, "device": device, "quantize": choice.quantize}
    wide = footprint(path, **how, rope=choice.rope_choice, weights=choice.weights, ranks=choice.ranks)
    available = free_bytes(device)
    if wide.weights_bytes + wide.passing_bytes <= available:
        return Weighed(wide.spec, choice.weights, wide.weights_bytes, available, wide.passing_bytes)
    held = narrower(path, **how) if choice.weights == "auto" and choice.ranks == 1 else ()
    for weights in held:
        found = footprint(path, **how, weights=weights)
        if found.weights_bytes + found.passing_bytes <= available:
            note = (
                f"the weights of {choice.name} are held as {weights}, in {format_bytes(found.weights_bytes)}: "
                f"{format_bytes(wide.weights_bytes)} as float32, of which {format_bytes(available)} are free"
            )
            return Weighed(wide.spec, weights, found.weights_bytes, available, found.passing_bytes, (note,))
    refusal = _too_large(choice, wide.weights_bytes, available, wide.passing_bytes, widened=has_blocks(path))
    if held:
        refusal.hint = f"--weights disk reads them again for every token; or {refusal.hint}"
    raise refusal


def _too_large(
    choice: ModelChoice, weights_bytes: int, available: int, passing: int, *, widened: bool
) -> OutOfMemoryError:
    """What to tell of weights that do not fit; `widened`: nothing but their own blocks holds them in fewer bytes."""
    from uncomp_cli.engine.spend.fitting import smaller_model

    smaller = smaller_model(available=available)
    plain = {"weights": "auto", "quantize": "none", "dtype": "auto"}
    ways = [f"--{name} {value}" for name, value in plain.items() if getattr(choice, name) != value]
    if not widened:
        ways = [*(way for way in ways if way == "--weights auto"), "--quantize int8 or nf4", "--dtype bfloat16"]
    beside = f" and {format_bytes(passing)} beside while they are made" if passing else ""
    return OutOfMemoryError(
        f"the weights of {choice.name} need {format_bytes(weights_bytes)}{beside}, {format_bytes(available)} are free",
        hint=f"use {', '.join([*ways, f'or {smaller}' if ways else smaller])}",
    )


def load(
    choice: ModelChoice, check: "Callable[[Path, ModelSpec], None]" = lambda path, spec: None
) -> "Generator[Event, None, LoadedModel]":
    """Fetch the model when needed, and load it; refused before loading when it cannot fit, or `check` says no."""
    path, growth = (yield from fetch(choice)), Growth()
    loaded = yield from during(f"loading {choice.name}", lambda: _load(choice, path, check, growth), growth.text)
    yield from map(Noted, loaded.notes)
    return loaded


@dataclass(slots=True)
class Growth:
    """How much of the weights is in memory: what was taken since they began to be read, at most all of them."""

    total_bytes: int = 0
    taken: Callable[[], int] = int

    def begin(self, device: "torch.device") -> None:
        """From here on memory is taken for the weights."""
        from uncomp_cli.engine.spend.memory import resident_bytes

        before = resident_bytes(device)
        self.taken = lambda: resident_bytes(device) - before

    def text(self) -> str:
        """`310 MiB of 513 MiB`; nothing before anything was read."""
        taken = min(self.total_bytes, self.taken())
        return f"{format_bytes(taken)} of {format_bytes(self.total_bytes)}" if taken > 0 else ""


def _load(choice: ModelChoice, path: Path, check: "Callable[[Path, ModelSpec], None]", growth: Growth) -> "LoadedModel":
    weighed = weigh(choice, path)
    growth.total_bytes = weighed.weights_bytes
    check(path, weighed.spec)
    loaded = load_as(choice, weights=weighed.weights, begin=growth.begin)
    return replace(loaded, notes=(*weighed.notes, *loaded.notes))


def load_as(
    choice: ModelChoice, *, weights: str, begin: "Callable[[torch.device], None]" = lambda device: None
) -> "LoadedModel":
    """Load the model, which is on this machine, its weights held so; `begin` is called before they are read."""
    from uncomp_cli.models.loading import load_model

    return load_model(
        choice.name,
        dtype=choice.dtype,
        device=choice.device,
        quantize=None if choice.quantize == "none" else choice.quantize,
        rope=choice.rope_choice,
        offline=choice.offline,
        tokenizer_dir=choice.tokenizer,
        weights=weights,
        ranks=choice.ranks,
        begin=begin,
    )


def check_context_fits(choice: ModelChoice, loaded: "LoadedModel", preset: "Preset") -> None:
    """Raise DoesNotFitError when memory does not hold what `preset` keeps of the --context that was asked for."""
    from uncomp_cli.engine.spend.memory import check_context, free_on

    wanted = choice.rope_choice
    held = loaded.info.trained_length if loaded.rope.kind == "auto" else loaded.rope.reach
    context = None if wanted is None else wanted.context
    available = free_on(loaded.device, loaded.ranks)
    check_context(loaded.spec, preset, context=context, available=available, held_tokens=held)


def check_team(choice: ModelChoice) -> "Generator[Event, None, None]":
    """Raise UsageError or ModelError where the model cannot be dealt out to the --ranks; it is fetched when need be."""
    if choice.ranks == 1:
        return
    path = yield from fetch(choice)

    def check() -> None:
        from uncomp_cli.models.loading import check_dealt

        check_dealt(path, choice.name, choice.ranks, device=choice.device, how=(choice.quantize, choice.weights))

    yield from during("preparing", check)


def check_grows(model: ModelChoice, what: str) -> None:
    """Raise UsageError for a way of turning positions that `what`, which is read on and on, cannot have."""
    from uncomp_cli.models.extension import REPACKED

    choice = model.rope_choice
    if choice is not None and choice.kind in REPACKED:
        message = f"{what} cannot be re-packed: what is kept of it has to stay where it is"
        hint = f"use --rope yarn:2; uncomp ask --rope {choice.kind}, without a saved cache, reads any length"
        raise UsageError(message, hint=hint)


def lengthen(
    loaded: "LoadedModel", choice: "RopeChoice | None", tokens: int, *, grows: bool
) -> "Generator[Event, None, LoadedModel]":
    """The model turned so that it reads `tokens`, prompt and answer; what `auto` chose is said.

    What `grows` is read on later, and so is not re-packed.
    """
    from uncomp_cli.models.rotary import resolve_rope

    loaded, note = resolve_rope(loaded, choice, tokens=tokens, grows=grows)
    if note is not None:
        yield Noted(note)
    return loaded


def lengthen_for(
    loaded: "LoadedModel", request: Request, documents: DocumentSet, questions: Sequence[str]
) -> "Generator[Event, None, LoadedModel]":
    """The same for what is about to be read; nothing happens where nothing was left to choose."""
    choice = request.model.rope_choice
    if choice is None or choice.kind != "auto" or not documents.documents:
        return loaded
    tokens = longest_read(request, request.contexts(documents), questions, loaded.tokenizer)
    return (yield from lengthen(loaded, choice, tokens, grows=request.saves_context or request.for_any))


def planned_length(
    model: ModelChoice, path: Path, spec: "ModelSpec", tokens: int, *, grows: bool
) -> "Generator[Event, None, tuple[ModelSpec, RopeState]]":
    """The same without a model: its shape as it may then be read, and how its positions are turned."""
    from uncomp_cli.models.loading import load_config
    from uncomp_cli.models.rotary import apply_choice, resolve_choice

    choice, config = model.rope_choice, load_config(path, model.name)
    if choice is not None and choice.kind == "auto":
        choice, note = resolve_choice(config, choice, tokens=tokens, grows=grows)
        yield Noted(note)
    _, longest, state = apply_choice(config, choice)
    return replace(spec, trained_length=longest), state


def lengthen_for_growth(loaded: "LoadedModel", choice: "RopeChoice | None") -> "Generator[Event, None, LoadedModel]":
    """The same for a chat, of which nobody knows how long it gets: for --context, or twice the trained length."""
    tokens = _GROWTH * loaded.info.trained_length
    if choice is not None and choice.context is not None:
        tokens = choice.context
    return lengthen(loaded, choice, tokens, grows=True)


def reading_warnings(
    request: Request, prompt: "Prompt", cut: range, planned: "Compression | None", loaded: "LoadedModel"
) -> Iterator[str]:
    """What changes the meaning of the answer and must not go unsaid; `planned` is None for a text that was saved."""
    if len(cut):
        yield (
            f"--truncate {request.truncate}: {format_count(len(cut))} document tokens were cut away "
            f"({format_count(cut.start)} to {format_count(cut.stop)})"
        )
    floor = None if planned is None else floor_note(planned)
    if floor is not None:
        yield floor
    yield from length_warnings(loaded, prompt.seq_len)
    if not loaded.tokenizer.chat_template:
        yield "this model has no chat template: it is asked in plain text, as one that was made to go on with it"
    room = loaded.spec.trained_length - prompt.seq_len
    if 0 < room < request.sampling.max_new_tokens:
        yield f"the answer may have {format_count(room)} tokens at most: the context ends there"


def length_warnings(loaded: "LoadedModel", prompt_tokens: int) -> Iterator[str]:
    """What is less sure because the model was not trained for it.

    Nothing is, as far as the model reads by its own scaling and that is in force.
    """
    from uncomp_cli.models.rotary import reading_length

    trained, rope = loaded.info.trained_length, loaded.rope
    if rope.replaced is not None:
        yield f"the model's own RoPE scaling ({rope.replaced}) is replaced by --rope {rope}"
    own = reading_length(loaded.own_config or loaded.model.config) if rope.kind in ("trained", "plain") else trained
    if not max(trained, own) < prompt_tokens < loaded.spec.trained_length:
        return
    how = {
        "plain": "read on as trained (--rope plain)",
        "repack": f"re-packed within that length (--rope {rope})",
        "reread": f"re-packed within that length (--rope {rope})",
    }.get(rope.kind, f"extended by --rope {rope}")
    yield (
        f"the prompt has {format_count(prompt_tokens)} tokens, the model was trained for {format_count(trained)}: "
        f"answers from a context {how} are less reliable"
    )
