"""JSON read by a dataclass's annotations: every form, what is wrong by its place and value, and limits."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from support.pace import swift
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.schema import Among, Count, inside, load_bytes, load_object, parse_object, read, take_version, text


@dataclass(frozen=True)
class Inner:
    """Checks itself."""

    share: float

    def __post_init__(self) -> None:
        if self.share > 1:
            raise UsageError(f"share is {self.share}", hint="use 1 at most")


@dataclass(frozen=True)
class Outer:
    """A field of every form."""

    count: Count
    bits: Annotated[int, Among((16, 8))] = 16
    word: Literal["a", "b"] = "a"
    maybe: str | None = None
    size: Count | None = None
    pair: tuple[int, float] = (0, 0.0)
    many: tuple[Inner, ...] = ()
    rows: list[list[float]] = field(default_factory=list)
    named: dict[str, bool] = field(default_factory=dict)
    plain: Any = None
    shouted: str = field(default="", metadata={"read": lambda data, place: text(data, place).upper()})
    hidden: int = field(default=0, metadata={"in_file": False})


def test_every_form_is_read() -> None:
    data = {
        "count": 3, "bits": 8, "word": "b", "maybe": None, "size": 2, "pair": [1, 2], "many": [{"share": 0.5}],
        "rows": [[1, 2.5], []], "named": {"x": True}, "plain": {"y": [1, {"z": None}]}, "shouted": "hi",
    }  # fmt: skip
    found = read(Outer, data)
    assert found == Outer(
        3, 8, "b", None, 2, (1, 2), (Inner(0.5),), [[1, 2.5], []], {"x": True}, {"y": [1, {"z": None}]}, "HI"
    )
    assert type(found.pair[1]) is int  # a whole number where any number may stand is left as it is
    assert read(Outer, {"count": 0}) == Outer(0)


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ([], "it is []", "it must be an object"),
        ({}, "count is missing", "known keys: count, bits"),
        ({"count": 1, "cuont": 1}, "cuont is an unknown key", "did you mean 'count'?"),
        ({"count": 1, "hidden": 1}, "hidden is an unknown key", "known keys"),
        ({"count": -1}, "count is -1", "0 or more"),
        ({"count": 1.0}, "count is 1.0", "a whole number"),
        ({"count": True}, "count is true", "a whole number"),
        ({"count": 2**64}, "count is a number of 20 digits", "18 at most"),
        ({"count": 1, "bits": 4}, "bits is 4", "16 or 8"),
        ({"count": 1, "word": "c"}, 'word is "c"', "a or b"),
        ({"count": 1, "maybe": 1}, "maybe is 1", "text or null"),
        ({"count": 1, "size": -2}, "size is -2", "0 or more"),
        ({"count": 1, "pair": [1]}, "pair is [1]", "a list of 2"),
        ({"count": 1, "pair": [1, 1e101]}, "pair[1] is 1e+101", "at most"),
        ({"count": 1, "many": [{"share": 2}]}, "many[0]: share is 2", "use 1 at most"),
        ({"count": 1, "many": [{}]}, "many[0].share is missing", "known keys: share"),
        ({"count": 1, "rows": [[0], 1]}, "rows[1] is 1", "a list"),
        ({"count": 1, "rows": [[float("nan")]]}, "rows[0][0] is nan", "a number"),
        ({"count": 1, "named": {"x": 1}}, "named.x is 1", "true or false"),
        ({"count": 1, "plain": {"y": float("inf")}}, "plain.y is inf", "a number"),
        ({"count": 1, "shouted": 1}, "shouted is 1", "text"),
        ({"count": "x" * 100}, f'count is "{"x" * 39}…', "a whole number"),
    ],
)
def test_what_is_wrong_is_named(data: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(Outer, data)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


def nested(depth: int) -> Any:
    data: Any = 1
    for _ in range(depth):
        data = [data]
    return data


def test_data_of_no_annotation_is_so_deep_and_no_deeper() -> None:
    assert read(Outer, {"count": 1, "plain": nested(30)}).plain == nested(30)
    for depth in (40, 5000):
        with pytest.raises(UsageError, match="plain is nested more than 32 levels deep"):
            read(Outer, {"count": 1, "plain": nested(depth)})
    with pytest.raises(UsageError, match=r"count is \[\["):
        read(Outer, {"count": nested(5000)})


def test_a_file_is_read_up_to_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert load_object(path) == {"a": 1}
    assert load_bytes(path, most_bytes=8) == b'{"a": 1}'
    with pytest.raises(UsageError, match="it has more than 7 bytes"):
        load_bytes(path, most_bytes=7)
    os.mkfifo(tmp_path / "pipe")
    for odd in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="it is not a regular file"):
            load_bytes(odd)
    with pytest.raises(UsageError, match="it cannot be read: No such file"):
        load_object(tmp_path / "y.json")


def test_what_is_no_json_is_said() -> None:
    for source in ("", "[" * 100_000, b"\xff{", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(UsageError, match="it is not JSON"):
            parse_object(source)


def test_a_key_that_stands_there_twice_is_found_soon_among_many() -> None:
    with swift(2), pytest.raises(UsageError, match="the key 'z' stands there twice"):
        parse_object("{" + "".join(f'"{key}": 0,' for key in range(30_000)) + '"z": 0, "z": 0}')


def test_a_version_is_taken_first() -> None:
    data: dict[str, Any] = {"schema_version": 1, "a": 2}
    take_version(data, 1, again="again")
    assert data == {"a": 2}
    for version, hint in ((2, "update uncomp"), (0, "again"), (True, "again"), ("1", "again"), (None, "again")):
        with pytest.raises(UsageError, match="schema version") as caught:
            take_version({"schema_version": version}, 1, again="again")
        assert caught.value.hint == hint


def test_an_error_says_what_it_is_about() -> None:
    with pytest.raises(ModelError) as caught, inside("model x", hint="pull it", kind=ModelError):
        read(Outer, {})
    assert (caught.value.message, caught.value.hint) == ("model x: count is missing", "pull it")
