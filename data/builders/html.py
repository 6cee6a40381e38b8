"""Sections of an HTML page: a heading, the anchors that point at it, and the text below it."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr", "col", "base", "wbr", "area", "source"}
BLOCK = {"p", "li", "h1", "h2", "h3", "h4", "h5", "h6", "div", "pre", "tr", "dt", "dd", "table", "ul", "ol", "section"}
HEADING = {"h1", "h2", "h3", "h4", "h5", "h6"}
DROPPED = {"script", "style", "noscript", "footer", "nav"}


@dataclass
class Section:
    """A heading with its text (one line a paragraph) and every anchor (id or name) that lies in it."""

    title: str = ""
    anchors: list[str] = field(default_factory=list)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self, start: tuple[str, str], stop_ids: set[str], drop: set[str]) -> None:
        super().__init__()
        self.start, self.stop_ids, self.drop = start, stop_ids, drop
        self.sections = [Section()]
        self.pieces: list[list[str]] = [[]]
        self.pending: list[str] = []  # anchors seen since the last text: they belong to what follows
        self.inside = self.heading = False
        self.open: list[str] = []  # open elements below a dropped one; empty: nothing is being dropped

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if not self.inside:
            self.inside = (values.get(self.start[0]) or "") == self.start[1]
            return
        if values.get("id") in self.stop_ids:
            self.inside = False
            return
        if self.open or tag in DROPPED or self.drop & set((values.get("class") or "").split()):
            if tag not in VOID:
                self.open.append(tag)
            return
        self.pending += [value for key in ("id", "name") if (value := values.get(key))]
        if tag in HEADING:
            self.sections.append(Section())
            self.pieces.append([])
            self.heading = True
        elif tag in BLOCK or tag == "br":
            self.pieces[-1].append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.open:
            while self.open and self.open.pop() != tag:
                pass
        elif tag in HEADING:
            self.heading = False
        elif tag in BLOCK and self.inside:
            self.pieces[-1].append("\n")

    def handle_data(self, data: str) -> None:
        if not self.inside or self.open:
            return
        section = self.sections[-1]
        if data.strip():
            section.anchors += self.pending
            self.pending = []
        if self.heading:
            section.title += data
        else:
            self.pieces[-1].append(data)


def tidy(text: str) -> str:
    """Single spaces, one line a paragraph, no empty lines."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def read_sections(
    html: str, *, start: tuple[str, str], stop_ids: set[str] | None = None, drop: set[str] | None = None
) -> list[Section]:
    """Cut a page at its headings.

    Args:
        html: the page.
        start: (attribute, value) of the element whose content is read, to the end of the page.
        stop_ids: reading ends at an element with one of these ids.
        drop: elements with one of these classes are left out.
    """
    # a line break inside a paragraph of the source is a space; only block elements end a line
    reader = _Reader(start, stop_ids or set(), drop or set())
    reader.feed(re.sub(r"[ \t]*\r?\n[ \t]*", " ", html))
    reader.close()
    for section, pieces in zip(reader.sections, reader.pieces, strict=True):
        section.title = re.sub(r"\s+", " ", section.title).strip(" ¶")
        section.text = tidy("".join(pieces))
    return [section for section in reader.sections if section.title or section.text]
