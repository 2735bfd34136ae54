"""A conversation as token ids, and where each of them comes from.

The model's own template frames the messages: template text may contain special tokens, people's text never does, and
the model's own answers keep the very tokens it generated. A message may be tokenized in parts, so that a document has
the same tokens whatever is asked behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

from transformers import PreTrainedTokenizerBase

from uncomp_cli.engine.tokens.prompt import encode, encode_words, render_template
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import ModelError
from uncomp_cli.models.template import OTHER_TEMPLATE


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
class Script:
    """A conversation with the opening of the next answer, as tokens.

    Protected are the template and the system prompt. Offsets are characters in the texts of all messages, one behind
    the other; tokens that were generated and are not what the text would be have none. Message i's text begins at
    `first_chars[i]` there and its first token is `first_tokens[i]`.
    """

    tokens: Tokens
    first_chars: tuple[int, ...]
    first_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError for a model that was not made for chat."""
    if not tokenizer.chat_template:
        raise ModelError("this model has no chat template", hint="use `uncomp ask`, or a model made for chat")


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], words: Callable[[str], Tokens] | None = None
) -> Script:
    """A conversation with the opening of the next answer; raises ModelError when the template does not take it.

    `words` makes the tokens of people's text, for who has them still.
    """
    words = words or partial(encode_words, tokenizer, strip=False)
    check_template(tokenizer)
    marks = [f"\ue000message {index}\ue001" for index in range(len(messages))]
    framed = [{"role": message.role, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = render_template(tokenizer, framed)
    first_chars = [0, *accumulate(len(message.text) for message in messages)][:-1]
    pieces: list[Tokens] = []
    first_tokens: list[int] = []
    for message, mark, first_char in zip(messages, marks, first_chars, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise _left_out(message, newest=message is messages[-1])
        pieces.append(_frame_piece(tokenizer, before))
        first_tokens.append(sum(map(len, pieces)))
        pieces += _message_pieces(words, message, first_char)
    pieces.append(_frame_piece(tokenizer, rest))
    return Script(Tokens.join(pieces), tuple(first_chars), tuple(first_tokens))


def _frame_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """The template's own text; every token of it is a word."""
    return Tokens.of(encode(tokenizer, text, special=True), protected=True)


def _message_pieces(words: Callable[[str], Tokens], message: Message, first_char: int) -> list[Tokens]:
    """The tokens of a message, part by part; of an answer those that were generated."""
    pieces, protected = [], message.role == "system"
    for part in message.parts or (message.text,):
        tokens = words(part)
        pieces.append(Tokens.of(tokens, protected=protected, words=tokens.words, offsets=tokens.offsets + first_char))
        first_char += len(part)
    if message.ids is None or message.ids == tuple(token for piece in pieces for token in piece):
        return pieces
    return [Tokens.of(message.ids, protected=protected)]


def _left_out(message: Message, *, newest: bool) -> ModelError:
    """The error of a template that does not show `message` of a chat."""
    if message.role == "system":
        hint = "/system default goes back to the model's own system prompt"
    else:
        hint = OTHER_TEMPLATE if newest else "/clear forgets what was said before, so that nothing can be left out"
    return ModelError(f"the model's chat template leaves out a {message.role} message", hint=hint)
