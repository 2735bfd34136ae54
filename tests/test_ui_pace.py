"""The pace of an answer that is written to the same terminal: it is below, and the answer as though it were not."""

import io
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.screen import Screen, screen
from uncomp_cli.asking.events import Event, Noted, Pace, Piece
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import DECODE_INTERVAL_S, Display, column_behind, show

PACE = re.compile(r"[\d.]+ tok/s · [\d,]+ tok · KV 1\.0 KiB")
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["a", " word", "\n", "\t", "漢字", "é", "e\u0301", "\U0001f600", "👩\u200d💻", "\u202e", "\x07"]
        ),
        st.text("abc \n\t\r漢\u0301", max_size=90),
        st.integers(2, 90).map(lambda count: "y" * count),
        st.integers(2, 45).map(lambda count: "漢" * count),
    ),
    max_size=20,
)


class Shown(io.StringIO):
    """Both streams of one terminal."""

    def __init__(self, rows: int, columns: int = 80) -> None:
        super().__init__()
        self.screen = Screen(columns, rows)

    def write(self, text: str) -> int:
        self.screen.feed(text)
        return super().write(text)


class Sized(Terminal):
    """A terminal as wide as its screen."""

    @property
    def columns(self) -> int:
        assert isinstance(self.stderr, Shown)
        return self.stderr.screen.columns


def terminal(shown: Shown, *, quiet: bool = False, thinking: bool = False, animated: bool = True) -> Terminal:
    return Sized(shown, shown, True, True, True, animated, quiet=quiet, thinking=thinking)


def written(pieces: list[str], out: Terminal) -> Iterator[str]:
    """Write an answer as `show` does, a new pace before each piece; yields what was written so far."""
    now_s = 0.0
    with Display(out, clock=lambda: now_s) as display:
        for number, piece in enumerate(pieces):
            now_s += DECODE_INTERVAL_S * (number % 3)
            display.show(Pace(number + 1, 1 + now_s, 1024))
            with display.aside(piece):
                out.write_answer(piece)
            yield "".join(pieces[: number + 1])


def alone(text: str, plain: Shown) -> Screen:
    terminal(plain).write_answer(text)
    return plain.screen


@given(PIECES, st.integers(2, 8), st.integers(12, 100))
@example(["a", "y" * 79, "\t"], 3, 80)  # a tab where the cursor is on the last letter
@example(["a", "y" * 79, "\t", "y" * 80, "\n", "a"], 3, 80)
@example(["\x07", "y" * 79, "\x07", "y"], 3, 80)  # what is not written takes no column
@example(["漢" * 40, "\t", "a", "漢" * 40, "a"], 2, 80)
@example(["y" * 79, "漢" * 39, "漢", "a"], 2, 80)  # a wide letter does not fit in the last column
@example(["y" * 79, "e\u0301", "a", "\n", "a"], 2, 80)
@example(["y" * 160, "\n", "y" * 239, "y", "a"], 2, 80)  # exactly two and three lines
@example(["y" * 12, "\t", "漢" * 6, "\t", "a"], 2, 12)
def test_the_answer_is_on_the_screen_as_though_there_were_no_pace(pieces: list[str], rows: int, columns: int) -> None:
    shown, drawn = Shown(rows, columns), 0
    for text in written(pieces, terminal(shown)):
        lines, answer = shown.screen.text.split("\n"), alone(text, Shown(rows, columns))
        if lines[-1][:1].isdecimal():  # the pace, or what of it there is room for: no answer here has figures
            drawn += 1
            assert shown.screen.row == len(lines) - 2
            lines.pop()
        assert "\n".join(lines).rstrip("\n") == answer.text.rstrip("\n")
        assert (shown.screen.row, shown.screen.column) == (answer.row, answer.column)
    assert shown.screen.text.rstrip("\n") == alone("".join(pieces), Shown(rows, columns)).text.rstrip("\n")
    assert drawn or pieces[:1] not in (["a"], [" word"])


def test_the_pace_is_seen_and_goes_away() -> None:
    shown = Shown(24)
    seen = [PACE.findall(shown.screen.text) for _ in written(["Four", " score", " and", " ten"], terminal(shown))]
    assert [len(each) for each in seen] == [1] * 4
    assert len({each[0] for each in seen}) > 1
    assert shown.screen.text.rstrip() == "Four score and ten"


@pytest.mark.parametrize("options", [{"quiet": True}, {"thinking": True}, {"animated": False}], ids=str)
def test_who_wants_none_sees_none(options: dict[str, bool]) -> None:
    shown = Shown(24)
    *_, last = written(["Four", " score"], terminal(shown, **options))
    assert shown.getvalue() == last


def test_what_is_told_in_the_middle_has_a_line_of_its_own() -> None:
    def steps() -> Iterator[Event | Pace]:
        yield Pace(1, 1.0, 1024)
        yield Piece("Four\n")
        yield Noted("a remark")
        yield Pace(2, 2.0, 1024)
        yield Piece("score\n")

    shown = Shown(24)
    out = terminal(shown)
    show(steps(), out, tell=lambda event: out.write_answer(event.text) if isinstance(event, Piece) else None)
    assert shown.screen.text.rstrip() == "Four\na remark\nscore"


def test_ctrl_c_takes_the_pace_away() -> None:
    def steps() -> Iterator[Event | Pace]:
        try:
            yield Pace(1, 1.0, 1024)
            yield Piece("Four")
            yield Piece("no more")
        except KeyboardInterrupt:
            assert shown.screen.text.rstrip() == "Four"
            yield Piece(", stopped\n")

    def tell(event: Event) -> None:
        assert isinstance(event, Piece)
        if event.text == "no more":
            raise KeyboardInterrupt
        out.write_answer(event.text)

    shown = Shown(24)
    out = terminal(shown)
    show(steps(), out, tell=tell)
    assert screen(shown.getvalue()) == "Four, stopped"


def test_where_the_cursor_is_behind_a_text() -> None:
    assert column_behind("a" * 80, 0, 80) == 80
    assert column_behind("a" * 81, 0, 80) == 1
    assert column_behind("漢", 79, 80) == 2
    assert column_behind("a\tb", 0, 80) == 9
    assert column_behind("\t", 79, 80) == 79
    assert column_behind("\t", 80, 80) is None
    assert column_behind("a\U0001f600b", 0, 80) is None
    assert column_behind("e\u0301", 0, 80) is None
    assert column_behind("\U0001f600\nab", 0, 80) == 2
