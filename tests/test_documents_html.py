"""HTML as Markdown: what a person sees is there, in order, with its numbers as they are; what is not is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.documents import make_html
from support.pace import swift
from uncomp_cli.documents.grid import ROWS_A_HEADER
from uncomp_cli.documents.html import read, to_markdown
from uncomp_cli.documents.text import NO_WISHES, Wishes

GERMAN = "Die Küste war grün, und über den Dächern hörte man die Möwen."
JAPANESE = "灯台守は毎晩ランプに油を差し、霧が出ると鐘を鳴らした。"


def markdown(html: str) -> str:
    return to_markdown(html)[0]


def losses(html: str) -> list[str]:
    return [str(loss) for loss in to_markdown(html)[1]]


# --- depth and size


@pytest.mark.parametrize("tag", ["div", "b", "ul><li", "table><tr><td", "blockquote", "sup", "del", "math><mrow"])
def test_no_depth_is_too_deep(tag: str) -> None:
    """Trees of libxml2 end at 254 or 2,048 elements, and what recurses at fewer."""
    with swift(2):
        text = markdown(f"<p>The fee is 10.</p>{f'<{tag}>' * 20_000}deep 77<p>The door is 5.")
        assert "The fee is 10." in text
        assert text.index("deep 77") < text.index("The door is 5.")


def test_unclosed_tags_lose_nothing() -> None:
    text = markdown("<html><body>" + "\n".join(f"<i>Item {i}<br>costs {i * 3}." for i in range(1, 601)))
    assert all(f"Item {i}\ncosts {i * 3}." in text for i in range(1, 601))


def test_nodes_of_more_than_ten_megabytes() -> None:
    text = markdown(f"<p title='{'x' * 11_000_000}'>before</p><p>{'word ' * 2_300_000}</p><p>the end is 9</p>")
    assert text.startswith("before\n")
    assert text.endswith("the end is 9")


# --- raised and lowered


SHEET = "<style>/* a */ .up, b.x {size: 8px; vertical-align: super} @media print {.dn{vertical-align:sub}}</style>"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("it counted 10<sup>9</sup> stars", "it counted 10^9 stars"),
        ("4.7&times;10<sup>-3</sup> s", "4.7×10^-3 s"),
        ("y<sup>2</sup>=16", "y^2=16"),
        ("CO<sub>2</sub> and H<sub>2</sub>SO<sub>4</sub>", "CO_2 and H_2SO_4"),
        ("12 m<sup>2</sup>, 9 km<sup>2</sup>", "12 m^2, 9 km^2"),
        ("a<sup>n+1</sup>b<sub>i,j</sub>", "a^(n+1)b_(i,j)"),
        ("x<sup>n</sup>y", "x^(n)y"),
        ("10<sup>6</sup>5", "10^(6)5"),
        ("x<sub>i</sub><sup>2</sup>", "x_i^2"),
        ("e<sup>x<sup>2</sup></sup>", "e^(x^2)"),
        ("the 21<sup>st</sup> of May, 1<sup>er</sup> mai", "the 21st of May, 1er mai"),
        ("Widget<sup>TM</sup>", "WidgetTM"),
        ("<sup>14</sup>C dating", "^14C dating"),
        ("3<sup>1</sup>/<sub>2</sub> cups", "3 1/2 cups"),
        ("x<sup></sup>y", "xy"),
        ('<span style="vertical-align: super">2</span>', "[2]"),
        # Marks of notes are no powers.
        ("It costs $40.<sup>1</sup>", "It costs $40.[1]"),
        ("It costs $40<sup>1</sup> net", "It costs $40[1] net"),
        ('a price of 40<sup><a href="#fn1">1</a></sup> euros', "a price of 40[1] euros"),
        ('a price of 40<a href="#fn1"><sup>1</sup></a> euros', "a price of 40[1] euros"),
        ('in 1998<sup class="reference"><a href="#cite-3">[3]</a></sup>', "in 1998[3]"),
        ('word<a epub:type="noteref" href="#n2">2</a>', "word[2]"),
        ("the harbour<sup>12</sup> was", "the harbour[12] was"),
        ("60<sup>*</sup> men", "60[*] men"),
        ("the harbour<sup>2,3</sup> was", "the harbour[2,3] was"),
        ("10<span style='vertical-align:super'>7</span>", "10^7"),
        ("10<span style='position:relative;top:-0.4em;font-size:70%'>7</span>", "10^7"),
        ("10<font style='vertical-align: 4px'>7</font>", "10^7"),
        ("10<span style='mso-text-raise:3.0pt'>7</span>", "10^7"),
        ("H<span style='vertical-align:-25%'>2</span>O", "H_2O"),
        ("H<span style='position:relative;top:3.0pt;font-size:8pt'>2</span>O", "H_2O"),
        ("pin 4<span style='vertical-align:-1px'>5</span>", "pin 45"),
        ("pin 4<span style='top:-9px'>5</span>", "pin 45"),
        (f"{SHEET}10<span class='a up'>7</span> H<i class=dn>2</i>O", "10^7 H_2O"),
        (f"{SHEET}10<a class=up>7</a> fee<a class=up href='#n1'>3</a>", "10^7 fee[3]"),
        ("10<span class=superscript>7</span> H<span class=subscript>2</span>O", "10^7 H_2O"),
    ],
)
def test_scripts(html: str, text: str) -> None:
    assert markdown(f"<p>{html}</p>") == text


def test_a_note_further_down_makes_marks_of_what_would_be_powers() -> None:
    html = "<p>In 1931<sup>2</sup> it had 10<sup>2</sup> rooms of 9 m<sup>2</sup>.</p><p><sup>2</sup>By a guess.</p>"
    assert markdown(html) == "In 1931[2] it had 10^2 rooms of 9 m^2.\n\n[2] By a guess."
    assert "1931^2" in markdown("<p>In 1931<sup>2</sup> it had rooms.</p>")


@given(st.integers(0, 10**6), st.integers(-99, 99), st.sampled_from(["", " ", "<i>", "<b> "]))
def test_no_figure_runs_into_another(base: int, exponent: int, between: str) -> None:
    text = markdown(f"<p>{base}{between}<sup>{exponent}</sup></p>")
    assert str(base) in text
    assert f"{base}{exponent}" not in text.replace(" ", "")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<mfrac><mn>1</mn><mn>2</mn></mfrac>", "(1)/(2)"),
        ("<msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><msub><mi>y</mi><mi>i</mi></msub>", "x^2+y_i"),
        ("<mlongdiv><mn>3</mn><mn>435.3</mn><msgroup><mn>12</mn><mn>9</mn></msgroup></mlongdiv>", "3 435.3 12 9"),
        ("<msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt>", "√(x+1)"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot>", "(x)^(1/3)"),
        ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>", "∑_(i=1)^n"),
        ("<msup><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></msup>", "(a+b)^2"),
        ("<mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd><mtd>4</mtd></mtr></mtable>", "[1, 2; 3, 4]"),
        ("<semantics><mi>z</mi><annotation encoding='application/x-tex'>z_0</annotation></semantics>", "z"),
    ],
)
def test_formulas(html: str, text: str) -> None:
    assert markdown(f"<p>Let <math>{html}</math> be.</p>") == f"Let {text} be."


def test_an_unclosed_formula_ends_at_a_block() -> None:
    assert markdown("<p>Let <math><mi>x</mi><p>Second 2<h2>Third</h2>") == "Let x\n\nSecond 2\n\n## Third"


# --- tables


def test_each_figure_stands_under_its_headers() -> None:
    html = """<table><tr><th rowspan=2>Port</th><th colspan=2>Tons</th><th rowspan=2>Note</th></tr>
        <tr><th>1901</th><th>1902</th></tr><tr><td rowspan=2>East</td><td>5</td><td>6</td><td>a</td></tr>
        <tr><td>7</td><td>8</td></tr><tr><td>West</td><td colspan=2>9</td><td>b</td></tr></table>"""
    assert markdown(html).split("\n") == [
        "| Port | Tons 1901 | Tons 1902 | Note |",
        "| --- | --- | --- | --- |",
        "| East | 5 | 6 | a |",
        "| East | 7 | 8 |",
        "| West | 9 | 9 | b |",
    ]


def test_a_span_ends_with_its_group_of_rows() -> None:
    html = """<table><tr><th>Port<th>Tons<tbody><tr><td rowspan=0>East<td>5<tr><td>6<tbody><tr><td>West<td rowspan=9>7
        <tfoot><tr><td>All<td>18</table>"""
    rows = ["| Port | Tons |", "| --- | --- |", "| East | 5 |", "| East | 6 |", "| West | 7 |", "| All | 18 |"]
    assert markdown(html).split("\n") == rows


def test_a_table_in_a_cell_moves_no_figure_from_its_header() -> None:
    html = """<table><tr><th>Port<th colspan=2>1901<tr><td rowspan=2>East<td>5<td>6<tr><td>7<td>
        <table><tr><th>May<th>June<tr><td>8<td>9</table></table>"""
    assert markdown(html).split("\n")[2:] == ["| East | 5 | 6 |", "| East | 7 | May, June; 8, 9 |"]


def test_a_long_table_repeats_its_header() -> None:
    rows = "".join(f"<tr><td>{i}<td>{i * i}" for i in range(ROWS_A_HEADER * 2))
    text = markdown(f"<table><thead><tr><td>n<td>square</thead>{rows}</table>")
    assert text.count("| n | square |\n| --- | --- |") == 2
    assert "| 59 | 3481 |" in text


def test_a_table_is_one_however_many_parts_it_is_written_in() -> None:
    """Rows are written by some hundreds; what spans them, and the header, goes on."""
    rows = "".join(f"<tr>{f'<td rowspan=7>P{i // 7}' if i % 7 == 0 else ''}<td>{i}" for i in range(2_100))
    lines = markdown(f"<table><tr><th>Port<th>n{rows}<tr><td colspan=2>end</table>").split("\n")
    body = [line for line in lines if line[2:3] == "P" and line != "| Port | n |"]
    assert body == [f"| P{i // 7} | {i} |" for i in range(2_100)]
    assert [at for at, line in enumerate(lines) if line == "| Port | n |"] == [33 * i for i in range(71)]
    assert lines[-1] == "| end |  |"


def test_tables_that_lay_out_a_page_are_text() -> None:
    inner = "<table><tr><th>a<th>b<tr><td>1<td>2</table>"
    html = f"<table><tr><td>Menu<td><h1>Page</h1><p>One.</p>{inner}</td></tr></table>"
    assert markdown(html) == "Menu\n\n# Page\n\nOne.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown("<table><tr><td>One.<tr><td>Two.</table>") == "One.\nTwo."


def test_cells_of_several_lines_stay_in_their_row() -> None:
    html = "<table><tr><th>a<th>b<tr><td>x<br>y:<br>z<td><ul><li>1<li>2</ul></table>"
    assert markdown(html).split("\n")[2] == "| x; y: z | - 1; - 2 |"


def test_spans_are_no_bomb() -> None:
    html = "<table><tr>" + "<td rowspan=65534 colspan=1000>a long text" * 500 + "<tr><td>9" * 5_000 + "</table>"
    with swift(2):
        assert len(markdown(html)) < 2_000_000


@pytest.mark.parametrize(
    "page",
    ["<select><option>a b  c" * 6_000, "<style>" + "/* " * 60_000, f"<b style='vertical-align:{'1' * 30_000}x'>x</b>"],
)
def test_pages_take_time_by_their_length(page: str) -> None:
    with swift(2):
        markdown(page)


def test_text_between_cells_is_kept() -> None:
    assert markdown("<table>stray 7<tr>and 8<td>a<td>b</table>") == "stray 7\nand 8\n| a | b |"


# --- blocks and lines


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h2>A <br>b</h2>c", "## A b\n\nc"),
        ("<ul><li>a<ul><li>b<li>c</ul><li>d</ul>e", "- a\n  - b\n  - c\n- d\n\ne"),
        ("<ul><li><p>a</p><p>b</p><li><p>c</p></ul>", "- a\n\n  b\n- c"),
        ("<ol start=3><li>a<li value=7>b<li>c</ol>", "3. a\n7. b\n8. c"),
        ("<ol reversed><li>a<ol type=a reversed><li>x<li>y</ol><li>b<li>c</ol>", "3. a\n   b. x\n   a. y\n2. b\n1. c"),
        ("<ol reversed><li>a<li>b</ol>" * 13, "\n\n".join(["2. a\n1. b"] * 13)),
        ("<ol reversed start=9><li>a<li>b</ol>", "9. a\n8. b"),
        ("<time>9 May 2022</time><time>30 May 2022</time>, <time>1:30</time>", "9 May 2022 30 May 2022, 1:30"),
        ("<ol type=a><li>x<li>y</ol><ol type=I><li value=4>z</ol>", "a. x\nb. y\n\nIV. z"),
        ("<dl><dt>term<dd>meaning<dd>another</dl>", "term\n: meaning\n: another"),
        ("<dl><dt>a<dd>b<p>c<dt>d<dd>e<dl><dd>f</dl></dl>", "a\n: b\n\n  c\nd\n: e\n  : f"),
        ("<ul><li><div>a<li><div><b>b<li>c</ul>", "- a\n- b\n- c"),
        ("<blockquote><p>a</p><p>b</p></blockquote>c", "> a\n>\n> b\n\nc"),
        ("<pre>\nif x:\n    y = 1\n</pre>z", "```\nif x:\n    y = 1\n```\n\nz"),
        ("<pre>a ``` b</pre>", "````\na ``` b\n````"),
        ("a<hr>b<br>c", "a\n\n---\n\nb\nc"),
        ("<div>a</div><div>b</div>", "a\nb"),
        ("<span>a</span><span>b</span> <i>c</i>d", "ab cd"),
        ("<nav><a href=x>Home</a><a href=y>About</a></nav>", "Home About"),
        ("<span style='display:block'>a</span>b", "a\nb"),
        ("x\n\t y&nbsp;z exam&shy;ple", "x y z example"),
        ("<q>Yes</q>, <del>50</del> <s></s>40", '"Yes", ~~50~~ 40'),
        ("<ruby>東京<rp>(</rp><rt>とうきょう</rt><rp>)</rp></ruby>", "東京(とうきょう)"),
        ("<ruby>東<rp>(<rt>とう<rp>)</ruby>x", "東(とう)x"),
        ("<details><summary>More</summary>the 8</details>", "More\nthe 8"),
        ("<title>T  1</title><p>x</p>", "T 1\n\nx"),
        ("<title>Same</title><h1>Same</h1><p>x</p>", "# Same\n\nx"),
        ("a &lt;b&gt; &amp;amp; &#150; &madeup; x&lt", "a <b> &amp; – &madeup; x<"),
        ("a\0b\ufdd0c", "abc"),
        ('<a href="https://x.org/7"></a><a href="#y"></a>', "https://x.org/7"),
        ('<a href="https://x.org/?id=7&hash=31"><img></a>', ""),
    ],
)
def test_blocks(html: str, text: str) -> None:
    assert markdown(html) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("Name <input value='Vale'><input type=hidden value=7><input type=password value=p>", "Name Vale"),
        ("<input type=checkbox checked>tea<input type=radio>oil", "[x] tea [ ] oil"),
        ("<textarea>a <b>\nc</textarea>", "a <b> c"),
        ("in <select><option>May<option selected>June<option>July</select>.", "in June ."),
        ("in <select><option>May<option>June</select>", "in May"),
        ("<button>Go</button><button>Stop</button>", "Go Stop"),
        ("the<img alt='Oil lamp' src=x>shines", "the Oil lamp shines"),
        ("<svg><title>A chart</title><text>12 %</text></svg>", "A chart 12 %"),
        ("a <progress value=70 max=100></progress> b <meter value=0.6></meter> c", "a 70 of 100 b 0.6 of 1 c"),
        ("a <progress value=70 max=100>70 %</progress> b <progress></progress> c", "a 70 % b c"),
        ("<input placeholder='Your name'><input value=Ann placeholder=x>", "[empty: Your name] Ann"),
        (
            "<textarea placeholder='Say more'></textarea><textarea placeholder=x>ok 5</textarea>",
            "[empty: Say more]\nok 5",
        ),
        ("<map><area alt='North 5' href=x></map>", "North 5"),
        ("<ruby>東京<rt>とう</rt><rtc><rt>Tokyo</rt></rtc></ruby>", "東京(とう)(Tokyo)"),
        ("<template shadowrootmode=open><p>shown 5</p></template>", "shown 5"),
    ],
)
def test_fields_and_pictures(html: str, text: str) -> None:
    assert markdown(html) == text


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<img src=x><img src=y alt=''><img src=z width=1>", ["1 picture without a text"]),
        ("<svg><path d=x /></svg><svg aria-hidden=true></svg><img>", ["2 pictures without a text"]),
        ("<div hidden>tab 2</div><p style='display: none'>x</p><p hidden> </p>", ["2 passages of hidden text"]),
        ("<iframe src=x>no frames</iframe><video>no video</video>", ["1 embedded page", "1 film"]),
        ("<select><option>a<option>b<option>c</select>", ["2 choices that were not chosen"]),
        ("<script>if (a<b) x</script><style>p{}</style><template>t</template><noscript>n</noscript><!-- c -->", []),
        ("<div hidden><script>x()</script><template><p>t</p></template> </div>", []),
        (f"<noscript>{'word ' * 40}</noscript>" + "<p>shown " * 60, ["1 passage for browsers without scripts"]),
    ],
)
def test_what_is_left_out_is_said(html: str, said: list[str]) -> None:
    assert losses(html + "<p>seen</p>") == said
    assert markdown(html + "<p>seen</p>").endswith("seen")


@pytest.mark.parametrize(
    "page", ["<div style='display:none'>{}</div>", "<noscript><div></noscript>{}", "<section hidden>{}</section>"]
)
def test_a_page_that_a_script_would_show_is_read(page: str) -> None:
    found = read(
        page.format("<p>The rent is 900 crowns. <script>x()</script>" * 20).encode() + b"<p>Loading", NO_WISHES
    )
    assert found.text.count("The rent is 900 crowns.") == 20
    assert found.losses == ()
    assert "hidden" in found.notes[0]


def test_a_page_with_a_bit_of_everything() -> None:
    page = read(make_html(), NO_WISHES)
    assert page.text.split("\n\n")[:2] == ["# Fees", "10^6 rays cost $40[1]."]
    assert page.text.endswith("June Vale\nt\nA lamp (1)/(2)東(とう)")


# --- bytes


@pytest.mark.parametrize(
    ("head", "encoding", "text"),
    [
        ('<meta charset="windows-1252">', "cp1252", GERMAN),
        ("<meta http-equiv='Content-Type' content='text/html; charset=iso-8859-2'>", "iso8859-2", "Żółty dźwięk"),
        ("<meta charset=iso-8859-1>", "cp1252", "“costs” 5 € — says"),
        ("<meta charset=koi8-r>", "koi8-r", "Маяк"),
        ('<?xml version="1.0" encoding="Shift_JIS"?><html>', "shift_jis", JAPANESE),
        ("<meta charset=gb2312>", "gb18030", "灯塔"),
        ("<meta charset=macintosh>", "mac_roman", "café 5"),  # no guess finds it
        ("<meta charset=latin1>", "utf-8", GERMAN),  # the declaration is out of date
        ("<meta charset=gb2312>", "utf-8", JAPANESE),
        ("<meta charset=utf-16>", "utf-8", GERMAN),
        ("<meta charset=utf-8>", "utf-16", GERMAN),  # with a mark
        ("<meta charset=made-up>", "utf-8", GERMAN),
        ("", "utf-8", GERMAN),
    ],
)
def test_a_declared_encoding_is_believed_where_the_bytes_allow_it(head: str, encoding: str, text: str) -> None:
    page = read(f"{head}<title>x</title><p>{text}</p>".encode(encoding), NO_WISHES)
    assert page.text.split("\n\n")[-1] == text


def test_bytes_that_the_declared_encoding_has_not_are_counted() -> None:
    data = f"<meta charset=utf-8><p>{GERMAN * 9}</p>".encode() + b"<p>caf\xe9 5</p>"
    page = read(data, NO_WISHES)
    assert GERMAN in page.text
    assert [str(loss) for loss in page.losses] == ["1 byte that is no utf-8"]


def test_the_user_knows_the_encoding_better() -> None:
    data = f"<meta charset=windows-1252><p>{'Маяк'}</p>".encode("koi8-r")
    assert read(data, Wishes(encoding="koi8-r")).text == "Маяк"


def test_xhtml_elements_that_close_themselves() -> None:
    """In HTML a title runs to its end tag, and a self-closed one would take the whole text."""
    html = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x"/></head>'
    assert markdown(html + "<body><p>seen 5<br/>and 6</p><a id='x'/><p/>end</body></html>") == "seen 5\nand 6\n\nend"


# --- round trips

_WORDS = st.lists(st.text("abcdefghijäöß0123456789.,", min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(st.sampled_from(["p", "div", "h2", "li", "td", "blockquote", "dd", "pre", "th"]), _WORDS)))
def test_every_word_is_read_once_and_in_order(blocks: list[tuple[str, str]]) -> None:
    html = "".join(f"<{tag}>{words}</{tag}>" for tag, words in blocks)
    marks = {"#", "##", "-", ">", ":", "```"}
    read_words = [word for word in markdown(html).split() if word not in marks]
    assert read_words == [word for _, words in blocks for word in words.split()]


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(_WORDS, min_size=n, max_size=n), min_size=2, max_size=5)))
def test_tables_round_trip(rows: list[list[str]]) -> None:
    html = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    lines = markdown(f"<table>{html}</table>").split("\n")
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == rows


@given(st.text("<>/ab pt=\"'&;!-\n[]", max_size=200))
def test_no_markup_is_an_error(html: str) -> None:
    to_markdown(html)


# --- where styles and fields say it


def test_the_foot_of_a_table_stands_below_it() -> None:
    head, foot = "<thead><tr><th>a<th>b</thead>", "<tfoot><tr><td>all<td>30</tfoot>"
    text = markdown(f"<table>{head}{foot}<tbody><tr><td>x<td>10<tr><td>y<td>20</tbody></table>after")
    assert text == "| a | b |\n| --- | --- |\n| x | 10 |\n| y | 20 |\n| all | 30 |\n\nafter"
    long = "".join(f"<tr><td>{number}<td>r" for number in range(2000))
    assert markdown(f"<table>{head}{foot}<tbody>{long}</table>").endswith("| 1999 | r |\n| all | 30 |")
