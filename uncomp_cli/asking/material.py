"""What is read: documents joined into one text, its prompt with the questions, and the lines of it that are pinned.

`--pin FILE:10-40` names lines of a document that no head drops. Pinned tokens are protected as the template is, and
counted in the budget like all others: what they take, the rest of the document does not get. So a budget that is too
small for them is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import normpath
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.request import Pin, Request
from uncomp_cli.cache.header import MadeFrom
from uncomp_cli.documents.cabinet import Cabinet
from uncomp_cli.documents.collection import Document, DocumentSet
from uncomp_cli.documents.places import Places, Source
from uncomp_cli.documents.text import Place
from uncomp_cli.errors import DoesNotFitError

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.context.context import Account
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.spec import ModelSpec


GAP = "\n\n"


def join_documents(documents: DocumentSet) -> str:
    """One text: several documents are each introduced by their path."""
    return "".join(part for parts in _parts(documents) for part in parts)


def _parts(documents: DocumentSet) -> list[tuple[str, str]]:
    """What stands before each document, and its text."""
    if len(documents.documents) == 1:
        return [("", documents.documents[0].text.strip())]
    heads = (f"{'' if i == 0 else GAP}{document.heading}" for i, document in enumerate(documents.documents))
    return [(head, document.text.strip()) for head, document in zip(heads, documents.documents, strict=True)]


def sources_of(documents: DocumentSet) -> list[Source]:
    """Where each document's text begins in the text of all."""
    sources, first_char = [], 0
    for document, (head, text) in zip(documents.documents, _parts(documents), strict=True):
        sources.append(Source(document.path, document.text, first_char + len(head), document.places))
        first_char += len(head) + len(text)
    return sources


def places_of(documents: DocumentSet, prompt: "Prompt") -> Places:
    """Where the lines of the documents are among the tokens of the prompt made of them."""
    return Places(sources_of(documents), prompt.context.ranges())


def pins_in(request: Request, documents: DocumentSet) -> tuple[Pin, ...]:
    """The pins of these documents."""
    paths = {document.path for document in documents.documents}
    return tuple(pin for pin in request.pins if pin.path in paths)


def build_prompt(
    request: Request,
    documents: DocumentSet,
    questions: Sequence[str],
    tokenizer: Any,
    spec: "ModelSpec",
    preset: "Preset",
) -> "tuple[Prompt, range]":
    """The prompt, cut as asked to leave room for the answer, its pins protected, and the document tokens that were cut.

    Raises DoesNotFitError when what is pinned would be cut away.
    """
    from uncomp_cli.engine.tokens.prompt import chat_prompt, plain_prompt, truncate

    if request.plain:
        return plain_prompt(tokenizer, questions[0], sinks=preset.scorer.sinks), range(0)
    text, kept = join_documents(documents) if documents.documents else None, request.wishes.keeps
    sinks, system, said = preset.scorer.sinks, request.system, request.earlier
    prompt = chat_prompt(tokenizer, text, list(questions), system=system, sinks=sinks, earlier=said, cabinet=kept)
    pins, cut = pins_in(request, documents), range(0)
    pinned = pinned_tokens(pins, places_of(documents, prompt)) if pins else []
    if request.truncate is None:
        return protect(prompt, pinned), cut
    prompt, cut = truncate(prompt, max(1, spec.trained_length - request.sampling.max_new_tokens), request.truncate)
    left = pinned_tokens(pins, places_of(documents, prompt)) if pins else []
    if len(left) < len(pinned):
        raise DoesNotFitError(
            f"--truncate {request.truncate} would cut away {len(pinned) - len(left):,} of {len(pinned):,} pinned "
            f"tokens ({', '.join(map(str, pins))})",
            hint="cut another part of the document, or pin other lines",
        )
    return protect(prompt, left), cut


def longest_read(request: Request, contexts: Sequence[DocumentSet], questions: Sequence[str], tokenizer: Any) -> int:
    """Tokens of the longest context with its longest question and answer; what --truncate cuts off does not count."""
    from uncomp_cli.engine.tokens.prompt import chat_prompt

    asked = list(questions)
    system, kept = request.system, request.wishes.keeps
    texts = map(join_documents, contexts)
    prompts = (chat_prompt(tokenizer, text, asked, system=system, sinks=0, cabinet=kept) for text in texts)
    tokens = max(prompt.seq_len for prompt in prompts) + request.sampling.max_new_tokens
    choice = request.model.rope_choice
    cut = None if request.truncate is None or choice is None else choice.context
    return tokens if cut is None else min(tokens, cut)


def prompt_lengths(request: Request, documents: DocumentSet, questions: Sequence[str], tokenizer: Any) -> list[int]:
    """Tokens of every context with its longest question."""
    contexts, answer = request.contexts(documents) if documents.documents else [], request.sampling.max_new_tokens
    return [longest_read(request, [each], questions, tokenizer) - answer for each in contexts]


def describe_files(
    documents: DocumentSet, tokenizer: Any, cut: range, kept: Cabinet | None = None
) -> list[dict[str, Any]]:
    """path, sha256, tokens, whether something was cut, and what its reader left out, for every document."""
    from uncomp_cli.engine.tokens.prompt import count_tokens, encode_words

    described, end = [], 0
    for document, (head, text) in zip(documents.documents, _parts(documents), strict=True):
        first = end + count_tokens(tokenizer, head)
        tokens = len(encode_words(tokenizer, text, cabinet=kept))
        end = first + tokens
        truncated = len(cut) > 0 and cut.start < end and first < cut.stop
        known = {"path": document.path, "sha256": document.sha256, "tokens": tokens, "truncated": truncated}
        described.append({**known, "losses": list(map(str, document.losses))})
    return described


def written_down(documents: DocumentSet, files: Sequence[dict[str, Any]], saved: "Account") -> dict[str, Any]:
    """`documents`, which are described as `files`, as their saved context knows them, and their `texts`.

    Of a context that was opened without them it is what was `saved`.
    """
    if not documents.documents and saved.record is not None:
        return {"documents": saved.record.documents, "texts": saved.texts}
    made, texts = list[MadeFrom](), list[bytes]()
    for document, file in zip(documents.documents, files, strict=True):
        texts.append(document.text.encode("utf-8", "surrogatepass"))
        lines, names = tuple(each.line for each in document.places), tuple(each.name for each in document.places)
        known = {**file, "losses": tuple(file["losses"])}
        made.append(MadeFrom(**known, text_bytes=len(texts[-1]), place_lines=lines, place_names=names))
    return {"documents": tuple(made), "texts": b"".join(texts)}


def opened_documents(saved: "Account") -> DocumentSet:
    """The documents of a context that was opened, with the texts that were saved with it."""
    documents, end = list[Document](), 0
    for each in saved.record.documents if saved.record is not None else ():
        begin, end = end, end + each.text_bytes
        places = tuple(map(Place, each.place_lines, each.place_names))
        text = saved.texts[begin:end].decode("utf-8", "surrogatepass")
        documents.append(Document(each.path, text, each.sha256, places=places))
    return DocumentSet(tuple(documents))


def resolve(pins: Sequence[Pin], paths: Sequence[str]) -> tuple[Pin, ...]:
    """The pins with the documents' own `paths`: `./a.md` for `a.md`, or a file's name where one only has it."""
    return tuple(replace(pin, path=_path(pin.path, paths)) for pin in (_parted(pin, paths) for pin in pins))


def _parted(pin: Pin, paths: Sequence[str]) -> Pin:
    """The pin of the longest path that it begins with: the name of a place may have a colon too."""
    path = max((path for path in paths if str(pin).startswith(f"{path}:")), key=len, default=pin.path)
    return Pin(path, str(pin).removeprefix(f"{path}:"))


def _path(named: str, paths: Sequence[str]) -> str:
    same = [path for path in paths if path == named] or [path for path in paths if normpath(path) == normpath(named)]
    found = same or [path for path in paths if PurePath(path).name == named]
    return found[0] if len(found) == 1 else named


def pinned_tokens(pins: Sequence[Pin], places: Places) -> list[int]:
    """The tokens of all pins. Raises UsageError for a document or lines that are not there."""
    found: set[int] = set()
    for pin in pins:
        found.update(places.tokens_of(pin.path, pin.where))
    return sorted(found)


def protect(prompt: "Prompt", tokens: Sequence[int]) -> "Prompt":
    """The prompt with these context tokens protected."""
    if not tokens:
        return prompt
    protected = prompt.context.protected.clone()
    protected[list(tokens)] = True
    return replace(prompt, context=replace(prompt.context, protected=protected))


def blame(
    error: DoesNotFitError,
    pins: Sequence[Pin],
    pinned: "Prompt",
    unpinned: "Prompt",
    *,
    plan: "Callable[[Prompt], object]",
) -> DoesNotFitError:
    """The refusal of a `pinned` prompt, with its pins named when `plan` does not refuse it without them."""
    if not pins:
        return error
    try:
        plan(unpinned)
    except DoesNotFitError:
        return error
    num_tokens = int(pinned.context.protected.sum()) - int(unpinned.context.protected.sum())
    message = f"{error.message}; {num_tokens:,} of them are pinned: {', '.join(map(str, pins))}"
    return DoesNotFitError(message, hint=f"pin fewer lines, or {error.hint}" if error.hint else "pin fewer lines")
