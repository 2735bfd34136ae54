"""A transcript comes back from its JSON as it was; what was edited into nonsense is named."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.sessions.transcript import Attachment, Entry, Pin, Transcript

DOCUMENT = "The harbour was quiet. 🎈 עברית \x1b[31m\u0000"
SHA = "0" * 64
ENTRIES = (
    Entry(
        "user",
        f"{DOCUMENT}\n\nWhat was quiet?",
        parts=(DOCUMENT, "\n\n", "What was quiet?"),
        attachments=(Attachment("docs/caf\udce9.md", SHA, 0, len(DOCUMENT)),),
    ),
    Entry("assistant", "The harb", ids=(5, 0, 17), interrupted=True),
)
FULL = Transcript(
    model="smollm2-135m",
    preset="unseen",
    budget="20%",
    system="You are brief.\nVery.",
    entries=ENTRIES,
    pins=(Pin(0, 4, 11, "harbour.md:1"),),
    sampling=asdict(SamplingConfig(temperature=0.7, seed=3)),
    created="2026-01-31T12:00:00+00:00",
    updated="2026-01-31T12:05:00+00:00",
)
SMALL = Transcript(model="m", preset="p")

Turn = tuple[str, str, list[int] | None, bool]
letters = st.text(max_size=12)
pairs = st.lists(st.tuples(letters, letters, st.none() | st.lists(st.integers(0, 2**40)), st.booleans()), max_size=3)


def edited(**changes: Any) -> str:
    """The file of FULL with other values under some keys."""
    return json.dumps({**json.loads(FULL.to_json()), **changes})


def entry(**changes: Any) -> str:
    """The file of FULL with other values under some keys of the first entry."""
    first, second = json.loads(FULL.to_json())["entries"]
    return edited(entries=[{**first, **changes}, second])


def pinned(**changes: Any) -> str:
    """The file of FULL with other values under some keys of its pin."""
    return edited(pins=[{**asdict(FULL.pins[0]), **changes}])


@pytest.mark.parametrize("transcript", [FULL, SMALL], ids=["full", "small"])
def test_it_comes_back_as_it_was(transcript: Transcript) -> None:
    source = transcript.to_json()
    assert Transcript.from_json(source) == transcript
    assert Transcript.from_json(source.encode()) == transcript
    assert Transcript.from_json(source).to_json() == source


@given(pairs, letters, st.none() | letters)
def test_any_text_comes_back(
    turns: list[tuple[str, str, list[int] | None, bool]], model: str, system: str | None
) -> None:
    entries = [
        entry
        for asked, answered, ids, stopped in turns
        for entry in (
            Entry("user", asked * 2, parts=(asked, asked)),
            Entry("assistant", answered, ids=None if ids is None else tuple(ids), interrupted=stopped),
        )
    ]
    transcript = Transcript(model, "p", system=system, entries=tuple(entries))
    assert Transcript.from_json(transcript.to_json().encode()) == transcript


def test_the_file_can_be_read_by_people() -> None:
    lines = FULL.to_json().splitlines()
    assert lines[1] == '  "schema_version": 1,'
    assert '  "system": "You are brief.\\nVery.",' in lines
    (first,) = (line for line in lines if '"role": "user"' in line)
    assert "🎈 עברית" in first
    assert first.count("harbour was quiet") == 1
    assert '    {"role": "assistant", "text": "The harb", "ids": [5, 0, 17], "interrupted": true}' in lines


def test_what_has_a_default_may_be_left_out() -> None:
    assert Transcript.from_json('{"schema_version": 1, "model": "m", "preset": "p"}') == SMALL


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "it is not JSON"),
        ("[]", r"it is \[\]"),
        (FULL.to_json()[:-40], "it is not JSON: .*line"),
        (b"\xff\xfe{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"schema_version": 1, "model": "a", "model": "b"}', "the key 'model' stands there twice"),
        ("{}", "schema version null"),
        (edited(schema_version=True), "schema version true"),
        (edited(schema_version=2), "schema version 2"),
        ('{"schema_version": 1, "preset": "p"}', "model is missing"),
        (edited(modle="x"), "modle is an unknown key"),
        (edited(model=5), "model is 5"),
        (edited(model={"name": "a" * 80}), r'model is {"name": "a{30}'),
        (edited(budget=20), "budget is 20"),
        (edited(system=["You"]), r'system is \["You"\]'),
        (edited(entries={}), "entries is {}"),
        (edited(entries=["hello"]), r'entries\[0\] is "hello"'),
        (edited(pins=[{"entry": 7, "first_char": 0, "last_char": 1, "label": "x"}]), r"pins\[0\].entry is 7"),
        (
            edited(pins=[{"entry": 0, "first_char": 0, "last_char": 999, "label": "x"}]),
            r"pins\[0\] is at characters 0 to",
        ),
        (edited(pins=[{"entry": 0, "first_char": -1, "last_char": 2, "label": "x"}]), r"pins\[0\].first_char is -1"),
        (edited(pins=[{"entry": 0}]), r"pins\[0\].first_char is missing"),
        (edited(sampling={"temprature": 1}), "sampling.temprature is an unknown key"),
        (edited(sampling={"temperature": "hot"}), 'sampling.temperature is "hot"'),
        (edited(sampling={"temperature": -1}), "temperature is -1"),
        (edited(sampling={"top_k": 1.5}), "sampling.top_k is 1.5"),
        (edited(sampling={"top_k": True}), "sampling.top_k is true"),
        (edited(sampling={"seed": 0}).replace('"seed": 0', '"seed": NaN'), "NaN is no number"),
        (edited(sampling={"seed": 0}).replace('"seed": 0', '"temperature": 1e999'), "sampling.temperature is inf"),
        (edited(created="yesterday"), 'created is "yesterday"'),
        (entry(role="robot"), r'entries\[0\].role is "robot"'),
        (entry(role="assistant"), r"entries\[0\].role is 'assistant'"),
        (entry(role=["user"]), r'entries\[0\].role is \["user"\]'),
        (entry(text="both"), r"entries\[0\] has both text and parts"),
        (entry(parts=["a", 1]), r"entries\[0\].parts\[1\] is 1"),
        (entry(parts=["short"]), r"entries\[0\]: docs/caf.*.md is at characters 0 to"),
        (entry(ids=[1, "2"]), r'entries\[0\].ids\[1\] is "2"'),
        (entry(ids=[-1]), r"entries\[0\].ids\[0\] is -1"),
        (entry(ids=[True]), r"entries\[0\].ids\[0\] is true"),
        (entry(interrupted="yes"), r'entries\[0\].interrupted is "yes"'),
        (entry(attachments=[{"path": "a"}]), r"entries\[0\].attachments\[0\].sha256 is missing"),
    ],
    ids=lambda value: value[-60:] if isinstance(value, str) else "bytes",
)
def test_nonsense_is_named(source: str | bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        Transcript.from_json(source)
    assert caught.value.hint


def test_what_does_not_belong_together_cannot_be_made() -> None:
    with pytest.raises(UsageError, match="parts of an entry are not its text"):
        Entry("user", "ab", parts=("a", "c"))
    with pytest.raises(UsageError, match="at characters 0 to 3 of 2"):
        Entry("user", "ab", attachments=(Attachment("a", SHA, 0, 3),))
    with pytest.raises(UsageError, match=r"entries\[1\].role is 'user'"):
        replace(SMALL, entries=(ENTRIES[0], ENTRIES[0]))
    with pytest.raises(UsageError, match=r"pins\[0\].entry is 1"):
        replace(SMALL, entries=ENTRIES[:1], pins=(Pin(1, 0, 0, "x"),))
