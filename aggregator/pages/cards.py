"""A release's Markdown as HTML that can be trusted, whoever wrote it.

HTML in the Markdown is text. Links lead to the web or to files of the release; pictures are files
of the release, so that a page asks no other host for anything. Headings are one level lower than
in the file: the page has its own first.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
ELSEWHERE = ("contact-sheet.png",)
"""Pictures that the page has in a place of their own: left out of the text without a word."""
_WEB = ("https://", "http://", "mailto:")


@dataclass(frozen=True)
class Section:
    """What stands below a heading of the second level; the first has none."""

    title: str
    body: Markup


@lru_cache(maxsize=256)
def sections(text: str, base: str, files: tuple[str, ...]) -> tuple[Section, ...]:
    """A card's sections; ``base`` is the address below which the release's ``files`` are."""
    tokens = _parser().parse(_FRONT_MATTER.sub("", text, count=1))
    _tame(tokens, base=base, files=files)
    parts: list[tuple[str, list[Token]]] = [("", [])]
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token.type == "heading_open" and token.tag == "h2" and token.level == 0:
            parts.append((_plain(tokens[place + 1]), []))
            place += 3
            continue
        parts[-1][1].append(token)
        place += 1
    return tuple(Section(title, _html(inside)) for title, inside in parts)


def rendered(text: str, *, base: str = "", files: Collection[str] = ()) -> Markup:
    """Markdown as HTML, whole."""
    tokens = _parser().parse(_FRONT_MATTER.sub("", text, count=1))
    _tame(tokens, base=base, files=files)
    return _html(tokens)


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")


def _html(tokens: Sequence[Token]) -> Markup:
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + 1, 6)}"
    parser = _parser()
    text = str(parser.renderer.render(tokens, parser.options, {}))
    # A wide table scrolls by itself, by keyboard too; the page does not.
    text = text.replace("<table>", '<div class="wide" tabindex="0"><table>')
    return Markup(text.replace("</table>", "</table></div>"))  # rendered with HTML as text


def _tame(tokens: Sequence[Token], *, base: str, files: Collection[str]) -> None:
    """Leaves of links and pictures what a release may show."""
    for token in tokens:
        if token.type == "link_open":
            target = str(token.attrs.pop("href", ""))
            if target in files:
                token.attrs["href"] = base + target
            elif target.startswith(_WEB):
                token.attrs["href"] = target
                token.attrs["rel"] = "nofollow noopener noreferrer"
        elif token.type == "image":
            if (target := str(token.attrs["src"])) in files and target not in ELSEWHERE:
                token.attrs["src"] = base + target
                token.attrs["loading"] = "lazy"
            else:
                words = "" if target in ELSEWHERE else _plain(token)
                token.type, token.content, token.children = "text", words, None
        elif token.type == "th_open" or token.type == "td_open":
            align = str(token.attrs.pop("style", "")).removeprefix("text-align:")
            if align in ("right", "center"):  # inline styles are what the policy forbids
                token.attrs["class"] = align
        _tame(token.children or (), base=base, files=files)


def _plain(token: Token) -> str:
    """The words of an inline token."""
    if token.children is None:
        return token.content
    return "".join(
        child.content if not child.children else _plain(child) for child in token.children
    )
