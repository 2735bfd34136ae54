"""Workbooks, CSV files and records: no number changed, each row under its header, what is not shown said."""

import io
import json
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from openpyxl.comments import Comment
from openpyxl.drawing.image import Image
from openpyxl.styles import Font
from openpyxl.worksheet.worksheet import Worksheet

from support.documents import extract, losses, make_ods, make_xlsx, make_zip
from support.pace import swift
from uncomp_cli.documents.display import built_in, display, general
from uncomp_cli.documents.ledger import MOST_ROWS_BELOW_A_HEADER, Row, lines_of
from uncomp_cli.documents.text import Limits, Text, Wishes
from uncomp_cli.errors import DocumentError, DoesNotFitError


def workbook(fill: Callable[[Worksheet], None], *, name: str = "Sales") -> bytes:
    book = openpyxl.Workbook()
    book.active.title = name
    fill(book.active)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def rows_of(*rows: list[Any]) -> Callable[[Worksheet], None]:
    def fill(sheet: Worksheet) -> None:
        for row in rows:
            sheet.append(row)

    return fill


def xlsx(*rows: list[Any]) -> Text:
    return extract(workbook(rows_of(*rows)), suffix=".xlsx")


def line_at(text: Text, place: str) -> str:
    (line,) = (found.line for found in text.places if found.name == place)
    return text.text.split("\n")[line - 1]


# --- what a cell shows


@pytest.mark.parametrize(
    ("stored", "code", "shown"),
    [
        ("0.30000000000000004", "General", "0.3"),
        ("3.2000000000000002", "General", "3.2"),
        ("1e+20", "General", "1E+20"),
        ("1E+20", "0", "100000000000000000000"),
        ("1234567890123456", "General", "1234567890123456"),
        ("12345678901234567", "0", "12345678901234567"),
        ("5.0", "General", "5"),
        ("-0.5", "General", "-0.5"),
        ("1.5E-7", "General", "0.00000015"),
        ("1e400", "0.00", "1e400"),
        ("0.125", "0%", "13%"),
        ("0.125", "0.0%", "12.5%"),
        ("2.675", "0.00", "2.68"),
        ("-0.001", "0.00", "0.00"),
        ("1234567.891", "#,##0.00", "1,234,567.89"),
        ("-1234.5", "#,##0.00_);(#,##0.00)", "(1,234.50)"),
        ("0", '_(* #,##0_);_(* (#,##0);_(* "-"_);_(@_)', "-"),
        ("1234", "[$€-407]#,##0.00", "€1,234.00"),
        ("-5", '"$"0', "-$5"),
        ("1500000", '0.0,,"M"', "1.5M"),
        ("12345", "0.00E+00", "1.23E+04"),
        ("12345", "##0.0E+0", "12.3E+3"),
        ("1.5", "# ?/?", "1 1/2"),
        ("123456789", "000-00-0000", "123-45-6789"),
        ("42", "00000", "00042"),
        ("0.5", "#.##", ".5"),
        ("5", ";;;", ""),
        ("99", "[<100]0;[>=100]0.0", "99"),
        ("100", "[<100]0;[>=100]0.0", "100.0"),
        ("45360", "yyyy-mm-dd", "2024-03-09"),
        ("45360.75", "m/d/yyyy h:mm", "3/9/2024 18:00"),
        ("45360.5416666667", "h:mm AM/PM", "1:00 PM"),
        ("45360", "d. mmmm yyyy", "9. March 2024"),
        ("45360", "dddd, mmm d", "Saturday, Mar 9"),
        ("1.5", "[h]:mm:ss", "36:00:00"),
        ("0.0208333333", "mm:ss", "30:00"),
        ("1", "yyyy-mm-dd", "1900-01-01"),
        ("61", "yyyy-mm-dd", "1900-03-01"),
        ("-1", "yyyy-mm-dd", "-1"),
    ],
)
def test_a_number_is_shown_as_a_sheet_shows_it(stored: str, code: str, shown: str) -> None:
    assert display(stored, code) == shown


def test_days_are_counted_from_1904_where_the_file_says_so() -> None:
    assert display("0", "yyyy-mm-dd", from_1904=True) == "1904-01-01"


def test_a_date_in_the_format_of_a_locale_is_unambiguous() -> None:
    assert display("45360", built_in(14)) == "2024-03-09"


@given(st.integers(-(10**17), 10**17))
def test_whole_numbers_keep_all_digits(number: int) -> None:
    assert general(str(number)) == display(str(number), "0") == str(number)


@given(st.decimals(-(10**9), 10**9, places=4, allow_nan=False))
def test_decimals_of_up_to_15_digits_are_not_changed(number: Any) -> None:
    assert float(general(repr(float(number)))) == float(number)
    assert display(repr(float(number)), "0.0000").replace("-0.0000", "0.0000") == f"{number:.4f}".replace(
        "-0.0000", "0.0000"
    )


@given(st.text('0#?.,%E+-;"[]\\_*@/ymdhsAPMG<>$ ', max_size=12), st.floats(allow_nan=False, allow_infinity=False))
def test_no_format_is_an_error(code: str, number: float) -> None:
    assert isinstance(display(repr(number), code), str)


# --- workbooks


def test_a_sheet_is_a_table_with_its_header() -> None:
    assert extract(make_xlsx(), suffix=".xlsx").text == "| item | price |\n| --- | --- |\n| kettle | 31 |"


def test_values_are_shown_not_stored_and_ids_are_kept() -> None:
    def fill(sheet: Worksheet) -> None:
        rows_of(
            ["id", "day", "share", "sum"],
            ["007", date(2024, 3, 9), 0.125, 0.1 + 0.2],
            [1234567890123456, datetime(2024, 3, 9, 14, 30), True, 1e20],
        )(sheet)
        sheet["C2"].number_format = "0.0%"

    text = extract(workbook(fill), suffix=".xlsx").text
    assert "| 007 | 2024-03-09 | 12.5% | 0.3 |" in text
    assert "| 1234567890123456 | 2024-03-09 14:30:00 | TRUE | 1E+20 |" in text


def test_rows_are_places() -> None:
    text = xlsx(["Quarterly report"], ["item", "price"], ["kettle", 31], ["pot", 12])
    assert [place.name for place in text.places] == ["Sales", "Sales!A1", "Sales!A2", "Sales!A3", "Sales!A4"][1:]
    assert line_at(text, "Sales!A3") == "| kettle | 31 |"


def test_a_long_table_has_its_names_in_every_row() -> None:
    rows = [[f"item {number}", number] for number in range(MOST_ROWS_BELOW_A_HEADER + 1)]
    text = xlsx(["name", "price"], *rows)
    assert line_at(text, "Sales!A9") == "name: item 7, price: 7"
    assert text.text.count("price: ") == len(rows)


def test_sheets_have_names_and_hidden_ones_are_said() -> None:
    book = openpyxl.load_workbook(io.BytesIO(workbook(rows_of(["a", "b"], ["c", 1]))))
    book.create_sheet("Q1 plan").append(["x y", 5])
    book.create_sheet("Lists").append(["secret"])
    book["Lists"].sheet_state = "hidden"
    book["Sales"].append(["d", 2])
    book["Sales"].row_dimensions[3].hidden = True
    file = io.BytesIO()
    book.save(file)
    text = extract(file.getvalue(), suffix=".xlsx")
    assert "## Sales\n" in text.text
    assert "## Q1 plan\n\nx y | 5" in text.text
    assert "Q1_plan!A1" in [place.name for place in text.places]
    assert losses(text) == ["1 hidden row (Sales)", "1 hidden sheet (Lists)"]
    assert "secret" not in text.text
    assert "d" not in text.text.split()


def test_hidden_columns_formats_and_formulas_are_said() -> None:
    def fill(sheet: Worksheet) -> None:
        rows_of(["a", "b", "c"], [1, 2, 3], ["=A2+1", 4, 5])(sheet)
        sheet.column_dimensions["B"].hidden = True
        sheet["C2"].number_format = ";;;"

    text = extract(workbook(fill), suffix=".xlsx")
    assert losses(text) == [
        "1 formula without a stored result (Sales!A3)",
        "3 cells in hidden columns (Sales)",
        "1 cell that its format hides (Sales)",
    ]


def test_a_formula_shows_its_stored_result() -> None:
    data = make_xlsx(
        extra='<row r="3"><c r="A3" t="str"><f>UPPER("sum")</f><v>SUM</v></c><c r="B3"><f>B2*2</f><v>62</v></c></row>'
    )
    text = extract(data, suffix=".xlsx")
    assert "| SUM | 62 |" in text.text
    assert text.losses == ()


def test_merged_headers_name_each_column_and_merged_cells_each_row() -> None:
    def fill(sheet: Worksheet) -> None:
        rows_of(["Region", 2022, None, 2023, None], [None, "Jan", "Feb", "Jan", "Feb"], ["North", 1, 2, 3, 4])(sheet)
        sheet.append([None, 5, 6, 7, 8])
        for merged in ("A1:A2", "B1:C1", "D1:E1", "A3:A4"):
            sheet.merge_cells(merged)

    text = extract(workbook(fill), suffix=".xlsx").text
    assert text.split("\n") == [
        "| Region | 2022 Jan | 2022 Feb | 2023 Jan | 2023 Feb |",
        "| --- | --- | --- | --- | --- |",
        "| North | 1 | 2 | 3 | 4 |",
        "| North | 5 | 6 | 7 | 8 |",
    ]


def test_tables_beside_and_below_each_other_are_told_apart() -> None:
    text = xlsx(
        ["Stock", None, None, None, None],
        ["item", "price", None, "city", "rain"],
        ["kettle", 31, None, "Bergen", 240],
        ["pot", 12, None, "Cadiz", 60],
        [],
        ["spade", 9, None, None, None],
        [],
        ["name", "age"],
        ["Ann", 40],
    ).text
    assert "| city | rain |\n| --- | --- |\n| Bergen | 240 |\n| Cadiz | 60 |" in text
    assert "Stock\n\n| item | price |" in text
    assert "| item | price |\n| --- | --- |\n| spade | 9 |" in text, "rows below an empty one keep their header"
    assert "| name | age |\n| --- | --- |\n| Ann | 40 |" in text


def test_labels_and_values_are_no_header() -> None:
    assert xlsx(["Rent", 900], ["Deposit", 1800]).text == "Rent | 900\nDeposit | 1800"


def test_comments_shapes_and_pictures() -> None:
    def fill(sheet: Worksheet) -> None:
        rows_of(["a", "b"], ["c", 1])(sheet)
        sheet["B2"].comment = Comment("check\nthis", "Ann")

    text = extract(workbook(fill), suffix=".xlsx")
    assert "Comments:\n- B2: check this" in text.text


def test_control_characters_and_bars_in_cells() -> None:
    text = xlsx(["a", "b"], ["x|y", "one\ntwo"]).text
    assert r"| x\|y | one; two |" in text


def test_a_macro_workbook_and_one_under_another_name_are_read() -> None:
    assert "kettle" in extract(make_xlsx(), suffix=".xlsm").text
    assert "kettle" in extract(make_xlsx(), suffix=".zip").text
    assert "kettle" in extract(make_xlsx(), suffix="").text


@pytest.mark.parametrize("keep", [0, 50, 600])
def test_a_truncated_workbook_is_refused(keep: int) -> None:
    with pytest.raises(DocumentError):
        extract(make_xlsx()[:keep], suffix=".xlsx")


def test_a_bomb_is_counted() -> None:
    bomb = make_xlsx(extra=f'<row r="3"><c r="A3" t="inlineStr"><is><t>{"x" * 3_000_000}</t></is></c></row>')
    with pytest.raises(DoesNotFitError, match="unpacks to"):
        extract(bomb, suffix=".xlsx", wishes=Wishes(limits=Limits(expanded_bytes=2**20)))


def test_entities_are_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    with pytest.raises(DocumentError, match="DTD"):
        extract(make_xlsx(prologue=bomb), suffix=".xlsx")


def test_a_sheet_that_is_missing_is_said() -> None:
    members = {name: content.replace(b"sheet1", b"sheet2") for name, content in members_of(make_xlsx()).items()}
    assert losses(extract(make_zip(members), suffix=".xlsx")) == ["1 sheet that the file does not have (Sheet)"]


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_a_sheet_refers_to_and_does_not_have() -> None:
    data = make_xlsx(
        extra='<row r="3"><c r="A3" t="s"><v>99</v></c><c r="B3" s="77"><v>5</v></c><c t="e"><v>#N/A</v></c></row>'
    )
    assert "|  | 5 | #N/A |" in extract(data, suffix=".xlsx").text


CELLS = st.one_of(
    st.integers(-(10**15), 10**15),
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 3)),
    st.text("abcdefg hé|7", min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool)
    .filter(lambda text: text[0] not in "=|"),
)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=20))
def test_round_trip_of_words_and_numbers_in_order(rows: list[list[Any]]) -> None:
    text = xlsx(*rows).text.replace("\\|", "|")
    shown = [general(repr(cell)) if isinstance(cell, float) else str(cell) for row in rows for cell in row]
    at = 0
    if len(rows) <= MOST_ROWS_BELOW_A_HEADER:
        for cell in shown:
            found = text.find(cell, at)
            assert found >= at, (cell, text)
            at = found + len(cell)


# --- OpenDocument sheets


def ods_cell(text: str = "", attributes: str = "", *, before: str = "") -> str:
    paragraph = f"<text:p>{text}</text:p>" if text else ""
    return f"<table:table-cell {attributes}>{before}{paragraph}</table:table-cell>"


def ods_row(*cells: str, attributes: str = "") -> str:
    return f"<table:table-row {attributes}>{''.join(cells)}</table:table-row>"


def ods(*rows: str) -> Text:
    return extract(make_ods(f"<table:table table:name='S'>{''.join(rows)}</table:table>"), suffix=".ods")


def test_an_ods_shows_what_its_cells_say() -> None:
    stored = ods_cell(attributes="office:value-type='float' office:value='0.30000000000000004'")
    rest = ods_row(ods_cell(attributes="table:number-columns-repeated='16384'"))
    text = ods(ods_row(ods_cell("item"), ods_cell("price")), ods_row(ods_cell("kettle"), stored), rest)
    assert text.text == "| item | price |\n| --- | --- |\n| kettle | 0.3 |"
    assert line_at(text, "S!A2") == "| kettle | 0.3 |"


def test_repeated_cells_of_an_ods_are_no_bomb() -> None:
    cell = ods_cell("x", "table:number-columns-repeated='1000000'")
    text = ods(ods_row(cell, attributes="table:number-rows-repeated='1000000'"))
    assert len(text.text) < 20_000_000
    assert losses(text)[0] == "983,616 repeated cells"
    assert "repeated rows" in losses(text)[1]


def test_hidden_rows_comments_and_formulas_of_an_ods() -> None:
    comment = "<office:annotation><dc:creator>Ann</dc:creator><text:p>check</text:p></office:annotation>"
    first = ods_row(ods_cell("a", before=comment), ods_cell(attributes="table:formula='of:=1'"))
    text = ods(first, ods_row(ods_cell("b"), attributes="table:visibility='collapse'"))
    assert text.text == "a\n\nComments:\n- A1: check"
    assert sorted(losses(text)) == ["1 formula without a stored result", "1 hidden row"]


# --- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_delimiter_and_the_encoding_are_found(delimiter: str, encoding: str) -> None:
    rows = ["date,store,amount", "2024-05-01,Café 1,138", '2024-05-02,"a, b",0239']
    data = "\r\n".join(row.replace(",", delimiter) for row in rows).encode(encoding)
    text = extract(data, suffix=".tsv" if delimiter == "\t" else ".csv")
    assert "| 2024-05-01 | Café 1 | 138 |" in text.text
    assert "| 0239 |" in text.text
    assert text.encoding is not None


def test_a_long_csv_has_its_names_in_every_row_and_rows_are_places() -> None:
    rows = [f"2024-05-{day:02},store-{store},{day * 37 + store}" for day in range(1, 29) for store in range(1, 5)]
    text = extract("\n".join(["date,store,amount", *rows]).encode(), suffix=".csv")
    assert line_at(text, "r9") == "date: 2024-05-02, store: store-4, amount: 78"
    assert text.text.count("\n") == len(rows) - 1


def test_cells_with_line_ends_quotes_and_decimal_commas() -> None:
    text = extract(b'name;price\n"two\nlines";1,50\n"say ""hi""";2,75\n', suffix=".csv").text
    assert "| two; lines | 1,50 |" in text
    assert '| say "hi" | 2,75 |' in text


def test_delimiters_within_quotes_part_nothing() -> None:
    assert extract(b'x,1,",;"\nx,1,";;,"\n', suffix=".csv").text == "x | 1 | ,;\nx | 1 | ;;,"


def test_a_file_of_one_column_is_text() -> None:
    assert extract(b"one\ntwo, three\nfour\n", suffix=".csv").text == "one\ntwo, three\nfour\n"


def test_a_cell_without_an_end_is_refused_when_it_is_too_long() -> None:
    with pytest.raises(DocumentError, match="no table"):
        extract(b'a,b\n1,2\n1,"' + b"x" * 17_000_000, suffix=".csv")


@given(st.lists(st.lists(st.text('ab1.,é" ', min_size=1, max_size=8), min_size=3, max_size=3), min_size=2, max_size=9))
def test_csv_round_trip(rows: list[list[str]]) -> None:
    import csv

    file = io.StringIO()
    csv.writer(file).writerows([["x", *row[1:]] for row in rows])
    text = extract(file.getvalue().encode(), suffix=".csv").text
    for row in rows:
        assert all(cell.strip() in text for cell in row[1:])


# --- records


def test_json_lines_keep_digits_as_written() -> None:
    first = '{"ts": "2024-03-01T00:37:00Z", "level": "ERROR", "n": 1.10}'
    text = extract(
        f'{first}\n{{"n": 1e400, "user": {{"name": "Ann", "tags": ["a", "b"]}}}}\n'.encode(), suffix=".jsonl"
    )
    assert text.text.split("\n")[:2] == [
        "ts: 2024-03-01T00:37:00Z, level: ERROR, n: 1.10",
        "n: 1e400, user.name: Ann, user.tags: a; b",
    ]


def test_a_broken_line_stays_and_is_said() -> None:
    text = extract(b'{"a": 1}\n{"a": \n{"a": true, "a": null}\n', suffix=".ndjson")
    assert text.text == 'a: 1\n{"a": \na: true, a: null\n'
    assert losses(text) == ["1 line that is no JSON, kept as it is"]


def test_a_list_of_objects_is_records_and_other_json_is_text() -> None:
    assert extract(b'[{"a": 0.10, "b": [{"c": 2}]}, {"a": 7}]', suffix=".json").text == "a: 0.10, b.1.c: 2\na: 7"
    config = json.dumps({"a": {"b": [1, 2]}}, indent=2)
    assert extract(config.encode(), suffix=".json").text == config


def test_deep_json_is_text() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert extract(deep.encode(), suffix=".json").text == deep


def test_rows_without_anything_part_tables() -> None:
    lines = list(lines_of([Row(1, {1: "a", 2: "b"}), Row(2, {1: "c", 2: "1"}), Row(3, {}), Row(4, {1: "alone"})]))
    assert [line.text for line in lines] == ["| a | b |\n| --- | --- |", "| c | 1 |", "\nalone"]
    assert [line.number for line in lines] == [1, 2, 4]


def test_what_is_struck_out_in_a_sheet_is_marked() -> None:
    def fill(sheet: Worksheet) -> None:
        sheet["A1"], sheet["B1"], sheet["C1"] = 50, 40, CellRichText("net ", TextBlock(InlineFont(strike=True), "31"))
        sheet["A1"].font = Font(strike=True)

    assert extract(workbook(fill), suffix=".xlsx").text == "~~50~~ | 40 | net ~~31~~"


def test_a_picture_in_a_sheet_is_said() -> None:
    from PIL import Image as Picture

    def fill(sheet: Worksheet) -> None:
        sheet["A1"] = "logo"
        file = io.BytesIO()
        Picture.new("RGB", (2, 2)).save(file, "png")
        sheet.add_image(Image(file), "B2")
        sheet.oddHeader.center.text = "Internal &P of &N"
        sheet.oddFooter.center.text = "&P / &N"

    said = ["1 print header (Sales)", "1 picture without a text (Sales)"]
    assert losses(extract(workbook(fill), suffix=".xlsx")) == said


def test_an_archive_that_is_no_workbook() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DocumentError, match="Excel workbook"):
        extract(file.getvalue(), suffix=".xlsx")


FIGURES = [f"{number},5{number % 10}" for number in range(40)]


@pytest.mark.parametrize("head", ["", "Preis\n", "Preis, netto\n", "Preis €\n"])
def test_one_column_of_figures_with_commas_is_text(head: str) -> None:
    for lines in (FIGURES, ["-1,5", "+2,25", "3", "4,0"], ["1,234,567", "2,345,678"], ["1,50 €", "2,30 €"]):
        raw = head + "\n".join(lines)
        assert extract(raw.encode(), suffix=".csv").text == raw


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_commas_of_figures_are_no_delimiters_beside_others(delimiter: str) -> None:
    for first in (FIGURES, [f"N{number}" for number in range(40)]):
        rows = [("Wert", "Preis"), *zip(first, FIGURES[1:], strict=False)]
        text = extract("\n".join(delimiter.join(row) for row in rows).encode(), suffix=".csv").text
        assert [line.split(": ")[-1] for line in text.split("\n")] == FIGURES[1:]


def test_rows_that_figures_with_commas_make_longer_than_their_header_are_text() -> None:
    raw = "name,price\nA,1,50\nB,2,30"
    assert extract(raw.encode(), suffix=".csv").text == raw
    assert extract(b"x,y\n1,2\n3,4", suffix=".csv").text == "| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_hidden_columns_of_an_open_workbook_are_said() -> None:
    cells = "".join(f"<table:table-cell><text:p>{text}</text:p></table:table-cell>" for text in ("a", "secret", "b"))
    hidden = "<table:table-column/><table:table-column table:visibility='collapse'/>"
    rows = f"<table:table-row table:number-rows-repeated='2'>{cells}</table:table-row>"
    text = extract(make_ods(f"<table:table table:name='S'>{hidden}{rows}</table:table>"), suffix=".ods")
    assert "secret" not in text.text
    assert losses(text) == ["2 cells in hidden columns"]


def test_raised_hidden_and_merged_cells_of_an_open_workbook() -> None:
    """A style may be based on one that comes later."""

    def cell(text: str, more: str = "") -> str:
        return f"<table:table-cell {more}><text:p>{text}</text:p></table:table-cell>"

    def style(name: str, properties: str, parent: str = "") -> str:
        based = f"style:parent-style-name='{parent}'" if parent else ""
        return f"<style:style style:name='{name}' {based}><style:text-properties {properties}/></style:style>"

    styles = style("T", "", "U") + style("U", "style:text-position='33% 58%'") + style("H", "text:display='none'")
    power = "10<text:span text:style-name='T'>7</text:span><text:span text:style-name='H'>secret</text:span>"
    covered = "<table:covered-table-cell/>"
    rows = [
        cell("Region") + cell("2023", "table:number-columns-spanned='2'") + covered,
        cell("") + cell("Q1") + cell("Q2"),
        cell("North", "table:number-rows-spanned='2'") + cell(power) + cell("2"),
        covered + cell("3") + cell("4"),
    ]
    body = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
    text = extract(make_ods(f"<table:table table:name='S'>{body}</table:table>", styles=styles), suffix=".ods")
    assert text.text.split("\n") == [
        "| Region | 2023 Q1 | 2023 Q2 |",
        "| --- | --- | --- |",
        "| North | 10^7 | 2 |",
        "| North | 3 | 4 |",
    ]
    assert losses(text) == ["1 passage of hidden text"]


def test_cells_of_many_looks_take_time_by_their_length() -> None:
    """What is raised in comments is written out as in cells."""
    styles = "<style:style style:name='T'><style:text-properties style:text-position='super 58%'/></style:style>"
    raised = "<text:span text:style-name='T'>7</text:span>"
    comment = f"<office:annotation><text:p>10{raised}</text:p></office:annotation>"
    sheet = f"<table:table table:name='S'>{ods_row(ods_cell('10' + raised * 20_000, before=comment))}</table:table>"
    with swift(4):
        text = extract(make_ods(sheet, styles=styles), suffix=".ods").text
    assert text.endswith("Comments:\n- A1: 10^7")


def test_a_merged_cell_alone_in_a_sheet_spends_nothing() -> None:
    title = ods_row(ods_cell("Sales", "table:number-columns-spanned='16384' table:number-rows-spanned='1'"))
    wide = ods_cell("2024", "table:number-columns-spanned='2'") + "<table:covered-table-cell/>"
    rows = (ods_row(wide, ods_cell("x")), ods_row(*map(ods_cell, "abc")), ods_row(*map(ods_cell, "123")))
    text = ods(title * 8, ods_row(), *rows).text
    assert "| 2024 a | 2024 b | x c |" in text


def test_a_line_that_names_the_delimiter_is_no_row() -> None:
    text = extract(b"sep=;\na;b\n1,5;2,5\n", suffix=".csv")
    assert text.text == "| a | b |\n| --- | --- |\n| 1,5 | 2,5 |"
    assert [place.name for place in text.places] == ["r2", "r3"]
