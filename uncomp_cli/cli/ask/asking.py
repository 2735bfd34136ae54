"""`uncomp ask` before it answers: questions, documents, the preset and the prompt made of them."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from uncomp_cli.cli.ask.ask_job import AUTOMATIC, AskJob
from uncomp_cli.cli.ask.lengthening import length_warnings
from uncomp_cli.cli.ask.pins import Pin, pinned_tokens, protect
from uncomp_cli.cli.ask.prepare import check_text, choose_preset, settle_preset
from uncomp_cli.cli.ask.report import loss_note
from uncomp_cli.documents.collection import DocumentSet, read_documents
from uncomp_cli.documents.places import Places, Source
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import has_data

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.models.loading import LoadedModel
    from uncomp_cli.spec import ModelSpec
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = [
    "AUTOMATIC",
    "AskJob",
    "build_prompt",
    "describe_files",
    "gather_documents",
    "gather_questions",
    "join_documents",
    "longest_read",
    "pins_in",
    "places_of",
    "preset_of",
    "settle",
    "sources_of",
    "warnings_of",
]

GAP = "\n\n"


def preset_of(job: AskJob, name: str | None) -> "Preset":
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


def settle(job: AskJob, preset: "Preset", model: "ModelFingerprint", terminal: Terminal) -> "Preset":
    """The preset for this model: what is not the default one, and what --max-loss came to, is said."""
    preset, note = settle_preset(preset, model, named=job.preset is not None, choose=lambda name: preset_of(job, name))
    if note is not None:
        terminal.note(note)
    if job.max_loss is not None:
        terminal.note(loss_note(preset, job.max_loss))
    return preset


def gather_questions(job: AskJob) -> list[str]:
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


def gather_documents(job: AskJob, terminal: Terminal) -> DocumentSet:
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


def join_documents(documents: DocumentSet) -> str:
    """One text: several documents are each introduced by their path."""
    return "".join(part for parts in _parts(documents) for part in parts)


def _parts(documents: DocumentSet) -> list[tuple[str, str]]:
    """What stands before each document, and its text."""
    if len(documents.documents) == 1:
        return [("", documents.documents[0].text.strip())]
    heads = (f"{'' if i == 0 else GAP}[{document.path}]\n" for i, document in enumerate(documents.documents))
    return [(head, document.text.strip()) for head, document in zip(heads, documents.documents, strict=True)]


def sources_of(documents: DocumentSet) -> list[Source]:
    """Where each document's text begins in the text of all."""
    sources, first_char = [], 0
    for document, (head, text) in zip(documents.documents, _parts(documents), strict=True):
        sources.append(Source(document.path, document.text, first_char + len(head)))
        first_char += len(head) + len(text)
    return sources


def places_of(documents: DocumentSet, prompt: "Prompt") -> Places:
    """Where the lines of the documents are among the tokens of the prompt made of them."""
    return Places(sources_of(documents), prompt.context.offsets.tolist())


def pins_in(job: AskJob, documents: DocumentSet) -> tuple[Pin, ...]:
    """The pins of these documents."""
    paths = {document.path for document in documents.documents}
    return tuple(pin for pin in job.pins if pin.path in paths)


def build_prompt(
    job: AskJob, documents: DocumentSet, questions: Sequence[str], tokenizer: Any, spec: "ModelSpec", preset: "Preset"
) -> "tuple[Prompt, range]":
    """The prompt, cut as asked to leave room for the answer, its pins protected, and the document tokens that were cut.

    Raises DoesNotFitError when what is pinned would be cut away.
    """
    from uncomp_cli.engine.tokens.prompt import chat_prompt, truncate

    prompt = chat_prompt(
        tokenizer, join_documents(documents), list(questions), system=job.system, sinks=preset.scorer.sinks
    )
    pins, cut = pins_in(job, documents), range(0)
    pinned = pinned_tokens(pins, places_of(documents, prompt)) if pins else []
    if job.truncate is None:
        return protect(prompt, pinned), cut
    prompt, cut = truncate(prompt, max(1, spec.trained_length - job.sampling.max_new_tokens), job.truncate)
    left = pinned_tokens(pins, places_of(documents, prompt)) if pins else []
    if len(left) < len(pinned):
        raise DoesNotFitError(
            f"--truncate {job.truncate} would cut away {len(pinned) - len(left):,} of {len(pinned):,} pinned tokens "
            f"({', '.join(map(str, pins))})",
            hint="cut another part of the document, or pin other lines",
        )
    return protect(prompt, left), cut


def longest_read(job: AskJob, contexts: Sequence[DocumentSet], questions: Sequence[str], tokenizer: Any) -> int:
    """Tokens of the longest context with its longest question and answer; what --truncate cuts off does not count."""
    from uncomp_cli.engine.tokens.prompt import chat_prompt

    asked = list(questions)
    prompts = (chat_prompt(tokenizer, join_documents(each), asked, system=job.system, sinks=0) for each in contexts)
    tokens = max(prompt.seq_len for prompt in prompts) + job.sampling.max_new_tokens
    choice = job.model.rope_choice
    cut = None if job.truncate is None or choice is None else choice.context
    return tokens if cut is None else min(tokens, cut)


def describe_files(documents: DocumentSet, tokenizer: Any, cut: range) -> list[dict[str, Any]]:
    """path, sha256, tokens and whether something was cut, for every document."""
    from uncomp_cli.engine.tokens.prompt import count_tokens

    described, end = [], 0
    for document, (head, text) in zip(documents.documents, _parts(documents), strict=True):
        first, tokens = end + count_tokens(tokenizer, head), count_tokens(tokenizer, text)
        end = first + tokens
        truncated = len(cut) > 0 and cut.start < end and first < cut.stop
        described.append({"path": document.path, "sha256": document.sha256, "tokens": tokens, "truncated": truncated})
    return described


def warnings_of(job: AskJob, prompt: "Prompt", cut: range, loaded: "LoadedModel") -> list[str]:
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
