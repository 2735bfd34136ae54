"""`uncomp ask --dry-run`: what a run would take, from the tokenizer and the model's shape alone.

No weights are loaded.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.asking import AskJob, build_prompt, describe_files, settle
from uncomp_cli.cli.prepare import fetch, weigh
from uncomp_cli.cli.report import held_bits
from uncomp_cli.documents.reader import DocumentSet
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.format import format_bytes, format_count
from uncomp_cli.ui.live import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset

__all__ = ["show_plan"]


def show_plan(
    job: AskJob, documents: DocumentSet, questions: Sequence[str], preset: "Preset", terminal: Terminal
) -> int:
    """Write the plan as a table or JSON; returns 0 when the run would fit, 3 when it would be refused."""
    path = fetch(job.model, terminal)
    with loading(terminal, "measuring"):
        from uncomp_cli.engine.memory import planned_kv_bytes
        from uncomp_cli.engine.prompt import open_question
        from uncomp_cli.engine.session import check_fits, check_length, make_plan, scorer_config
        from uncomp_cli.models.catalog import show_model
        from uncomp_cli.models.fingerprint import fingerprint_of
        from uncomp_cli.models.load import load_tokenizer

        spec, weights, available = weigh(job.model, path)
        info = show_model(job.model.name)
        trained_length = info.trained_length
    preset = settle(job, preset, fingerprint_of(info, spec), terminal)
    with loading(terminal, "preparing the prompt"):
        tokenizer = load_tokenizer(job.model.tokenizer or path)
        prompt, cut = build_prompt(job, documents, questions, tokenizer, spec, preset)
        prompt = open_question(prompt, recent=scorer_config(preset).recent)
        files = describe_files(documents, tokenizer, cut)
    record: dict[str, Any] = {
        "schema_version": 1,
        "model": job.model.name,
        "files": files,
        "questions": len(questions),
        "prompt_tokens": prompt.seq_len,
        "trained_length": trained_length,
        "context_length": spec.trained_length,
        "weights_bytes": weights,
        "kv_full_bytes": spec.full_kv_bytes(prompt.seq_len),
        "free_bytes": available,
        "budget_requested": preset.budget,
        "kv_bits": held_bits(preset, spec),
        "fits": True,
        "refusal": None,
    }
    try:
        check_length(spec, prompt, trained_length=trained_length)
        plan = make_plan(spec, preset, prompt, available=available - weights)
        record["kv_planned_bytes"] = planned_kv_bytes(spec, plan, question_tokens=prompt.longest_question)
        expected = check_fits(spec, plan, prompt, available=available - weights)
        record["expected_peak_bytes"] = weights + expected.peak_bytes
    except DoesNotFitError as refusal:
        record |= {"fits": False, "refusal": refusal.message}
        _write(record, terminal, as_json=job.as_json)
        terminal.error(refusal.message, hint=refusal.hint)
        return refusal.exit_code
    _write(record, terminal, as_json=job.as_json)
    return 0


def _write(record: dict[str, Any], terminal: Terminal, *, as_json: bool) -> None:
    if as_json:
        terminal.write_json(record)
        return
    rows = [(file["path"], f"{format_count(file['tokens'])} tokens") for file in record["files"]]
    rows += [(_label(key), _shown(key, value)) for key, value in record.items() if key not in _NOT_SHOWN]
    terminal.write_table(("WHAT", "SIZE"), rows)


_NOT_SHOWN = {"schema_version", "files", "refusal"}


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ").replace("kv", "KV cache,")


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_bytes(value) if key.endswith("_bytes") else format_count(value)
    return str(value)
