"""table.py: the same strings on a terminal, in a pipe, as Markdown and as JSON data."""

from io import StringIO

from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal

PLAIN = Table(("NAME", "SIZE"), [("a|b", "1"), ("two\nlines", "22")])
FULL = Table(PLAIN.columns, PLAIN.rows, "all of them", ["one | two", "three"])


def written(*tables: Table, is_terminal: bool = False) -> str:
    out = StringIO()
    streams = {"stdout": out, "stderr": StringIO()}
    terminal = Terminal(
        **streams, stdout_is_terminal=is_terminal, stderr_is_terminal=False, colour=False, animated=False
    )
    terminal.write_tables(tables)
    return out.getvalue()


def test_a_table_alone() -> None:
    assert written(PLAIN) == "NAME       SIZE\na|b        1\ntwo lines  22\n"


def test_titles_and_notes_and_a_blank_line_between_tables() -> None:
    grid = "NAME       SIZE\na|b        1\ntwo lines  22\n"
    assert written(FULL, PLAIN) == f"all of them\n{grid}- one | two\n- three\n\n{grid}"


def test_a_terminal_shows_the_same_words() -> None:
    assert written(FULL, is_terminal=True).split() == written(FULL).split()


def test_markdown() -> None:
    grid = "| NAME | SIZE |\n|---|---|\n| a\\|b | 1 |\n| two lines | 22 |"
    assert PLAIN.markdown() == grid
    assert FULL.markdown() == f"all of them\n\n{grid}\n\n- one \\| two\n- three"


def test_a_record_is_a_row_by_its_columns() -> None:
    assert PLAIN.record() == [{"NAME": "a|b", "SIZE": "1"}, {"NAME": "two\nlines", "SIZE": "22"}]
