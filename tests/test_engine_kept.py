"""What is kept of a text that grows, on every kind of attention: as if it had been read at once."""

from collections.abc import Generator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from support.families import FAMILIES, tiny, tokens
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.engine.context.growth import Growth
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.tokens.tokens import Tokens

FULL = load_preset("full")
SMALL = replace(load_preset("unseen"), budget="40%", kv_bits=16, policy="uniform", profile=None, floor_tokens=0)


def text_of(length: int, *, seed: int = 5) -> Tokens:
    offsets = torch.stack([torch.arange(length), torch.arange(length) + 1], dim=1)
    words = torch.arange(length) // 3
    return Tokens.of(tokens(length, seed), protected=torch.arange(length) < 6, words=words, offsets=offsets)


def done(steps: Generator[PrefillStep, None, Tensor]) -> Tensor:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Tensor = end.value
            return result


def kept(decoder: Decoder, preset: Preset, text: Tokens, *ends: int) -> tuple[Growth, Tensor]:
    """A context that read `text` up to each of `ends`, one after another, and the logits behind the last."""
    context = Growth(decoder, preset, reserve=32)
    for end in ends:
        logits = done(context.extend(text[:end]))
    return context, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_is_reading_at_once(family: str) -> None:
    """Nothing that a layer would see is dropped while all is to be kept."""
    _, decoder, spec = tiny(family)
    text = text_of(150)
    context, logits = kept(decoder, FULL, text, 90, 120, 150)
    _, fresh = kept(decoder, FULL, text, 150)
    torch.testing.assert_close(logits, fresh, rtol=1e-3, atol=1e-3)
    assert float(context.survival().min()) == 1
    for layer, window in enumerate(spec.sliding_windows):
        longest = max(context.cache.layer(layer).lengths)
        assert longest == 150 if window is None else window <= longest <= 150


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2-sliding"])
def test_going_back_and_on(family: str) -> None:
    """A text that parts from what was read earlier than its end is as if the end had never been."""
    _, decoder, _ = tiny(family)
    text, other = text_of(150), text_of(150, seed=6)
    parted = replace(text, ids=text.ids[:100] + other.ids[100:])
    context, _ = kept(decoder, FULL, text, 90, 150)
    logits = done(context.extend(parted))
    _, fresh = kept(decoder, FULL, parted, 150)
    torch.testing.assert_close(logits, fresh, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_budget_protected_and_guarded(family: str) -> None:
    _, decoder, spec = tiny(family)
    context = Growth(decoder, SMALL, reserve=32)
    context.budget.pinned = torch.zeros(600, dtype=torch.bool)
    context.budget.pinned[200:220] = True
    context.budget.guard_from = 590
    for end in (400, 600):
        done(context.extend(text_of(600)[:end]))
    share = context.survival()
    assert all(float(share[at]) == 1 for at in (*range(6), *range(200, 220), *range(590, 600)))
    assert 0.2 < float(share.mean()) < 0.4
    full = [context.cache.layer(layer).nbytes for layer in spec.full_layers]
    plan = context.account().plan
    allowed = [sum(plan.kept[layer]) * spec.kv_bytes_per_entry for layer in spec.full_layers]
    assert all(held <= most for held, most in zip(full, allowed, strict=True))


@pytest.mark.parametrize(
    ("guard_from", "mean_tokens", "first"), [(95, 80, 95), (10, 80, 80), (10, 40, 90), (0, 4000, 44)]
)
def test_of_the_latest_message_no_more_is_guarded_than_a_quarter_holds(
    guard_from: int, mean_tokens: int, first: int
) -> None:
    """Not what is before the message, no more than a quarter of a head's tokens, and 256 at most."""
    budget = Growth(tiny("llama")[1], SMALL).budget
    budget.guard_from = guard_from
    length = 300 if mean_tokens == 4000 else 100
    guarded = budget.guarded(text_of(length), mean_tokens).nonzero()[:, 0].tolist()
    assert guarded == [*range(6), *range(first, length)]
