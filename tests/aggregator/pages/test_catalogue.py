"""The catalogue as HTML, read as a parser reads it."""

from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient

from aggregator.pages import site


class Document(HTMLParser):
    """The elements of a page and its words."""

    VOID = frozenset({"meta", "link", "img", "input", "wbr", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [
            found[attribute] for name, found in self.elements if name == tag and attribute in found
        ]


def read(client: TestClient, path: str, **asked: Any) -> Document:
    answer = client.get(path, **asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return Document(answer.text)


def planted(document: Document) -> bool:
    """Whether anything of an enemy's words became markup."""
    scripts = [found for tag, found in document.elements if tag == "script"]
    return (
        any(not found.get("src", "").startswith("/static/") for found in scripts)
        or any(name.startswith("on") for _, found in document.elements for name in found)
        or any(value == "x" for value in document.values("img", "src"))
        or any("style" in found for _, found in document.elements)
    )


PAGES = ["/", "/?q=many-07", "/datasets/fedstill/public", "/datasets/fedstill/gated"]


@pytest.mark.parametrize("path", PAGES)
def test_what_others_wrote_is_text(client: TestClient, path: str) -> None:
    document = read(client, path)
    assert not planted(document)
    if path != "/":
        assert "<script>planted()</script>" in document.text


def test_what_is_not_escaped_is_found(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with escaping off, the test above would see it."""
    monkeypatch.setattr(site._templates(), "autoescape", False)
    site._templates().cache.clear()  # type: ignore[union-attr]  # compiled with it on
    try:
        found = [planted(Document(client.get(path).text)) for path in PAGES[1:]]
    finally:
        site._templates().cache.clear()  # type: ignore[union-attr]
    assert all(found)
