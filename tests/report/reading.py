"""An HTML file read as a browser would, with Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Tags with their attributes, tables as rows of text, the verdict, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.paragraphs: list[str] = []
        self.verdict, self.level = "", ""
        self.open: list[str] = []
        self._text, self._title = "", ""
        self._in_verdict = False
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section" and (attributes.get("class") or "").startswith("verdict"):
            self._in_verdict, self.level = True, attributes["class"].split()[1]
        if tag == "table" and self._title:
            self._rows = self.tables.setdefault(self._title, [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("caption", "h2", "h3", "td", "th", "p", "li", "code"):
            self._text = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
        if tag == "h3":
            self._title = self._text
        if tag == "caption":
            self._rows = self.tables.setdefault(self._text, [])
        if tag in ("td", "th"):
            self._rows[-1].append(self._text)
        if tag in ("p", "li"):
            self.paragraphs.append(self._text)
        if tag in ("p", "h2") and self._in_verdict:
            self.verdict += " " + " ".join(self._text.split())
        if tag == "section":
            self._in_verdict = False

    def handle_data(self, data):
        self._text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def numeral(text: str) -> float:
    """The number that a cell shows."""
    return float(text.replace("−", "-").replace(",", "").removesuffix(" %"))
