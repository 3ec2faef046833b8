"""Markdown of others as HTML."""

import pytest

from aggregator.pages.cards import rendered, sections


@pytest.mark.parametrize(
    "text",
    [
        "<script>planted()</script>",
        "<img src=x onerror=planted()>",
        "a <b onclick='planted()'>b</b>",
        "[a](javascript:planted())",
        "[a](JaVaScRiPt:planted())",
        "[a](data:text/html,planted)",
        "[a](vbscript:planted)",
        "[a](//elsewhere.example/)",
        "[a](/datasets/x)",
        "[a](ftp://elsewhere.example/)",
        '[a](<https://x.example/" onclick="planted()>)',
        "<javascript:planted()>",
        "![a](https://elsewhere.example/a.png)",
        "![a](//elsewhere.example/a.png)",
        "![a](data:image/png;base64,AAAA)",
        "![a](../a.png)",
        "[![a](https://elsewhere.example/a.png)](javascript:planted())",
        "[a]: javascript:planted()\n\n[a]",
        "| a |\n|:-:|\n| <script>planted()</script> |",
        "```<script>\nplanted()\n```",
    ],
)
def test_nothing_runs_and_nothing_is_fetched(text: str) -> None:
    html = str(rendered(text, base="/b/", files=("a.png",)))
    for start in ("<script", "<img", "<b ", " style=", 'href="/', 'href="j', 'href="d', 'href="f'):
        assert start not in html, html
    assert 'onclick="' not in html


def test_what_a_release_may_show_is_shown() -> None:
    """The control: a renderer that dropped all links and pictures would pass the test above."""
    text = '[web](https://x.example/?a=1&b=2) [file](a.csv) ![a "plot"](a.png)'
    html = str(rendered(text, base="/b/", files=("a.csv", "a.png")))
    assert 'href="https://x.example/?a=1&amp;b=2" rel="nofollow noopener noreferrer"' in html
    assert 'href="/b/a.csv"' in html
    assert 'src="/b/a.png"' in html
    assert 'alt="a &quot;plot&quot;"' in html


def test_pictures_become_their_words_or_nothing() -> None:
    assert "a plot" in rendered("![a plot](https://elsewhere.example/a.png)")
    assert "words" not in rendered("![words](contact-sheet.png)", files=("contact-sheet.png",))


def test_sections_are_those_of_the_second_level() -> None:
    text = (
        "---\nlicense: x\n---\n# One\n\nfirst\n\n## Two *words*\n\nsecond\n\n### Three\n\nthird\n"
    )
    found = sections(text, "", ())
    assert [section.title for section in found] == ["", "Two words"]
    assert "<h2>One</h2>" in found[0].body
    assert "license" not in found[0].body
    assert "<h4>Three</h4>" in found[1].body


def test_columns_keep_their_side_without_inline_styles() -> None:
    html = rendered("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<td class="right">1</td>' in html
    assert '<td class="center">2</td>' in html
    assert html.count('<div class="wide" tabindex="0"><table>') == html.count("</table></div>") == 1
