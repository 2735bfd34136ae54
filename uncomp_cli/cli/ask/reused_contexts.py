"""Contexts that are saved or were: the one that is asked for is loaded, or read and saved.

`auto` goes by the hash of everything that a cache is made from, so it reads only what nobody has read that way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.material import build_prompt, describe_files, places_of
from uncomp_cli.asking.request import AUTOMATIC, Request
from uncomp_cli.cli.ask.asking import warnings_of
from uncomp_cli.cli.declare.options import shelf_of
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.documents.places import Places
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UncompError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Entry, Shelf
    from uncomp_cli.engine.context.reused import ReusedSession
    from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["ContextOpener", "OpenContext", "check_reused"]


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What is asked about, as it is reported with each answer.

    `numbers` are the questions that fit behind it, in the session's order. `not_saved` is why it could not be saved.
    """

    name: str
    files: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    numbers: Sequence[int]
    places: Places
    not_saved: UncompError | None


def check_reused(job: Request) -> None:
    """Raise UsageError for a name that is none and for what cannot be combined, before a model is loaded."""
    from uncomp_cli.cache.shelf import check_name

    shelf = shelf_of(job.cache_size)
    if job.save_cache is not None:
        check_name(job.save_cache)
    if job.each and (job.save_cache is not None or job.names_a_cache):
        raise UsageError("--each reads several contexts, a name is of one", hint="use --reuse auto")
    if job.limits.constant_size:
        message = "--constant-size forgets parts of the document on the way, --reuse and --save-cache keep it"
        raise UsageError(message, hint="leave one of them out")
    if job.thinning not in (None, "none"):
        message = f"--thin {job.thinning} goes by the question, and what is saved must serve any"
        raise UsageError(message, hint="leave --thin out")
    if job.names_a_cache and not job.paths and (job.evidence or job.pins):
        flag = "--evidence" if job.evidence else "--pin"
        raise UsageError(f"{flag} needs the lines of the document, a cache has its tokens", hint="name it too: -f")
    if job.names_a_cache:
        shelf.find(str(job.reuse))


class ContextOpener:
    """Opens contexts in a session, for `questions`."""

    def __init__(
        self, job: Request, questions: Sequence[str], session: "ReusedSession", shelf: "Shelf", terminal: Terminal
    ) -> None:
        self._job, self._questions, self._session, self._shelf = job, questions, session, shelf
        self._terminal = terminal
        self._told = False

    def open(self, documents: DocumentSet) -> OpenContext:
        """Load or read the context, and save it when that was asked for."""
        job, loaded = self._job, self._session.loaded
        entry = None if job.reuse in (None, AUTOMATIC) else self._named(str(job.reuse))
        prompt, cut = self._prompt(documents, entry)
        prompt, numbers = self._fitting(prompt, entry if not documents.documents else None)
        warnings = warnings_of(job, prompt, cut, loaded)
        for warning in warnings:
            self._terminal.warn(warning)
        if documents.documents or entry is None:
            name, files = documents.documents[0].path, describe_files(documents, loaded.tokenizer, cut)
        else:
            name, files = entry.name, list(entry.manifest.record.get("documents", ()))
        was_loaded = self._load(entry, prompt, as_saved=not documents.documents)
        if not was_loaded:
            if self._session.note is not None and not self._told:
                self._terminal.note(self._session.note)
                self._told = True
            for _ in watch_generation(self._session.read(prompt), self._terminal):
                pass
        not_saved = self._save(files, was_loaded=was_loaded)
        return OpenContext(name, files, warnings, numbers, places_of(documents, self._session.held.prompt), not_saved)

    def _fitting(self, prompt: "Prompt", saved: "Entry | None") -> "tuple[Prompt, list[int]]":
        """The prompt with the questions that leave room for an answer, when there are such, and their numbers."""
        context = len(prompt.context) if saved is None else int(saved.manifest.record["context_tokens"])
        room = self._session.loaded.spec.trained_length - context
        numbers = [number for number, question in enumerate(prompt.questions) if len(question) < room]
        if not numbers:
            return prompt, list(range(len(prompt.questions)))  # refused as a whole, with numbers
        return replace(prompt, questions=tuple(prompt.questions[number] for number in numbers)), numbers

    def _named(self, name: str) -> "Entry":
        """The cache of that name; what the user asked for must not be other than what it has."""
        entry, job, preset = self._shelf.find(name), self._job, self._session.preset
        record = entry.manifest.record
        saved = record["compression"]
        wanted = (
            ("--preset", job.preset, preset.name, record["preset"]),
            ("--budget", job.budget, str(preset.budget), saved["budget"]),
            ("--policy", job.policy, preset.policy, saved["policy"]),
            ("--scorer", job.scorer, preset.scorer.name, saved["scorer"]["name"]),
            ("--kv-bits", job.kv_bits, preset.kv_bits, saved["kv_bits"]),
        )
        for flag, given, mine, theirs in wanted:
            if given is not None and mine != theirs:
                message = f"cache '{name}' was saved with {flag} {theirs}, not {mine}"
                raise UsageError(message, hint=f"leave {flag} out, or read anew: --save-cache {name}")
        return entry

    def _prompt(self, documents: DocumentSet, entry: "Entry | None") -> "tuple[Prompt, range]":
        """The prompt of the documents, or without any the questions that follow the saved context."""
        from uncomp_cli.engine.tokens.prompt import chat_prompt

        job, session = self._job, self._session
        tokenizer, sinks = session.loaded.tokenizer, session.preset.scorer.sinks
        if documents.documents or entry is None:
            return build_prompt(job, documents, self._questions, tokenizer, session.loaded.spec, session.preset)
        system = entry.manifest.record.get("system")
        if job.system is not None and job.system != system:
            message = f"cache '{entry.name}' was saved with the system prompt {system!r}, not {job.system!r}"
            raise UsageError(message, hint="leave --system out, or read the document anew")
        return chat_prompt(tokenizer, "", list(self._questions), system=system, sinks=sinks), range(0)

    def _load(self, entry: "Entry | None", prompt: "Prompt", *, as_saved: bool) -> bool:
        """Load the named cache, or the one that was made from just this; False when there is none."""
        if entry is not None:
            self._session.load(self._shelf, entry, prompt, as_saved=as_saved)
        elif self._job.reuse == AUTOMATIC:
            entry = self._shelf.with_key(self._session.origin(prompt).key)
            if entry is None or not self._load_unless_damaged(entry, prompt):
                return False
        if entry is not None:
            held = self._session.held
            self._terminal.note(f"reused {entry.name} ({_sizes(entry)}), loaded in {format_decimal(held.seconds)} s")
        return entry is not None

    def _load_unless_damaged(self, entry: "Entry", prompt: "Prompt") -> bool:
        """False for one that is damaged or gone, which is told: the document can be read."""
        try:
            self._session.load(self._shelf, entry, prompt)
        except UncompError as error:
            if isinstance(error, (UsageError, DoesNotFitError, OutOfMemoryError)):
                raise
            self._terminal.warn(f"{error.message}; the document is read again")
            return False
        return True

    def _save(self, files: Sequence[dict[str, Any]], *, was_loaded: bool) -> UncompError | None:
        """Save under the name that was given, or with `auto` what has just been read; returns why it could not be."""
        job = self._job
        if job.save_cache is None and (was_loaded or job.reuse != AUTOMATIC):
            return None
        about: dict[str, Any] = {"documents": list(files)}
        if not was_loaded:
            about["system"] = job.system
        try:
            entry, removed = self._session.save(self._shelf, job.save_cache, about=about)
        except UncompError as error:
            return error
        self._terminal.note(
            f"saved {entry.name} ({_sizes(entry)}); --reuse {job.save_cache or AUTOMATIC} answers from it"
        )
        for other in removed:
            self._terminal.warn(f"removed {other.name} ({format_bytes(other.file_bytes)}) to stay under --cache-size")
        return None


def _sizes(entry: "Entry") -> str:
    """`budget 30%: 18.4 MiB, 28.9 % of full, 1,451 tokens`."""
    record = entry.manifest.record
    share = format_decimal(100 * entry.file_bytes / record["kv_full_bytes"])
    return (
        f"budget {record['compression']['budget']}: {format_bytes(entry.file_bytes)}, {share} % of full, "
        f"{format_count(record['context_tokens'])} tokens"
    )
