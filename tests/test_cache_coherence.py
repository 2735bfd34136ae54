"""Words and pooling: what belongs together is scored together."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from uncomp_cli.cache.coherence import MAX_CODE_TOKENS, MAX_WORD_TOKENS, pool, share_by_word, word_ids
from uncomp_cli.config import Pooling
from uncomp_cli.models.checkpoint import load_tokenizer

LICENSE = Path(__file__).parents[1] / "LICENSE"
NUMBER = re.compile(r"\d[\d.,]*")


def byte_offsets(text: str) -> list[tuple[int, int]]:
    """Offsets of a token a byte: the hardest case, as a character outside ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    offsets: list[tuple[int, int]] = tokenizer.encode(text).offsets
    return offsets


def piece_offsets(pieces: list[str]) -> list[tuple[int, int]]:
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    return [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]


def grouped(text: str, offsets: list[tuple[int, int]]) -> list[str]:
    """The words' texts; ids must be ascending from 0 without a gap."""
    ids = word_ids(text, offsets)
    assert ids.dtype == torch.int64
    words = []
    for word in range(int(ids[-1]) + 1):
        span = [offset for offset, at in zip(offsets, ids.tolist(), strict=True) if at == word]
        assert span
        words.append(text[span[0][0] : span[-1][1]])
    assert ids.tolist() == sorted(ids.tolist())
    return words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the code is 7391204.", ["the", " ", "code", " ", "is", " ", "7391204."]),
        ("a\t1,234.50\n\n7", ["a", "\t", "1,234.50", "\n", "\n", "7"]),
        ("  12", [" ", " ", "12"]),
        ("日本 2024年", ["日本", " ", "2024年"]),
        ("ok 😀! x", ["ok", " ", "😀!", " ", "x"]),
        ("😀", ["😀"]),
        ("12\u00a0345", ["12", "\u00a0", "345"]),
    ],
)
def test_words_of_bytes(text: str, words: list[str]) -> None:
    assert grouped(text, byte_offsets(text)) == words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["The", " code", " ", "7", "3", "9", "."], ["The", " code", " ", "739."]),
        (["The", " 73", "91", ",", " x"], ["The", " 7391,", " x"]),
        (["a", "  ", "12"], ["a", "  ", "12"]),
    ],
)
def test_words_of_pieces(pieces: list[str], words: list[str]) -> None:
    assert grouped("".join(pieces), piece_offsets(pieces)) == words


def test_long_runs_are_cut_but_not_inside_a_number_or_a_character() -> None:
    run = "x" * 200
    assert set(map(len, grouped(run, byte_offsets(run))[:-1])) == {MAX_CODE_TOKENS}
    kana = "の" * 200
    assert max(map(len, grouped(kana, byte_offsets(kana)))) <= MAX_WORD_TOKENS
    code = "9f1c2a7e-41d3-4c55-8a0e-6b1f0d2c3e4a."
    assert grouped(f"The code is {code} No", byte_offsets(f"The code is {code} No"))[-3] == f" {code}"[1:]
    for lead in range(30, 60):
        text = "x" * lead + "1234567.89" + "y" * 50
        assert any("1234567.89" in word for word in grouped(text, byte_offsets(text)))
    cjk = "漢字" * 50
    assert "".join(grouped(cjk, byte_offsets(cjk))) == cjk  # three tokens a character, none of them torn
    digits = "7" * 500
    assert max(map(len, grouped(digits, byte_offsets(digits)))) == 2 * MAX_WORD_TOKENS
    mixed = "x7" * 100  # no number: a border between a letter and a digit may be cut
    assert set(map(len, grouped(mixed, byte_offsets(mixed))[:-1])) == {MAX_CODE_TOKENS}


def test_a_character_that_begins_inside_a_token() -> None:
    """A token may hold a space and a character's first byte; the rest of the character is no new word."""
    assert word_ids("a é", [(0, 1), (1, 3), (2, 3)]).tolist() == [0, 1, 1]


def test_nothing_has_no_words() -> None:
    ids = word_ids("", [])
    assert (ids.shape, ids.dtype) == ((0,), torch.int64)


@given(st.text(alphabet="ab1234567,. \n\t漢é😀", min_size=1, max_size=120))
def test_any_text(text: str) -> None:
    words = grouped(text, byte_offsets(text))
    assert "".join(words) == text
    for number in NUMBER.findall(text):
        if len(number) <= MAX_WORD_TOKENS:
            assert any(number in word for word in words)


@pytest.mark.model
def test_numbers_stay_whole_with_the_default_model(default_model_dir: Path) -> None:
    text = LICENSE.read_text()[:4000] + ' {"id":1234567,"x":[8.25,9876543210]} Ünï 漢字 1,234,567.89\t42\n2024-01-02'
    encoded = load_tokenizer(default_model_dir)(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    ids = word_ids(text, offsets).tolist()
    assert len(set(ids)) > 500
    numbers = list(NUMBER.finditer(text))
    assert len(numbers) >= 15
    for number in numbers:
        inside = {
            word
            for word, (start, end) in zip(ids, offsets, strict=True)
            if start < number.end() and end > number.start()
        }
        assert len(inside) == 1, number[0]


@pytest.mark.parametrize("width", [1, 3, 5, 21])
@pytest.mark.parametrize("kind", ["none", "mean", "max"])
def test_pooling_is_the_plain_loop(kind: Pooling, width: int) -> None:
    scores = torch.rand(3, 12, generator=torch.Generator().manual_seed(1))
    pooled = pool(scores, kind=kind, width=width)
    half = 0 if kind == "none" else width // 2
    for head in range(3):
        for at in range(12):
            near = scores[head, max(0, at - half) : at + half + 1]
            expected = near.max() if kind == "max" else near.mean()
            torch.testing.assert_close(pooled[head, at], expected)


def test_pooling_fewer_tokens_than_its_width() -> None:
    scores = torch.tensor([[1.0, 2.0]])
    assert pool(scores, kind="mean", width=21).tolist() == [[1.5, 1.5]]
    assert pool(scores, kind="max", width=21).tolist() == [[2.0, 2.0]]


def test_a_word_has_its_best_tokens_score() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.4, 0.0, 0.5, 0.6]])
    shared = share_by_word(scores, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(shared, torch.tensor([[0.9, 0.9, 0.2, 0.3], [0.4, 0.4, 0.5, 0.6]]))
