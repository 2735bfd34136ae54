"""Recall: what a question seems to be about and the cache has lost is read again where it stands.

What was evicted cannot draw attention, so the cache alone cannot say that something is missing. The text can:

    score(passage) = sum over the question's words w in it of idf(w) · tf (k + 1) / (tf + k (1 - b + b · length/mean))

(BM25, Robertson & Zaragoza 2009, eq. 3.15, k = 1.2, b = 0.75). A word that is in many passages points nowhere: those
in more than one of COMMON passages do not count. Words are compared as they are written, without their case. A question
in other words than the text's is nearest to a passage by a sketch of the text (sketch.py), where it has one:

    by both(passage) = z(near(passage)) + z(score(passage)) / 2         z(x) = (x - mean) / deviation, over the passages

The best PASSAGES are missing when their tokens are held by less than SURVIVES of the heads on average.

The missing tokens go through the model once more at their own positions, those of several passages in one pass. Each
head sees what it still holds before a token and, of the passages, what stands before it: exact where nothing else
before it was evicted, close where the rest was kept for being distinct. It costs the passages, not the document.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerBase

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache, survival
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import AttentionState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt, encode, encode_words
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.numerals import format_count, format_seconds

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+|\n|$)")
_SATURATION, _LENGTH_SHARE = 1.2, 0.75
_COMMON = 10
"""A word in more than a tenth of the passages, and in more than two, points nowhere."""
_PASSAGES = 3
_WORDS_SHARE = 0.5
_LONGEST_TOKENS = 64
MOST_RECALLED = _PASSAGES * _LONGEST_TOKENS
"""Tokens that are put back for one question, at most."""
SURVIVES = 0.8


@dataclass(frozen=True, slots=True)
class _Passage:
    first: int
    last: int
    words: Counter[str]


def matching_passages(text: str, question: str, near: Tensor | None = None) -> list[tuple[int, int]]:
    """The character ranges of sentences of `text` that share telling words with `question`, the best first.

    With `near` [P], how near each sentence is to the question, all of them, the best by both first.
    """
    passages = list(_passages(text))
    scores = torch.tensor(_scores(passages, question))
    if near is not None and len(near) == len(passages):
        scores = _standard(near) + _WORDS_SHARE * _standard(scores)
        count = len(passages)
    else:
        count = int((scores > 0).sum())
    order = scores.argsort(descending=True, stable=True)[:count].tolist()
    return [(passages[at].first, passages[at].last) for at in order]


def _standard(scores: Tensor) -> Tensor:
    """Scores [P] as deviations from their mean; all 0 where they are equal."""
    away = scores - scores.mean()
    return away / away.square().mean().sqrt().clamp_min(1e-9)


def _scores(passages: Sequence[_Passage], question: str) -> list[float]:
    """BM25 of each passage."""
    asked = set(words_of(question))
    frequency = Counter(word for passage in passages for word in passage.words if word in asked)
    telling = {word: count for word, count in frequency.items() if count <= max(2, len(passages) / _COMMON)}
    mean = sum(passage.words.total() for passage in passages) / max(1, len(passages))
    return [_score(passage, telling, len(passages), mean) for passage in passages]


def missing_passages(
    text: str, question: str, *, offsets: Tensor, survival: Tensor, near: Tensor | None = None
) -> list[range]:
    """The tokens of passages that `question` points at and that were mostly evicted, a long one's beginning.

    offsets [S, 2] are the tokens' characters in `text`, -1 for none; survival [N], N <= S, of those that were read.
    """
    found = []
    for chars in matching_passages(text, question, near)[:_PASSAGES]:
        span = tokens_of(offsets, chars)
        if 0 < span.stop <= len(survival) and float(survival[span.start : span.stop].mean()) < SURVIVES:
            found.append(range(span.start, min(span.stop, span.start + _LONGEST_TOKENS)))
    return found


def tokens_of(offsets: Tensor, chars: tuple[int, int]) -> range:
    """The tokens that share a character with `chars`, by the characters [S, 2] of each, -1 for none."""
    inside = (offsets[:, 0] >= 0) & (offsets[:, 1] > chars[0]) & (offsets[:, 0] < chars[1])
    found = inside.nonzero().flatten()
    return range(int(found[0]), int(found[-1]) + 1) if len(found) else range(0)


@dataclass(frozen=True, slots=True)
class Clue:
    """A question's words, and how near [P] each passage is to those of its tokens; None where there is no sketch."""

    words: str
    near: Callable[[range], Tensor | None]


class Recall:
    """Reads again what a question about a document needs; the document's text is made from its tokens alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(
        self, decoder: Decoder, cache: RaggedKVCache, prompt: Prompt, question: int, asked: Clue
    ) -> str | None:
        """Put back what is missing of the passages that `asked` points at, and say so; without words nothing is."""
        words, tokens = asked.words, prompt.context
        held = survival(cache, len(tokens))
        if not words or not can_recall(decoder) or bool((held >= SURVIVES).all()):
            return None
        begun = time.perf_counter()
        near = asked.near(part_of(prompt.questions[question], encode(self._tokenizer, words.strip(), special=False)))
        text, offsets = _text_of(self._tokenizer, tokens)
        spans = missing_passages(text, words, offsets=offsets, survival=held, near=near)
        if not spans:
            return None
        put_back(decoder, cache, tokens, spans)
        return recall_note(spans, time.perf_counter() - begun)


def part_of(ids: Sequence[int], part: Sequence[int]) -> range:
    """Where `part` stands in `ids`, the last time; all of `ids` where it does not."""
    begins = [at for at in range(len(ids) - len(part) + 1) if tuple(ids[at : at + len(part)]) == tuple(part)]
    return range(begins[-1], begins[-1] + len(part)) if part and begins else range(len(ids))


def passage_numbers(tokenizer: PreTrainedTokenizerBase, context: Tokens) -> Tensor:
    """The number [S] of the passage that each token of a context begins in, -1 for none."""
    text, offsets = _text_of(tokenizer, context)
    passages = list(_passages(text))
    if not passages:
        return torch.full((len(context),), -1)
    firsts, lasts = (torch.tensor([getattr(one, end) for one in passages]) for end in ("first", "last"))
    number = torch.searchsorted(firsts, offsets[:, 0].contiguous(), right=True) - 1
    inside = (number >= 0) & (offsets[:, 0] < lasts[number.clamp_min(0)])
    return torch.where(inside, number, -1)


def _text_of(tokenizer: PreTrainedTokenizerBase, context: Tokens) -> tuple[str, Tensor]:
    """A context's document as text and every token's characters in it, -1 for the template's.

    Empty for a text that has other tokens when it is read.
    """
    of_document = context.offsets[:, 0] >= 0
    ids = context.take(of_document).ids
    text = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    again = encode_words(tokenizer, text, strip=False)
    offsets = torch.full((len(context), 2), -1)
    if again.ids != ids:
        return "", offsets
    offsets[of_document] = again.offsets
    return text, offsets


class _Reading(AttentionState):
    """The engine's state while tokens at `positions` [N] are read again; `heads[l]`: what those of layer l lack."""

    def __init__(self, cache: RaggedKVCache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions.to(torch.int32)
        self.heads: list[list[Head]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention [1, H, N, D] of the tokens over what lies before each of them."""
        held = self.cache.layer(layer)
        groups = key.shape[1]
        queries = query[0].view(groups, -1, *query.shape[2:])
        outputs, lacking = [], []
        for group in range(groups):
            before, read = held.head(group), (key[0, group], value[0, group], self.positions)
            heads = slice(group * queries.shape[1], (group + 1) * queries.shape[1])
            outputs.append(_attend(queries[group], before, read, form.of(heads)))
            new = ~torch.isin(read[2], before[2])
            lacking.append((read[0][new], read[1][new], read[2][new]))
        self.heads.append(lacking)
        return torch.cat(outputs)[None]


def can_recall(decoder: Decoder) -> bool:
    """Whether what was evicted can be put back: not where a layer has dropped what it would see.

    One with a sliding window has, and so has one whose state belongs to all that was read.
    """
    return len(decoder.spec.full_layers) == decoder.spec.num_layers and not decoder.spec.recurrent


def put_back(decoder: Decoder, cache: RaggedKVCache, tokens: Tokens, spans: Sequence[range]) -> None:
    """Put back what `cache`, of one row, no longer holds of these ranges of `tokens`; what it holds stays as it is."""
    positions = spans_mask(len(tokens), spans).nonzero()[:, 0]
    state = _Reading(cache, positions.to(decoder.device))
    decoder.forward(torch.tensor([tokens.take(positions).ids]), positions[None], state, 1)
    for layer, heads in enumerate(state.heads):
        cache.insert(layer, heads)


def spans_mask(length: int, spans: Sequence[range]) -> Tensor:
    """bool [length]: True at the tokens of `spans`."""
    mask = torch.zeros(length, dtype=torch.bool)
    for span in spans:
        mask[span.start : span.stop] = True
    return mask


def recall_note(spans: Sequence[range], seconds: float) -> str:
    """What is said of passages that were read again."""
    passages, tokens = format_count(len(spans), "passage"), format_count(sum(map(len, spans)), "token")
    return f"{passages} ({tokens}) that had been evicted: read again in {format_seconds(seconds)}"


def _attend(query: Tensor, held: Head, read: Head, form: Form) -> Tensor:
    """Output [R, N, D] of query [R, N, D] over what is held of other tokens and over the tokens themselves."""
    others = ~torch.isin(held[2], read[2])
    keys, values, positions = (torch.cat([old[others], new]) for old, new in zip(held, read, strict=True))
    mask = positions <= read[2][:, None]
    if not form.is_plain:
        found: Tensor = form.weights(query @ keys.T * form.scaling, ~mask).to(values.dtype) @ values
        return found
    every = keys.expand(len(query), *keys.shape), values.expand(len(query), *values.shape)
    return scaled_dot_product_attention(query, *every, attn_mask=mask, scale=form.scaling)


def _passages(text: str) -> Iterator[_Passage]:
    for match in _SENTENCE.finditer(text):
        words = Counter(words_of(match.group()))
        if words:
            yield _Passage(match.start(), match.end(), words)


def sentences(text: str) -> list[str]:
    """Those of a text that have words."""
    return [found for found in _SENTENCE.findall(text) if _WORD.search(found)]


def words_of(text: str) -> list[str]:
    """The words of a text, without their case."""
    return [word.casefold() for word in _WORD.findall(text)]


def _score(passage: _Passage, telling: dict[str, int], count: int, mean: float) -> float:
    length = 1 - _LENGTH_SHARE + _LENGTH_SHARE * passage.words.total() / mean
    total = 0.0
    for word, frequency in telling.items():
        times = passage.words[word]
        rarity = math.log(1 + (count - frequency + 0.5) / (frequency + 0.5))
        total += rarity * times * (_SATURATION + 1) / (times + _SATURATION * length)
    return total
