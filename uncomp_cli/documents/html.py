"""HTML as a text browser lays it out, through inscriptis."""

from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.encoding import decode_text, normalise_newlines
from uncomp_cli.documents.packages import package
from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import DocumentError


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of an HTML page."""
    html, encoding = decode_text(data)
    return Text(html_to_text(html), encoding=encoding)


def html_to_text(html: str) -> str:
    """The text of HTML. Raises DocumentError for what is no HTML."""
    inscriptis = package("inscriptis")
    try:
        return normalise_newlines(inscriptis.get_text(html))
    except DocumentError:
        raise
    except Exception as error:  # the HTML parser's own errors, and RecursionError
        raise damaged("HTML document", error) from error
