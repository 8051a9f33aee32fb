"""A model's words as HTML that cannot do anything: markdown only, HTML in it shown as text, then cleaned once more.

Three walls, each enough by itself: markdown-it with `html` off escapes every tag; nh3 drops whatever element, attribute
or address is not on a short list; the page's Content-Security-Policy lets no script, style, frame or picture in.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from overnight.report.words import visible

LONGEST = 50_000
"""Characters. A longer text is shown as it is, without markdown: no reader misses the headings in it, and the parser's
time is bounded."""

_TAGS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES = {"a": {"href"}, "ol": {"start"}}
_SCHEMES = {"http", "https", "mailto"}
_ADDRESS = re.compile(r"(?:https?://|mailto:)[^\s]+\Z", re.IGNORECASE)
_HEADINGS = {"h1": "h4", "h2": "h5"}
"""A page has headings of its own above a reply."""

_WORD, _TAG, _HREF = re.compile(r"[^\W_]+"), re.compile(r"<[^>]*>"), re.compile(r'href="([^"]*)"')

_SVG = re.compile(r"<svg\b|</svg\s*>", re.IGNORECASE)
_NAMESPACE = re.compile(r"<svg\b[^>]*\sxmlns\s*=", re.IGNORECASE)
_MOST_DRAWINGS, _LARGEST_DRAWING = 8, 200_000

FRAME_STYLE = "html,body{margin:0;height:100%;background:#fff}img{display:block;margin:auto;width:100%;height:100%;object-fit:contain}"  # noqa: E501 - hashed as it is
"""Of the sandboxed frame around a drawing; the page's policy names its hash."""


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802 - the library's name
        """Anything but a plain address stays text: javascript:, data:, file:, and relative ones, which would mean
        files beside the report."""
        return _ADDRESS.match(url) is not None


@cache
def _parser() -> _Parser:
    parser = _Parser("commonmark", {"html": False, "linkify": False, "typographer": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    # An entity could name a character that `visible` has not seen; a reference's definition would not be shown at all.
    parser.disable(["image", "html_block", "html_inline", "entity", "reference"])
    return parser


def render(text: str) -> Markup:
    """`text` as safe HTML."""
    shown = visible(text)
    if len(shown) > LONGEST:
        return Markup('<pre class="plain">{}</pre>').format(shown)
    parser = _parser()
    try:
        tokens = parser.parse(shown)
        for token in tokens:
            if token.type in ("heading_open", "heading_close"):
                token.tag = _HEADINGS.get(token.tag, "h6")
        rendered = parser.renderer.render(tokens, parser.options, {})
    except (RecursionError, ValueError, IndexError):
        return Markup('<pre class="plain">{}</pre>').format(shown)
    clean = nh3.clean(
        rendered, tags=_TAGS, attributes=_ATTRIBUTES, url_schemes=_SCHEMES, link_rel="noopener noreferrer nofollow"
    )
    if _loses_words(shown, clean, [token.info for token in tokens if token.type == "fence"]):
        return Markup('<pre class="plain">{}</pre>').format(shown)
    return Markup(clean)  # noqa: S704 - what nh3 has left is on the list above


def _loses_words(shown: str, rendered: str, infos: list[str]) -> bool:
    """Markdown drops what is nested too deep, cells beyond a table's columns, titles of links: then the text is shown
    as it was written. Numbers are not counted: those of lists are the browser's."""
    addresses = unquote(html.unescape(" ".join(_HREF.findall(rendered))))
    said = html.unescape(_TAG.sub(" ", rendered))
    left = Counter(_WORD.findall(shown))
    left.subtract(_WORD.findall(" ".join([said, addresses, *infos])))
    return any(n > 0 and not word.isdecimal() for word, n in left.items())


@dataclass(frozen=True)
class Drawing:
    """An SVG that stands in a reply. frame: the document of its sandboxed frame."""

    source: str
    frame: str


def drawings(text: str) -> Iterator[Drawing]:
    """The inline SVGs of a reply, outermost, a few. As pictures, which run no script, load nothing and hear no event,
    in a document that may not do so either."""
    depth = start = found = 0
    for match in _SVG.finditer(text):
        if match.group()[1] != "/":
            start = match.start() if depth == 0 else start
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0 and match.end() - start <= _LARGEST_DRAWING:
                found += 1
                yield _drawing(text[start : match.end()])
            if found == _MOST_DRAWINGS:
                return


def _drawing(source: str) -> Drawing:
    whole = source
    if not _NAMESPACE.match(whole):
        whole = whole[:4] + ' xmlns="http://www.w3.org/2000/svg"' + whole[4:]
    data = base64.b64encode(whole.encode("utf-8", "replace")).decode()
    frame = (
        f'<!doctype html><meta charset="utf-8"><style>{FRAME_STYLE}</style>'
        f'<img alt="this SVG cannot be drawn" src="data:image/svg+xml;base64,{data}">'
    )
    return Drawing(visible(source), frame)
