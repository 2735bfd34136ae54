"""PDFs: words in the order of reading, tables, hyphens, forms, comments, headings; every loss, refusal and limit."""

import base64
import random
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fpdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents import at, losses, make_pdf, pdf_stream, sample_pdf
from support.mutation import damage_bytes
from support.pace import swift
from uncomp_cli.documents.glyphs import Line, Run, Space
from uncomp_cli.documents.gutters import parted
from uncomp_cli.documents.layout import HYPHEN, rejoined
from uncomp_cli.documents.pdf import read
from uncomp_cli.documents.text import NO_WISHES, Limits, Place, Text, Wishes
from uncomp_cli.errors import DocumentError, DoesNotFitError


def lines(*texts: str, x: float = 72, y: float = 700, pitch: float = 14) -> str:
    return "".join(at(x, y - pitch * i, text) for i, text in enumerate(texts) if text)


def text_of(*pages: str) -> str:
    return read(make_pdf(*pages), NO_WISHES).text


def encrypted(method: fpdf.enums.EncryptionMethod) -> bytes:
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    pdf.add_page()
    pdf.cell(text="the key is under the mat")
    pdf.set_encryption(owner_password="owner", user_password="sesame", encryption_method=method)
    return bytes(pdf.output())


# --- words, lines and columns


def test_pages_that_are_numbered_otherwise_in_print_say_how() -> None:
    catalog = "/PageLabels << /Nums [0 << /S /r >> 1 << /S /D /St 12 >> 3 << /P (A b\\(1\\)) >>] >>"
    found = read(make_pdf(*(at(72, 700, f"text {i}") for i in range(4)), catalog=catalog), NO_WISHES)
    assert [place.name for place in found.places] == ["p1 (page i)", "p2 (page 12)", "p3 (page 13)", "p4 (page A b 1)"]
    assert [place.parts for place in found.places[:2]] == [("p1", "i"), ("p2", "12")]
    plain = read(make_pdf(at(72, 700, "x"), catalog="/PageLabels << /Nums [0 << /S /D >>] >>"), NO_WISHES)
    assert plain.places == (Place(1, "p1"),)


def test_pages_are_places_in_order() -> None:
    found = read(make_pdf(at(72, 700, "The lamp is lit."), at(72, 700, "The log is signed.")), NO_WISHES)
    assert found == Text("The lamp is lit.\n\nThe log is signed.", (Place(1, "p1"), Place(3, "p2")))


def test_words_set_one_by_one_have_their_spaces() -> None:
    word_by_word = at(72, 700, "three") + at(102.6, 700, "versions") + at(152, 700, "of") + at(165, 700, "Debian")
    assert text_of(word_by_word) == "three versions of Debian"


def test_narrow_spaces_are_spaces_and_kerning_is_none() -> None:
    assert text_of(at(72, 700, "a") + at(72 + 6.68 + 3.1, 700, "shell")) == "a shell"
    assert text_of("BT /F1 12 Tf 72 700 Td [(T) 80 (ower) -90 (s)] TJ ET") == "Towers"


def test_letters_set_wide_are_one_word_however_they_are_written() -> None:
    wide = "2 Tc (Singapor) Tj 0 Tc (e ) Tj 2 Tc (13858) Tj 0 Tc (8) Tj"
    assert text_of(f"BT /F1 12 Tf 72 700 Td {wide} ET") == "Singapore 138588"
    assert text_of("BT /F1 12 Tf 72 700 Td 6 Tc (1902) Tj ET") == "1 9 0 2"


def test_lines_that_only_the_width_broke_are_one() -> None:
    broken = lines(
        "The committee met at noon in the old hall of the town and heard the report that the",
        "treasurer had written, after which the members voted on the budget for the next year.",
        "It was a short meeting.",
    )
    assert text_of(broken) == (
        "The committee met at noon in the old hall of the town and heard the report that the treasurer had written, "
        "after which the members voted on the budget for the next year. It was a short meeting."
    )


def test_short_lines_lists_and_paragraphs_stay_apart() -> None:
    items = "- bring the ladder, the lamp and the long rope that lies in the shed\n- call the captain"
    assert text_of(lines(*items.split("\n"))) == items
    assert text_of(lines("Rose Street 12", "Edinburgh", "", "Dear Sir,")) == "Rose Street 12\nEdinburgh\n\nDear Sir,"


def test_contents_have_a_line_each_and_no_dots() -> None:
    dots = " ." * 40
    assert text_of(lines(f"1.1 Introduction{dots} 3", f"1.2 General concepts{dots} 14")) == (
        "1.1 Introduction …  3\n1.2 General concepts …  14"
    )


LEFT = ("The first experiment was done by", "Amara Okafor in Lagos in 1998 and", "she used eleven beakers.")
RIGHT = ("The second experiment was done by", "Pavel Novak in Brno in 2003 and", "he used forty beakers.")


def test_columns_are_read_one_after_the_other_in_whatever_order_they_are_written() -> None:
    by_row = "".join(
        at(72, 700 - 14 * i, left) + at(330, 700 - 14 * i, right)
        for i, (left, right) in enumerate(zip(LEFT, RIGHT, strict=True))
    )
    by_column = lines(*LEFT) + lines(*RIGHT, x=330)
    for operators in (by_row, by_column):
        found = text_of(operators).split()
        assert found == " ".join((*LEFT, *RIGHT)).split()


def test_text_goes_on_in_the_next_column() -> None:
    column = ("The harbour was built of granite that", "had been brought from the northern")
    assert "northern quarry of the island" in text_of(lines(*column) + lines("quarry of the island.", x=330))


# --- tables

ROWS = (("Item", "2022", "2023"), ("Rent", "400", "410"), ("Water", "", "55"), ("Power", "77", ""))
TABLE = "| Item | 2022 | 2023 |\n| --- | --- | --- |\n| Rent | 400 | 410 |\n| Water |  | 55 |\n| Power | 77 |  |"


def cells(rows: object = ROWS, y: float = 700) -> list[str]:
    return [at(72 + 120 * j, y - 14 * i, cell) for i, row in enumerate(ROWS) for j, cell in enumerate(row) if cell]


def test_tables_keep_their_empty_cells() -> None:
    assert text_of("".join(cells())) == TABLE


def test_columns_of_figures_that_are_written_one_by_one_are_rows() -> None:
    by_column = [at(72 + 120 * j, 700 - 14 * i, row[j]) for j in range(3) for i, row in enumerate(ROWS) if row[j]]
    before, after = at(72, 730, "Costs of the house in crowns:"), at(72, 620, "All of these were paid in time.")
    assert text_of(before + "".join(by_column) + after).split("\n\n")[1] == TABLE


def test_cells_in_any_order_are_rows() -> None:
    shuffled = cells()
    random.Random(7).shuffle(shuffled)
    assert text_of("".join(shuffled)) == TABLE


def test_text_around_a_table_is_none_of_it() -> None:
    before = at(72, 730, "The costs of the house in the last two years, in thousands of crowns:")
    after = at(72, 620, "All of these were paid in time, by a transfer from the account of the town.")
    assert text_of(before + "".join(cells()) + after).split("\n\n")[1] == TABLE


def test_lines_of_one_cell_are_one_cell() -> None:
    row = at(72, 700, "lamp") + at(200, 700, "a light that burns oil, and that is") + at(72, 660, "oar")
    more = at(200, 686, "lit at dusk") + at(200, 660, "a long piece of wood for rowing a boat")
    ordered = row.split("\n")
    found = text_of("\n".join((*ordered[:2], more.split("\n")[0], ordered[2], more.split("\n")[1])))
    assert "| lamp | a light that burns oil, and that is lit at dusk |" in found


def test_columns_that_are_close_are_columns() -> None:
    """Half an em between the columns of every row."""
    rows = (("Rent", "400", "410"), ("Fuel", "120", "130"), ("Bulb", "115", "155"))
    narrow = "".join(
        at(x, 700 - 14 * i, cell) for i, row in enumerate(rows) for x, cell in zip((72, 104, 130.5), row, strict=True)
    )
    assert text_of(narrow) == "| Rent | 400 | 410 |\n| --- | --- | --- |\n| Fuel | 120 | 130 |\n| Bulb | 115 | 155 |"


def test_a_cell_that_fills_its_column_is_a_cell() -> None:
    rows = (("Item", "Where"), ("Rent", "hall"), ("Repair of lamps", "tower"), ("Fuel", "cellar"))
    full = "".join(at(72, 700 - 14 * i, item) + at(160, 700 - 14 * i, where) for i, (item, where) in enumerate(rows))
    assert "| Repair of lamps | tower |" in text_of(full)


def test_columns_of_prose_may_be_close() -> None:
    both = "".join(
        at(72, 700 - 14 * i, left) + at(264, 700 - 14 * i, right)
        for i, (left, right) in enumerate(zip(LEFT, RIGHT, strict=True))
    )
    assert text_of(both).split() == " ".join((*LEFT, *RIGHT)).split()


def test_dense_pages_take_time_by_their_length() -> None:
    """Of spaces that are all wide, where the last ones stand under none."""
    lefts = [(10.0, 20.0, 30.0, 40.0 + number % 2 * 3) for number in range(400)]
    spaces = [tuple(Space(3 * at + 2, left, left + 0.6) for at, left in enumerate(row)) for row in lefts]
    page = [Line((Run("aa aa aa aa aa", 0, 50, -1.2 * at, 1, 0, each),)) for at, each in enumerate(spaces)]
    with swift(3):
        assert parted(page, marks=re.compile("x$")) == page


def test_words_under_each_other_are_no_columns() -> None:
    typed = "<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>"
    code = lines("int a;", "int b;", "int c;", "int d;")
    assert "|" not in read(make_pdf(code, font=typed), NO_WISHES).text
    assert "|" not in text_of(lines("Mr Ash", "Mr Oak", "Mr Elm", "Mr Fir"))
    items = "".join(at(72, 700 - 14 * i, f"{i}.") + at(88, 700 - 14 * i, "bring the lamp") for i in range(1, 6))
    assert "|" not in text_of(items)


def test_a_bar_in_a_cell_is_no_border() -> None:
    assert "a\\|b" in text_of(at(72, 700, "a|b") + at(200, 700, "1") + at(72, 686, "c") + at(200, 686, "2"))


# --- hyphens, ligatures, accents, exponents


def test_words_broken_at_a_line_end_are_whole() -> None:
    assert text_of(lines("The commit-", "tee elected Mr. Fern-", "andez on 3 Sep-", "tember 1987.")) == (
        "The committee elected Mr. Fernandez on 3 September 1987."
    )


@pytest.mark.parametrize(
    ("rest", "broken", "whole"),
    [
        ("", f"com{HYPHEN}mittee", "committee"),
        ("a well-known harbour", f"well{HYPHEN}known", "well-known"),
        ("he knows it well and it is known", f"well{HYPHEN}known", "well-known"),
        ("it is known as well; an overview over the view", f"over{HYPHEN}view", "overview"),
        ("", f"Haupt{HYPHEN}und Nebensatz", "Haupt- und Nebensatz"),
        ("", f"a well{HYPHEN}known self{HYPHEN}made man", "a well-known self-made man"),
        ("", f"wellness, self{HYPHEN}ish, half{HYPHEN}way, high{HYPHEN}light", "wellness, selfish, halfway, highlight"),
        (
            "",
            f"two{HYPHEN}thirds, twenty{HYPHEN}one, two{HYPHEN}fold, six{HYPHEN}teen",
            "two-thirds, twenty-one, twofold, sixteen",
        ),
        (
            "",
            f"from day-to{HYPHEN}day, up{HYPHEN}to-date, state-of-the{HYPHEN}art",
            "from day-to-day, up-to-date, state-of-the-art",
        ),
        ("", f"well-docu{HYPHEN}mented", "well-documented"),
        ("", f"an e{HYPHEN}mail, plan{HYPHEN}b", "an e-mail, plan-b"),
        (
            "",
            f"user{HYPHEN}defined, un{HYPHEN}known, in{HYPHEN}dependent, over{HYPHEN}sized",
            "user-defined, unknown, independent, oversized",
        ),
    ],
)
def test_the_words_of_all_pages_say_what_a_hyphen_was(rest: str, broken: str, whole: str) -> None:
    assert rejoined([rest, broken]) == [rest, whole]


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("pages 10-", "20 of", "pages 10-20"),
        ("line Wiesel-", "Torgau of", "Wiesel-Torgau"),
        ("an A4-", "sized", "A4-sized"),
    ],
)
def test_ranges_and_names_are_as_they_are_on_one_line(before: str, after: str, whole: str) -> None:
    broken = lines(f"The report that the committee has written and signed says {before}", f"{after} what it is about.")
    assert whole in text_of(broken)


@pytest.mark.parametrize("text", ["a" * 50_000, "a" * 50_000 + f" b{HYPHEN}c"])
def test_long_words_take_time_by_their_length(text: str) -> None:
    with swift(2):
        assert len(rejoined([text])[0]) >= 50_000


def test_numbers_and_names_keep_their_hyphen() -> None:
    found = text_of(
        lines("The committee met in the old hall in the years 1998-", "2003 under its chairman Jean-", "Paul.")
    )
    assert "1998-2003" in found.replace("\n", "")
    assert "JeanPaul" not in found


def test_ligatures_are_letters() -> None:
    font = (
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding "
        "<< /Type /Encoding /Differences [65 /fi /fl /ff /ffi] >> >>"
    )
    assert read(make_pdf(at(72, 700, "Ax BAt"), font=font), NO_WISHES).text == "fix flfit"


def test_accents_that_stand_over_letters_are_one_with_them() -> None:
    before = at(72, 700, "f") + at(76.5, 700, "¨") + at(75.3, 700, "ur")
    after = at(75.3, 680, "ur") + at(76.6, 680, "¨")
    assert text_of(before + after).split() == ["für", "ür"]


def test_exponents_indices_and_marks_of_footnotes_are_no_digits_of_the_number() -> None:
    raised = at(72, 700, "10") + at(85.4, 704.5, "6", size=8) + at(95, 700, "events,")
    lowered = at(140, 700, "H") + at(148.7, 697.5, "2", size=8) + at(153.2, 700, "O,")
    noted = at(180, 700, "in 1998.") + at(223.4, 704.5, "1", size=8)
    assert text_of(raised + lowered + noted) == "10^6 events, H_2O, in 1998.^1"


def test_ordinals_are_no_exponents() -> None:
    assert text_of(at(72, 700, "the 21") + at(105, 704.5, "st", size=8) + at(114, 700, "day")) == "the 21st day"


# --- turned


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_pages_are_read(turn: int) -> None:
    assert read(make_pdf("".join(cells()), page=f"/Rotate {turn}"), NO_WISHES).text == TABLE


@pytest.mark.parametrize(
    ("turn", "place"),
    [
        ("0 1 -1 0", lambda x, y: (780 - y, x)),
        ("0 -1 1 0", lambda x, y: (y - 100, 700 - x)),
        ("-1 0 0 -1", lambda x, y: (600 - x, 792 - y)),
    ],
)
def test_tables_that_lie_on_their_side_are_tables(
    turn: str, place: Callable[[float, float], tuple[float, float]]
) -> None:
    turned = [
        at(*place(72 + 120 * j, 700 - 14 * i), cell, turn=turn)
        for i, row in enumerate(ROWS)
        for j, cell in enumerate(row)
        if cell
    ]
    assert text_of("".join(turned)) == TABLE
    random.Random(7).shuffle(turned)
    assert text_of("".join(turned)) == TABLE


def test_text_that_stands_upright_on_its_side_is_read() -> None:
    sideways = at(100, 100, "The tide table of", turn="0 1 -1 0") + at(114, 100, "the harbour, 1998", turn="0 1 -1 0")
    assert text_of(sideways).split() == ["The", "tide", "table", "of", "the", "harbour,", "1998"]
    assert text_of(lines(*LEFT) + at(20, 100, "arXiv:1998.0417", turn="0 1 -1 0")).split("\n\n")[1] == "arXiv:1998.0417"


# --- forms, comments, headings


def field(rect: str, entries: str) -> str:
    return f"<< /Type /Annot /Subtype /Widget /Rect [{rect}] /F 4 {entries} >>"


def form(*fields: str, operators: str) -> bytes:
    numbers = " ".join(f"{10 + i} 0 R" for i in range(len(fields)))
    catalog = f"/AcroForm << /Fields [{numbers}] /NeedAppearances true >>"
    return make_pdf(operators, page=f"/Annots [{numbers}]", catalog=catalog, objects=fields)


def test_values_of_a_form_stand_beside_their_names() -> None:
    data = form(
        field("150 696 250 712", "/FT /Tx /T (f1_1) /V (Alice)"),
        field("150 676 250 692", "/FT /Ch /Ff 131072 /T (f1_2) /V (Norway) /Opt [(Norway) (Spain)]"),
        operators=lines("First name", "Country", pitch=20),
    )
    assert read(data, NO_WISHES).text == "| First name | Alice |\n| --- | --- |\n| Country | Norway |"


def test_all_that_is_chosen_in_a_list_is_read() -> None:
    chosen = "/FT /Ch /Ff 2097152 /T (towns) /V [(Oslo) (Bergen)] /Opt [(Oslo) (Voss) (Bergen)]"
    data = form(field("72 500 250 516", chosen), operators=lines("Report"))
    assert read(data, NO_WISHES).text.split("\n\n") == ["Report", "towns: Oslo, Bergen"]


def test_a_value_beside_nothing_has_its_name() -> None:
    data = form(field("72 500 250 516", "/FT /Tx /T (Remarks) /V (the 3 lamps are new)"), operators=lines("Report"))
    assert read(data, NO_WISHES).text.split("\n\n") == ["Report", "Remarks: the 3 lamps are new"]


@pytest.mark.parametrize(("state", "shown"), [("/Yes", "[x]"), ("/Off", "[ ]")])
def test_boxes_are_ticked_or_not(state: str, shown: str) -> None:
    drawn = pdf_stream(b"", entries="/Type /XObject /Subtype /Form /BBox [0 0 10 10]").decode()
    box = field(
        "60 698 70 708", f"/FT /Btn /T (agree) /V {state} /AS {state} /AP << /N << /Yes 11 0 R /Off 11 0 R >> >>"
    )
    catalog = "/AcroForm << /Fields [10 0 R] >>"
    data = make_pdf(at(80, 700, "I agree"), page="/Annots [10 0 R]", catalog=catalog, objects=(box, drawn))
    assert read(data, NO_WISHES).text == f"{shown} I agree"


def button(rect: str, state: str, *, chosen: bool) -> str:
    entries = f"/Parent 20 0 R /AS /{state if chosen else 'Off'} /AP << /N << /{state} 30 0 R /Off 30 0 R >> >>"
    return field(rect, entries)


def radio_form(*buttons: str, operators: str) -> bytes:
    """A group of buttons named `pay`, of which `card` is chosen."""
    kids = [f"{10 + i} 0 R" for i in range(len(buttons))]
    group = f"<< /FT /Btn /Ff 49152 /T (pay) /V /card /Kids [{' '.join(kids)}] >>"
    drawn = pdf_stream(b"", entries="/Type /XObject /Subtype /Form /BBox [0 0 10 10]").decode()
    objects = [*buttons, *["null"] * (10 - len(buttons)), group, *["null"] * 9, drawn]
    catalog = "/AcroForm << /Fields [20 0 R] >>"
    return make_pdf(operators, page=f"/Annots [{' '.join(kids)}]", catalog=catalog, objects=objects)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ("", "Payment [ ] cash [x] card"),
        (at(172, 700, "Card") + at(132, 700, "Cash"), "Payment [ ] Cash [x] Card"),
    ],
)
def test_buttons_say_which_choice_they_are_where_no_label_does(labels: str, text: str) -> None:
    cash = button("120 698 130 708", "cash", chosen=False)
    card = button("160 698 170 708", "card", chosen=True)
    found = read(radio_form(cash, card, operators=at(60, 700, "Payment") + labels), NO_WISHES).text
    assert " ".join(found.split()) == text


def test_buttons_beside_nothing_have_their_groups_name_and_their_choice() -> None:
    buttons = [
        button(f"72 {y} 82 {y + 10}", state, chosen=state == "card") for state, y in (("cash", 500), ("card", 470))
    ]
    found = read(radio_form(*buttons, operators=lines("Report")), NO_WISHES).text
    assert [line for line in found.split("\n") if line] == ["Report", "pay: [ ] cash", "pay: [x] card"]


def test_a_choice_that_says_nothing_is_not_shown_beside_a_label() -> None:
    one = button("120 698 130 708", "1", chosen=False)
    found = read(radio_form(one, operators=at(60, 700, "Rooms")), NO_WISHES).text
    assert " ".join(found.split()) == "Rooms [ ]"


def test_hidden_fields_are_not_shown() -> None:
    hidden = field("150 696 250 712", "/FT /Tx /T (a) /V (secret)").replace("/F 4", "/F 2")
    assert read(form(hidden, operators=lines("Name")), NO_WISHES).text == "Name"


def test_comments_follow_their_page() -> None:
    note = "<< /Type /Annot /Subtype /Text /Rect [50 50 60 60] /Contents (Who checked this?) /T (Bea) >>"
    data = make_pdf(at(72, 700, "The bill is 40 crowns."), page="/Annots [10 0 R]", objects=(note,))
    assert read(data, NO_WISHES).text == "The bill is 40 crowns.\n\n[comment by Bea: Who checked this?]"


def test_stamps_and_signatures_are_read_from_their_pictures() -> None:
    look = pdf_stream(
        at(0, 2, "Signed 2023-03-07").encode(),
        entries="/Type /XObject /Subtype /Form /BBox [0 0 200 20] /Resources << /Font << /F1 3 0 R >> >>",
    )
    said = "/Contents (Signed  2023-03-07)"
    stamp = f"<< /Type /Annot /Subtype /Stamp /Rect [72 500 272 520] /F 4 /AP << /N 11 0 R >> {said} >>"
    data = make_pdf(at(72, 700, "A contract."), page="/Annots [10 0 R]", objects=(stamp, look))
    assert read(data, NO_WISHES).text == "A contract.\n\nSigned 2023-03-07"


def outline(*, loops: bool = False) -> bytes:
    following = "11 0 R" if loops else "12 0 R"
    objects = (
        "<< /Type /Outlines /First 11 0 R /Last 12 0 R >>",
        f"<< /Title (1 The harbour) /Parent 10 0 R /Next {following} /Dest [13 0 R /Fit] /First 12 0 R >>",
        "<< /Title (Lamps) /Parent 11 0 R /Dest [13 0 R /Fit] >>",
    )
    page = lines("1. The harbour", "", "It was built in 1904.", "", "Lamps", "", "There are 3.")
    return make_pdf(page, catalog="/Outlines 10 0 R", objects=objects)


def test_titles_of_the_outline_are_headings() -> None:
    assert read(outline(), NO_WISHES).text == ("# 1. The harbour\n\nIt was built in 1904.\n\n## Lamps\n\nThere are 3.")


def test_half_characters_of_titles_and_labels_harm_nothing() -> None:
    half = "<FEFFD8000041>"
    titles = ("<< /First 11 0 R /Last 11 0 R >>", f"<< /Title {half} /Parent 10 0 R /Dest [12 0 R /Fit] >>")
    labels = f"/PageLabels << /Nums [0 << /P {half} >>] >>"
    for catalog, place in (("/Outlines 10 0 R", "p1"), (labels, "p1 (page A)")):
        found = read(make_pdf(at(72, 700, "It has 7."), catalog=catalog, objects=titles), NO_WISHES)
        assert (found.text, found.places) == ("It has 7.", (Place(1, place),))


def test_an_outline_that_loops_is_read_once() -> None:
    assert "# 1. The harbour" in read(outline(loops=True), NO_WISHES).text


# --- losses


def test_pages_without_text_are_a_loss() -> None:
    found = read(make_pdf(at(72, 700, "one"), "", at(72, 700, "three"), ""), NO_WISHES)
    assert losses(found) == ["2 pages without text (pages 2, 4)"]
    assert found.places == (Place(1, "p1"), Place(3, "p3"))


def test_pictures_are_a_loss_and_the_scan_behind_its_text_is_none() -> None:
    image = pdf_stream(
        b"\0", entries="/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8"
    )

    def page(width: int, height: int) -> bytes:
        operators = at(72, 700, "a page") + f"q {width} 0 0 {height} 0 0 cm /I 10 0 R Do Q".replace(" 10 0 R", "")
        data = make_pdf(operators, objects=(image,))
        return data.replace(b"/Font << /F1 3 0 R >> >>", b"/Font << /F1 3 0 R >> /XObject << /I 10 0 R >> >>")

    assert losses(read(page(200, 100), NO_WISHES)) == ["1 picture (page 1)"]
    assert losses(read(page(612, 792), NO_WISHES)) == []
    assert losses(read(page(10, 10), NO_WISHES)) == []


def test_attached_files_are_a_loss() -> None:
    catalog = "/Names << /EmbeddedFiles << /Names [(a.csv) 10 0 R] >> >>"
    objects = (
        "<< /Type /Filespec /F (a.csv) /EF << /F 11 0 R >> >>",
        pdf_stream(b"1,2", entries="/Type /EmbeddedFile"),
    )
    assert losses(read(make_pdf(at(72, 700, "see a.csv"), catalog=catalog, objects=objects), NO_WISHES)) == [
        "1 attached file"
    ]


def test_text_that_no_font_here_can_show_is_a_loss() -> None:
    """PDFium leaves it out without a word."""
    objects = (
        "<< /Type /Font /Subtype /Type0 /BaseFont /SimSun /Encoding /GBK-EUC-H /DescendantFonts [11 0 R] >>",
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /SimSun /DW 1000 /FontDescriptor 12 0 R "
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> >>",
        "<< /Type /FontDescriptor /FontName /SimSun /Flags 32 /FontBBox [0 0 1000 1000] /ItalicAngle 0 /Ascent 800 "
        "/Descent -200 /CapHeight 700 /StemV 80 >>",
    )
    chinese = "BT /F2 12 Tf 72 650 Td <b9d8> Tj 20 0 Td <d3da> Tj ET\n"
    data = make_pdf(at(72, 700, "The bill"), at(72, 700, "of 1998 ") + chinese, objects=objects)
    found = read(data.replace(b"/F1 3 0 R >>", b"/F1 3 0 R /F2 10 0 R >>"), NO_WISHES)
    assert losses(found) == ["2 pieces of text in a font that is not in the file (page 2)"]


def test_signs_without_a_meaning_are_counted_and_can_be_written() -> None:
    names = "beginbfchar <41> <D800> <42> <0001> <43> <FFFD> <44> <D835DC65> endbfchar"
    cmap = f"begincmap 1 begincodespacerange <00> <FF> endcodespacerange 4 {names} endcmap"
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 10 0 R >>"
    found = read(make_pdf(at(72, 700, "xAyBzCD"), font=font, objects=(pdf_stream(cmap.encode()),)), NO_WISHES)
    assert found.text.encode("utf-8") == "x\ufffdy\ufffdz\ufffd\U0001d465".encode()
    assert losses(found) == ["3 signs that its font does not name (page 1)"]


def test_a_file_cut_short_says_so() -> None:
    whole = make_pdf(*(at(72, 700, f"page {number}") for number in range(1, 9)))
    found = read(whole[: whole.index(b"xref")], NO_WISHES)
    assert "page 1" in found.text
    assert losses(found) == ["1 end of the file (it was cut off, and pages may be missing)"]


# --- refusals and limits


def test_a_scanned_file_is_refused_with_the_way_to_read_it() -> None:
    with pytest.raises(DocumentError, match="without text, likely scanned") as caught:
        read(make_pdf("", "0 0 100 100 re f"), NO_WISHES)
    assert "ocrmypdf" in str(caught.value.hint)


@pytest.mark.parametrize("method", [fpdf.enums.EncryptionMethod.RC4, fpdf.enums.EncryptionMethod.AES_256])
def test_a_password_opens_or_is_asked_for(method: fpdf.enums.EncryptionMethod) -> None:
    data = encrypted(method)
    assert read(data, Wishes(password="sesame")).text == "the key is under the mat"
    for password, said in (("", "no password was given"), ("sesam", "does not open it")):
        with pytest.raises(DocumentError, match=f"encrypted PDF.*{said}") as caught:
            read(data, Wishes(password=password))
        assert "--password" in str(caught.value.hint)


def test_damaged_files_are_read_or_refused() -> None:
    whole = sample_pdf()
    assert {"# Costs", "| 30 | 31 | 32 |", "First name Alice"} <= {*read(whole, NO_WISHES).text.split("\n")}
    for seed in range(200):
        damaged = damage_bytes(whole, random.Random(seed))
        with suppress(DocumentError, DoesNotFitError):
            read(damaged, NO_WISHES).text.encode()


@pytest.mark.parametrize("data", [b"", b"no pdf at all", b"%PDF-1.7\nnothing", make_pdf(), make_pdf("x")[:60]])
def test_what_is_no_pdf_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match="no PDF, or a damaged one"):
        read(data, NO_WISHES)


def test_a_wrong_table_of_objects_is_mended() -> None:
    data = make_pdf(at(72, 700, "still here"))
    assert read(data.replace(b"0000000009 00000 n", b"0000000777 00000 n"), NO_WISHES).text == "still here"


def test_pages_that_hold_themselves_are_no_loop() -> None:
    data = make_pdf(at(72, 700, "once")).replace(b"/Kids [10 0 R] /Count 1", b"/Kids [10 0 R 2 0 R] /Count 2")
    assert "once" in read(data, NO_WISHES).text


@pytest.mark.parametrize("packed", [1, 2])
def test_streams_are_counted_before_they_are_unpacked(packed: int) -> None:
    data = make_pdf(at(72, 700, "small") + "%" + "x" * 2**22, packed=packed)
    assert len(data) < 10_000
    with pytest.raises(DoesNotFitError, match="unpacks to"):
        read(data, Wishes(limits=Limits(expanded_bytes=2**20)))
    assert read(data, NO_WISHES).text == "small"


@pytest.mark.parametrize(
    ("filters", "encode"),
    [
        ("/ASCIIHexDecode /FlateDecode", lambda data: zlib.compress(data).hex().encode() + b">"),
        ("/ASCII85Decode /FlateDecode", lambda data: base64.a85encode(zlib.compress(data)) + b"~>"),
        ("/FlateDecode /RunLengthDecode", lambda data: zlib.compress(b"\x81 " * (len(data) // 128) + b"\x80")),
    ],
)
def test_filters_before_and_behind_are_counted_too(filters: str, encode: Callable[[bytes], bytes]) -> None:
    packed = pdf_stream(encode(b" " * 2**22), entries=f"/Filter [{filters}]")
    data = make_pdf(at(72, 700, "small"), objects=(packed,))
    assert len(data) < 30_000
    with pytest.raises(DoesNotFitError, match="unpacks to"):
        read(data, Wishes(limits=Limits(expanded_bytes=2**20)))


def test_pages_are_counted_before_they_are_read() -> None:
    with pytest.raises(DoesNotFitError, match="3 pages, and at most 2"):
        read(make_pdf("", "", ""), Wishes(limits=Limits(pages=2)))


def test_progress_is_by_page() -> None:
    heard: list[tuple[int, int]] = []
    read(make_pdf(*[at(72, 700, "x")] * 3), Wishes(progress=lambda done, count: heard.append((done, count))))
    assert heard == [(1, 3), (2, 3), (3, 3)]


# --- round trips


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_words_and_numbers_come_back_in_order(seed: int) -> None:
    chance = random.Random(seed)
    words = [
        chance.choice(
            (f"{chance.randint(0, 10**6):,}", f"{chance.random():.3f}", "harbour", "Möwe", "don't", "of", "€5")
        )
        for _ in range(chance.randint(1, 300))
    ]
    pdf = fpdf.FPDF()
    pdf.set_font(chance.choice(("helvetica", "times", "courier")), size=chance.choice((8, 11, 14)))
    pdf.add_page()
    pdf.multi_cell(0, text=" ".join(words).replace("€", "$"), align=chance.choice("LJ"))
    assert read(bytes(pdf.output()), NO_WISHES).text.split() == [word.replace("€", "$") for word in words]


def test_nothing_is_written_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read(make_pdf(at(72, 700, "x")), NO_WISHES)
    assert list(tmp_path.iterdir()) == []
