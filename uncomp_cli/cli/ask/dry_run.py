"""`uncomp ask --dry-run`: what a run would take, from the tokenizer and the model's shape alone.

No weights are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.material import blame, build_prompt, describe_files, longest_read, pins_in
from uncomp_cli.asking.readout import held_bits
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.asking import settle
from uncomp_cli.cli.ask.lengthening import planned_length
from uncomp_cli.cli.ask.prepare import fetch, weigh
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.numerals import format_bytes, format_count
from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.models.extension import RopeState
    from uncomp_cli.spec import ModelSpec

__all__ = ["show_plan"]


def show_plan(
    job: Request, contexts: Sequence[DocumentSet], questions: Sequence[str], preset: "Preset", terminal: Terminal
) -> int:
    """Write the plan of every context, a table or JSON each; returns 0 when the run would fit, 3 when it is refused."""
    path = fetch(job.model, terminal)
    with loading(terminal, "measuring"):
        from uncomp_cli.models.catalog import show_model
        from uncomp_cli.models.extension import RopeState
        from uncomp_cli.models.loading import load_tokenizer
        from uncomp_cli.models.runnable import fingerprint_of

        spec, weights, available = weigh(job.model, path)
        info = show_model(job.model.name)
    preset = settle(job, preset, fingerprint_of(info, spec), terminal)
    with loading(terminal, "preparing the prompt"):
        tokenizer = load_tokenizer(job.model.tokenizer or path)
    machine = _Machine(spec, info.trained_length, weights, available, RopeState())
    if job.model.rope_choice is not None:
        tokens = longest_read(job, contexts, questions, tokenizer)
        spec, rope = planned_length(job.model, path, spec, tokens, terminal, grows=job.saves_context)
        machine = replace(machine, spec=spec, rope=rope)
        _check_context(job, preset, machine, held_tokens=rope.reach)
    codes = []
    for number, documents in enumerate(contexts):
        if number and not job.as_json:
            terminal.write_line()
        with loading(replace(terminal, quiet=terminal.quiet or number > 0), "preparing the prompt"):
            prompt, cut = build_prompt(job, documents, questions, tokenizer, spec, preset)
            files = describe_files(documents, tokenizer, cut)
        record, refusal = _plan(job, prompt, preset, machine)
        pins = pins_in(job, documents)
        if pins:
            unpinned, _ = build_prompt(job.without_pins(), documents, questions, tokenizer, spec, preset)
            record["pinned_tokens"] = int(prompt.context.protected.sum()) - int(unpinned.context.protected.sum())
            if refusal is not None:
                refusal = blame(refusal, pins, prompt, unpinned, plan=partial(_plan_or_raise, job, preset, machine))
                record["refusal"] = refusal.message
        _write({"schema_version": 1, "model": job.model.name, "files": files, **record}, terminal, as_json=job.as_json)
        if refusal is not None:
            terminal.error(refusal.message, hint=refusal.hint)
        codes.append(0 if refusal is None else refusal.exit_code)
    return next((code for code in codes if code), 0)


@dataclass(frozen=True, slots=True)
class _Machine:
    """What a prompt has to fit into, and how its positions are turned."""

    spec: "ModelSpec"
    trained_length: int
    weights_bytes: int
    free_bytes: int
    rope: "RopeState"


def _check_context(job: Request, preset: "Preset", machine: _Machine, *, held_tokens: int | None) -> None:
    """Raise DoesNotFitError when the --context that was asked for is more than the memory holds."""
    from uncomp_cli.engine.spend.memory import check_context

    choice, available = job.model.rope_choice, machine.free_bytes - machine.weights_bytes
    context = None if choice is None else choice.context
    check_context(machine.spec, preset, context=context, available=available, held_tokens=held_tokens)


def _plan(
    job: Request, prompt: "Prompt", preset: "Preset", machine: _Machine
) -> tuple[dict[str, Any], DoesNotFitError | None]:
    """What `prompt` would take, and the refusal when that does not fit."""
    from uncomp_cli.engine.spend.allocation import scorer_config
    from uncomp_cli.engine.spend.compression import check_fits, check_length, plan_compression
    from uncomp_cli.engine.spend.memory import planned_kv_bytes
    from uncomp_cli.engine.spend.reach import Reach
    from uncomp_cli.engine.tokens.prompt import open_question

    spec, weights, available = machine.spec, machine.weights_bytes, machine.free_bytes
    opened = open_question(prompt, recent=scorer_config(preset).recent)
    record: dict[str, Any] = {
        "questions": len(prompt.questions),
        "prompt_tokens": opened.seq_len,
        "trained_length": machine.trained_length,
        "context_length": spec.trained_length,
        "rope": str(machine.rope),
        "weights_bytes": weights,
        "kv_full_bytes": spec.full_kv_bytes(opened.seq_len),
        "free_bytes": available,
        "budget_requested": str(preset.budget),
        "kv_bits": held_bits(preset, spec),
        "fits": True,
        "refusal": None,
    }
    try:
        check_length(spec, opened, trained_length=machine.trained_length)
        free = available - weights
        planned = plan_compression(
            spec,
            preset,
            prompt,
            available=free,
            limits=job.limits,
            reach=Reach.of(
                machine.rope,
                opened.seq_len,
                trained_length=machine.trained_length,
                answer_tokens=job.sampling.max_new_tokens,
            ),
        )
    except DoesNotFitError as refusal:
        return record | {"fits": False, "refusal": refusal.message}, refusal
    plan, chunk = planned.allocation.plan, planned.chunk_tokens
    at_once = None if chunk is None else min(opened.flat_len, chunk + opened.flat_len - len(opened.context))
    expected = check_fits(spec, plan, opened, available=free, at_once=at_once)
    record["kv_planned_bytes"] = planned_kv_bytes(spec, plan, question_tokens=opened.longest_question)
    record["expected_peak_bytes"] = weights + expected.peak_bytes
    record |= {"thinning": preset.thinning} | ({} if chunk is None else {"chunk_tokens": chunk})
    record |= {} if planned.reread_tokens is None else {"reread_tokens": planned.reread_tokens}
    return record, None


def _plan_or_raise(job: Request, preset: "Preset", machine: _Machine, prompt: "Prompt") -> None:
    """Raise the refusal of `prompt`, if there is one."""
    refusal = _plan(job, prompt, preset, machine)[1]
    if refusal is not None:
        raise refusal


def _write(record: dict[str, Any], terminal: Terminal, *, as_json: bool) -> None:
    if as_json:
        terminal.write_json(record)
        return
    rows = [(file["path"], f"{format_count(file['tokens'])} tokens") for file in record["files"]]
    rows += [(_label(key), _shown(key, value)) for key, value in record.items() if key not in _NOT_SHOWN]
    terminal.write_table(Table(("WHAT", "SIZE"), rows))


_NOT_SHOWN = {"schema_version", "files", "refusal"}


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ").replace("kv", "KV cache,")


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_bytes(value) if key.endswith("_bytes") else format_count(value)
    return str(value)
