"""The road of `uncomp ask`: request → documents → preset → model → subjects, read or opened → answers.

    for event in ask(engine, documents, questions, preset, request): …        with a model that is loaded
    for event in run(request): …                                              from all that a user wrote

Documents are read before anything heavy is loaded, and what cannot be is refused before it is begun.
"""

import shlex
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from uncomp_cli.asking.deposit import check_saving
from uncomp_cli.asking.doubts import check_calibrated, check_fail_under, check_lengths
from uncomp_cli.asking.events import Event, Noted, Refused, Turn, Warned
from uncomp_cli.asking.forecast import forecast, too_long_ahead
from uncomp_cli.asking.material import pinned_tokens, prompt_lengths, resolve, sources_of
from uncomp_cli.asking.queue import Queue
from uncomp_cli.asking.request import Request, check_text
from uncomp_cli.asking.startup import check_context_fits, check_grows, check_team, during, fetch, lengthen_for, load
from uncomp_cli.asking.team import Team
from uncomp_cli.documents.collection import DocumentSet, has_data, reading
from uncomp_cli.documents.encoding import decode
from uncomp_cli.documents.intake import take_file
from uncomp_cli.documents.places import Places
from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.schema import inside

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.models.runnable import LoadedModel


_STDIN = "-"
QUESTIONS_BYTES = 4 * 2**20
"""Of a questions file at most."""


def run(request: Request) -> Generator[Event, None, None]:
    """Everything that one `uncomp ask` does."""
    questions = yield from gather_questions(request)
    _ = request.model.rope_choice  # a slip in it must not wait for the documents
    if request.saves_context:
        _check_alone(request)
        check_saving(request)
        check_grows(request.model, "a saved document")
    yield from check_team(request.model)
    if request.weighs:  # what nobody has counted is refused before a document is read
        check_risk(request, (yield from during("preparing", request.choice.stored)))
    documents = yield from gather_documents(request)
    if documents.failures:
        yield from (_refusal(path, error, questions) for path, error in documents.failures)
        if not documents.documents:
            return
    request = replace(request, pins=resolve(request.pins, [document.path for document in documents.documents]))
    pinned_tokens(request.pins, Places(sources_of(documents), ()))  # refuses what is not there before a model is loaded
    preset = yield from during("preparing", request.choice.stored)
    if request.weighs:
        yield from _check_lengths(request, documents, questions, preset)
    if request.dry_run:
        yield from forecast(request, request.contexts(documents), questions)
        return
    unfit = yield from too_long_ahead(request, documents, questions, preset)
    if unfit and not request.each:
        raise unfit[0]
    if unfit:
        for document, error in zip(documents.documents, unfit, strict=True):
            yield replace(_refusal(document.path, error, questions), title=document.path)
        return
    answering = _answer(request, documents, questions)
    yield from Team(request, documents, questions).led(answering) if request.model.ranks > 1 else answering


def _answer(request: Request, documents: DocumentSet, questions: Sequence[str]) -> Iterator[Event]:
    """Load the model, read and answer."""
    loaded, preset = yield from settle(request)
    engine = yield from engine_for(loaded, request, preset, documents, questions)
    yield from ask(engine, documents, questions, preset, request)


def _check_alone(request: Request) -> None:
    """Raise UsageError where what is kept on the disk would be of several processes."""
    if request.model.ranks > 1:
        message = f"--cache keeps what one process has read, and --ranks is {request.model.ranks}"
        raise UsageError(message, hint="leave one of them out")


def settle(request: Request) -> "Generator[Event, None, tuple[LoadedModel, Preset]]":
    """The model, loaded, and the preset that it runs with; what that is instead of another is said."""
    loaded = yield from load(request.model)
    from uncomp_cli.models.runnable import fingerprint

    preset, notes = request.choice.settled(fingerprint(loaded))
    yield from map(Noted, notes)
    check_risk(request, preset)
    return loaded, preset


def engine_for(
    loaded: "LoadedModel", request: Request, preset: "Preset", documents: DocumentSet, questions: Sequence[str]
) -> "Generator[Event, None, Engine]":
    """The engine that reads these documents, or any where --rope leaves nothing to choose."""
    from uncomp_cli.engine.engine import Engine

    loaded = yield from lengthen_for(loaded, request, documents, questions)
    check_context_fits(request.model, loaded, preset)
    return Engine(loaded, sampling=request.sampling, limits=request.limits, matmul=request.model.matmul)


def ask(
    engine: "Engine", documents: DocumentSet, questions: Sequence[str], preset: "Preset", request: Request
) -> Iterator[Event]:
    """Answer `questions` about `documents`, in order; of `request` what says how: limits, pins, evidence, saving, ….

    Ctrl-C keeps what was said of the answers; KeyboardInterrupt goes on when nothing was. Without documents the saved
    context that the request names is asked as it is.
    """
    contexts = request.contexts(documents) if documents.documents else [documents]
    return Queue(engine, preset, questions, request).run(contexts)


def _refusal(path: str, error: UncompError, questions: Sequence[str]) -> Refused:
    """Of a document that is not asked about the questions, which have no answer."""
    return Refused(
        error, "", [Turn(question, number, len(questions), path) for number, question in enumerate(questions)]
    )


def told(documents: DocumentSet) -> Iterator[Warned]:
    """What was left out of documents."""
    return (Warned(remark.text, remark.more) for remark in documents.remarks)


def check_risk(request: Request, preset: "Preset") -> None:
    """Raise UsageError for a chance that is none, and when errors would have to be foreseen that nobody has counted."""
    check_fail_under(request.fail_under)
    if request.escalate and request.saves_context:
        message = "--escalate reads the document again with larger budgets, --cache keeps it in one"
        raise UsageError(message, hint="leave one of them out")
    for flag, given in (("--escalate", request.escalate), ("--fail-under", request.fail_under is not None)):
        if given:
            check_calibrated(preset, flag)


def _check_lengths(
    request: Request, documents: DocumentSet, questions: Sequence[str], preset: "Preset"
) -> Generator[Event, None, None]:
    """Refuse what the measured error rates say nothing of; the tokenizer tells, no weights are loaded."""
    path = yield from fetch(request.model)

    def check() -> None:
        from uncomp_cli.models.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(request.model.tokenizer or path)
        lengths = prompt_lengths(request, documents, questions, tokenizer)
        check_lengths(preset, lengths, escalate=request.escalate, fail_under=request.fail_under)

    yield from during("measuring", check)


def gather_questions(request: Request) -> Generator[Event, None, list[str]]:
    """The questions from the command line and the questions file, in that order."""
    questions = list(request.questions)
    if request.questions_file is not None:
        text = yield from _questions_text(request.questions_file, request.wishes)
        questions += [line for line in text.text.split("\n") if line.strip()]
        for remark in (*map(str, text.losses), *text.notes):
            yield Warned(f"{request.questions_file}: {remark}")
        if not questions:
            hint = "give a text file with one question a line"
            raise UsageError(f"no question was given: {request.questions_file} has none", hint=hint)
    check_questions(questions)
    check_text(request.system or "", "the system prompt")
    return questions


def _questions_text(path: Path, wishes: Wishes) -> Generator[Event, None, Text]:
    """A questions file, decoded as documents are."""
    hint = "give a text file with one question a line"
    try:
        with inside(f"questions file {path}"):
            return decode((yield from take_file(path, QUESTIONS_BYTES)), wishes.encoding)
    except OSError as error:
        raise UsageError(f"questions file {path} cannot be read: {error.strerror}", hint=hint) from error


def check_questions(questions: Sequence[str]) -> None:
    """Raise UsageError for no question, for a text in the place of a list, and for a question that is empty."""
    if isinstance(questions, str):
        raise UsageError(f"questions is the text {questions!r}", hint="give a list of questions")
    if not any(question.strip() for question in questions):
        raise UsageError("no question was given", hint='uncomp ask -f doc.txt "What does it say about …?"')
    for number, question in enumerate(questions, start=1):
        if _is_file(question):
            hint = f'uncomp ask -f {shlex.quote(question)} "What does it say about …?"'
            raise UsageError(f"the question '{question}' is a file", hint=hint)
        if not question.strip():
            raise UsageError(f"question {number} of {len(questions)} is empty", hint="leave it out, or ask something")
        check_text(question, f"question {number}")


def tell_apart(words: Sequence[str], *, asked: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Documents, and the question if there is one, of what stands on a command line without a flag.

    A shell makes `-f a.md b.md "Who?"` of `-f *.md "Who?"`. A word alone is the question, unless one is `asked` already
    and it is a file. Raises UsageError where several words may be the question.
    """
    paths = tuple(word for word in words if _is_there(word) or (len(words) > 1 and _is_called_like_a_file(word)))
    rest = tuple(word for word in words if word not in paths)
    if len(words) == 1 and not (asked and _is_file(words[0])):
        return (), tuple(words)
    if len(rest) > 1:
        message, hint = _one_question(paths, rest)
        raise UsageError(message, hint=hint)
    return paths, rest


def _one_question(paths: Sequence[str], rest: Sequence[str]) -> tuple[str, str]:
    """What is wrong with `rest` in the place of a question, and what is right: quotes, or -Q for each."""
    files = "".join(f"-f {shlex.quote(path)} " for path in paths)
    if all(any(map(str.isspace, question)) for question in rest):
        told = " ".join(f"-Q {shlex.quote(question)}" for question in rest)
        return f"{len(rest)} questions stand where one belongs", f"give each of them with -Q: {files}{told}"
    return (
        f"{len(rest)} words stand where one question belongs",
        f'write the question in quotes: {files}"{" ".join(rest)}"',
    )


def _is_called_like_a_file(word: str) -> bool:
    """Whether nobody would ask it: `a.md`, `notes/`, an address."""
    text = word.strip()
    return bool(text) and not any(letter.isspace() for letter in text) and ("." in text[1:-1] or "/" in text)


def _is_there(word: str) -> bool:
    try:
        return Path(word.strip() or "\0").exists()
    except (OSError, ValueError):
        return False


def _is_file(question: str) -> bool:
    """Whether a question is the name of a file that is there, as nobody would ask it."""
    return _is_called_like_a_file(question) and _is_there(question) and Path(question.strip()).is_file()


def gather_documents(request: Request) -> Generator[Event, None, DocumentSet]:
    """The documents that are named, or standard input when it is no terminal; none when a saved cache holds them."""
    if request.names_a_cache and not request.paths and not request.dry_run:
        return DocumentSet(())
    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    if not request.paths and (stdin is None or stdin.isatty()):
        raise UsageError(
            f"no document was given, and standard input is {'closed' if stdin is None else 'a terminal'}",
            hint='uncomp ask -f doc.txt "question"',
        )
    if request.paths and _STDIN not in request.paths and has_data(stdin):
        yield Warned("standard input is not read; add -f - to make it a document")
    buffer = None if stdin is None else stdin.buffer
    paths = request.paths or (_STDIN,)
    documents = yield from reading(
        paths, include=request.include, stdin=buffer, patient=request.each, wishes=request.wishes
    )
    yield from told(documents)
    return documents
