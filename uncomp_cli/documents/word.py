"""Word documents (.docx), through mammoth to HTML: body, tables, lists and footnotes.

Pictures are dropped unopened: a linked one would name any file of this machine (CVE-2025-11849).
"""

from io import BytesIO

from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.html import to_markdown
from uncomp_cli.documents.packages import package
from uncomp_cli.documents.text import Text, Wishes


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a Word document."""
    mammoth = package("mammoth")
    try:
        html = mammoth.convert_to_html(BytesIO(data), convert_image=lambda _: []).value
    except Exception as error:  # zip, XML and key errors, by where the damage is
        raise damaged("Word document", error) from error
    text, losses = to_markdown(html)
    return Text(text, (), losses)
