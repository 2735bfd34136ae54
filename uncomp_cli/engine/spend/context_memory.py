"""Whether the memory holds the KV cache of a context that is asked for by its length, before any of it is read.

    needed = the budget's share of a full cache of `context` tokens

A bound from below: what reading takes beside the cache is known when there is a prompt (compression.py).
"""

from uncomp_cli.budget.amount import resolve_entries
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import CacheConfig
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

__all__ = ["check_context", "context_bytes"]


def check_context(
    spec: ModelSpec, preset: Preset, *, context: int | None, available: int, held_tokens: int | None = None
) -> None:
    """Raise DoesNotFitError when the cache of `context` tokens under `preset` needs more than `available` bytes.

    `held_tokens` is the most that a head ever holds, as when what is kept is moved into the trained length.
    """
    if context is None:
        return
    needed = context_bytes(spec, preset, context if held_tokens is None else min(context, held_tokens))
    if needed > available:
        raise DoesNotFitError(
            f"a context of {context:,} tokens needs {needed / 2**20:,.0f} MiB of KV cache under --budget "
            f"{preset.budget}, {available / 2**20:,.0f} MiB are free",
            hint="use a smaller --budget (or --budget auto), or a shorter --context",
        )


def context_bytes(spec: ModelSpec, preset: Preset, tokens: int) -> int:
    """Bytes of the keys and values that the budget of `preset` keeps of `tokens`; auto takes what there is."""
    budget, full = preset.budget, spec.full_kv_bytes(tokens)
    if budget.kind in ("auto", "bytes"):
        return 0 if budget.kind == "auto" else min(full, int(budget.amount))
    entries = resolve_entries(budget, spec, seq_len=tokens, free_bytes=0)
    if budget.kind == "fraction" or preset.kv_bits == 16:
        return entries * spec.kv_bytes_per_entry
    return CacheConfig().quantized_bytes(entries, head_dim=spec.head_dim, bits=preset.kv_bits)
