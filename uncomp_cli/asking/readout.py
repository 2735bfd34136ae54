"""What an answer is reported as: the readout line for people, one JSON object for programs, the passages it looked at.

The passages are those of subject.py, which replays the answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import budget_record
from uncomp_cli.asking.doubts import escalation_record, risk_of, risk_record
from uncomp_cli.asking.material import pinned_tokens
from uncomp_cli.documents.places import Evidence, Places
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.share import Share
from uncomp_cli.table import Table

if TYPE_CHECKING:
    from uncomp_cli.asking.account import Spent
    from uncomp_cli.asking.doubts import Risk, Try
    from uncomp_cli.asking.request import Pin
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.records import RunStats
    from uncomp_cli.engine.spend.compression import Compression
    from uncomp_cli.errors import Failure
    from uncomp_cli.models.runnable import LoadedModel
    from uncomp_cli.models.weights.bits import Loss
    from uncomp_cli.spec import ModelSpec


SCHEMA_VERSION = 1
_QUOTED_CHARS = 60
_COLUMNS = 80
_NEAR = 0.005


def readout(stats: "RunStats", risk: "Risk", *, whole: bool) -> str:
    """`1,397 tok in 4.1 s · 6.5 tok/s · KV 5.8 of 58 MiB (10 %) · sure`: at most 80 columns.

    The word stands only where error rates of such answers were measured. `whole`: nothing of the text was dropped.
    """
    speed, read = stats.decode_tok_s, stats.prompt_tokens - stats.cached_tokens
    parts = [
        f"{format_count(read)} tok in {format_seconds(stats.prefill_s)}",
        None if speed is None else f"{format_decimal(speed)} tok/s",
        _kept(stats, whole=whole, briefly=True),
        risk.word,
    ]
    if len(" · ".join(part for part in parts if part)) > _COLUMNS:
        parts[1] = None  # of the longest word: how fast it was is in the details
    return " · ".join(part for part in parts if part)


def details(stats: "RunStats", risk: "Risk", *, whole: bool, context_limit: int) -> str:
    """`prefill 7,512 tok 17.3 s (434 tok/s) · first token … · decode … · KV … · peak … · entropy … · context …`."""
    prefill_s, speed = stats.prefill_s, stats.decode_tok_s
    read, used = stats.prompt_tokens - stats.cached_tokens, stats.prompt_tokens + stats.completion_tokens
    rate = f" ({format_decimal(read / prefill_s)} tok/s)" if prefill_s > 0 else ""
    parts = [
        f"cached {format_count(stats.cached_tokens)}" if stats.cached_tokens else None,
        f"prefill {format_count(read)} tok {format_decimal(prefill_s)} s{rate}",
        f"first token {format_decimal(stats.ttft_s)} s",
        None if speed is None else f"decode {format_decimal(speed)} tok/s",
        _kept(stats, whole=whole),
        f"peak {format_bytes(stats.peak_bytes)}",
        f"guessed {stats.accepted_tokens} of {stats.guessed_tokens}" if stats.guessed_tokens else None,
        f"entropy {stats.signs['attention']:.2f}" if "attention" in stats.signs else None,
        f"context {format_count(used)}/{format_count(context_limit)}",
        risk.word,
    ]
    return " · ".join(part for part in parts if part)


def loss_text(loaded: "LoadedModel") -> str:
    """` · weights q4, off 7.3 % (worst 7.5)`; nothing where they are what the file has."""
    if loaded.loss is None or loaded.quantization is None:
        return ""
    mean, worst = (format_decimal(100 * error) for error in (loaded.loss.mean, loaded.loss.worst[1]))
    return f" · weights {loaded.quantization}, off {mean} % (worst {worst})"


def _kept(stats: "RunStats", *, whole: bool, briefly: bool = False) -> str:
    share = stats.kv_share
    if whole or share.of_run >= 1:  # of a short text what lies beside entries is more than is dropped
        return f"KV {format_bytes(stats.kv_bytes)}, {'' if whole else 'nearly '}all kept"
    return f"KV {share if briefly else share.whole}"


def all_kept(plan: "BudgetPlan", spec: "ModelSpec") -> bool:
    """Whether nothing of the text is dropped that the model itself would keep."""
    return plan.entries >= spec.full_entries(plan.seq_len)


def floor_note(planned: "Compression") -> str | None:
    """That a preset's floor keeps more than the budget that was put in the place of its own; None where it does not."""
    preset, plan = planned.preset, planned.plan
    budget, kept = preset.budget, plan.per_head(planned.spec) / plan.seq_len
    wanted = {"fraction": budget.amount, "tokens": budget.amount / plan.seq_len}.get(budget.kind, 1.0)
    if not preset.floor_tokens or kept <= wanted + _NEAR or _is_stored(preset):
        return None
    floor = f"{format_count(preset.floor_tokens)} tokens of the document"
    return (
        f"budget {budget} was named, and the floor of preset {preset.name} keeps {format_decimal(100 * kept)} %: "
        f"at least {floor}; floor_tokens=0 takes the budget at its word"
    )


def _is_stored(preset: "Preset") -> bool:
    """Whether its budget is its own."""
    from uncomp_cli.budget.presets import load_preset

    try:
        return load_preset(preset.name).budget == preset.budget
    except UsageError:
        return False


def ending(stats: "RunStats", context_limit: int) -> str | None:
    """Why an answer ended that did not end by itself, and what lets it go on; None for one that did."""
    count = stats.completion_tokens
    if stats.finish_reason == "loop":
        return "the answer repeated itself and was stopped; --repetition-penalty 1.1 or a larger --budget may help"
    if stats.finish_reason != "length":
        return None
    if stats.prompt_tokens + count >= context_limit:
        return "the answer ended because the context is full"
    length = f"its longest length, {format_count(count, 'token')}"
    return f"the answer ended at {length}: --max-new-tokens {2 * count} lets it go on"


def held_bits(preset: "Preset", spec: "ModelSpec") -> int:
    """Bits of a number in the kept context: the preset's 8 or 4, or those of the model's own dtype."""
    return 8 * spec.dtype_bytes if preset.kv_bits == 16 else preset.kv_bits


def budget_note(planned: "Compression") -> str:
    """Requested and planned budget, in words: shown before the prefill, which may thin more than the least."""
    from uncomp_cli.engine.spend.memory import planned_kv_bytes

    preset, plan, spec = planned.preset, planned.plan, planned.spec
    kept = planned_kv_bytes(spec, plan, question_tokens=planned.prompt.longest_question)
    mean = round(plan.per_head(spec)) if spec.full_layers else plan.seq_len
    most = "at most " if plan.entries < planned.allocation.plan.entries else ""
    sliding = spec.num_layers - len(spec.full_layers)
    whole = f"; {sliding} of {spec.num_layers} layers keep their sliding window whatever the budget" if sliding else ""
    carried = f"{len(spec.recurrent)} other layers carry {format_bytes(spec.state_bytes)} of states"
    whole += f"; {carried} whatever the budget" if spec.recurrent else ""
    floor = f", at least {format_count(preset.floor_tokens)} tokens of the document" if preset.floor_tokens else ""
    bits = "" if plan.kv_bits == 16 else f" in {plan.kv_bits} bits"
    return (
        f"budget {preset.budget}{floor} ({preset.name}, {preset.policy}): {most}{format_count(mean)} of "
        f"{format_count(plan.seq_len)} tokens per head{bits}, "
        f"{Share.of(spec, kept, plan.seq_len).whole}{whole}"
    )


def chunk_note(chunk_tokens: int, context_tokens: int, *, kv_mem: int | None, reread_tokens: int | None) -> str:
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


@dataclass(frozen=True, slots=True)
class About:
    """What the answers about one text share in their JSON: model, documents, warnings, and how the text was read.

    `hidden_kept` is the share of it that entered each layer, `chunk_tokens` what was read at a time (None: all of it),
    `reread_tokens` what was read again in the end, `repeated_tokens` what was read twice, to rank it; `kept` of it in
    the unit of the budget; `later` says that the model had been loaded for an earlier text. `standing` is how far a
    passage stood out for the questions, which are open below `open_below`.
    """

    loaded: "LoadedModel"
    files: Callable[[], Sequence[dict[str, Any]]]
    warnings: Sequence[str] = ()
    seed: int = 0
    hidden_kept: Sequence[float] = ()
    chunk_tokens: int | None = None
    reread_tokens: int | None = None
    repeated_tokens: int = 0
    kept: str | None = None
    later: bool = False
    standing: Sequence[float] = ()
    open_below: float = 0.0


def answer_record(
    about: About,
    preset: "Preset",
    stats: "RunStats",
    *,
    question: str,
    answer: str,
    doubts: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    tries: "Sequence[Try] | None" = None,
    spent: "Spent | None" = None,
) -> dict[str, Any]:
    """The JSON object of one answer; units are in the names, `budget` and `escalation` are there when asked for.

    In a batch `timing` is the row's own: `ttft_s` counts from when it joined, `decode_tok_s` is its rate while it ran
    beside the others.
    """
    loaded = about.loaded
    return {
        "schema_version": SCHEMA_VERSION,
        "model": _model_record(loaded),
        "question": question,
        "files": list(about.files()),
        "answer": answer,
        "finish_reason": stats.finish_reason,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
            "guessed_tokens": stats.guessed_tokens,
            "accepted_tokens": stats.accepted_tokens,
        },
        "timing": _timing_record(about, stats),
        "memory": {
            "weights_bytes": loaded.weights_bytes,
            "kv_full_bytes": stats.kv_full_bytes,
            "kv_bytes": stats.kv_bytes,
            "kept_fraction": stats.kept_fraction,
            "kv_full_16_bit_bytes": stats.kv_share.full_16_bit_bytes,
            "kept_of_16_bit": stats.kv_share.of_16_bit,
            "peak_bytes": stats.peak_bytes,
        },
        "compression": _compression_record(about, preset),
        "uncertainty": risk_record(risk_of(preset, stats, loaded), trained_length=loaded.info.trained_length),
        "evidence": [asdict(each) for each in evidence],
        "warnings": [*about.warnings, *doubts],
        "seed": about.seed,
        **({} if tries is None else {"escalation": escalation_record(tries)}),
        **({} if spent is None else {"budget": budget_record(spent)}),
    }


def _model_record(loaded: "LoadedModel") -> dict[str, Any]:
    return {
        "id": loaded.info.name,
        "revision": loaded.info.sha256,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "quantization": loaded.quantization,
        "weights_error": _loss_record(loaded.loss),
        "rope": str(loaded.rope),
    }


def _loss_record(loss: "Loss | None") -> dict[str, Any] | None:
    if loss is None:
        return None
    name, worst = loss.worst
    return {"mean": loss.mean, "worst": worst, "worst_matrix": name}


def _timing_record(about: About, stats: "RunStats") -> dict[str, Any]:
    load_s = about.loaded.load_s
    first = stats.cached_tokens == 0 and not about.later  # later questions find the model loaded and the context read
    read = stats.prompt_tokens - stats.cached_tokens + (0 if stats.cached_tokens else about.repeated_tokens)
    return {
        "load_s": load_s,
        "prefill_s": stats.prefill_s,
        "ttft_s": stats.ttft_s,
        "prefill_tok_s": read / stats.prefill_s if stats.prefill_s > 0 else None,
        "decode_tok_s": stats.decode_tok_s,
        "total_s": (load_s if first else 0.0) + stats.ttft_s + stats.decode_s,
    }


def _compression_record(about: About, preset: "Preset") -> dict[str, Any]:
    from uncomp_cli.cache.scorers import make_scorer
    from uncomp_cli.engine.spend.allocation import scorer_config

    scorer = None if preset.policy == "full" else make_scorer(scorer_config(preset))
    return {
        "policy": preset.policy,
        "preset": preset.name,
        "scorer": scorer.name if scorer else None,
        "budget_requested": str(preset.budget),
        "budget_kept": about.kept,
        "floor_tokens": preset.floor_tokens,
        "thinning": preset.thinning,
        "hidden_kept_fraction": fmean(about.hidden_kept) if about.hidden_kept else 1.0,
        "chunk_tokens": about.chunk_tokens,
        "reread_tokens": about.reread_tokens,
        "repeated_tokens": about.repeated_tokens,
        "query_aware": scorer.query_aware if scorer else False,
        "kv_bits": held_bits(preset, about.loaded.spec),
        "stands_out": min(about.standing, default=None),
        "open_question": min(about.standing) < about.open_below if about.standing else None,
    }


def failure_record(question: str, failure: "Failure", *, path: str | None = None) -> dict[str, Any]:
    """The JSON object of a question that has no answer; `path` is its document's when each is asked by itself."""
    return {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        **({} if path is None else {"files": [{"path": path}]}),
        "error": {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code},
    }


def evidence_lines(found: Sequence[Evidence], *, width: int | None = None) -> Iterator[str]:
    """`  handbook.md:120-121   34 %   92 %  "The badge is …"`, aligned below the titles, within `width` columns."""
    rows = [
        (
            evidence.shown,
            *(f"{_per_cent(value):>3} %" for value in (evidence.attention_share, evidence.kept_fraction)),
            f'"{_quoted(evidence.text)}"',
        )
        for evidence in found
    ]
    if rows:
        heads, lines = Table(("PASSAGE", "ATTENTION", "KEPT", "TEXT"), rows).lines(None if width is None else width - 2)
        yield from (f"  {line}" for line in heads + lines)


def evidence_warnings(found: Sequence[Evidence]) -> list[str]:
    """What is to be said of the passages asked for: there are none, or hardly anything is left of one looked at."""
    if not found:
        return ["the answer looked at nothing kept of the documents; no passage is shown: use a larger --budget"]
    evicted = [f"{each.where} ({_per_cent(each.kept_fraction)} %)" for each in found if each.mostly_evicted]
    if not evicted:
        return []
    return [f"little is kept of {', '.join(evicted)}: check the answer there, or use a larger --budget"]


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f}"


def _quoted(text: str) -> str:
    """On one line, and no longer than is read at a glance."""
    words = " ".join(text.split())
    return words if len(words) <= _QUOTED_CHARS else words[: _QUOTED_CHARS - 1].rstrip() + "…"
