"""Telling words: rare words and names weigh most, by their first letters, in two neighbouring sentences."""

import math

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from uncomp_cli.engine.context.telling import Telling, rarity

TEXT = (
    "The night train to Vienna leaves at nine. The baker sleeps. A trainee founded Rome. "
    "It was noon. The night is calm."
)


def test_a_rare_word_and_one_of_several_tokens_tell_most() -> None:
    pieces = {"▁": 0, "▁the": 1, "▁vienna": 6, "▁os": 7, "lo": 8}
    encoder = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    ids = {word: encoder.encode(f" {word}", add_special_tokens=False).ids for word in ("the", "vienna", "oslo")}
    for word, found in ids.items():
        assert rarity(encoder, word) == pytest.approx(sum(math.log(2 + number) for number in found))
    assert rarity(encoder, "the") < rarity(encoder, "vienna") < rarity(encoder, "oslo")


def weight(word: str) -> float:
    return float(len(word))


@pytest.mark.parametrize(
    ("question", "together"),
    [
        ("When does the night train to Vienna leave?", 1.0),  # leaves
        ("Who is the founder of Rome?", 1.0),  # founded
        ("When did the train to Rome sleep?", 1.0),  # of sentences beside each other
        ("When did the train to Oslo sleep?", 10 / 18),
        ("Who flies to Oslo?", 0.0),
    ],
)
def test_a_share_of_a_question_stands_in_two_sentences(question: str, together: float) -> None:
    assert Telling.of(question, TEXT, weight).together == pytest.approx(together)


def test_sentences_apart_are_not_together() -> None:
    assert Telling.of("Was the train calm?", TEXT, weight).together == pytest.approx(5 / 9)
    assert Telling.of("Was it calm?", "Calm.", weight).together == 1
    assert Telling.of("Was it calm?", "", weight).together == 0


def test_a_share_of_it_stands_elsewhere() -> None:
    asked = Telling.of("When does the night train to Vienna leave?", TEXT, weight)
    assert asked.words == {"night": 5, "train": 5, "vienn": 12, "leave": 5}
    assert asked.share("A Viennese night") == pytest.approx(17 / 27)


def test_names_and_numbers_tell_twice() -> None:
    words = Telling.of("Did Ada leave platform 12 for vienna?", TEXT, weight).words
    assert words == {"ada": 6, "leave": 5, "platf": 8, "12": 4, "vienn": 6}


@pytest.mark.parametrize(
    "question",
    [
        "Summarise the document.",
        "Give me a short summary of what was decided in Vienna",
        "What is this text about?",
        "List all who run something.",
        "Which years are named? List them all, please.",
        "Please enumerate the trains",
        "Name every town.",
        "thanks!",
    ],
)
def test_a_question_for_all_of_a_text_tells_nothing(question: str) -> None:
    asked = Telling.of(question, TEXT, weight)
    assert (asked.whole, asked.words, asked.together, asked.share("")) == (True, {}, 1, 1)


@pytest.mark.parametrize(
    "question", ["What is on the price list?", "name the river of Rome", "Who lists the trains?", "Where?"]
)
def test_a_question_for_a_fact_is_none_for_all(question: str) -> None:
    asked = Telling.of(question, TEXT, weight)
    assert (asked.whole, bool(asked.words)) == (False, question != "Where?")


def test_a_question_without_spaces_between_its_words_tells_nothing() -> None:
    """Its words would be whole sentences, which stand in no text."""
    assert Telling.of("\u739b\u4e3d\u51fa\u751f\u5728\u54ea\u91cc\uff1f", TEXT, weight).together == 1


@pytest.mark.parametrize(
    "question",
    ["\u0413\u0434\u0435 \u043f\u043e\u0435\u0437\u0434?", "Wann fuhr der Zug nach Oslo ab?", "Zug nach Oslo"],
)
def test_a_question_that_is_not_in_english_is_not_told_to_lack_an_answer(question: str) -> None:
    asked = Telling.of(question, TEXT, weight)
    assert (asked.together, asked.share(TEXT)) == (1, 0)
    assert Telling.of("When did the train leave for Oslo?", TEXT, weight).together < 1


@pytest.mark.parametrize(
    "said",
    [
        "Thank you.",
        "Say it shorter.",
        "Are you sure?",
        "And in French?",
        "Can you explain that in simple words?",
        "That's not what I asked.",
        "Could you rephrase your last answer, please?",
        "What was my first question?",
        "Translate it into German, in at most 3 short sentences.",
        "That is great. Thanks!",
        "WHAT IS THIS DOCUMENT ABOUT?",
        "Are You Sure That Is Right?",
    ],
)
def test_what_is_said_of_the_conversation_tells_nothing(said: str) -> None:
    asked = Telling.of(said, TEXT, weight)
    assert (asked.whole, asked.words, asked.together) == (True, {}, 1)


def test_a_word_of_talk_that_is_written_as_a_name_tells() -> None:
    assert Telling.of("Where does Long sleep?", TEXT, weight).words == {"long": 8, "sleep": 5}
    assert Telling.of("How long did it sleep in French?", TEXT, weight).words == {"sleep": 5}
    assert Telling.of("Where did Mr. Long sleep?", TEXT, weight).words == {"mr": 4, "long": 8, "sleep": 5}


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Where does Zoe Muller sleep?", "Zoë Müller sleeps in Rome."),
        ("Where does Zoë Müller sleep?", "Zoe\u0308 Mu\u0308ller sleeps in Rome."),
        ("Who wrote Macbeth?", "They wrote _Macbeth_."),
        ("What are the max tokens?", "max_tokens = 256"),
    ],
)
def test_words_are_the_same_without_accents_and_marks(question: str, text: str) -> None:
    assert Telling.of(question, text, weight).together == 1


def test_capitals_tell_nothing_where_every_word_has_one() -> None:
    assert Telling.of("WHEN DOES VIENNA SLEEP?", TEXT, weight).words == {"vienn": 6, "sleep": 5}
