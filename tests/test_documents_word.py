"""Word documents: every part is read, in a reader's order; figures stay apart; what is not text is said."""

import io
import zipfile

import docx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents import make_docx, make_zip
from support.pace import swift
from uncomp_cli.documents.text import NO_WISHES, Limits, Wishes
from uncomp_cli.documents.word import read
from uncomp_cli.documents.word.outline import Story
from uncomp_cli.errors import DocumentError, DoesNotFitError


def run(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*runs: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(one if one[:1] == '<' else run(one) for one in runs)}</w:p>"


def markdown(body: str, **parts: str) -> str:
    return read(make_docx(body, **parts), NO_WISHES).text


def losses(body: str, **parts: str) -> list[str]:
    return [str(loss) for loss in read(make_docx(body, **parts), NO_WISHES).losses]


UP, DOWN = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'
NUMBERING = """<w:abstractNum w:abstractNumId="0">
    <w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
    <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl>
    </w:abstractNum><w:abstractNum w:abstractNumId="1">
    <w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="•"/></w:lvl>
    </w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>
    <w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num><w:num w:numId="3"><w:abstractNumId w:val="0"/>
    <w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride></w:num>"""
STYLES = """<w:style w:type="paragraph" w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
    <w:style w:type="paragraph" w:styleId="Own"><w:basedOn w:val="berschrift2"/></w:style>
    <w:style w:type="paragraph" w:styleId="A"><w:basedOn w:val="B"/></w:style>
    <w:style w:type="paragraph" w:styleId="B"><w:basedOn w:val="A"/></w:style>
    <w:style w:type="paragraph" w:styleId="Items"><w:pPr><w:numPr><w:numId w:val="2"/></w:numPr></w:pPr></w:style>
    <w:style w:type="character" w:styleId="Mark"><w:rPr><w:vertAlign w:val="superscript"/></w:rPr></w:style>"""


def item(text: str, number: int, level: int = 0) -> str:
    return p(text, properties=f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def test_a_lease_with_all_that_was_dropped() -> None:
    comment = f'<w:comment w:id="4" w:author="Ann">{p("The deposit was paid.")}</w:comment>'
    body = (
        p(
            "The rent is ",
            '<w:del w:id="1"><w:r><w:delText>500</w:delText></w:r></w:del>',
            f"<w:ins>{run('510')}</w:ins>",
        )
        + p("The deposit is 800.", '<w:r><w:commentReference w:id="4"/></w:r>')
        + p(
            "Key",
            '<w:r><w:footnoteReference w:id="2"/></w:r>',
            " and lock",
            '<w:r><w:endnoteReference w:id="2"/></w:r>',
        )
        + p(
            '<w:sdt><w:sdtPr><w:alias w:val="no text"/></w:sdtPr><w:sdtContent>'
            + run("chosen 6")
            + "</w:sdtContent></w:sdt>"
        )
    )
    found = read(
        make_docx(
            body,
            header=p("Contract 5591"),
            header2=p("Contract 5591"),
            footer=p("Page") + p("2"),
            footer2=p("3"),
            comments=comment,
            footnotes=f'<w:footnote w:id="0" w:type="separator">{p("x")}</w:footnote>'
            f'<w:footnote w:id="2">{p("of iron")}</w:footnote>',
            endnotes=f'<w:endnote w:id="2">{p("of brass")}{p("or tin")}</w:endnote>',
        ),
        NO_WISHES,
    )
    assert found.text.split("\n\n") == [
        "Contract 5591",
        "The rent is 510",
        "The deposit is 800.[comment 1]",
        "Key[^1] and lock[^e1]",
        "chosen 6",
        "Page",
        "2",
        "[comment 1] Ann: The deposit was paid.",
        "[^1]: of iron",
        "[^e1]: of brass",
        "    or tin",
    ]
    assert [str(loss) for loss in found.losses] == ["1 deleted passage"]


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (("10", run("6", UP), " rays"), "10^6 rays"),
        (("3.2×10", run("-", UP), run("4", UP)), "3.2×10^-4"),
        (("H", run("2", DOWN), "O"), "H_2O"),
        (("x", run("2", '<w:rStyle w:val="Mark"/>'), "=9"), "x^2=9"),
        (("$40", run("1", UP), " net"), "$40[1] net"),
        (("a", "<w:r><w:tab/></w:r>", "b", "<w:r><w:br/></w:r>", "c"), "a b\nc"),
        (("5", "<w:r><w:noBreakHyphen/></w:r>", "9"), "5-9"),
        (('<w:r><w:sym w:font="Symbol" w:char="F0B3"/></w:r>', "4"), "≥4"),
        (('<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>', " paid"), "☑ paid"),
        (('<w:r><w:fldChar w:fldCharType="begin"/><w:instrText>PAGE 77</w:instrText></w:r>', "8"), "8"),
        (('<w:hyperlink r:id="x">' + run("a link") + "</w:hyperlink>",), "a link"),
        (("<w:ruby><w:rt>" + run("とう") + "</w:rt><w:rubyBase>" + run("東") + "</w:rubyBase></w:ruby>",), "東(とう)"),
    ],
)
def test_runs(runs: tuple[str, ...], text: str) -> None:
    assert markdown(p(*runs), styles=STYLES) == text


def test_fields_of_forms() -> None:
    box = '<w:r><w:fldChar><w:ffData><w:checkBox><w:default w:val="0"/>{}</w:checkBox></w:ffData></w:fldChar></w:r>'
    choice = '<w:ddList><w:result w:val="1"/><w:default w:val="2"/>{}</w:ddList>'
    entries = "".join(f'<w:listEntry w:val="{month}"/>' for month in ("May", "June", "July"))
    listed = f"<w:r><w:fldChar><w:ffData>{choice.format(entries)}</w:ffData></w:fldChar></w:r>"
    body = p(box.format("<w:checked/>"), "tea", box.format(""), "oil in ", listed)
    assert markdown(body) == "[x] tea[ ] oil in June"


def test_headings_and_lists_have_the_labels_that_word_shows() -> None:
    body = (
        p("Rooms", properties='<w:pStyle w:val="berschrift2"/>')
        + p("Ring", properties='<w:pStyle w:val="A"/>')
        + item("one", 1) + item("two", 1, 1) + item("three", 1, 1) + item("four", 1)
        + p("between") + item("eight", 3) + item("five", 1) + p("dot", properties='<w:pStyle w:val="Items"/>')
        + p("Own", properties='<w:pStyle w:val="Own"/><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>')
    )  # fmt: skip
    text = markdown(body, styles=STYLES, numbering=NUMBERING)
    assert [line for line in text.split("\n") if line] == [
        *("## Rooms", "Ring", "1. one", "  1.a) two", "  1.b) three", "2. four", "between", "7. eight", "3. five"),
        *("- dot", "## 4. Own"),
    ]


def test_each_figure_stands_under_its_headers() -> None:
    def cell(text: str, properties: str = "") -> str:
        return f"<w:tc><w:tcPr>{properties}</w:tcPr>{p(text)}</w:tc>"

    down, on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    wide = '<w:gridSpan w:val="2"/>'
    header = "<w:trPr><w:tblHeader/></w:trPr>"
    rows = (
        header + cell("Port", down) + cell("Tons", wide),
        header + cell("", on) + cell("1901") + cell("1902"),
        cell("East", down) + cell("5") + cell("6"),
        cell("", on) + cell("7") + cell("8"),
        "<w:trPr><w:del w:id='3'/></w:trPr>" + cell("gone") + cell("1") + cell("2"),
    )
    body = "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"
    lines = ["| Port | Tons 1901 | Tons 1902 |", "| --- | --- | --- |", "| East | 5 | 6 |", "| East | 7 | 8 |"]
    assert markdown(body).split("\n") == lines
    assert losses(body) == ["3 deleted passages"]


def test_formulas() -> None:
    def part(tag: str, content: str) -> str:
        return f"<m:{tag}>{content}</m:{tag}>"

    def t(text: str) -> str:
        return f"<m:r><w:rPr><w:i/></w:rPr><m:t>{text}</m:t></m:r>"

    fraction = part("f", '<m:fPr><m:type m:val="bar"/></m:fPr>' + part("num", t("a+b")) + part("den", t("2")))
    power = part("sSup", "<m:sSupPr><m:ctrlPr/></m:sSupPr>" + part("e", t("x")) + part("sup", t("2")))
    root = part("rad", '<m:radPr><m:degHide m:val="1"/></m:radPr>' + part("deg", "") + part("e", t("y")))
    total = part(
        "nary",
        '<m:naryPr><m:chr m:val="∑"/></m:naryPr>' + part("sub", t("i=1")) + part("sup", t("n")) + part("e", t("i")),
    )
    absolute = part("d", '<m:dPr><m:begChr m:val="|"/><m:endChr m:val="|"/></m:dPr>' + part("e", t("z")))
    body = p("Let ", part("oMath", fraction + t("=") + power), " and ", part("oMath", root + absolute + total), ".")
    assert markdown(body) == "Let (a+b)/(2)=x^2 and √(y)|z|∑_(i=1)^n i."


def test_boxes_pictures_and_what_has_no_text() -> None:
    box = "<w:txbxContent>" + p("in the box 4411") + "</w:txbxContent>"
    both = f"<mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
    twice = f"<w:r><mc:AlternateContent>{both}</mc:AlternateContent></w:r>"
    picture = '<w:r><w:drawing><wp:docPr name="n" {}/><a:blip r:embed="x"/></w:drawing></w:r>'
    body = (
        p("before ", twice, "behind")
        + p(picture.format('descr="A lamp 5"'), picture.format(""))
        + p("<w:r><w:drawing><c:chart r:id='x'/></w:drawing></w:r>", "<w:r><w:object><v:shape/></w:object></w:r>")
        + p(run("unseen", "<w:vanish/>"), run("seen", '<w:vanish w:val="0"/>'))
        + '<w:altChunk r:id="x"/>'
    )
    assert markdown(body) == "before behind\n\nin the box 4411\n\nA lamp 5\n\nseen"
    said = ["1 picture without a text", "1 chart", "1 passage of hidden text", "1 embedded document"]
    assert losses(body) == said


def test_a_large_first_letter_belongs_to_its_word() -> None:
    assert markdown(p("D", properties='<w:framePr w:dropCap="drop"/>') + p("rop caps.")) == "Drop caps."


@pytest.mark.parametrize("namespace", ["http://purl.oclc.org/ooxml", "http://schemas.openxmlformats.org"])
def test_strict_files_and_other_names_of_the_main_part(namespace: str) -> None:
    types = f"{namespace}/officeDocument/relationships"
    data = make_zip(
        {
            "_rels/.rels": f'<a:Relationships xmlns:a="x"><a:Relationship Id="r" Type="{types}/officeDocument" '
            'Target="/w/main.xml"/></a:Relationships>',
            "w/main.xml": f'<x:document xmlns:x="{namespace}"><x:p><x:r><x:t>found 5</x:t></x:r></x:p></x:document>',
        }
    )
    assert read(data, NO_WISHES).text == "found 5"


# --- hostile files


@pytest.mark.parametrize("tag", ["w:p", "w:sdt", "w:txbxContent", "m:oMath", "w:tbl><w:tr><w:tc", "w:ins"])
def test_no_depth_is_too_deep(tag: str) -> None:
    opened, closed = f"<{tag}>", "".join(f"</{name}>" for name in reversed(tag.split("><")))
    with swift(2):
        text = markdown(p("before 1") + opened * 5_000 + p("deep 2") + closed * 5_000 + p("behind 3"))
        assert [word for word in text.split() if word.isdigit()] == ["1", "2", "3"]


def test_many_notes_take_time_by_their_number() -> None:
    story = Story({}, {})
    with swift(2):
        marks = [story.mark(kind, str(number)) for number in range(15_000) for kind in ("footnote", "endnote")]
        assert marks[-2:] == ["[^15000]", "[^e15000]"]


def test_entities_are_refused_unread() -> None:
    bomb = '<!DOCTYPE w [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><w:document><w:body>&b;</w:body></w:document>'
    data = make_zip({"_rels/.rels": '<R><Relationship Type="x/officeDocument" Target="d.xml"/></R>', "d.xml": bomb})
    with pytest.raises(DocumentError, match="defines entities"):
        read(data, NO_WISHES)


def test_what_it_unpacks_to_is_counted() -> None:
    with pytest.raises(DoesNotFitError, match="unpacks to"):
        read(make_docx(p("x" * 200_000)), Wishes(limits=Limits(expanded_bytes=100_000)))


@pytest.mark.parametrize("keep", [0, 30, 400])
def test_damaged_files_are_refused(keep: int) -> None:
    with pytest.raises(DocumentError, match="damaged"):
        read(make_docx()[:keep], NO_WISHES)


@pytest.mark.parametrize("content", ["<w:document><w:p>", "", "no xml", "<a>\x01</a>"])
def test_damaged_parts_are_refused(content: str) -> None:
    data = make_zip({"_rels/.rels": '<R><Relationship Type="x/officeDocument" Target="d.xml"/></R>', "d.xml": content})
    with pytest.raises(DocumentError, match="damaged"):
        read(data, NO_WISHES)
    with pytest.raises(DocumentError, match="no main part"):
        read(make_zip({"a": content}), NO_WISHES)


# --- round trips

_WORDS = st.lists(st.text("abcdefghijäöß0123456789.,", min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=settings().max_examples // 3)
@given(st.lists(st.tuples(st.sampled_from(["Normal", "Heading 2", "List Bullet", "List Number"]), _WORDS), max_size=8))
def test_every_word_is_read_once_and_in_order(paragraphs: list[tuple[str, str]]) -> None:
    document = docx.Document()
    for style, words in paragraphs:
        document.add_paragraph(words, style=style)
    file = io.BytesIO()
    document.save(file)
    lines = [line for line in read(file.getvalue(), NO_WISHES).text.split("\n") if line]
    bare = {"Normal": 0, "Heading 2": 1, "List Bullet": 1, "List Number": 1}
    assert [" ".join(line.split()[bare[style] :]) for line, (style, _) in zip(lines, paragraphs, strict=True)] == [
        words for _, words in paragraphs
    ]


def test_charts_of_word_are_their_numbers() -> None:
    def cache(kind: str, *values: str, code: str = "") -> str:
        points = "".join(f"<c:pt idx='{at}'><c:v>{value}</c:v></c:pt>" for at, value in enumerate(values))
        return f"<c:{kind}Ref><c:{kind}Cache><c:formatCode>{code}</c:formatCode>{points}</c:{kind}Cache></c:{kind}Ref>"

    series = (
        f"<c:ser><c:tx>{cache('str', 'Rent')}</c:tx><c:cat>{cache('str', '1.10', 'May')}</c:cat>"
        f"<c:val>{cache('num', '4.4000000000000004', '0.25', code='0.0%')}</c:val></c:ser>"
    )
    chart = f"<c:chart><c:plotArea><c:bar>{series}</c:bar></c:plotArea></c:chart>"
    data = make_docx(p("<w:r><w:t>Rents</w:t><w:drawing><c:chart r:id='rchart'/></w:drawing></w:r>"), chart=chart)
    text = read(data, NO_WISHES)
    assert text.text == "Rents\n\nChart\n\n|  | Rent |\n| --- | --- |\n| 1.10 | 440.0% |\n| May | 25.0% |"
    assert text.losses == ()


def test_a_cell_with_no_more_than_its_number_has_it() -> None:
    row = f"<w:tr><w:tc>{item('', 1)}</w:tc><w:tc>{p('Cache is secure')}</w:tc></w:tr>"
    assert markdown(f"<w:tbl>{row}{row}</w:tbl>", numbering=NUMBERING) == (
        "| 1. | Cache is secure |\n| 2. | Cache is secure |"
    )


# --- what runs and fields look like

RAISED, SUNK = '<w:position w:val="6"/><w:sz w:val="14"/>', '<w:position w:val="-6"/>'
LOOKS = """<w:style w:type="paragraph" w:styleId="Hid"><w:rPr><w:vanish/></w:rPr></w:style>
    <w:style w:type="character" w:styleId="Up"><w:rPr><w:position w:val="8"/></w:rPr></w:style>
    <w:style w:type="character" w:styleId="Out"><w:rPr><w:strike/></w:rPr></w:style>"""


def test_a_run_that_is_moved_is_raised_or_lowered() -> None:
    fitted = run("x", '<w:position w:val="1"/>')
    body = p("10", run("7", RAISED), " of H", run("2", SUNK), "O", fitted, " 10", run("8", '<w:rStyle w:val="Up"/>'))
    assert markdown(body, styles=LOOKS) == "10^7 of H_2Ox 10^8"


def test_what_is_struck_out_is_marked() -> None:
    body = p("The fee is ", run("$50", "<w:strike/>"), run(" net", "<w:dstrike/>"), run("$40", '<w:strike w:val="0"/>'))
    assert markdown(body) == "The fee is ~~$50 net~~$40"
    assert markdown(p(run("gone", '<w:rStyle w:val="Out"/>')) + p("stays"), styles=LOOKS) == "~~gone~~\n\nstays"


def test_hidden_paragraphs_and_rows_are_said() -> None:
    hidden = p("secret 9", properties='<w:pStyle w:val="Hid"/>') + p("seen")
    assert markdown(hidden, styles=LOOKS) == "seen"
    assert losses(hidden, styles=LOOKS) == ["1 passage of hidden text"]
    rows = "".join(
        f"<w:tr>{more}<w:tc>{p(text)}</w:tc></w:tr>"
        for more, text in (("<w:trPr><w:hidden/></w:trPr>", "5"), ("", "6"))
    )
    assert markdown(f"<w:tbl>{rows}</w:tbl>") == "6"
    assert losses(f"<w:tbl>{rows}</w:tbl>") == ["1 passage of hidden text"]


def field(code: str, *result: str) -> str:
    def mark(kind: str) -> str:
        return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

    shown = "".join([mark("separate"), *map(run, result)]) if result else ""
    return f"{mark('begin')}<w:r><w:instrText>{code}</w:instrText></w:r>{shown}{mark('end')}"


def test_a_field_that_was_never_worked_out_is_said() -> None:
    body = p("Total ", field(" =SUM(ABOVE) "), "of ", field(" REF x ", "Section 3"), field(" PAGE "), field(' XE "a" '))
    assert markdown(body) == "Total of Section 3"
    assert losses(body) == ["1 field without a result"]


def test_diagrams_are_read() -> None:
    document = docx.Document()
    document.add_paragraph("before")
    relation = '<dgm:relIds xmlns:dgm="d" xmlns:r="r" r:dm="rId77"/>'
    file = io.BytesIO()
    document.save(file)
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    rels, target = "word/_rels/document.xml.rels", "diagrams/data1.xml"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/diagramData"
    added = f'<Relationship Id="rId77" Type="{kind}" Target="{target}"/></Relationships>'
    parts[rels] = parts[rels].replace(b"</Relationships>", added.encode())
    drawn = f"<w:p><w:r><w:drawing>{relation}</w:drawing></w:r></w:p><w:sectPr"
    parts["word/document.xml"] = parts["word/document.xml"].replace(b"<w:sectPr", drawn.encode(), 1)
    parts["word/" + target] = b"<m><ptLst><pt><t><p><r><t>Plan in May</t></r></p></t></pt></ptLst></m>"
    assert read(make_zip(parts), NO_WISHES).text == "before\n\nPlan in May"
