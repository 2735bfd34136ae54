"""Mail: decoded headers, the body that a person sees, attachments read or named; and books, by their spine."""

import base64
from contextlib import suppress
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.documents import make_docx, make_epub, make_mail, make_zip
from support.pace import swift
from uncomp_cli.documents.epub import read as read_book
from uncomp_cli.documents.formats import format_of
from uncomp_cli.documents.mail import read
from uncomp_cli.documents.text import NO_WISHES, Place
from uncomp_cli.errors import DocumentError


def mail(text: str = "The fee is 10.", **headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in headers.items():
        message[name] = value
    message.set_content(text)
    return message


def markdown(message: EmailMessage | bytes) -> str:
    return read(message if isinstance(message, bytes) else message.as_bytes(), NO_WISHES).text


def losses(message: EmailMessage) -> list[str]:
    return [str(loss) for loss in read(message.as_bytes(), NO_WISHES).losses]


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252"])
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
def test_headers_and_bodies_are_decoded(encoding: str, charset: str) -> None:
    message = mail(From="Zoë <z@x.org>", To="b@x.org, c@x.org", Subject="Grüße, 5 %", Received="from nowhere 77")
    message.set_content("Der Schlüssel ist größer.\n" * 3, cte=encoding, charset=charset)
    assert markdown(message) == (
        "From: Zoë <z@x.org>\nTo: b@x.org, c@x.org\nSubject: Grüße, 5 %\n\n" + "Der Schlüssel ist größer.\n" * 3
    ).rstrip("\n")


def test_of_several_forms_the_plain_one_is_read_unless_it_is_a_stub() -> None:
    message = mail("The fee is 10, and due in May.")
    message.add_alternative("<p>The fee is <b>10</b>, and due in May.</p><img>", subtype="html")
    assert markdown(message) == "The fee is 10, and due in May."
    assert losses(message) == []
    stub = mail("See the HTML part.")
    stub.add_alternative("<h1>Bill</h1><p>" + "The fee is 10. " * 9 + "<p>10<sup>6</sup><img>", subtype="html")
    assert markdown(stub).startswith("# Bill\n\nThe fee is 10.")
    assert markdown(stub).endswith("10^6")
    assert losses(stub) == ["1 picture without a text"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8-sig"])
def test_a_mail_saved_as_a_text_file_is_a_mail(encoding: str) -> None:
    assert markdown(mail(Subject="Bill").as_string().encode(encoding)) == "Subject: Bill\n\nThe fee is 10."


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        ("=?gb2312?B?" + base64.b64encode("价格昞100".encode("gbk")).decode() + "?=", "价格昞100"),
        ("Re: =?utf-8?q?caf=C3=A9?= =?utf-8?q?_5?= x", "Re: café 5 x"),
    ],
)
def test_encoded_words_are_read_as_browsers_would(raw: str, subject: str) -> None:
    assert markdown(f"Subject: {raw}\n\nx".encode()) == f"Subject: {subject}\n\nx"


def test_a_report_of_a_delivery_has_its_text() -> None:
    report = (
        "Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n"
        "This was not delivered, 2 tries:\n\n<u@x.org> is full\n\n--b\nContent-Type: message/delivery-status\n\n"
        "Action: failed\n\nStatus: 5.3.0\n\n--b--\n"
    )
    text = markdown(report.encode())
    assert text.split("\n\n") == [
        "This was not delivered, 2 tries:", "<u@x.org> is full", "Action: failed", "Status: 5.3.0",
    ]  # fmt: skip


def test_how_attachments_were_read_is_said() -> None:
    message = mail("See below.")
    message.add_attachment(make_docx(), maintype="application", subtype="x", filename="bill.pdf")
    message.add_attachment("Grün, größer, schöner".encode("cp1252"), maintype="text", subtype="x", filename="a.txt")
    notes = read(message.as_bytes(), NO_WISHES).notes
    assert notes[0] == "attachment bill.pdf: it is a .docx file by its content, and was read as one"
    assert notes[1].startswith("attachment a.txt: its encoding is not said")


def test_attachments_are_read_or_named() -> None:
    message = mail("See below.", Subject="Bill")
    message.add_attachment("name,fee\nVale,10\n", filename="fees.csv")
    message.add_attachment(make_docx(), maintype="application", subtype="x", filename="Straße 5.docx")
    message.add_attachment(b"\x89PNG\r\n", maintype="image", subtype="png", filename="a.png")
    message.add_attachment(b"%PDF-1.7 torn", maintype="application", subtype="pdf", filename="b.pdf")
    found = read(message.as_bytes(), NO_WISHES)
    assert found.text.split("\n\n") == [
        *("Subject: Bill", "See below.", "## Attachment fees.csv", "| name | fee |\n| --- | --- |\n| Vale | 10 |"),
        *("## Attachment Straße 5.docx", "The fee is 10."),
    ]
    assert found.places == (Place(1, "body"), Place(5, "attachment fees.csv"), Place(11, "attachment Straße 5.docx"))
    (loss,) = found.losses
    assert str(loss).startswith("2 attachments that were not read (a.png, b.pdf: it is ")


def test_texts_without_a_known_suffix_are_read() -> None:
    message = mail("See below.")
    message.add_attachment("SUMMARY:Fee of 12", subtype="calendar", filename="a.ics")
    message.add_attachment("no suffix 7", filename="README")
    assert markdown(message).endswith("## Attachment a.ics\n\nSUMMARY:Fee of 12\n\n## Attachment README\n\nno suffix 7")


def test_text_beside_a_page_and_its_pictures_is_read() -> None:
    raw = b"Content-Type: multipart/related; boundary=B\n\n--B\nContent-Type: text/html\n\n<p>The fee\n"
    inside = b"--B\nContent-ID: <1>\n\nshown within\n"
    assert markdown(raw + inside + b"--B\nContent-Type: text/plain\n\nis 44\n--B--\n") == "The fee\n\nis 44"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("; format=flowed", "a fee of 12 345, paid\n>> said 7 times\n> twice\nFrom\n-- \nme"),
        ('; format="Flowed"; DelSp=yes', "a fee of 12345, paid\n>> said 7times\n> twice\nFrom\n-- \nme"),
        ("", "a fee of 12 \n345, paid\n>> said 7 \n>> times \n> twice\n From \n-- \nme"),
    ],
)
def test_paragraphs_that_were_broken_to_be_sent_are_whole(options: str, text: str) -> None:
    body = "a fee of 12 \n345, paid\n>> said 7 \n>> times\n> twice\n From\n-- \nme\n"
    body = body if options else body.replace("times", "times ").replace("From", "From ")
    assert markdown(f"Content-Type: text/plain{options}\n\n{body}".encode()) == text


def test_what_attachments_lost_is_counted_for_each() -> None:
    box = b""
    for count in (1, 2):
        message = mail("See below.")
        page = "<p>x 5</p>" + "<img src=y>" * count
        message.add_attachment(page.encode(), maintype="text", subtype="html", filename=f"{count}.html")
        box += b"From a@x.org Mon Jan  1 10:00:00 2024\n" + message.as_bytes() + b"\n"
    said = [str(loss) for loss in read(box, NO_WISHES).losses]
    assert said == ["1 picture without a text (in 1.html)", "2 pictures without a text (in 2.html)"]


def test_a_mail_within_a_mail() -> None:
    innermost, inner, outer = (
        mail("Third 3.", Subject="C"),
        mail("Second 2.", Subject="B"),
        mail("First 1.", Subject="A"),
    )
    inner.add_attachment(innermost)
    deep = mail("Fourth 4.")
    innermost.make_mixed()
    innermost.attach(EmailMessage())
    outer.add_attachment(inner)
    assert "Subject: A\n\nFirst 1.\n\nSubject: B\n\nSecond 2." in markdown(outer)
    assert "Third 3." in markdown(outer)
    top = mail("Zeroth 0.")
    top.add_attachment(outer)
    assert "Third 3." not in markdown(top)
    assert losses(top) == ["1 part nested too deep"]
    assert markdown(deep) == "Fourth 4."


def test_a_mail_with_a_bit_of_everything() -> None:
    found = read(make_mail(), NO_WISHES)
    assert [place.name for place in found.places] == ["body", "attachment mail 1", "attachment Straße 5.docx"]
    assert found.losses == ()


def test_a_mailbox_has_a_place_for_each_mail() -> None:
    box = b"".join(
        b"From a@x.org Mon Jan  1 10:0%d:00 2024\nSubject: %d\n\nThe fee is %d.\n>From here on.\n\n" % (n, n, n * 3)
        for n in range(1, 4)
    )
    found = read(box, NO_WISHES)
    assert [place.name for place in found.places] == ["m1", "m2", "m3"]
    assert found.text.split("\n\n")[-2:] == ["Subject: 3", "The fee is 9.\nFrom here on."]


def test_a_saved_page_is_its_page() -> None:
    page = EmailMessage()
    page.set_content("<title>T</title><p>x<sup>2</sup>", subtype="html")
    page.add_related(b"x", maintype="image", subtype="png", cid="<a>")
    page.add_related("p{}", subtype="css")
    assert markdown(page) == "T\n\nx^2"
    assert losses(page) == ["1 picture shown within"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Subject: =?made-up?q?x?=\n\nbody 5", "Subject: =?made-up?q?x?=\n\nbody 5"),
        (b"Subject: =?u\xfff?q?x?=\n\nbody 5", "Subject: =?u\ufffdf?q?x?=\n\nbody 5"),
        (b"Subject: caf\xc3\xa9\n\nbody 5", "Subject: café\n\nbody 5"),
        (b"Content-Type: text/plain; charset=none-such\n\ncaf\xc3\xa9 5", "café 5"),
        (b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\nonly part 5\n", "only part 5"),
        (b"Content-Type: multipart/mixed\n\nno boundary 5\n", "no boundary 5"),
        (b"Content-Type: ;;;\nContent-Transfer-Encoding: odd\n\nbody 5", "body 5"),
        (b"no header at all 5", "no header at all 5"),
    ],
)
def test_broken_mails_are_read_as_far_as_they_go(raw: bytes, text: str) -> None:
    assert markdown(raw) == text


def test_nesting_is_bounded() -> None:
    raw = b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(300)) + b"\ndeep 5"
    with swift(2), suppress(DocumentError):  # by the depth that the interpreter allows
        assert [str(loss) for loss in read(raw, NO_WISHES).losses] == ["1 part nested too deep"]


def test_encrypted_parts_are_said() -> None:
    raw = b"Subject: a\nContent-Type: multipart/encrypted; boundary=x\n\n--x\n\nVersion: 1\n--x--\n"
    assert [str(loss) for loss in read(raw, NO_WISHES).losses] == ["1 encrypted part"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=80))
def test_bodies_round_trip(text: str) -> None:
    wanted = text.replace("\ufeff", "")
    for encoding in ("base64", "quoted-printable"):
        message = EmailMessage()
        message.set_content("x " + wanted + "\n", cte=encoding)
        assert markdown(message) == ("x " + wanted).rstrip()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(DocumentError):
        read(b"Content-Type: multipart/mixed; boundary=a\n\n--a\n" + data, NO_WISHES)


# --- books


def test_a_book_is_read_in_the_order_of_its_spine() -> None:
    metadata = "<dc:title>On  Lamps</dc:title><dc:creator>A. Vale</dc:creator><dc:creator>B. Ito</dc:creator>"
    book = read_book(
        make_epub("<h1>One</h1><p>The oil is 5.</p>", "<img/>", "<p>10<sup>6</sup></p>", metadata=metadata), NO_WISHES
    )
    assert book.text == "# On Lamps\n\nA. Vale, B. Ito\n\n# One\n\nThe oil is 5.\n\n10^6"
    assert book.places == (Place(5, "ch1"), Place(9, "ch2"))
    assert [str(loss) for loss in book.losses] == ["1 picture without a text"]


def test_books_are_known_by_their_bytes() -> None:
    assert format_of(make_epub("<p>x</p>"), ".zip").module == "epub"


@pytest.mark.parametrize(
    ("method", "locked"),
    [("http://www.w3.org/2001/04/xmlenc#aes128-cbc", True), ("http://www.idpf.org/2008/embedding", False)],
)
def test_locked_books_are_refused_by_name(method: str, locked: bool) -> None:
    lock = f'<encryption><EncryptedData><EncryptionMethod Algorithm="{method}"/></EncryptedData></encryption>'
    book = make_epub("<p>x 5</p>", **{"META-INF__encryption.xml": lock})
    if locked:
        with pytest.raises(DocumentError, match="locked by its seller"):
            read_book(book, NO_WISHES)
    else:
        assert read_book(book, NO_WISHES).text.endswith("x 5")


def test_chapters_that_are_not_there_are_said() -> None:
    opf = '<package><manifest><item id="a" href="../../../etc/passwd"/><item id="b" href="b.html"/></manifest><spine>'
    opf += '<itemref idref="a"/><itemref idref="b"/><itemref idref="b"/><itemref idref="c"/></spine></package>'
    container = '<container><rootfiles><rootfile full-path="p.opf"/></rootfiles></container>'
    book = read_book(make_zip({"META-INF/container.xml": container, "p.opf": opf, "b.html": "<p>5"}), NO_WISHES)
    assert (book.text, [str(loss) for loss in book.losses]) == ("5", ["2 chapters that are not in the file"])


@pytest.mark.parametrize("members", [{"a": "b"}, {"META-INF/container.xml": "<container/>"}])
def test_what_is_no_book_is_refused(members: dict[str, str]) -> None:
    with pytest.raises(DocumentError, match="no list of chapters"):
        read_book(make_zip(members), NO_WISHES)


# --- what stands beside a body

B64 = base64.encodebytes


def coded(encoding: str, body: bytes) -> bytes:
    head = f"Subject: Bill\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (B64(b"The fee is 10.\n") + b"\n--\nOur list: code 4711\n", "The fee is 10.\n\n--\nOur list: code 4711"),
        (B64(b"The fee is 10!\n.") + B64(b"The door is 5.\n"), "The fee is 10!\n.The door is 5."),
        (B64(b"The fee is 10.\n" * 9) + b"Sent\nfrom\nroom\n77\n", "The fee is 10.\n" * 9 + "\nSent\nfrom\nroom\n77"),
        (b"This is plain text, and the fee is 10.\n", "This is plain text, and the fee is 10."),
        (b"Hello\n", "Hello"),
        (b"VGhlIGZlZSBpcyAxMA\n", "The fee is 10"),
        (B64(b"The fee is 10, and the door is 5 for all who come in May.\n"), None),
    ],
)
def test_no_padding_ends_a_body(body: bytes, text: str | None) -> None:
    expected = text or "The fee is 10, and the door is 5 for all who come in May."
    assert markdown(coded("base64", body)) == f"Subject: Bill\n\n{expected}"


def test_signs_that_are_no_code_are_counted() -> None:
    code = B64(b"The fee is 10, and the door is 5. " * 2).replace(b"\n", b"")
    found = read(coded("Base64 ", code[:30] + b"!\xff" + code[30:]), NO_WISHES)
    assert found.text.count("The fee is 10, and the door is 5.") == 2
    assert [str(loss) for loss in found.losses] == ["2 signs that are no base64"]


def test_broken_bytes_of_pages_within_are_counted() -> None:
    page = b"<p>Der Schl\xc3\xbcssel ist gr\xc3\xbcn, \xc3 und er liegt" + b" hier" * 40
    mail = read(b"Subject: x\nContent-Type: text/html; charset=utf-8\n\n" + page, NO_WISHES)
    opf = '<package><manifest><item id="a" href="a.html"/></manifest><spine><itemref idref="a"/></spine></package>'
    container = '<container><rootfiles><rootfile full-path="p.opf"/></rootfiles></container>'
    book = read_book(make_zip({"META-INF/container.xml": container, "p.opf": opf, "a.html": page}), NO_WISHES)
    assert [str(loss) for loss in (*mail.losses, *book.losses)] == ["1 byte that is no utf-8"] * 2


def test_soft_breaks_with_blanks_behind_them_are_soft() -> None:
    body = b"The fee is 10= \n00 crowns=\t\r\n and =3d 5=ZZ  \nend="
    assert markdown(coded("quoted-printable", body)) == "Subject: Bill\n\nThe fee is 1000 crowns and = 5=ZZ\nend"


def several(*parts: str, kind: str = "mixed", before: str = "", behind: str = "") -> bytes:
    inner = "".join(f"--B\n{part}\n" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="B"\n\n{before}\n{inner}--B--\n{behind}'.encode()


PLAIN = "Content-Type: text/plain\n\n"


def test_text_before_and_behind_the_parts_is_read() -> None:
    message = several(f"{PLAIN}The fee is 10.", before="Read by 33.", behind="List of 44 members\n")
    assert markdown(message) == "Read by 33.\n\nThe fee is 10.\n\nList of 44 members"
    usual = several(f"{PLAIN}The fee is 10.", before="This is a multi-part message in MIME format.\n")
    assert markdown(usual) == "The fee is 10."


def test_a_date_for_the_calendar_is_read_beside_its_text() -> None:
    dated = "Content-Type: text/calendar\n\nBEGIN:VCALENDAR\nDTSTART:20240501T100000\nEND:VCALENDAR"
    text = markdown(several(f"{PLAIN}We meet.", "Content-Type: text/html\n\n<p>We meet.", dated, kind="alternative"))
    assert text == "We meet.\n\nBEGIN:VCALENDAR\nDTSTART:20240501T100000\nEND:VCALENDAR"


def test_a_mail_within_the_mail_that_is_encoded_as_a_whole_is_read() -> None:
    inner = B64(b"From: d@x.org\nSubject: inner\n\nThe door is 5.\n").decode()
    wrapped = f"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n{inner}"
    assert markdown(several(f"{PLAIN}The fee is 10.", wrapped)).endswith("Subject: inner\n\nThe door is 5.")


def test_a_part_that_is_no_text_leaves_the_others() -> None:
    broken = "Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n" + B64(bytes(range(256))).decode()
    found = read(several(f"{PLAIN}The fee is 10.", broken), NO_WISHES)
    assert found.text == "The fee is 10."
    assert [str(loss) for loss in found.losses] == ["1 part that is no text"]


def test_style_sheets_of_a_book_raise_figures() -> None:
    page = "<html><body><p>The sun is 10<span class='calibre7'>7</span> away.</p></body></html>"
    files = {
        "META-INF/container.xml": "<container><rootfiles><rootfile full-path='a.opf'/></rootfiles></container>",
        "a.opf": "<package><manifest><item id='c' href='c.xhtml'/><item id='s' href='s.css'/></manifest>"
        "<spine><itemref idref='c'/></spine></package>",
        "c.xhtml": page,
        "s.css": ".calibre7 { font-size: 0.75em; vertical-align: super }",
    }
    assert read_book(make_zip(files), NO_WISHES).text == "The sun is 10^7 away."
