"""A prompt cut into the pieces that are read one after the other.

Each piece is followed by the question, which observes it and is forgotten again; behind the last one it stays. The
beginning of a question that competes with the context (`Prompt.asked`) belongs to the last piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uncomp_cli.engine.tokens.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a context from position `first` on, as a prompt of its own; `final` is the last one."""

    prompt: Prompt
    first: int
    final: bool

    def layout(self) -> tuple[Tensor, Tensor]:
        """Ids and logical positions [1, N] of the piece and, each right behind it, its questions."""
        context = len(self.prompt.context)
        flat = [*self.prompt.context, *(token for question in self.prompt.questions for token in question)]
        at = [torch.arange(context), *(context + torch.arange(len(question)) for question in self.prompt.questions)]
        return torch.tensor([flat]), self.first + torch.cat(at)[None]


def cut_chunks(prompt: Prompt, chunk_tokens: int | None) -> Iterator[Chunk]:
    """Pieces of at most `chunk_tokens` tokens of the document, whole words where there are any; None: one piece."""
    document = len(prompt.context) - prompt.asked
    first = 0
    for last in _ends(prompt.context.words, document, chunk_tokens or document):
        yield Chunk(_observed(prompt, first, last), first, final=False)
        first = last
    yield Chunk(_part(prompt, first, len(prompt.context)), first, final=True)


def _ends(words: Tensor, document: int, chunk_tokens: int) -> Iterator[int]:
    """Where all pieces but the last end."""
    first = 0
    while document - first > chunk_tokens:
        last = first + chunk_tokens
        begin = int(torch.searchsorted(words, words[last]))  # of the word that the cut falls into
        last = begin if begin > first else last
        yield last
        first = last


def _part(prompt: Prompt, first: int, last: int) -> Prompt:
    return replace(prompt, context=prompt.context[first:last])


def _observed(prompt: Prompt, first: int, last: int) -> Prompt:
    """A piece with the whole question behind it."""
    opening = prompt.context.ids[len(prompt.context) - prompt.asked :]
    questions = tuple((*opening, *question) for question in prompt.questions)
    return replace(_part(prompt, first, last), questions=questions, asked=0)
