"""Slides, OpenDocument and rich text: order, titles, tables, notes, and what has no text said."""

import io
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.oxml import parse_xml
from pptx.oxml.ns import nsdecls
from pptx.util import Inches

from support.documents import extract, losses, make_odp, make_odt, make_zip
from uncomp_cli.documents.text import Text
from uncomp_cli.errors import DocumentError

TITLE, TITLE_ONLY, BLANK = 1, 5, 6


# --- slides


def saved(presentation: Any) -> Text:
    file = io.BytesIO()
    presentation.save(file)
    return extract(file.getvalue(), suffix=".pptx")


def slide(presentation: Any, layout: int, title: str = "") -> Any:
    added = presentation.slides.add_slide(presentation.slide_layouts[layout])
    if title:
        added.shapes.title.text = title
    return added


def test_titles_points_and_notes_slide_by_slide() -> None:
    presentation = Presentation()
    first = slide(presentation, TITLE, "Plan")
    frame = first.placeholders[1].text_frame
    frame.text = "Launch on 9 June."
    point = frame.add_paragraph()
    point.text, point.level = "in Bergen", 1
    first.notes_slide.notes_text_frame.text = "Say hello."
    slide(presentation, TITLE, "Costs").placeholders[1].text_frame.text = "12,400 crowns"
    text = saved(presentation)
    assert text.text == (
        "## Plan\n\n- Launch on 9 June.\n  - in Bergen\n\nNotes: Say hello.\n\n## Costs\n\n- 12,400 crowns"
    )
    assert [(place.line, place.name) for place in text.places] == [(1, "s1"), (8, "s2")]
    assert text.losses == ()


def test_tables_with_spans_and_groups() -> None:
    presentation = Presentation()
    shapes = slide(presentation, TITLE_ONLY, "Numbers").shapes
    table = shapes.add_table(2, 3, 0, 0, Inches(4), Inches(1)).table
    for row in range(2):
        for column in range(3):
            table.cell(row, column).text = f"r{row}c{column}"
    table.cell(0, 2).text = ""
    table.cell(0, 1).merge(table.cell(0, 2))
    shapes.add_group_shape().shapes.add_textbox(0, 0, 9, 9).text_frame.text = "In a group"
    text = saved(presentation).text
    assert "| r0c0 | r0c1 | r0c1 |\n| --- | --- | --- |\n| r1c0 | r1c1 | r1c2 |" in text
    assert text.endswith("\n\nIn a group")


def test_the_numbers_of_a_chart_are_read() -> None:
    presentation = Presentation()
    data = CategoryChartData()
    data.categories = ["East", "West"]
    data.add_series("2023", (19.2, 21.4))
    data.add_series("2024", (22.3, 28.6))
    size = (0, 0, Inches(4), Inches(3))
    slide(presentation, BLANK).shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *size, data)
    text = saved(presentation)
    assert "|  | 2023 | 2024 |\n| --- | --- | --- |\n| East | 19.2 | 22.3 |\n| West | 21.4 | 28.6 |" in text.text
    assert text.losses == ()


def box(shapes: Any, text: str) -> Any:
    added = shapes.add_textbox(0, 0, 9, 9)
    added.text_frame.text = text
    return added


def test_hidden_shapes_and_groups_of_a_slide_are_said() -> None:
    presentation = Presentation()
    shapes = slide(presentation, BLANK).shapes
    box(shapes, "secret 9")._element.nvSpPr.cNvPr.set("hidden", "1")
    group, hidden = shapes.add_group_shape(), shapes.add_group_shape()
    box(group.shapes, "in a group")
    box(hidden.shapes, "secret 8")
    hidden._element.nvGrpSpPr.cNvPr.set("hidden", "true")
    box(shapes, "seen")
    text = saved(presentation)
    assert text.text == "in a group\n\nseen"
    assert losses(text) == ["2 passages of hidden text"]


def test_text_that_all_slides_stand_on_is_said() -> None:
    presentation = Presentation()
    box(slide(presentation, BLANK).shapes, "seen")
    assert losses(saved(presentation)) == []
    tree = deepcopy(presentation.slides[0].shapes[0]._element)
    presentation.slide_master.shapes._spTree.append(tree)
    assert losses(saved(presentation)) == ["1 text that all slides stand on"]
    shown = "<draw:frame><draw:text-box><text:p>Internal</text:p></draw:text-box></draw:frame>"
    page = "<draw:page><draw:frame><draw:text-box><text:p>seen</text:p></draw:text-box></draw:frame></draw:page>"
    found = extract(make_odp(shown + page), suffix=".odp")
    assert (found.text, losses(found)) == ("seen", ["1 text that all slides stand on"])


def test_numbered_points_and_what_is_struck_out() -> None:
    presentation = Presentation()
    frame = box(slide(presentation, BLANK).shapes, "one").text_frame
    kinds = ["arabicPeriod", "arabicPeriod", "alphaLcParenR", "arabicPeriod"]
    for text in ("two", "deep", "three"):
        frame.add_paragraph().text = text
    frame.paragraphs[2].level = 1
    for paragraph, kind in zip(frame.paragraphs, kinds, strict=True):
        number = parse_xml(f"<a:buAutoNum {nsdecls('a')} type='{kind}'/>")
        paragraph._p.get_or_add_pPr().append(number)
    empty = frame.add_paragraph()
    empty._p.get_or_add_pPr().append(parse_xml(f"<a:buAutoNum {nsdecls('a')} type='arabicPeriod'/>"))
    struck = frame.add_paragraph().add_run()
    struck.text = "50"
    struck.font._element.set("strike", "sngStrike")
    assert saved(presentation).text == "1. one\n2. two\n  a) deep\n3. three\n~~50~~"


def test_raised_figures_pictures_and_hidden_slides() -> None:
    from PIL import Image

    presentation = Presentation()
    first = slide(presentation, BLANK)
    paragraph = first.shapes.add_textbox(0, 0, 9, 9).text_frame.paragraphs[0]
    paragraph.add_run().text = "Energy is mc"
    raised = paragraph.add_run()
    raised.text = "2"
    raised.font._element.set("baseline", "30000")
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png")
    first.shapes.add_picture(file, 0, 0)
    footer = first.shapes.add_textbox(0, 0, 9, 9)
    footer.text_frame.text = "Confidential"
    footer._element.nvSpPr.nvPr.append(parse_xml(f"<p:ph {nsdecls('p')} type='ftr'/>"))
    hidden = slide(presentation, BLANK)
    hidden.shapes.add_textbox(0, 0, 9, 9).text_frame.text = "secret"
    hidden._element.set("show", "0")
    text = saved(presentation)
    assert text.text == "Energy is mc^2"
    assert losses(text) == ["1 picture without a text", "1 header or footer", "1 hidden slide"]


def test_slides_come_in_the_order_of_the_presentation() -> None:
    presentation = Presentation()
    for title in ("first", "second", "third"):
        slide(presentation, TITLE_ONLY, title)
    ids = presentation.slides._sldIdLst
    ids.insert(0, ids[2])
    assert saved(presentation).text == "## third\n\n## first\n\n## second"


def test_a_presentation_without_slides_and_one_cut_off() -> None:
    with pytest.raises(DocumentError, match="without slides"):
        saved(Presentation())
    file = io.BytesIO()
    Presentation().save(file)
    with pytest.raises(DocumentError):
        extract(file.getvalue()[:2000], suffix=".pptx")


@given(st.lists(st.text("abc 1.,é", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=4))
def test_words_of_slides_round_trip(texts: list[str]) -> None:
    presentation = Presentation()
    for text in texts:
        slide(presentation, BLANK).shapes.add_textbox(0, 0, 9, 9).text_frame.text = text
    assert saved(presentation).text.split() == " ".join(texts).split()


# --- OpenDocument


def odt(body: str, styles: str = "") -> Text:
    return extract(make_odt(body, styles=styles), suffix=".odt")


def test_an_odt_has_its_words() -> None:
    assert extract(make_odt(), suffix=".odt") == Text("The rent is 900 crowns.")


def test_headings_lists_tables_and_spaces() -> None:
    body = (
        "<text:h text:outline-level='2'>Lease</text:h>"
        "<text:p>a<text:s text:c='3'/>b<text:tab/>c<text:line-break/>d</text:p>"
        "<text:list><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>in</text:p></text:list-item>"
        "</text:list></text:list-item><text:list-item><text:p>two</text:p></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell table:number-columns-spanned='2'><text:p>Year</text:p>"
        "</table:table-cell><table:covered-table-cell/></table:table-row><table:table-row><table:table-cell><text:p>2023"
        "</text:p></table:table-cell><table:table-cell><text:p>1,200</text:p></table:table-cell></table:table-row>"
        "</table:table>"
    )
    text = odt(body).text
    assert text.startswith("## Lease\n\na b c\nd\n\n- one\n  - in\n- two\n\n")
    assert text.endswith("| Year | Year |\n| --- | --- |\n| 2023 | 1,200 |")


NUMBERS = (
    "<text:list-style style:name='L1'><text:list-level-style-number text:level='1' style:num-format='1'"
    " style:num-suffix='.'/><text:list-level-style-number text:level='2' style:num-format='a' style:num-prefix='('"
    " style:num-suffix=')'/><text:list-level-style-number text:level='3' style:num-format='1' text:start-value='0'"
    " text:display-levels='3'/></text:list-style><text:list-style style:name='L2'><text:list-level-style-bullet"
    " text:level='1'/></text:list-style><text:outline-style><text:outline-level-style text:level='1'"
    " style:num-format='I' style:num-suffix='.'/><text:outline-level-style text:level='2' style:num-format=''/>"
    "</text:outline-style>"
)


def odt_list(*items: str, attributes: str = "") -> str:
    inner = (f"<text:list-item>{item}</text:list-item>" for item in items)
    return f"<text:list {attributes}>{''.join(inner)}</text:list>"


def odt_words(text: str) -> str:
    return f"<text:p>{text}</text:p>"


def test_lists_and_headings_have_their_numbers() -> None:
    deep = odt_list(odt_words("deep") + odt_list(odt_words("deeper")))
    first = odt_list(odt_words("one") + deep, odt_words("two"), attributes="text:style-name='L1' xml:id='l7'")
    again = odt_list(odt_words("three"), attributes="text:style-name='L1' text:continue-numbering='true'")
    fourth = odt_list(odt_words("four"), attributes="text:style-name='L1' text:continue-list='l7'")
    fresh = odt_list(odt_words("fresh"), attributes="text:style-name='L1'")
    later = fresh.replace("<text:list-item>", "<text:list-item text:start-value='9'>")
    points = odt_list(odt_words("point"), attributes="text:style-name='L2'")
    heads = "<text:h text:outline-level='1'>Lease</text:h><text:h text:outline-level='2'>Rent</text:h>"
    text = odt(heads + first + again + fourth + fresh + later + points + heads, NUMBERS).text
    assert text.split("\n\n") == [
        "# I. Lease", "## Rent", "1. one\n   (a) deep\n       1.a.0 deeper\n2. two", "3. three", "4. four", "1. fresh",
        "9. fresh", "- point", "# II. Lease", "## Rent",
    ]  # fmt: skip


def test_objects_that_are_formulas_and_charts_are_read() -> None:
    def part(body: str) -> str:
        names = " ".join(f"xmlns:{name}='urn:{name}'" for name in ("office", "chart", "table", "text", "math"))
        return f"<office:document-content {names}>{body}</office:document-content>"

    cells = (
        "<table:table-cell><text:p>2024</text:p></table:table-cell>"
        "<table:table-cell table:number-columns-repeated='2'><text:p>8.50</text:p></table:table-cell>"
    )
    row = f"<table:table-row>{cells}</table:table-row>"
    drawn = "<table:shapes/>"
    chart = part(f"<chart:chart chart:class='bar'><table:table>{row}</table:table>{drawn}</chart:chart>")
    formula = (
        "<math xmlns='http://www.w3.org/1998/Math/MathML'><semantics><msup><mi>c</mi><mn>2</mn></msup>"
        "<annotation encoding='StarMath 5.0'>c^2 junk</annotation></semantics></math>"
    )
    frame = "<draw:frame><draw:object xlink:href='./Object {}'/><draw:image xlink:href='./a'/></draw:frame>"
    body = (
        f"<text:p>E = m{frame.format(1)}</text:p><text:p>{frame.format(2)}</text:p><text:p>{frame.format(3)}</text:p>"
    )
    text = extract(make_odt(body, **{"Object 1": formula, "Object 2": chart}), suffix=".odt")
    assert text.text == "E = m c^2\n\n| 2024 | 8.50 | 8.50 |"
    assert losses(text) == ["1 embedded object", "1 picture without a text", "1 drawing"]


def test_a_formula_without_a_picture_hides_no_other() -> None:
    formula = "<math xmlns='http://www.w3.org/1998/Math/MathML'><mn>2</mn></math>"
    told = "<draw:frame><draw:object xlink:href='./Object 1'/></draw:frame>"
    body = f"<text:p>x <draw:frame><draw:image/></draw:frame>{told}{told}</text:p>"
    assert losses(extract(make_odt(body, **{"Object 1": formula}), suffix=".odt")) == ["1 picture without a text"]


def test_raised_text_footnotes_comments_and_losses() -> None:
    styles = (
        "<style:style style:name='T1'><style:text-properties style:text-position='super 58%'/></style:style>"
        "<style:style style:name='T2'><style:text-properties style:text-position='sub 58%'/></style:style>"
    )
    body = (
        "<text:tracked-changes><text:changed-region><text:deletion><text:p>gone</text:p></text:deletion>"
        "</text:changed-region></text:tracked-changes>"
        "<text:p>10<text:span text:style-name='T1'>6</text:span> of H<text:span text:style-name='T2'>2</text:span>O"
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>See page 4.</text:p>"
        "</text:note-body></text:note> here<office:annotation><dc:creator>Ann</dc:creator><dc:date>2024-01-01</dc:date>"
        "<text:p>check</text:p></office:annotation> on <text:date>9 March</text:date>."
        "<draw:frame><draw:image xlink:href='Pictures/a.png'/></draw:frame><draw:control draw:control='c1'/></text:p>"
    )
    text = odt(body, styles)
    assert text.text == "10^6 of H_2O[^1] here on 9 March.\n\n[^1]: See page 4.\n\nComments:\n- check"
    assert losses(text) == ["1 deleted passage", "1 picture without a text", "1 form field"]


def test_headers_and_footers_of_pages_are_read_once() -> None:
    margins = "".join(
        f"<style:{kind}><text:p>{text}</text:p></style:{kind}>"
        for kind, text in (
            ("header", "Offer 77"),
            ("header-first", "Offer 77"),
            ("footer", "- 1 -"),
            ("footer", "low"),
        )
    )
    master = (
        f"<office:document-styles xmlns:office='o' xmlns:style='s' xmlns:text='t'>{margins}</office:document-styles>"
    )
    content = "<office:document-content xmlns:office='o' xmlns:text='t'><text:p>Body</text:p></office:document-content>"
    data = make_zip(
        {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content, "styles.xml": master}
    )
    text = extract(data, suffix=".odt")
    assert text.text == "Offer 77\n\nBody\n\nlow"
    assert losses(text) == []


def test_slides_of_an_odp() -> None:
    body = (
        "<draw:page><draw:frame presentation:class='title'><draw:text-box><text:p>Plan</text:p></draw:text-box>"
        "</draw:frame>"
        "<draw:frame><draw:text-box><text:p>Launch on 9 June.</text:p></draw:text-box></draw:frame>"
        "<presentation:notes><draw:frame><draw:text-box><text:p>Say hello.</text:p></draw:text-box></draw:frame>"
        "</presentation:notes></draw:page><draw:page><draw:frame><draw:text-box><text:p>End</text:p></draw:text-box>"
        "</draw:frame></draw:page>"
    )
    text = extract(make_odp(body), suffix=".odp")
    assert text.text == "## Plan\n\nLaunch on 9 June.\n\nNotes: Say hello.\n\nEnd"
    assert [place.name for place in text.places] == ["s1", "s2"]


def test_flat_xml_is_read() -> None:
    flat = (
        "<?xml version='1.0'?><office:document xmlns:office='o' xmlns:text='t'><text:p>Flat</text:p></office:document>"
    )
    assert extract(flat.encode(), suffix=".fodt").text == "Flat"


def test_a_locked_file_and_entities_are_refused() -> None:
    locked = {
        "mimetype": "application/vnd.oasis.opendocument.text",
        "META-INF/manifest.xml": "<a><encryption-data/></a>",
    }
    with pytest.raises(DocumentError, match="locked by a password"):
        extract(make_zip(locked), suffix=".odt")
    bomb = {
        "mimetype": "application/vnd.oasis.opendocument.text",
        "content.xml": "<!DOCTYPE x [<!ENTITY a 'a'>]><x>&a;</x>",
    }
    with pytest.raises(DocumentError, match="entities"):
        extract(make_zip(bomb), suffix=".odt")


def test_deep_nesting_costs_nothing() -> None:
    deep = "<text:section>" * 50_000 + "<text:p>deep</text:p>" + "</text:section>" * 50_000
    assert odt(deep).text == "deep"


def text_style(name: str, properties: str) -> str:
    return f"<style:style style:name='{name}'><style:text-properties {properties}/></style:style>"


def test_hidden_text_is_said() -> None:
    """By its style, its section, or a field that hides it; empty passages are nothing."""
    styles = text_style("H", "text:display='none'")
    body = (
        "<text:p>seen <text:span text:style-name='H'>code 9</text:span>5<text:span text:style-name='H'/></text:p>"
        "<text:p text:style-name='H'>code 8</text:p><text:h text:style-name='H' text:outline-level='1'>code 7</text:h>"
        "<text:section text:display='none'><text:p>code 6</text:p><text:p>more</text:p></text:section>"
        "<text:p>end<text:hidden-text text:is-hidden='true'>code 4</text:hidden-text></text:p>"
    )
    text = odt(body, styles)
    assert text.text == "seen 5\n\nend"
    assert losses(text) == ["5 passages of hidden text"]


def test_struck_text_readings_titles_and_words_about_pictures() -> None:
    styles = text_style("S", "style:text-line-through-style='solid'")
    frame = "<draw:frame><draw:image xlink:href='a'/><svg:title>{}</svg:title><svg:desc>{}</svg:desc></draw:frame>"
    body = (
        "<text:p>The fee is <text:span text:style-name='S'>50</text:span> 40</text:p>"
        "<text:p><text:ruby><text:ruby-base>漢</text:ruby-base><text:ruby-text>kan</text:ruby-text></text:ruby></text:p>"
        f"<text:p>Report <text:title>Lease 7</text:title>{frame.format('Plan', 'Door 5 in the north')}</text:p>"
        f"<text:p>x{frame.format('', '')}</text:p>"
    )
    text = odt(body, styles)
    assert text.text == "The fee is ~~50~~ 40\n\n漢(kan)\n\nReport Lease 7 Plan Door 5 in the north\n\nx"
    assert losses(text) == ["1 picture without a text"]


# --- rich text

FONTS = rb"{\fonttbl{\f0\fnil\fcharset0 Arial;}{\f1\fnil\fcharset204 Times;}{\f2\fnil\fcharset128 Mincho;}}"


def rtf(body: bytes) -> Text:
    return extract(rb"{\rtf1\ansi\ansicpg1252\deff0" + FONTS + body + b"}", suffix=".rtf")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (rb"The rent is 900 \'80.\par", "The rent is 900 €."),
        (rb"{\f1 \'cf\'f0\'e8\'e2\'e5\'f2}", "Привет"),
        (rb"{\f2 \'93\'fa\'96\'7b}", "日本"),
        (rb"Caf\u233?, \uc2\u8364xx and \uc1\u-10179?\u-8703?.", "Café, € and 😁."),
        (rb"10{\super 6} and H{\sub 2}O", "10^6 and H_2O"),
        (rb"x\super 2\nosupersub  holds", "x^2 holds"),
        (rb"{\pntext\f1\'B7\tab}first\par{\listtext 2.\tab}second\par", "- first\n\n2. second"),
        (rb"\outlinelevel1 Lease\par\pard Text\par", "## Lease\n\nText"),
        (rb"{\field{\*\fldinst HYPERLINK 'http://x'}{\fldrslt link}} end", "link end"),
        (rb"one\line two\~three\emdash four \{\}\\", "one\ntwo\xa0three—four {}\\"),
        (rb"{\*\unknown junk}{\info{\title Secret}}{\stylesheet{\s1\outlinelevel0 Heading;}}kept", "kept"),
        (b"split wo\r\nrd", "split word"),
        (rb"{\ansicpg7\'e4}", "ä"),
        (rb"{\mmathPr\mmathFont34\mbrkBin0\mdefJc1}{\listtext 1.\tab}One\par", "1. One"),
        (
            rb"{\i0\*\cs7\cf0 The mark of a destination is one at its beginning.}",
            "The mark of a destination is one at its beginning.",
        ),
        (rb"10{\up6\fs16 6} of H{\dn4 2}O", "10^6 of H_2O"),
        (rb"\trowd\intbl{Fax\cell 555 0199\cell }", "| Fax | 555 0199 |"),
    ],
)
def test_rich_text_is_read(body: bytes, shown: str) -> None:
    assert rtf(body).text == shown


def test_tables_footnotes_and_comments_of_rich_text() -> None:
    row = rb"\trowd\cellx1000\cellx2000\pard\intbl %s\cell %s\cell\row"
    body = row % (b"Year", b"Price") + row % (b"2023", b"1,200") + rb"\pard After.{\footnote\pard See page 4.\par}\par"
    text = rtf(body + rb"{\*\annotation check this}").text
    assert text == (
        "| Year | Price |\n| --- | --- |\n| 2023 | 1,200 |\n\nAfter.[^1]\n\n"
        "[^1]: See page 4.\n\nComments:\n- check this"
    )


def test_what_rich_text_does_not_show_is_said() -> None:
    text = rtf(
        rb"{\header Page\par}{\footer Page\par}seen{\v hidden}{\pict\pngblip 8950}{\deleted gone}{\object x}\bin3 \{\{"
    )
    assert text.text.startswith("Page\n\nseen")
    assert losses(text) == [
        "1 passage of hidden text", "1 picture without a text", "1 deleted passage",
        "1 embedded object",
    ]  # fmt: skip


def test_a_hidden_passage_of_rich_text_is_one() -> None:
    text = rtf(rb"one{\v\u1086?\u1076?{\strike 3} four}two{\v  }{\v five}\par")
    assert (text.text, losses(text)) == ("onetwo", ["2 passages of hidden text"])


def test_rich_text_is_known_by_its_beginning() -> None:
    assert extract(rb"{\rtf1 hello}", suffix=".doc").text == "hello"
    with pytest.raises(DocumentError, match="no RTF"):
        extract(b"plain", suffix=".rtf")


@pytest.mark.parametrize("piece", [b"{", rb"{\super 1}", rb"{\footnote x", rb"\'e4", rb"\ansicpg1252{", rb"\cell"])
def test_hostile_rich_text_takes_no_time(piece: bytes) -> None:
    assert isinstance(rtf(b"begin" + piece * 5000).text, str)


def test_margins_and_what_is_struck_out_in_rich_text() -> None:
    page = rb"{\field{\*\fldinst PAGE}{\fldrslt 1}}"
    margins = rb"{\header Offer 77\par}{\headerf Offer 77\par}{\footer " + page + rb"\par}{\footerf low\par}"
    text = rtf(margins + rb"The fee is {\strike 50} \strike 45\strike0  40\par")
    assert text.text == "Offer 77\n\nThe fee is ~~50~~ ~~45~~ 40\n\nlow"
    assert losses(text) == []
