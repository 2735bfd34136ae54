"""Which passages a question points at, by its words."""

import pytest

from uncomp_cli.engine.context.recall import matching_passages

TEXT = (
    "The harbour was built in 1790 by Dutch engineers. It was the pride of the town.\n"
    "Nobody remembers who paid for it! The keeper's wife, Ada Quill, kept bees: eleven hives.\n"
    "ПРИВЕТ мир. 灯台は古い。 The town is small. The town is grey. The town is far. The town sleeps. The town wakes. "
    "The sea is near. The sea is cold. The sea is wide. The sea is old. The sea is loud. The sea is calm. The end."
)


def found(question: str) -> list[str]:
    return [TEXT[first:last].strip() for first, last in matching_passages(TEXT, question)]


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("How many hives did ADA keep?", "The keeper's wife, Ada Quill, kept bees: eleven hives."),
        ("Which engineers built the harbour?", "The harbour was built in 1790 by Dutch engineers."),
        ("1790?", "The harbour was built in 1790 by Dutch engineers."),
        ("привет?", "ПРИВЕТ мир."),
    ],
)
def test_telling_words_find_their_passage(question: str, first: str) -> None:
    assert found(question)[0] == first


def test_words_that_are_everywhere_point_nowhere() -> None:
    assert found("is the town the sea?") == []
    assert found("What about elephants?") == []
    assert found("?!") == []
    assert matching_passages("", "anything") == []


def test_more_telling_words_come_first() -> None:
    assert found("harbour, bees and keeper")[0].startswith("The keeper's")
    assert len(found("harbour, bees and keeper")) == 2


def test_passages_are_ranges_of_the_text() -> None:
    for first, last in matching_passages(TEXT, "Ada harbour end grey"):
        assert 0 <= first < last <= len(TEXT)
