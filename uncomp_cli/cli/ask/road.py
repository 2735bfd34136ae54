"""One `uncomp ask` from what it was told to its exit code: check, read the documents, load the model, ask."""

from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import check_calibrated, check_fail_under
from uncomp_cli.asking.material import longest_read, pinned_tokens, resolve, sources_of
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.answering import Answering
from uncomp_cli.cli.ask.asking import gather_documents, gather_questions, preset_of, settle
from uncomp_cli.cli.ask.dry_run import show_plan
from uncomp_cli.cli.ask.lengthening import check_grows, lengthen, needs_length
from uncomp_cli.cli.ask.prepare import check_context_fits, load
from uncomp_cli.cli.ask.reused_contexts import check_reused
from uncomp_cli.cli.ask.reusing import run_reused
from uncomp_cli.documents.places import Places
from uncomp_cli.errors import UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset

__all__ = ["run_ask"]


def run_ask(job: Request, terminal: Terminal) -> int:
    """Run one `uncomp ask`; returns the exit code."""
    questions = gather_questions(job)
    choice = job.model.rope_choice
    check_fail_under(job.fail_under)
    if job.saves_context:
        check_reused(job)
        check_grows(job.model, "a saved document")
    documents = gather_documents(job, terminal)
    job = replace(job, pins=resolve(job.pins, [document.path for document in documents.documents]))
    pinned_tokens(job.pins, Places(sources_of(documents), ()))  # refuses what is not there before a model is loaded
    with loading(terminal, "preparing"):
        preset = preset_of(job, job.preset or job.usual_preset)
        _check_risk(job, preset)
    if job.dry_run:
        return show_plan(job, job.contexts(documents), questions, preset, terminal)
    loaded = load(job.model, terminal)
    from uncomp_cli.models.runnable import fingerprint

    preset = settle(job, preset, fingerprint(loaded), terminal)
    _check_risk(job, preset)
    if needs_length(choice) and documents.documents:
        tokens = longest_read(job, job.contexts(documents), questions, loaded.tokenizer)
        loaded = lengthen(loaded, choice, tokens, terminal, grows=job.saves_context)
    check_context_fits(job.model, loaded, preset)
    if job.saves_context:
        return run_reused(job, documents, questions, preset, loaded, terminal)
    return Answering(job, questions, preset, loaded, terminal).run(job.contexts(documents))


def _check_risk(job: Request, preset: "Preset") -> None:
    """Raise UsageError when errors would have to be foreseen that nobody has counted."""
    if job.escalate and job.saves_context:
        message = "--escalate reads the document again with larger budgets, --reuse and --save-cache keep it in one"
        raise UsageError(message, hint="leave one of them out")
    for flag, given in (("--escalate", job.escalate), ("--fail-under", job.fail_under is not None)):
        if given:
            check_calibrated(preset, flag)
