"""A conversation as token ids, and where each of them comes from.

The model's own template frames the messages: template text may contain special tokens, people's text never does, and
the model's own answers keep the very tokens it generated. A message may be tokenized in parts, so that a document has
the same tokens whatever is asked behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uncomp_cli.engine.tokens.prompt import OTHER_TEMPLATE, encode, encode_words, render_template
from uncomp_cli.errors import ModelError

__all__ = ["Message", "Rendered", "render_messages"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; `ids` are the tokens that a model generated for it, kept as they were.

    `parts` are pieces of `text`, one after another the whole of it, that are tokenized one by one.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    ids: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids [S] of a conversation with the opening of the next answer.

    `protected` bool [S] marks what is never evicted: the template and the system prompt. `words` int64 [S] numbers
    words. `offsets` int64 [S, 2] are each token's characters in the texts of all messages, one behind the other; -1
    where a token is the template's, or was generated and is not what the text would be. Message i's text begins at
    `first_chars[i]` there and its first token is `first_tokens[i]`.
    """

    ids: tuple[int, ...]
    protected: Tensor = field(repr=False)
    words: Tensor = field(repr=False)
    offsets: Tensor = field(repr=False)
    first_chars: tuple[int, ...]
    first_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> "Rendered":
        """Its first `length` tokens."""
        return Rendered(
            self.ids[:length],
            self.protected[:length],
            self.words[:length],
            self.offsets[:length],
            self.first_chars,
            tuple(min(first, length) for first in self.first_tokens),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring tokens: ids [N], words [N] from 0, offsets [N, 2] or -1."""

    ids: tuple[int, ...]
    words: Tensor
    offsets: Tensor
    protected: bool


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Rendered:
    """A conversation with the opening of the next answer; raises ModelError when the template does not take it."""
    if not tokenizer.chat_template:
        raise ModelError("this model has no chat template", hint="use `uncomp ask`, or a model made for chat")
    marks = [f"\ue000message {index}\ue001" for index in range(len(messages))]
    framed = [{"role": message.role, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = render_template(tokenizer, framed)
    first_chars = [0, *accumulate(len(message.text) for message in messages)][:-1]
    pieces: list[_Piece] = []
    first_tokens: list[int] = []
    for message, mark, first_char in zip(messages, marks, first_chars, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise _left_out(message, newest=message is messages[-1])
        pieces.append(_frame_piece(tokenizer, before))
        first_tokens.append(sum(len(piece.ids) for piece in pieces))
        pieces += _message_pieces(tokenizer, message, first_char)
    pieces.append(_frame_piece(tokenizer, rest))
    return _joined(pieces, first_chars, first_tokens)


def _joined(pieces: Sequence[_Piece], first_chars: Sequence[int], first_tokens: Sequence[int]) -> Rendered:
    words, last = [], 0
    for piece in pieces:
        words.append(piece.words + last)
        last = int(words[-1][-1]) + 1 if len(piece.ids) else last
    return Rendered(
        ids=tuple(token for piece in pieces for token in piece.ids),
        protected=torch.cat([torch.full((len(piece.ids),), piece.protected) for piece in pieces]),
        words=torch.cat(words),
        offsets=torch.cat([piece.offsets for piece in pieces]),
        first_chars=tuple(first_chars),
        first_tokens=tuple(first_tokens),
    )


def _frame_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> _Piece:
    """The template's own text; every token of it is a word."""
    return _bare(tuple(encode(tokenizer, text, special=True)), protected=True)


def _bare(ids: tuple[int, ...], *, protected: bool) -> _Piece:
    return _Piece(ids, torch.arange(len(ids)), torch.full((len(ids), 2), -1), protected)


def _message_pieces(tokenizer: PreTrainedTokenizerBase, message: Message, first_char: int) -> list[_Piece]:
    """The tokens of a message, part by part; of an answer those that were generated."""
    pieces, protected = [], message.role == "system"
    for part in message.parts or (message.text,):
        ids, words, offsets = encode_words(tokenizer, part, strip=False)
        pieces.append(_Piece(tuple(ids), words, offsets + first_char, protected))
        first_char += len(part)
    if message.ids is None or message.ids == tuple(token for piece in pieces for token in piece.ids):
        return pieces
    return [_bare(message.ids, protected=protected)]


def _left_out(message: Message, *, newest: bool) -> ModelError:
    """The error of a template that does not show `message` of a chat."""
    if message.role == "system":
        hint = "/system default goes back to the model's own system prompt"
    else:
        hint = OTHER_TEMPLATE if newest else "/clear forgets what was said before, so that nothing can be left out"
    return ModelError(f"the model's chat template leaves out a {message.role} message", hint=hint)
