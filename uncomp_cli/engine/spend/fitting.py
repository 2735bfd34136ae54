"""Which of the known models fit this machine: what each takes, by the formulas that a plan is made with.

needed(tokens) = weights + what the preset keeps of a document of so many tokens + a pass of a chunk, with a cache in
the numbers of the device. Weights are counted as the file's bytes, since its blocks are kept as they are.
"""

from dataclasses import dataclass

from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_PRESET
from uncomp_cli.engine.spend.memory import activation_bytes, context_bytes, free_bytes
from uncomp_cli.models.known import Known, known_models
from uncomp_cli.models.loading import choose_device, choose_dtype

DOCUMENTS = (8192, 32_768)
"""Tokens of the documents that are reckoned with."""
_CHUNK_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Fit:
    """What a known model needs for documents of DOCUMENTS tokens; None where it was not trained for as many."""

    model: Known
    needed_bytes: tuple[int | None, ...]
    fits: bool


def needed_bytes(model: Known, preset: Preset, tokens: int, *, dtype_bytes: int) -> int:
    """Bytes that a question about a document of `tokens` takes."""
    spec = model.spec(dtype_bytes)
    reading = activation_bytes(spec, min(tokens, _CHUNK_TOKENS))
    return model.size_bytes + context_bytes(spec, preset, tokens) + reading


def fitting(available: int | None = None) -> list[Fit]:
    """All known models, those first that fit into `available` bytes with the shorter document; of each the best first.

    None: the bytes that are free on the device that would be used, and the default preset.
    """
    device, preset = choose_device("auto"), load_preset(DEFAULT_PRESET)
    free = free_bytes(device) if available is None else available
    itemsize = choose_dtype("auto", device).itemsize
    fits = [_fit(model, preset, free, itemsize) for model in reversed(known_models().values())]
    return sorted(fits, key=lambda fit: not fit.fits)


def _fit(model: Known, preset: Preset, free: int, dtype_bytes: int) -> Fit:
    needed = tuple(
        needed_bytes(model, preset, tokens, dtype_bytes=dtype_bytes) if tokens <= model.trained_length else None
        for tokens in DOCUMENTS
    )
    return Fit(model, needed, needed[0] is not None and needed[0] <= free)


def best_known(*, available: int | None = None) -> Known | None:
    """The best of the known models that fits; None where none does."""
    first = fitting(available)[0]
    return first.model if first.fits else None


def smaller_model(*, available: int) -> str:
    """What a hint names in the place of a model that is too large."""
    best = best_known(available=available)
    return "a smaller model" if best is None else f"the best known model that fits: --model {best.alias}"
