"""A second reading: the text's own tokens go through the model once more, right behind it, to see what they look at.

    score_lg(s) = max over pieces, their tokens i and the group's query heads h of a_ih[s]
    a           = softmax over all of the text and, causally, the piece itself

What a text needs to be written again is what it says (KVzip, arXiv 2505.23416, section 3): no question has to be known.
It is repeated a piece at a time, each by itself behind the whole text, the last tokens of the piece before it in front,
by which the model finds its place. So nothing of a second copy is held, and a text need not fit twice into the context.
There is no instruction before a piece, which the paper has. Sliding layers, which keep their window, are not scored.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import Again, LayerView, Scorer
from uncomp_cli.engine.forward.attention import AttentionState, attend_continued, attend_told
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import ModelError

PIECE_TOKENS = 2048
LEAST_PIECE_TOKENS = 64
"""Where the context has no more room than that behind the text."""
_LEAD_TOKENS = 8
"""Of the piece before, as the paper has it."""


def piece_tokens(text: int, longest: int) -> int:
    """Tokens of a piece behind a text of so many in a context of `longest`; fewer than the least are none that fit."""
    return min(text, PIECE_TOKENS, longest - text)


def cut_pieces(ids: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Pieces of at most `most` tokens that overlap by those that lead."""
    step = most - _LEAD_TOKENS
    for first in range(0, max(1, len(ids) - _LEAD_TOKENS), step):
        yield ids[first : first + most]


class Repetition(AttentionState):
    """Reads the context of `prompt` again behind what is held of it, which is all and does not change.

    `held(layer)` are a layer's heads, `scores[l]` [G, S] those of the full layers, the highest of all pieces so far.
    """

    def __init__(self, decoder: Decoder, scorer: Scorer, prompt: Prompt, held: Callable[[int], list[Head]]) -> None:
        spec, length = decoder.spec, len(prompt.context)
        self._decoder, self._scorer, self._held = decoder, scorer, held
        longest = decoder.regime_tokens or spec.trained_length
        most = max(LEAST_PIECE_TOKENS, piece_tokens(length, longest))
        if decoder.regime_tokens is not None and length + min(length, most) > longest:
            message = f"scorer {scorer.name} reads a text again behind all of it, RoPE is held for {longest:,} tokens"
            raise ModelError(message, hint="use another --scorer, or a larger --max-new-tokens")
        self.pieces = list(cut_pieces(prompt.context.ids, most))
        self._first = length
        self.scores = {
            layer: torch.zeros(spec.num_kv_heads, length, device=decoder.device) for layer in spec.full_layers
        }

    def read(self, on_layer: Callable[[], None] = lambda: None) -> dict[int, Tensor]:
        """The scores of all pieces; `on_layer` is told when a piece has been through a layer."""
        self._on_layer = on_layer
        for piece in self.pieces:
            positions = self._first + torch.arange(len(piece))[None]
            self._decoder.forward(torch.tensor([list(piece)]), positions, self, 1)
        return self.scores

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention of a piece [1, H, N, D] over the text and, causally, itself; keeps what was looked at most."""
        heads, own = self._held(layer), (key[0].contiguous(), value[0].contiguous())
        past = torch.stack([keys for keys, _, _ in heads]), torch.stack([values for _, values, _ in heads])
        sums = None
        if form.is_plain and form.window is None:
            output, sums = attend_told(query[0], past, *own, form)
        else:
            output = attend_continued(query[0], past, *own, form)
        if layer in self.scores:
            again, best = Again(query[0], own[0], sums), self.scores[layer]
            nothing = query[0, :, :0]
            view = LayerView(layer, nothing, *past, branches=(), form=form, again=again)
            torch.maximum(best, self._scorer.score(view), out=best)
        self._on_layer()
        return output[None]
