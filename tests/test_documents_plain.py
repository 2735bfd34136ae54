"""Notebooks and subtitles: read as a person reads them, with places, and what is left out said."""

import json
from typing import Any

import pytest

from support.documents import extract, losses
from support.pace import swift
from uncomp_cli.documents.text import Text
from uncomp_cli.errors import DocumentError

# --- notebooks


def notebook(*cells: dict[str, Any], **rest: Any) -> Text:
    return extract(json.dumps({"cells": cells, "nbformat": 4, **rest}).encode(), suffix=".ipynb")


def code(source: str | list[str], *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": {}}


def test_cells_are_markdown_and_fenced_code_and_outputs() -> None:
    text = notebook(
        {"cell_type": "markdown", "source": ["# Report\n", "The learning rate was 0.003."]},
        code("print(1.10)", *({"output_type": "stream", "text": text} for text in (["1.10\n"], "2\n"))),
        code("", {"output_type": "execute_result", "data": {"text/plain": "42", "text/markdown": "**42**"}}),
    )
    assert text.text == (
        "# Report\nThe learning rate was 0.003.\n\n```python\nprint(1.10)\n```\n\n"
        "Output:\n\n```\n1.10\n2\n```\n\n**42**"
    )
    assert [(place.line, place.name) for place in text.places] == [(1, "c1"), (4, "c2"), (15, "c3")]


def test_pictures_and_outputs_without_text_are_said() -> None:
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}}
    widget = {"output_type": "display_data", "data": {"application/vnd.widget": {}}}
    attached = {"cell_type": "markdown", "source": "![](a)", "attachments": {"a": {"image/png": "x"}}}
    text = notebook(code("plot()", picture, picture, widget), attached)
    assert losses(text) == ["3 pictures without a text", "1 output without text"]
    assert "iVBOR" not in text.text


def test_tables_and_errors_of_outputs() -> None:
    table = "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    failed = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mE\x1b[0m: v"]}
    text = notebook(code("f()", {"output_type": "execute_result", "data": {"text/html": table}}, failed)).text
    assert "| a | b |" in text
    assert "```\nE: v\n```" in text


def test_another_language_and_an_old_notebook() -> None:
    kernel = {"kernelspec": {"language": "julia"}}
    assert notebook(code("x = 1"), metadata=kernel).text == "```julia\nx = 1\n```"
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": "y = 2", "outputs": []}]}], "nbformat": 3}
    assert extract(json.dumps(old).encode(), suffix=".ipynb").text == "```python\ny = 2\n```"


@pytest.mark.parametrize("data", [b"{", b'{"a": 1}', b"[]", b"[" * 200_000, b'{"cells": 3}'])
def test_what_is_no_notebook_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        extract(data, suffix=".ipynb")


# --- subtitles

SRT = b"""1
00:00:01,000 --> 00:00:04,000
Where is the treasure?

2
00:00:05,000 --> 00:00:08,500
<i>Under the third oak,</i>

3
00:00:08,600 --> 00:00:10,000
they said.

4
01:02:03,000 --> 01:02:04,000
- {\\an8}Go!
"""


def test_cues_are_joined_to_sentences_with_their_times() -> None:
    text = extract(SRT, suffix=".srt")
    assert text.text.split("\n") == [
        "[00:00:01] Where is the treasure?",
        "[00:00:05] Under the third oak, they said.",
        "[01:02:03] - Go!",
    ]
    assert [(place.line, place.name) for place in text.places] == [(1, "0m01s"), (2, "0m05s"), (3, "1h02m03s")]


def test_speakers_notes_and_repeated_lines_of_vtt() -> None:
    cues = (
        "WEBVTT\n\nNOTE made by hand\n\nSTYLE\n::cue {}\n\n"
        "00:01.000 --> 00:02.000 align:start\n<v Ann>Fish &amp; chips\n\n"
        "id\n00:02.000 --> 00:03.000\nFish &amp; chips\n<00:02.500><c>for two.</c>\n\n"
        "00:04.000 --> 00:05.000\n<v Bob>No.\n"
    )
    text = extract(cues.encode(), suffix=".vtt")
    assert text.text == "[00:00:01] Ann: Fish & chips for two.\n[00:00:04] Bob: No."
    assert losses(text) == ["1 comment"]


def test_nothing_that_is_said_is_lost() -> None:
    first = b"1\n0:00:01,0 --> 0:00:02,0\n<v Ann>Nine.\n<v Bob>No.\n\nTen, I say.\n\n"
    text = extract(first + b"2\n0:00:03,0 --> 0:00:04,0\n<v Bob>No.\n", suffix=".vtt").text
    assert text.split("\n") == ["[00:00:01] Ann: Nine. Bob: No.", "[00:00:02] Ten, I say.", "[00:00:03] Bob: No."]


def test_a_pause_begins_a_line_and_text_without_times_stays() -> None:
    cues = b"1\n0:00:01,0 --> 0:00:02,0\none\n\n2\n0:00:09,0 --> 0:00:10,0\ntwo\n"
    assert extract(cues, suffix=".srt").text == "[00:00:01] one\n[00:00:09] two"
    assert extract(b"no times here\n", suffix=".srt").text == "no times here\n"


CUE = "1\n00:00:01,000 --> 00:00:02,000\n"
BLOCK = "".join(f"line {number}\n" for number in range(20_000))


@pytest.mark.parametrize(
    "text",
    [
        f"{CUE}{'<v ' * 80_000}",
        f"{CUE}{'<v.a' * 60_000}",
        f"{CUE}<v{' ' * 200_000}",
        f"{CUE}{BLOCK}\n{CUE}{BLOCK.upper()}",
    ],
    ids=["speakers", "classes", "spaces", "blocks"],
)
def test_subtitles_made_to_take_long_do_not(text: str) -> None:
    with swift(2):  # it took minutes; now some tenths
        extract(text.encode(), suffix=".srt")
