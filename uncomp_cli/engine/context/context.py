"""A context: a text that was read, with its cache.

The questions that were read beside it keep their own keys and values: a single question lies behind the context at
once, several wait beside the cache (and count in its bytes) until `begin_question` puts one there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import Head, RaggedKVCache
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["Context"]


class Context:
    """A prompt that has been read: its compressed context and, a question, its keys, values and next-token logits.

    `questions[l][q]` holds question q's entries in layer l, one `Head` for every KV head; it is empty when there is
    one question, whose entries are in the cache. `hidden_kept` [L] is the share of the context that entered each layer.
    """

    def __init__(self, prompts: Sequence[Prompt], cache: RaggedKVCache, questions: list[list[list[Head]]]) -> None:
        self.prompts = prompts
        self.cache = cache
        self.questions = questions
        self.logits: Tensor = torch.empty(0)
        self.hidden_kept: tuple[float, ...] = (1.0,) * len(cache.layers)
        self._mark: list[list[int]] | None = None

    def begin_question(self, question: int = 0) -> None:
        """Put the keys and values of `question` behind the context; what an earlier question left is forgotten."""
        if self._mark is None:
            self._mark = self.cache.mark()
        self.cache.rollback(self._mark)
        for layer, questions in enumerate(self.questions):
            self.cache.extend(layer, questions[question])

    def next_positions(self, question: int = 0) -> Tensor:
        """The logical position [B, 1] of the first generated token in every row."""
        return torch.tensor([[len(prompt.context) + len(prompt.questions[question])] for prompt in self.prompts])
