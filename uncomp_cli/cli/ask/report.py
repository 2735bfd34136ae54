"""What an answer is reported as: the readout line for people, one JSON object for programs."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.ask.pins import pinned_tokens
from uncomp_cli.cli.ask.risk_report import risk_of, risk_record
from uncomp_cli.numerals import Readout, format_bytes, format_count, format_decimal

if TYPE_CHECKING:
    from uncomp_cli.budget.loss_curve import QualityPoint
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.cli.ask.pins import Pin
    from uncomp_cli.cli.declare.failures import Failure
    from uncomp_cli.documents.places import Places
    from uncomp_cli.engine.context.session import RunStats
    from uncomp_cli.models.loading import LoadedModel
    from uncomp_cli.spec import ModelSpec

__all__ = [
    "QUALITY_COLUMNS",
    "SCHEMA_VERSION",
    "answer_record",
    "budget_note",
    "chunk_note",
    "failure_record",
    "held_bits",
    "loss_note",
    "pin_note",
    "quality_row",
    "readout",
]

SCHEMA_VERSION = 1
QUALITY_COLUMNS = ("BUDGET", "KEPT", "LOSS", "95 % INTERVAL", "SAMPLES")


def quality_row(point: "QualityPoint") -> tuple[str, ...]:
    """A point of a quality curve, in per cent, under QUALITY_COLUMNS."""
    return (
        point.budget,
        f"{100 * point.kept_fraction:.1f} %",
        f"{100 * point.loss:.2f} %",
        f"{100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %",
        format_count(point.samples),
    )


def readout(stats: "RunStats", spec: "ModelSpec") -> Readout:
    """The readout of one answer."""
    return Readout(
        prefill_tokens=stats.prompt_tokens - stats.cached_tokens,
        prefill_s=stats.prefill_s,
        ttft_s=stats.ttft_s,
        decode_tok_s=stats.decode_tok_s,
        kv_bytes=stats.kv_bytes,
        kv_full_bytes=stats.kv_full_bytes,
        peak_bytes=stats.peak_bytes,
        attention_entropy=stats.attention_entropy,
        context_tokens=stats.prompt_tokens + stats.completion_tokens,
        context_limit=spec.trained_length,
    )


def held_bits(preset: "Preset", spec: "ModelSpec") -> int:
    """Bits of a number in the kept context: the preset's 8 or 4, or those of the model's own dtype."""
    return 8 * spec.dtype_bytes if preset.kv_bits == 16 else preset.kv_bits


def budget_note(preset: "Preset", plan: "BudgetPlan", spec: "ModelSpec", *, question_tokens: int) -> str:
    """Requested and planned budget, in words: shown before the prefill."""
    from uncomp_cli.engine.spend.memory import planned_kv_bytes

    kept = planned_kv_bytes(spec, plan, question_tokens=question_tokens)
    full = spec.full_kv_bytes(plan.seq_len)
    mean = plan.entries / (spec.num_layers * spec.num_kv_heads)
    floor = f", at least {format_count(preset.floor_tokens)} tokens of the document" if preset.floor_tokens else ""
    bits = "" if plan.kv_bits == 16 else f" in {plan.kv_bits} bits"
    return (
        f"budget {preset.budget}{floor} ({preset.name}, {preset.policy}): {format_count(round(mean))} of "
        f"{format_count(plan.seq_len)} tokens per head{bits}, {format_bytes(kept)} of {format_bytes(full)} "
        f"({format_decimal(100 * kept / full)} %)"
    )


def chunk_note(chunk_tokens: int, context_tokens: int, *, kv_mem: int | None, reread_tokens: int | None = None) -> str:
    """How the prompt is read when it is not read at once, and the cap on the cache that was named."""
    again = (
        ""
        if reread_tokens is None
        else f", then passages of {format_count(reread_tokens)} tokens again, which alone stay"
    )
    cap = "" if kv_mem is None else f"; the KV cache stays under {format_bytes(kv_mem)}"
    return (
        f"reading {format_count(chunk_tokens)} of {format_count(context_tokens)} tokens at a time "
        f"({format_count(-(-context_tokens // chunk_tokens))} chunks){again}{cap}"
    )


def pin_note(pins: "Sequence[Pin]", places: "Places") -> Iterator[str]:
    """Which lines are never dropped, and how many tokens they are."""
    if pins:
        tokens = len(pinned_tokens(pins, places))
        yield f"pinned {', '.join(map(str, pins))}: {format_count(tokens)} tokens in every head"


def loss_note(preset: "Preset", max_loss: str) -> str:
    """Which budget --max-loss chose, and the measured loss that it holds by."""
    from uncomp_cli.budget.amount import Budget

    point = next(point for point in preset.quality if Budget.parse(point.budget) == preset.budget)
    return (
        f"--max-loss {max_loss}: budget {preset.budget}, measured loss {100 * point.loss:.2f} % "
        f"({100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %, {format_count(point.samples)} samples)"
    )


def answer_record(
    *,
    loaded: "LoadedModel",
    preset: "Preset",
    stats: "RunStats",
    question: str,
    answer: str,
    files: Sequence[dict[str, Any]],
    warnings: Sequence[str],
    seed: int,
    budget: dict[str, Any] | None = None,
    hidden_kept: Sequence[float] = (),
    chunk_tokens: int | None = None,
    reread_tokens: int | None = None,
    later: bool = False,
    evidence: Sequence[dict[str, Any]] = (),
    escalation: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The JSON object of one answer; units are in the names, `budget` and `escalation` are there when asked for.

    `hidden_kept` is the share of the context that entered each layer, `chunk_tokens` what was read at a time (None: the
    whole prompt), `reread_tokens` what was read again in the end; `later` says that the model had been loaded for an
    earlier prompt. In a batch `timing` is the row's own: `ttft_s` counts from when it joined, `decode_tok_s` is its
    rate while it ran beside the others.
    """
    from uncomp_cli.cache.scorers import make_scorer
    from uncomp_cli.engine.spend.spending import scorer_config

    scorer = None if preset.policy == "full" else make_scorer(scorer_config(preset))
    first = stats.cached_tokens == 0 and not later  # later questions find the model loaded and the context read
    spec = loaded.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": loaded.info.name,
            "revision": loaded.info.sha256,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": str(loaded.device),
            "quantization": loaded.quantization,
            "rope": str(loaded.rope),
        },
        "question": question,
        "files": list(files),
        "answer": answer,
        "finish_reason": stats.finish_reason,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
        },
        "timing": {
            "load_s": loaded.load_s,
            "prefill_s": stats.prefill_s,
            "ttft_s": stats.ttft_s,
            "prefill_tok_s": _rate(stats.prompt_tokens - stats.cached_tokens, stats.prefill_s),
            "decode_tok_s": stats.decode_tok_s,
            "total_s": (loaded.load_s if first else 0.0) + stats.ttft_s + stats.decode_s,
        },
        "memory": {
            "weights_bytes": loaded.weights_bytes,
            "kv_full_bytes": stats.kv_full_bytes,
            "kv_bytes": stats.kv_bytes,
            "kept_fraction": stats.kept_fraction,
            "peak_bytes": stats.peak_bytes,
        },
        "compression": {
            "policy": preset.policy,
            "preset": preset.name,
            "scorer": scorer.name if scorer else None,
            "budget_requested": str(preset.budget),
            "floor_tokens": preset.floor_tokens,
            "thinning": preset.thinning,
            "hidden_kept_fraction": fmean(hidden_kept) if hidden_kept else 1.0,
            "chunk_tokens": chunk_tokens,
            "reread_tokens": reread_tokens,
            "query_aware": scorer.query_aware if scorer else False,
            "kv_bits": held_bits(preset, spec),
        },
        "uncertainty": risk_record(risk_of(preset, stats, loaded), trained_length=loaded.info.trained_length),
        "evidence": list(evidence),
        "warnings": list(warnings),
        "seed": seed,
        **({} if escalation is None else {"escalation": list(escalation)}),
        **({} if budget is None else {"budget": budget}),
    }


def failure_record(question: str, failure: "Failure", *, path: str | None = None) -> dict[str, Any]:
    """The JSON object of a question that has no answer; `path` is its document's when each is asked by itself."""
    return {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        **({} if path is None else {"files": [{"path": path}]}),
        "error": {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code},
    }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None
