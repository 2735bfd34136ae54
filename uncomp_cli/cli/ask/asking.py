"""`uncomp ask` before it answers: questions, documents, the preset and the prompt made of them."""

import sys
from typing import TYPE_CHECKING, TextIO

from uncomp_cli.asking.preset_choice import choose_preset, loss_note, settle_preset
from uncomp_cli.asking.request import Request, check_text
from uncomp_cli.cli.ask.lengthening import length_warnings
from uncomp_cli.documents.collection import DocumentSet, read_documents
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import has_data

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.models.loading import LoadedModel
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["gather_documents", "gather_questions", "preset_of", "settle", "warnings_of"]


def preset_of(job: Request, name: str | None) -> "Preset":
    """The preset `name`, or the default one, with what the user changed in it."""
    return choose_preset(
        name,
        budget=job.budget,
        policy=job.policy,
        scorer=job.scorer,
        seed=job.sampling.seed,
        kv_bits=job.kv_bits,
        max_loss=job.max_loss,
        thinning=job.thinning,
    )


def settle(job: Request, preset: "Preset", model: "ModelFingerprint", terminal: Terminal) -> "Preset":
    """The preset for this model: what is not the default one, and what --max-loss came to, is said."""
    preset, note = settle_preset(preset, model, named=job.preset is not None, choose=lambda name: preset_of(job, name))
    if note is not None:
        terminal.note(note)
    if job.max_loss is not None:
        terminal.note(loss_note(preset, job.max_loss))
    return preset


def gather_questions(job: Request) -> list[str]:
    """The questions from the command line and the questions file, in that order."""
    questions = list(job.questions)
    if job.questions_file is not None:
        try:
            lines = job.questions_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"questions file {job.questions_file} cannot be read: {error}"
            raise UsageError(message, hint="give a text file with one question a line") from error
        questions += [line for line in lines if line.strip()]
    if not any(question.strip() for question in questions):
        raise UsageError("no question was given", hint='uncomp ask -f doc.txt "What does it say about …?"')
    for number, question in enumerate(questions, start=1):
        if not question.strip():
            raise UsageError(f"question {number} of {len(questions)} is empty", hint="leave it out, or ask something")
        check_text(question, f"question {number}")
    check_text(job.system or "", "the system prompt")
    return questions


def gather_documents(job: Request, terminal: Terminal) -> DocumentSet:
    """The documents named by -f, or standard input when it is no terminal; none when a saved cache holds them."""
    if job.names_a_cache and not job.paths and not job.dry_run:
        return DocumentSet(())
    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    if not job.paths and (stdin is None or stdin.isatty()):
        raise UsageError(
            f"no document was given, and standard input is {'closed' if stdin is None else 'a terminal'}",
            hint='uncomp ask -f doc.txt "question"',
        )
    if job.paths and "-" not in job.paths and has_data(stdin):
        terminal.warn("standard input is not read; add -f - to make it a document")
    documents = read_documents(job.paths or ("-",), include=job.include, stdin=None if stdin is None else stdin.buffer)
    for path, reason in documents.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return documents


def warnings_of(job: Request, prompt: "Prompt", cut: range, loaded: "LoadedModel") -> list[str]:
    """What changes the meaning of the answer and must not go unsaid."""
    found = []
    if len(cut):
        found.append(
            f"--truncate {job.truncate}: {format_count(len(cut))} document tokens were cut away "
            f"({format_count(cut.start)} to {format_count(cut.stop)})"
        )
    found += length_warnings(loaded, prompt.seq_len)
    room = loaded.spec.trained_length - prompt.seq_len
    if 0 < room < job.sampling.max_new_tokens:
        found.append(f"the answer may have {format_count(room)} tokens at most: the context ends there")
    return found
