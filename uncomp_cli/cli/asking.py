"""`uncomp ask` before it answers: questions, documents, the preset and the prompt made of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from uncomp_cli.budget.presets import AGNOSTIC_PRESET
from uncomp_cli.cli.cache_options import DEFAULT_CACHE_SIZE
from uncomp_cli.cli.pins import Pin, pinned_tokens, protect, resolve
from uncomp_cli.cli.prepare import ModelChoice, check_text, choose_preset, load, settle_preset
from uncomp_cli.cli.report import loss_note
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.documents.places import Places, Source
from uncomp_cli.documents.reader import DocumentSet, read_documents
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.format import format_count
from uncomp_cli.ui.live import loading
from uncomp_cli.ui.prompt import has_data

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.prompt import Prompt
    from uncomp_cli.models.load import LoadedModel
    from uncomp_cli.spec import ModelSpec
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = [
    "AskJob",
    "build_prompt",
    "describe_files",
    "gather_documents",
    "gather_questions",
    "join_documents",
    "pins_in",
    "places_of",
    "preset_of",
    "run_ask",
    "settle",
    "warnings_of",
]

GAP = "\n\n"
AUTOMATIC = "auto"
"""--reuse by what was read: no cache is named."""


@dataclass(frozen=True, slots=True)
class AskJob:
    """Everything that one `uncomp ask` was told."""

    paths: tuple[str, ...]
    include: tuple[str, ...]
    questions: tuple[str, ...]
    questions_file: Path | None
    truncate: Literal["head", "middle", "tail"] | None
    dry_run: bool
    model: ModelChoice
    preset: str | None
    budget: str | None
    policy: str | None
    scorer: str | None
    kv_bits: int | None
    system: str | None
    sampling: SamplingConfig
    as_json: bool
    max_loss: str | None = None
    explain_budget: bool = False
    thinning: str | None = None
    limits: Limits = field(default_factory=Limits)
    each: bool = False
    matmul: Literal["float32", "bfloat16", "int8"] = "float32"
    evidence: bool = False
    pins: tuple[Pin, ...] = ()
    save_cache: str | None = None
    reuse: str | None = None
    cache_size: str = DEFAULT_CACHE_SIZE

    @property
    def saves_context(self) -> bool:
        """Whether what is read is kept on the disk, or was."""
        return self.save_cache is not None or self.reuse is not None

    @property
    def usual_preset(self) -> str | None:
        """The preset that is taken when none is named; what is saved must serve questions nobody has asked yet."""
        return AGNOSTIC_PRESET if self.saves_context and self.policy is None and self.max_loss is None else None

    @property
    def names_a_cache(self) -> bool:
        """Whether a saved cache is named, which holds a document."""
        return self.reuse not in (None, AUTOMATIC)

    def without_pins(self) -> "AskJob":
        """The same with nothing pinned."""
        return replace(self, pins=())

    def contexts(self, documents: DocumentSet) -> list[DocumentSet]:
        """What is read as one: all documents together, or every one by itself."""
        return [DocumentSet((document,)) for document in documents.documents] if self.each else [documents]


def run_ask(job: AskJob, terminal: Terminal) -> int:
    """Run one `uncomp ask`; returns the exit code."""
    questions = gather_questions(job)
    if job.saves_context:
        from uncomp_cli.cli.reused_contexts import check_reused

        check_reused(job)
    documents = gather_documents(job, terminal)
    job = replace(job, pins=resolve(job.pins, [document.path for document in documents.documents]))
    pinned_tokens(job.pins, Places(_sources(documents), ()))  # refuses what is not there before a model is loaded
    with loading(terminal, "preparing"):
        preset = preset_of(job, job.preset or job.usual_preset)
    if job.dry_run:
        from uncomp_cli.cli.dry_run import show_plan

        return show_plan(job, job.contexts(documents), questions, preset, terminal)
    loaded = load(job.model, terminal)
    from uncomp_cli.models.fingerprint import fingerprint

    preset = settle(job, preset, fingerprint(loaded), terminal)
    if job.saves_context:
        from uncomp_cli.cli.reusing import run_reused

        return run_reused(job, documents, questions, preset, loaded, terminal)
    from uncomp_cli.cli.answering import Answering

    return Answering(job, questions, preset, loaded, terminal).run(job.contexts(documents))


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


def _sources(documents: DocumentSet) -> list[Source]:
    """Where each document's text begins in the text of all."""
    sources, first_char = [], 0
    for document, (head, text) in zip(documents.documents, _parts(documents), strict=True):
        sources.append(Source(document.path, document.text, first_char + len(head)))
        first_char += len(head) + len(text)
    return sources


def places_of(documents: DocumentSet, prompt: "Prompt") -> Places:
    """Where the lines of the documents are among the tokens of the prompt made of them."""
    return Places(_sources(documents), [] if prompt.offsets is None else prompt.offsets.tolist())


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
    from uncomp_cli.engine.prompt import chat_prompt, truncate

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


def describe_files(documents: DocumentSet, tokenizer: Any, cut: range) -> list[dict[str, Any]]:
    """path, sha256, tokens and whether something was cut, for every document."""
    from uncomp_cli.engine.prompt import count_tokens

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
    spec, trained = loaded.spec, loaded.info.trained_length
    if trained < prompt.seq_len < spec.trained_length:
        found.append(
            f"the prompt has {format_count(prompt.seq_len)} tokens, the model was trained for {format_count(trained)}: "
            f"answers from a context extended by --rope {job.model.rope} are less reliable"
        )
    room = spec.trained_length - prompt.seq_len
    if 0 < room < job.sampling.max_new_tokens:
        found.append(f"the answer may have {format_count(room)} tokens at most: the context ends there")
    return found
