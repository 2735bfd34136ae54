"""What of subjects is saved on the user's shelf, or was: found by name or by what it is made of, opened, and put there.

`auto` goes by the hash of everything that a saved context is made from, so it opens only what was read just that way.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.events import Event, Noted, Refused, Warned
from uncomp_cli.asking.material import written_down
from uncomp_cli.asking.request import AUTOMATIC, Request, shelf_of
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UncompError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.cache.shelf import Entry
    from uncomp_cli.engine.context.context import Context
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.engine.tokens.prompt import Prompt


def check_saving(request: Request) -> None:
    """Raise UsageError for a name that is none and for what cannot be combined, before a model is loaded."""
    from uncomp_cli.cache.shelf import check_name

    shelf = shelf_of(request.cache_size)
    if request.save_cache is not None:
        check_name(request.save_cache)
    if request.each and (request.save_cache is not None or request.names_a_cache):
        raise UsageError("--each reads several contexts, a name is of one", hint="use --cache auto")
    if request.limits.constant_size:
        message = "--constant-size forgets parts of the document on the way, --cache keeps it"
        raise UsageError(message, hint="leave one of them out")
    thinning = request.preset.thinning
    if thinning not in (None, "none"):
        message = f"--thin {thinning} goes by the question, and what is saved must serve any"
        raise UsageError(message, hint="leave --thin out")
    if request.names_a_cache and not request.paths and request.pins:
        raise UsageError("--pin is for documents that are read, and this one was", hint="name it too: -f")
    if request.names_a_cache:
        shelf.find(str(request.reuse))  # a slip in the name must not wait for the model


class Deposit:
    """The user's shelf, for what is asked with `request` and kept by `preset`."""

    def __init__(self, engine: "Engine", preset: "Preset", request: Request) -> None:
        self._engine, self._preset, self._request = engine, preset, request
        self._shelf = shelf_of(request.cache_size)

    def named(self) -> "Entry":
        """The context of that name. Raises UsageError where what the user asked for is other than what it has."""
        asked, preset, name = self._request.preset, self._preset, str(self._request.reuse)
        entry = self._shelf.find(name)
        record = entry.manifest.record
        saved = record.compression
        wanted = (
            ("--preset", asked.name, preset.name, record.preset),
            ("--budget", asked.budget, str(preset.budget), saved.budget),
            ("--policy", asked.policy, preset.policy, saved.policy),
            ("--scorer", asked.scorer, preset.scorer.name, saved.scorer.name),
            ("--kv-bits", asked.kv_bits, preset.kv_bits, saved.kv_bits),
        )
        for flag, given, mine, theirs in wanted:
            if given is not None and mine != theirs:
                message = f"cache '{name}' was saved with {flag} {theirs}, not {mine}"
                raise UsageError(message, hint=f"leave {flag} out, or keep another: --cache {name}-2")
        return entry

    def known(self, prompt: "Prompt") -> "Entry | None":
        """With `auto`, the context that was saved of just this."""
        if self._request.reuse != AUTOMATIC:
            return None
        return self._engine.saved(self._shelf, prompt, self._preset)

    def prompt_behind(self, entry: "Entry", questions: Sequence[str]) -> "Prompt":
        """Questions that follow a saved context, whose document is not at hand.

        Raises UsageError for another system prompt, DoesNotFitError for too long a question.
        """
        from uncomp_cli.engine.tokens.prompt import chat_prompt
        from uncomp_cli.engine.tokens.tokens import Tokens

        record, given = entry.manifest.record, self._request.system
        system = record.system
        if given is not None and given != system:
            message = f"cache '{entry.name}' was saved with the system prompt {system!r}, not {given!r}"
            raise UsageError(message, hint="leave --system out, or read the document anew")
        tokenizer, sinks = self._engine.loaded.tokenizer, self._preset.scorer.sinks
        said = self._request.earlier
        prompt = chat_prompt(tokenizer, "", list(questions), system=system, sinks=sinks, earlier=said)
        try:
            count = min(record.context_tokens, self._engine.spec.trained_length)
            self._engine.check_length(replace(prompt, context=Tokens.of([0] * count)))
        except DoesNotFitError as error:  # whose hints are for who has the document
            limit = format_count(self._engine.spec.trained_length)
            message = f"the question leaves no room for an answer in a context of {limit} tokens"
            raise DoesNotFitError(message, hint="ask something shorter") from error
        return prompt

    def opened(self, entry: "Entry", prompt: "Prompt") -> "Generator[Event, None, Context | None]":
        """The saved context; None when it is damaged, and the document can be read."""
        named = self._request.names_a_cache
        as_saved = named and not self._request.paths
        try:
            context = self._engine.open(self._shelf, entry, prompt, self._preset, as_saved=as_saved)
        except UncompError as error:
            if named or isinstance(error, (UsageError, DoesNotFitError, OutOfMemoryError)):
                raise
            yield Warned(f"{error.message}; the document is read again")
            return None
        yield Noted(f"reused {entry.name} ({_sizes(entry)}), loaded in {format_decimal(context.seconds)} s")
        return context

    def save(
        self, context: "Context", documents: DocumentSet, files: Callable[[], Sequence[dict[str, Any]]]
    ) -> Iterator[Event]:
        """Save under the name that was given, or with `auto` what has just been read; why it could not be is told."""
        request, was_opened = self._request, context.account.record is not None
        if request.save_cache is None and (was_opened or request.reuse != AUTOMATIC):
            return
        about = written_down(documents, files(), context.account)
        about |= {} if was_opened else {"system": request.system}
        try:
            entry, removed = self._engine.save(context, self._shelf, request.save_cache, **about)
        except UncompError as error:
            yield Refused(error, "the document is not saved")
            return
        name = request.save_cache or AUTOMATIC
        yield Noted(f"saved {entry.name} ({_sizes(entry)}); --cache {name} answers from it")
        for other in removed:
            yield Warned(f"removed {other.name} ({format_bytes(other.file_bytes)}) to stay under --cache-size")


def _sizes(entry: "Entry") -> str:
    """`budget 30%: 18.4 of 31.9 MiB in 16 bits (57.7 %), 1,451 tokens`."""
    record = entry.manifest.record
    size = str(entry.share)
    if entry.share.of_run >= 1:
        size = f"{format_bytes(entry.file_bytes)}, all kept"
    return f"budget {record.compression.budget}: {size}, {format_count(record.context_tokens)} tokens"
