"""Reading again: what the heads find in a long text becomes a short text of its own.

    first     the whole text, in chunks, re-packed and evicted to the budget: all heads' scores agree on one a token
    then      the passages around the best tokens, and what must stay, in order and without gaps, attended exactly

A key that was made behind other text remembers it, and what a long text leaves of a budget is mostly distractors. The
second pass knows the passages alone: its distances are those of a short text, for which the model was trained. A token
keeps its position in the whole text, and an answer is written behind all of it. What stands in no chosen passage is
lost to the answer: a question about everything is not helped. Selective recomputation after retrieval is the nearest
published idea; here the model's own attention retrieves (docs/long.md has the figures).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.read.prefill import PrefillState, layout
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["choose_passages", "read_again"]

PASSAGE_TOKENS = 64


def choose_passages(scores: Tensor, always: Tensor, *, most: int) -> Tensor:
    """Positions [K], ascending: tokens of `always` bool [S], and whole passages of `most` tokens together at most.

    A passage is PASSAGE_TOKENS tokens of the text from a multiple of that on; it is as good as its best token by
    `scores` [S]. Passages of score 0 are not taken.
    """
    best = torch.nn.functional.pad(scores, (0, -len(scores) % PASSAGE_TOKENS)).view(-1, PASSAGE_TOKENS).amax(dim=-1)
    wanted = min(max(1, most // PASSAGE_TOKENS), int((best > 0).sum()))
    chosen = torch.zeros(len(best), dtype=torch.bool, device=scores.device)
    chosen[best.topk(wanted).indices] = True
    return (chosen.repeat_interleave(PASSAGE_TOKENS)[: len(scores)] | always).nonzero()[:, 0]


def read_again(
    decoder: Decoder,
    prompt: Prompt,
    at: Tensor,
    allocation: Allocation,
    *,
    cache: RaggedKVCache,
    scorer: Scorer,
    config: ScorerConfig,
    on_layer: Callable[[int], None],
) -> Context:
    """Read the tokens `at` [K] of a prompt's context, right before its questions, as though there were no others.

    They go into the empty `cache`, compressed as `allocation` would a text of their length; entries carry their
    positions in the whole text.
    """
    part, left_out = replace(prompt, context=prompt.context.take(at.cpu())), len(prompt.context) - len(at)
    spent = allocation.narrowed(part.seq_len, part.always_kept)
    state = PrefillState(
        [part],
        [spent],
        scorer=scorer,
        config=config,
        cache=cache,
        on_layer=on_layer,
        rows_interact=decoder.rows_interact,
        frequencies=rope_frequencies(decoder.model),
    )
    ids, positions, last = layout([part])
    logits = decoder.forward(ids, positions + left_out, state, last).flatten(0, 1)
    behind = len(prompt.context) + torch.arange(prompt.longest_question)
    labels = torch.cat([at.cpu(), behind]).to(torch.int32)
    cache.relabel(labels)
    questions = [
        [[(keys, values, places + left_out) for keys, values, places in head] for head in layer]
        for layer in state.questions
    ]
    read = Context([prompt], cache, questions)
    read.logits = logits
    allocation.plan = replace(spent.plan, seq_len=prompt.seq_len)
    return read
