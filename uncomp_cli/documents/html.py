"""HTML as Markdown, in one walk over what the parser says begins and ends: no tree, so that no depth is too deep.

libxml2 reads the markup as browsers do. What a person sees is text: the title, alternative texts of pictures, what a
form's fields say, closed details. What a browser hides is not; where it has words (a tab that opens on a click), that
is a loss. A page that hides more than it shows waits for a script to show it: all of it is read, and that is said.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from uncomp_cli.documents.archive import damaged, in_blocks
from uncomp_cli.documents.attributes import (
    AS_BLOCK,
    BLOCKS,
    BREAK_OUT,
    DRAWN,
    EMBEDDED,
    GAPPED,
    IMPLIED,
    NOTE,
    NOTE_LINK,
    SILENT,
    Attributes,
    StyleSheet,
    integer_of,
    is_decoration,
    is_hidden,
    named,
)
from uncomp_cli.documents.encoding import decode_page, normalise_newlines
from uncomp_cli.documents.enumeration import PageLists
from uncomp_cli.documents.formats import package
from uncomp_cli.documents.forms import FIELDS, Fields
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import HIDDEN, PICTURE, Loss, Text, Wishes, Words, counted
from uncomp_cli.documents.walk import End, Walk

_NO_SCRIPTS = ("passage for browsers without scripts", "passages for browsers without scripts")
_REVEALED = "most of it is hidden until a script shows it, and was read all the same"
_FAR = 32  # elements up to which such an end is looked for
_FEW, _MANY = 30, 50  # words: of a request to turn scripts on, of a passage that may be the page
_NEVER = 2**31
_MARKS = {**dict.fromkeys(("del", "s", "strike"), ("~~", "~~")), "q": ('"', '"'), "rt": ("(", ")")}

_VOID = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
_SELF_CLOSED = re.compile(rf"<((?!(?:{_VOID})\b)[a-zA-Z][\w:.-]*)([^<>]*)/>", re.IGNORECASE)
_XHTML = re.compile(r"\s*<(?:\?xml\b|!doctype[^>]{0,200}xhtml)|[^<]{0,80}<html[^>]{0,400}/1999/xhtml", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|mailto|ftp):[^?]{1,200}", re.IGNORECASE)  # what counts visitors is nobody's text


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of an HTML page."""
    page = decode_page(data, wishes)
    lost: Counter[Words] = Counter()
    walked = _walked(page.text, lost, wishes.progress)
    notes = (*page.notes, _REVEALED) if walked.reveals else page.notes
    return replace(page, text=walked.text(titled=True), losses=page.losses + counted(lost), notes=notes)


def to_markdown(html: str) -> tuple[str, tuple[Loss, ...]]:
    """The Markdown of HTML, and what is not in it. Raises DocumentError for what is no HTML."""
    lost: Counter[Words] = Counter()
    text = _walked(html, lost, None).text(titled=True)
    return text, counted(lost)


def walk(
    data: bytes,
    wishes: Wishes,
    lost: Counter[Words],
    *,
    declared: str = "",
    titled: bool = True,
    sheet: StyleSheet | None = None,
) -> str:
    """The Markdown of a page within a book or a mail, which may declare its encoding; what is not in it is counted.

    It stands below the page's title if `titled`; `sheet` has the rules of style sheets that are not in the page.
    """
    page = decode_page(data, wishes, declared)
    lost.update({(loss.what, loss.many): loss.count for loss in page.losses})
    return _walked(page.text, lost, None, sheet).text(titled=titled)


def _walked(
    html: str, lost: Counter[Words], progress: Callable[[int, int], None] | None, sheet: StyleSheet | None = None
) -> "_Walk":
    """A page that was walked over; `progress` hears of the blocks of a page of several."""
    html = clean(normalise_newlines(html))
    if _XHTML.match(html):  # <title/> ends itself in XML, and in HTML runs to the end of the text
        html = _SELF_CLOSED.sub(r"<\1\2></\1>", html)
    walked = _parsed(html, _Walk(Counter(), sheet=sheet), progress)
    if walked.hidden_words > _MANY and walked.hidden_words > len(walked.text(titled=False).split()):
        walked = _parsed(html, _Walk(Counter(), reveals=True, sheet=sheet), progress)
    lost.update(walked.lost)
    return walked


def _parsed(html: str, target: "_Walk", progress: Callable[[int, int], None] | None) -> "_Walk":
    etree = package("lxml.etree")
    parser = etree.HTMLParser(target=target, huge_tree=True, encoding="utf-8")
    try:
        for block in in_blocks(html.encode("utf-8", "replace"), progress):
            parser.feed(block)
        parser.close()
    except etree.LxmlError as error:
        raise damaged("HTML document", error) from error
    return target


class _Walk(Walk):
    """The parser's target: `start`, `data` and `end`."""

    def __init__(self, lost: Counter[Words], *, reveals: bool = False, sheet: StyleSheet | None = None) -> None:
        super().__init__(lost)
        self.reveals = reveals  # whether what is hidden is read
        self.hidden_words = 0
        self._code_depth = _NEVER  # from which depth on what is left out is no text
        self._skip_until: tuple[str, ...] = ()  # what ends it without an end tag
        self._title: list[str] | None = None
        self._in_title = False
        self._lists = PageLists()
        self._fields = Fields(self.out, lost)
        self._sheet = StyleSheet() if sheet is None else sheet
        self._css: list[str] | None = None  # of a style sheet that is open
        self._in_head = 0
        self._note_links = 0  # links to a place in the page, begun so far
        self._in_note_link = 0
        self._link_end = -1
        self._in_drawing = 0

    # --- the parser's side

    def start(self, tag: str, attributes: Attributes) -> None:
        tag = tag.rpartition(":")[2] if ":" in tag else tag
        if attributes:
            attributes = dict(attributes)  # the parser's own is slow to ask
        if self._skip and tag in self._skip_until:
            self._skip, self._skip_until = 0, ()
            self._open.append(("", None))
        if self._skip:
            self._skip += 1
            self._code_depth = min(self._code_depth, self._skip) if tag in SILENT else self._code_depth
        elif tag in SILENT and DRAWN not in attributes:
            self._css = [] if tag == "style" else None
            self.leave_out(None)
            self._skip_until = ("rt", "rb") if tag == "rp" else ()
        elif not self.reveals and (tag == "noscript" or is_hidden(tag, attributes)):
            self.leave_out(_NO_SCRIPTS if tag == "noscript" else HIDDEN)
        elif tag in EMBEDDED:
            self.lost[EMBEDDED[tag]] += 1
            self.leave_out(None)
        else:
            if tag in IMPLIED:
                self._end_implied(tag)
            self._open.append((tag, self._begin(tag, attributes)))

    def data(self, text: str) -> None:
        if self._css is not None:
            self._css.append(text)
        elif self._skip:
            words = len(text.split()) if self._skip < self._code_depth else 0
            self._skipped_words += words
            self.hidden_words += words
        elif self._in_title and self._title is not None:
            self._title.append(text)
        elif self._equation is not None:
            self._equation.write(text)
        else:
            self.out.write(text)

    def end(self, tag: str) -> None:
        if self._skip == 1 and self._skip_reason == _NO_SCRIPTS and self._skipped_words < _FEW:
            self._skip_reason = None
        if self._css is not None:
            self._sheet.add("".join(self._css))
            self._css = None
        super().end(tag)
        if self._skip < self._code_depth:
            self._code_depth = _NEVER

    def leave_out(self, reason: Words | None = None, *, above: int = 0) -> None:
        """Skip all that is in the element that begins; of code that is left out no word counts."""
        super().leave_out(reason, above=above)
        self._code_depth = 1 if reason is None else _NEVER

    def close(self) -> None:
        """All was said."""

    def text(self, *, titled: bool) -> str:
        """The Markdown, if `titled` below its title unless that is the first line anyhow."""
        body, title = self._lists.settled(self.out.text()), " ".join("".join(self._title or ()).split())
        first = body.partition("\n")[0].lstrip("# ")
        return body if not titled or not title or title == first else f"{title}\n\n{body}".rstrip()

    def _end_implied(self, tag: str) -> None:
        """End the item, definition or reading that another one follows, with what is open in it; libxml2 nests them."""
        ended, around = IMPLIED[tag]
        for index in range(len(self._open) - 1, max(-1, len(self._open) - _FAR), -1):
            name = self._open[index][0]
            if name in around:
                return
            if name in ended:
                for inner in range(len(self._open) - 1, index - 1, -1):
                    action = self._open[inner][1]
                    self._open[inner] = ("", None)  # its end is still to come
                    if action is not None:
                        action()
                return

    def _begin(self, tag: str, attributes: Attributes) -> End:
        if self._equation is not None and tag in BREAK_OUT:
            self.end_formula()  # the formula was not closed
        if self._equation is not None:
            self._equation.start(tag, attributes)
            return partial(self._equation.end, tag)
        found = _ELEMENTS.get(tag)
        if found is not None:
            return found(self, tag, attributes)
        return self._begin_other(tag, attributes)

    def _begin_other(self, tag: str, attributes: Attributes) -> End:
        if tag in BLOCKS or tag in GAPPED or AS_BLOCK.search(attributes.get("style", "")):
            end = partial(self.out.block, gap=tag in GAPPED)
            end()
            return end
        shift = self._sheet.shift(attributes)
        return self._script(shift, attributes) if shift else None

    # --- blocks

    def _heading(self, tag: str, _: Attributes) -> End:
        self.out.open_heading(int(tag[1]))
        return self.out.close_heading

    def _list(self, tag: str, attributes: Attributes) -> End:
        self.out.block(gap=not self._lists)
        self._lists.begin(attributes, numbered=tag == "ol")
        return self._end_list

    def _end_list(self) -> None:
        self._lists.end()
        self.out.block(gap=not self._lists)

    def _item(self, tag: str, attributes: Attributes) -> End:
        self.out.open_item(self._lists.label(attributes))
        return self.out.close_item

    # --- tables

    def _table(self, tag: str, _: Attributes) -> End:
        self.out.open_table()
        head, self._in_head = self._in_head, 0
        return partial(self._end_table, head)

    def _end_table(self, head: int) -> None:
        self._in_head = head
        self.out.close_table()

    def _row_group(self, tag: str, _: Attributes) -> End:
        self.out.block()
        self.out.part_rows()
        self._in_head += tag == "thead"
        return partial(self._end_row_group, tag)

    def _end_row_group(self, tag: str) -> None:
        self._in_head -= tag == "thead"
        self.out.part_rows(foot=tag == "tfoot")
        self.out.block()

    def _cell(self, tag: str, attributes: Attributes) -> End:
        if not attributes:
            self.out.open_cell(header=tag == "th" or self._in_head > 0)
            return self.out.close_cell
        spans = (integer_of(attributes.get(name, ""), 1) for name in ("colspan", "rowspan"))
        columns, rows = (min(max(span, 1), 65_534) for span in spans)
        if attributes.get("rowspan", "").strip() == "0":  # to the end of its group
            rows = 65_534
        self.out.open_cell(header=tag == "th" or self._in_head > 0, columns=columns, rows=rows)
        return self.out.close_cell

    # --- in a line

    def _script(self, tag: str, attributes: Attributes) -> End:
        self.out.open_script()
        is_note = NOTE.search(named(attributes)) is not None
        return partial(self._end_script, tag == "sub", is_note, self._note_links)

    def _end_script(self, low: bool, is_note: bool, note_links: int) -> None:
        linked = is_note or self._in_note_link > 0 or self._note_links > note_links
        self.out.close_script(low=low, linked=linked)

    def _link(self, tag: str, attributes: Attributes) -> End:
        address = attributes.get("href", "")
        self._part_from_link()
        is_note = "#" in address
        self._note_links += is_note
        self._in_note_link += is_note
        raised = self._sheet.shift(attributes) == "sup" or (is_note and bool(NOTE_LINK.search(named(attributes))))
        if raised:
            self.out.open_script()
        label = attributes.get("aria-label") or attributes.get("title") or address * bool(_ADDRESS.fullmatch(address))
        return partial(self._end_link, self.out.here, is_note, raised, label)

    def _part_from_link(self) -> None:
        """A space behind a link or a time: those that stand side by side are parted by their looks."""
        if self.out.here == self._link_end and self.out.last_character.isalnum():
            self.out.space()

    def _time(self, tag: str, _: Attributes) -> End:
        self._part_from_link()
        return self._end_time

    def _end_time(self) -> None:
        self._link_end = self.out.here

    def _end_link(self, begin: int, is_note: bool, raised: bool, label: str) -> None:
        if self.out.here == begin and label:
            self.out.write(label)
        if raised:
            self.out.close_script(linked=is_note)
        self._in_note_link -= is_note
        self._end_time()

    def _mark(self, tag: str, _: Attributes) -> End:
        begin, end = _MARKS[tag]
        self.out.write(begin)
        return partial(self._end_mark, self.out.here, begin, end)

    def _end_mark(self, begin: int, before: str, after: str) -> None:
        if self.out.here == begin and begin:
            self.out.taken(begin - 1)
        else:
            self.out.write(after)

    # --- pictures, formulas and what is embedded

    def _picture(self, tag: str, attributes: Attributes) -> None:
        words = next((attributes[name] for name in ("alt", "aria-label", "title") if name in attributes), None)
        if words is None:
            self.lost[PICTURE] += not is_decoration(attributes)
        elif words.strip():
            self.out.say(words)

    def _drawing(self, tag: str, attributes: Attributes) -> End:
        self._in_drawing += 1
        self.out.say(attributes.get("aria-label", ""))
        return partial(self._end_drawing, self.out.here, is_decoration(attributes) or "aria-label" in attributes)

    def _end_drawing(self, begin: int, excused: bool) -> None:
        self._in_drawing -= 1
        self.lost[PICTURE] += self.out.here == begin and not excused and not self._in_drawing
        self.out.space()

    def _page_title(self, tag: str, _: Attributes) -> End:
        if self._in_drawing:
            self.out.space()
            return self.out.space
        if self._title is None:
            self._title = []
        self._in_title = True
        return partial(setattr, self, "_in_title", False)

    def _field(self, tag: str, attributes: Attributes) -> End:
        if tag != "input" or attributes.get("type", "").strip().lower() != "image":
            return self._fields.begin(tag, attributes)
        self._picture(tag, attributes)
        return None

    def _math(self, tag: str, attributes: Attributes) -> End:
        if attributes.get("display") == "block":
            self.out.block()
        return self.formula(attributes)


def _between(begin: Callable[[Markdown], object], end: Callable[[Markdown], object]) -> "_Start":
    """An element that does nothing else where it begins and ends."""

    def start(walk: _Walk, tag: str, _: Attributes) -> End:
        begin(walk.out)
        return partial(end, walk.out)

    return start


_Start = Callable[[_Walk, str, Attributes], End]
_ELEMENTS: dict[str, _Start] = {
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _Walk._heading),
    "blockquote": _between(Markdown.open_quote, Markdown.close_quote),
    **dict.fromkeys(("pre", "listing", "xmp", "plaintext"), _between(Markdown.open_code, Markdown.close_code)),
    "hr": lambda walk, *_: walk.out.rule(),
    "br": lambda walk, *_: walk.out.line_break(),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Walk._list),
    "li": _Walk._item,
    "dt": _between(Markdown.block, Markdown.block),
    "dd": _between(partial(Markdown.open_item, marker=":"), Markdown.close_item),
    "table": _Walk._table,
    **dict.fromkeys(("thead", "tbody", "tfoot"), _Walk._row_group),
    "tr": _between(Markdown.open_row, Markdown.close_cell),
    **dict.fromkeys(("td", "th"), _Walk._cell),
    **dict.fromkeys(("sup", "sub"), _Walk._script),
    "a": _Walk._link,
    "time": _Walk._time,
    **dict.fromkeys(_MARKS, _Walk._mark),
    **dict.fromkeys(("button", "text", "desc"), _between(Markdown.space, Markdown.space)),
    "img": _Walk._picture,
    "svg": _Walk._drawing,
    "area": lambda walk, _, attributes: walk.out.say(attributes.get("alt", "")),  # a spot that leads somewhere
    "title": _Walk._page_title,
    "math": _Walk._math,
    **dict.fromkeys(FIELDS, _Walk._field),
}
