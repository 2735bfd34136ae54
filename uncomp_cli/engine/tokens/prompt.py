"""Prompts: a context read once and the questions asked of it.

A prompt is a trunk (template, system prompt, document) and one or more branches (question and the opening of the
answer). Every branch follows the trunk directly: branches do not see each other, so several questions cost one
prefill. The template's tokens are parsed as special tokens; the user's text never is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from uncomp_cli.cache import coherence
from uncomp_cli.config import Side
from uncomp_cli.documents.cabinet import Cabinet, version_of
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError, ModelError, UsageError
from uncomp_cli.models import vocabulary
from uncomp_cli.models.template import OTHER_TEMPLATE, renderer
from uncomp_cli.numerals import format_count

Said = tuple[Literal["user", "assistant"], str]
"""A message of a conversation: whose it is, and its text."""

# In private-use characters: no template has them, so each stands where people's text will.
KEPT_CHARS = 2**16
"""Shorter texts are made tokens as soon as their file is found."""
_SYSTEM, _DOCUMENT, _QUESTION = "\ue000system\ue001", "\ue000document\ue001", "\ue000question\ue001"
_GAP, _PLAIN_NAMES = "\n\n", {"user": "Question", "assistant": "Answer"}
_MARK = re.compile("(\ue000[^\ue001]*\ue001)")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One context, whose offsets are characters of the document, and the token ids of its questions.

    The `asked` last tokens of the context are the beginning of its only question (`open_question`).
    """

    context: Tokens
    questions: tuple[tuple[int, ...], ...]
    asked: int = 0

    @property
    def longest_question(self) -> int:
        """Tokens of the longest branch."""
        return max(len(question) for question in self.questions)

    @property
    def flat_len(self) -> int:
        """Tokens that go through the model: the context and all questions."""
        return len(self.context) + sum(len(question) for question in self.questions)

    @property
    def waiting_tokens(self) -> int:
        """Question tokens whose keys and values wait beside the cache; none when there is one question."""
        return 0 if len(self.questions) == 1 else self.flat_len - len(self.context)

    @property
    def seq_len(self) -> int:
        """Tokens of the context with its longest question: the length that budgets refer to."""
        return len(self.context) + self.longest_question

    @property
    def always_kept(self) -> int:
        """Tokens that every head keeps: protected context and the longest question."""
        return int(self.context.protected.sum()) + self.longest_question


def open_question(prompt: Prompt, *, recent: int) -> Prompt:
    """The prompt whose question competes with the context, but for its `recent` last tokens.

    Several questions stay whole: each follows a context that does not hold the others.
    """
    moved = len(prompt.questions[0]) - recent
    if len(prompt.questions) > 1 or moved <= 0:
        return prompt
    (question,) = prompt.questions
    context = Tokens.join([prompt.context, Tokens.of(question[:moved])])
    return Prompt(context, (question[moved:],), asked=prompt.asked + moved)


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    document: str | None,
    questions: list[str],
    *,
    system: str | None,
    sinks: int,
    earlier: Sequence[Said] = (),
    cabinet: Cabinet | None = None,
) -> Prompt:
    """The prompt for `questions` about `document` in the tokenizer's chat format, or as plain text without one.

    What was said `earlier` about the document, by user and assistant in turn, stands between it and each question.
    """
    prefix, behind = _frame(tokenizer, system, earlier, is_bare=document is None)
    texts = {_SYSTEM: system or "", **{_said(at): text for at, (_, text) in enumerate(earlier)}}
    opening = Tokens.of(_encode_frame(tokenizer, prefix, texts), protected=True)
    context = Tokens.join([opening, encode_words(tokenizer, document or "", cabinet=cabinet)])
    branches = tuple(
        tuple(_encode_frame(tokenizer, behind, {**texts, _QUESTION: question.strip()})) for question in questions
    )
    return Prompt(_with_sinks(context, sinks), branches)


def completion_prompt(tokenizer: PreTrainedTokenizerBase, context: str, question: str, *, sinks: int) -> Prompt:
    """A plain-text prompt: `context` is compressed, `question` observes it and opens the continuation."""
    branch = tuple(encode(tokenizer, question, special=False))
    return Prompt(_with_sinks(encode_words(tokenizer, context, strip=False), sinks), (branch,))


def plain_prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, sinks: int) -> Prompt:
    """A text that goes on where it ends; its last token is the question."""
    opening = Tokens.of(encode(tokenizer, tokenizer.bos_token or "", special=True), protected=True)
    tokens = Tokens.join([opening, encode_words(tokenizer, text, strip=False)])
    if len(tokens) < 2:
        raise UsageError(f"a text of {format_count(len(tokens), 'token')} cannot go on", hint="send a longer prompt")
    begun = torch.arange(len(tokens)) < len(tokens) - 1
    return Prompt(_with_sinks(tokens.take(begun), sinks), (tuple(tokens.ids[-1:]),))


def _with_sinks(context: Tokens, sinks: int) -> Tokens:
    """The context with its first tokens protected."""
    return context.guarded(torch.ones(sinks, dtype=torch.bool))


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of user text."""
    return len(encode(tokenizer, text, special=False))


def truncate(prompt: Prompt, limit: int, side: Side) -> tuple[Prompt, range]:
    """The prompt with document tokens cut away until it has at most `limit` tokens, and which ones were cut.

    `side` names the part of the document that goes; the range counts from the document's first token. Raises
    DoesNotFitError when the template and the question alone are longer than `limit`.
    """
    opening = int(prompt.context.protected.sum())
    document = len(prompt.context) - opening
    cut = max(0, prompt.seq_len - limit)
    if cut > document:
        raise DoesNotFitError(
            f"template and question alone have {prompt.seq_len - document:,} tokens, {limit:,} fit",
            hint="shorten the question or the system prompt, or use a smaller --max-new-tokens",
        )
    first = {"head": 0, "middle": (document - cut) // 2, "tail": document - cut}[side]
    keep = torch.ones(len(prompt.context), dtype=torch.bool)
    keep[opening + first : opening + first + cut] = False
    return replace(prompt, context=prompt.context.take(keep)), range(first, first + cut)


def _frame(
    tokenizer: PreTrainedTokenizerBase, system: str | None, earlier: Sequence[Said], *, is_bare: bool
) -> tuple[str, str]:
    """The template's text before the document and behind it; where people's texts belong it has marks.

    Raises ModelError when the template leaves one of them out.
    """
    said = [(role, _said(at)) for at, (role, _) in enumerate(earlier)]
    first, *others = [*said, ("user", _QUESTION)]
    turns = [(first[0], f"{_DOCUMENT}{'' if is_bare else _GAP}{first[1]}"), *others]
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": _SYSTEM}] if system is not None else []
        text = render_template(tokenizer, [*messages, *({"role": role, "content": mark} for role, mark in turns)])
    else:
        opening = f"{_SYSTEM}{_GAP}" if system else ""
        asked = "\n".join(f"{_PLAIN_NAMES[role]}: {mark}" for role, mark in [*said, ("user", _QUESTION)])
        between = "" if is_bare else _GAP
        text = f"{tokenizer.bos_token or ''}{opening}{_DOCUMENT}{between}{asked}\n{_PLAIN_NAMES['assistant']}:"
        system = system or None
    marks = {"system prompt": _SYSTEM if system is not None else "", "document": _DOCUMENT, "question": _QUESTION}
    marks |= {f"{role} message": mark for role, mark in said}
    lost = [what for what, mark in marks.items() if mark not in text]
    if lost:
        hint = "leave --system out" if lost[0] == "system prompt" else OTHER_TEMPLATE
        raise ModelError(f"this model's chat template leaves out the {lost[0]}", hint=hint)
    prefix, _, behind = text.partition(_DOCUMENT)
    if _QUESTION not in behind:
        raise ModelError("this model's chat template leaves out the question", hint=OTHER_TEMPLATE)
    return prefix, behind


def _said(at: int) -> str:
    """The mark of an earlier message."""
    return f"\ue000said {at}\ue001"


def render_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    """The template's text for `messages` and the opening of the answer. Raises ModelError when there is none."""
    hint = "leave --system out (in a chat: /system default)" if messages[0]["role"] == "system" else OTHER_TEMPLATE
    shown = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them is the usual one
        raise ModelError("this model has chat templates by name and no default", hint=OTHER_TEMPLATE) from error
    return renderer().render(template, {**tokenizer.special_tokens_map, **shown}, hint=hint)


def _encode_frame(tokenizer: PreTrainedTokenizerBase, text: str, texts: Mapping[str, str]) -> list[int]:
    """Token ids of template text, in which special tokens are meant, with people's `texts` at their marks, in which
    none are.
    """
    ids = list[int]()
    for piece in filter(None, _MARK.split(text)):
        ids += encode(tokenizer, texts.get(piece, piece), special=piece not in texts)
    return ids


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Token ids of text in which special tokens are meant, or not."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)
    return list(encoded["input_ids"])


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """What ids of an answer say; the model's own marks say nothing."""
    unsaid = silent_ids(tokenizer)
    return str(tokenizer.decode([token for token in ids if token not in unsaid]))


@lru_cache(maxsize=4)
def silent_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that say nothing in an answer: those that the model's own files call special."""
    return control_ids(tokenizer) - getattr(tokenizer, "spoken_ids", frozenset())


@lru_cache(maxsize=4)
def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that no text becomes."""
    return frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)


def encode_words(
    tokenizer: PreTrainedTokenizerBase, text: str, *, strip: bool = True, cabinet: Cabinet | None = None
) -> Tokens:
    """User text with its words and characters; with `strip` white space at both ends is left out.

    Of a long text they are kept in the `cabinet`, by the text, the tokenizer's files and what makes tokens of them.
    """
    body = text.strip() if strip else text
    keeps = cabinet if len(body) >= KEPT_CHARS else None
    tokens = _made(tokenizer, body) if keeps is None else _kept(tokenizer, body, keeps)
    return replace(tokens, offsets=tokens.offsets + text.find(body))


def _kept(tokenizer: PreTrainedTokenizerBase, text: str, cabinet: Cabinet) -> Tokens:
    """The tokens that were made of a text once; of a tokenizer that is of no files they are made again."""
    made_by = getattr(tokenizer, "files_sha256", None)
    if made_by is None:
        return _made(tokenizer, text)
    made_of = ("tokens", sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), made_by, _version())
    found = cabinet.find(*made_of)
    known = None if found is None else Tokens.unpacked(found, characters=len(text))
    # Ids may have holes: none is larger than the largest that is a token.
    if known is not None and tokenizer.convert_ids_to_tokens(max(known.ids, default=0)) is not None:
        return known
    tokens = _made(tokenizer, text)
    cabinet.keep(tokens.packed(), *made_of)
    return tokens


def _made(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    found = encoded["offset_mapping"]
    offsets = torch.tensor(found, dtype=torch.int64).view(-1, 2)
    return Tokens.of(encoded["input_ids"], words=coherence.word_ids(text, found), offsets=offsets)


def _version() -> str:
    """Of all that makes tokens and words of a text."""
    return version_of((coherence.__file__, vocabulary.__file__, __file__), ("tokenizers", "transformers"))
