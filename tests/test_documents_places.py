"""Lines and passages of documents as ranges of tokens: by hand, and whatever the text is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.documents.places import LONG_LINE_CHARS, Passage, Places, Source, find_evidence, lines_at
from uncomp_cli.documents.text import Place
from uncomp_cli.errors import UsageError

TEMPLATE = [(-1, -1)] * 3
Offsets = list[tuple[int, int]]


def characters(text: str, *, first: int = 0) -> Offsets:
    """A token for every character."""
    return [(first + i, first + i + 1) for i in range(len(text))]


def words(text: str) -> Offsets:
    """A token for every word, the space before it included, as byte-level tokenizers have it."""
    offsets, begin = [], 0
    for piece in text.split(" "):
        offsets.append((max(0, begin - 1), begin + len(piece)))
        begin += len(piece) + 1
    return offsets


def read(places: Places, text: str, tokens: range) -> str:
    """The characters of `tokens`, one a character, behind the template."""
    assert isinstance(places, Places)
    return text[tokens.start - len(TEMPLATE) : tokens.stop - len(TEMPLATE)] if len(tokens) else ""


def test_lines_are_those_of_the_file() -> None:
    file = "\n\n  Title\n\nfirst line\nsecond line\n\n"
    text = file.strip()
    places = Places([Source("a.md", file, 0)], TEMPLATE + characters(text))
    found = {line: read(places, text, places.tokens_of("a.md", str(line))) for line in range(1, 8)}
    assert found == {1: "", 2: "", 3: "Title", 4: "", 5: "first line", 6: "second line", 7: ""}
    assert read(places, text, places.tokens_of("a.md", "3-6")) == "Title\n\nfirst line\nsecond line"


def test_the_second_document_begins_where_it_was_put() -> None:
    head = "[a]\nalpha\n\n[b]\n"
    text = f"{head}beta\ngamma"
    sources = [Source("a", "alpha\n", 4), Source("b", "\nbeta\ngamma\n", len(head))]
    places = Places(sources, TEMPLATE + characters(text))
    assert read(places, text, places.tokens_of("a", "1")) == "alpha"
    assert read(places, text, places.tokens_of("b", "2-3")) == "beta\ngamma"
    assert [passage.text for passage in places.passages()] == ["alpha", "beta", "gamma"]


def test_a_token_that_is_part_of_a_line_is_the_lines_and_of_one_passage() -> None:
    text = "one two\nthree four"
    offsets = [(0, 3), (3, 13), (13, 18)]  # one token over the line end
    places = Places([Source("a", text, 0)], offsets)
    assert places.tokens_of("a", "1") == range(2)
    assert places.tokens_of("a", "2") == range(1, 3)
    assert [passage.tokens for passage in places.passages()] == [range(2), range(2, 3)]


def test_several_tokens_of_one_character() -> None:
    text = "a 🦜\nb"
    offsets = [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (3, 4), (4, 5)]
    places = Places([Source("a", text, 0)], offsets)
    assert places.tokens_of("a", "1") == range(5)
    assert places.tokens_of("a", "2") == range(6, 7)


def test_what_was_cut_away_has_no_tokens() -> None:
    text = "one\ntwo\nthree"
    places = Places([Source("a", text, 0)], [*TEMPLATE, *characters("one\n"), *characters("three", first=8)])
    assert places.tokens_of("a", "2") == range(0)
    assert len(places.tokens_of("a", "3")) == 5
    assert [passage.line_start for passage in places.passages()] == [1, 3]


def test_a_long_line_is_cut_into_sentences() -> None:
    sentences = [f"Sentence number {i} costs 3.50 crowns, {'said Ada ' * 6}and left." for i in range(8)]
    line = " ".join(sentences)
    assert len(line) > LONG_LINE_CHARS
    text = f"short. line.\n{line}"
    passages = Places([Source("a", text, 0)], words(text)).passages()
    assert [passage.text for passage in passages] == ["short. line.", *sentences]
    assert {(passage.line_start, passage.line_end) for passage in passages[1:]} == {(2, 2)}


def test_a_long_line_without_sentences_is_cut_between_words() -> None:
    line = "word " * 500
    passages = Places([Source("a", line, 0)], words(line.strip())).passages()
    assert all(len(passage.text) <= LONG_LINE_CHARS for passage in passages)
    assert " ".join(passage.text for passage in passages) == line.strip()


@pytest.mark.parametrize(
    ("first", "last", "said", "hint"),
    [
        (0, 1, "not 0-1", "write a.md:1"),
        (4, 9, "not 4-9", "write a.md:3"),
        (3, 2, "not 3-2", "write a.md:2-3"),
        (2, 10, "not 2-10", "write a.md:2-3"),
    ],
)
def test_lines_that_are_not_there(first: int, last: int, said: str, hint: str) -> None:
    places = Places([Source("a.md", "1\n2\n3\n", 0)], characters("1\n2\n3"))
    with pytest.raises(UsageError, match=f"a.md has lines 1 to 3, {said}") as caught:
        places.tokens_of("a.md", f"{first}-{last}")
    assert caught.value.hint == hint


def test_a_document_that_is_not_there() -> None:
    places = Places([Source("docs/handbook.md", "x", 0)], [(0, 1)])
    with pytest.raises(UsageError, match=r"'handbok\.md'") as caught:
        places.tokens_of("handbok.md", "1")
    assert caught.value.hint == "did you mean 'docs/handbook.md'?"


def test_a_file_that_was_given_again_is_the_later_one() -> None:
    sources = [Source("a", "old", 0), Source("a", "new", 3)]
    places = Places(sources, characters("oldnew"))
    assert places.tokens_of("a", "1") == range(3, 6)
    assert [passage.text for passage in places.passages()] == ["old", "new"]


PAGES = (Place(1, "p1"), Place(4, "p3"), Place(6, "p4"))
SHEETS = (Place(1, "Sales!A1"), Place(2, "Sales!A2"), Place(3, "Sales!A3"), Place(5, "Other - new!B7"))


@pytest.mark.parametrize(
    ("where", "places", "lines"),
    [
        ("p1", PAGES, (1, 3)),
        ("P3", PAGES, (4, 5)),
        ("p4", PAGES, (6, 9)),
        ("p3-4", PAGES, (4, 9)),
        ("p1-p3", PAGES, (1, 5)),
        ("2-7", PAGES, (2, 7)),
        ("Sales!A2", SHEETS, (2, 2)),
        ("Sales!A1-3", SHEETS, (1, 4)),
        ("Sales!A1-A2", SHEETS, (1, 2)),
        ("Sales", SHEETS, (1, 4)),
        ("Sales-Other - new", SHEETS, (1, 9)),
        ("Other - new!B7", SHEETS, (5, 9)),
    ],
)
def test_lines_of_places(where: str, places: tuple[Place, ...], lines: tuple[int, int]) -> None:
    assert lines_at(where, path="a", count=9, places=places) == lines


@pytest.mark.parametrize(
    ("where", "places", "message", "hint"),
    [
        ("p2", PAGES, "a has p1, p3, p4 and lines 1 to 9, not p2", "write a:p4"),
        ("page 3", PAGES, "a has p1, p3, p4 and lines 1 to 9, not page 3", "write a:p3"),
        ("p4-p1", PAGES, "a has p1, p3, p4 and lines 1 to 9, not p4-p1", "write a:p4"),
        ("Sold!A1", (*SHEETS, Place(8, "X!A9")),
         "a has Sales!A1, Sales!A2, Sales!A3 … X!A9 and lines 1 to 9, not Sold!A1", "write a:Sales!A1"),
        ("p1", (), "a has lines 1 to 9, not p1", "write a:1-9"),
    ],
)  # fmt: skip
def test_places_that_are_not_there(where: str, places: tuple[Place, ...], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        lines_at(where, path="a", count=9, places=places)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_passages_stand_at_their_places() -> None:
    text = "head\none\ntwo\n\nthree"
    source = Source("a.pdf", text, 0, (Place(2, "p1"), Place(4, "p2")))
    places = Places([source], characters(text))
    assert [(each.text, each.place) for each in places.passages()] == [
        ("head", None), ("one", "p1"), ("two", "p1"), ("three", "p2"),
    ]  # fmt: skip
    assert places.tokens_of("a.pdf", "p1") == range(5, 12)
    mass = [float(letter in "onetw") for letter in text]
    (found,) = find_evidence(mass[:12] + [0.0] * 8, [1.0] * len(text), places, most=2)
    assert (found.where, found.line_start, found.line_end) == ("a.pdf:p1", 2, 3)


@given(st.text(alphabet="ab .!\n。é\u2028", max_size=900))
def test_passages_part_the_text(text: str) -> None:
    """Every token that is no space is in one passage, whose text it is a character of."""
    body = text.strip()
    passages = Places([Source("a", text, 0)], characters(body)).passages()
    covered = [token for passage in passages for token in passage.tokens]
    assert sorted(set(covered)) == covered
    assert {i for i, c in enumerate(body) if not c.isspace()} <= set(covered)
    assert all(is_at(passage, body, text) for passage in passages)


def is_at(passage: Passage, body: str, file: str) -> bool:
    inside = body[passage.tokens.start : passage.tokens.stop] == passage.text
    return inside and passage.text in file.split("\n")[passage.line_start - 1]
