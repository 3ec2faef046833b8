from datetime import UTC, datetime
from html.parser import HTMLParser

from site_agent.intake.inventory import Inventory
from site_agent.intake.reasons import Finding, SkipReason
from site_agent.quality import Eligible, Oddity, QualityReport, Quarantined, RealPairs
from site_agent.quality.noise import Noise
from site_agent.quality.page import as_html

EMPTY = QualityReport(
    site="site-a",
    made=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    modality="CT",
    files=0,
    quarantined=0,
    inventory=Inventory(),
    kept_patients=0,
    kept_slices=0,
    not_needed=0,
    eligible=Eligible(patients=0, wanted=5, enough=False),
    codes=(),
    oddities=(),
    real_pairs=(),
    noise=Noise(unit="HU", slices=0, levels=()),
)
FULL = EMPTY.model_copy(
    update={
        "inventory": Inventory(
            patients=7,
            series=4,
            makers={"GE": 1, "<b>&": 3},
            thickness_mm={"2.5 to 3.5": 3, "up to 0.75": 1, "not said": 2},
        ),
        "eligible": Eligible(patients=7, wanted=5, enough=True),
        "codes": (Quarantined(code=SkipReason.CRASHED, count=1234, meaning="m", remedy="r"),),
        "oddities": (Oddity(code=Finding.GAPS, series=2, meaning="odd"),),
        "real_pairs": (RealPairs(kind="kernel", patients=3, pairs=21, enough=False),),
        "noise": Noise(unit="HU", slices=9, levels=(4.0, 12.0, 13.0)),
    }
)


class Page(HTMLParser):
    """The elements of a page that are open at its end, those it has had, and its text."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.had, self.values, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.had.append(tag)
        self.values += attributes
        if tag not in ("meta", "rect"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.had.append(tag)
        self.values += attributes

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_loads_and_runs_nothing():
    for report in (EMPTY, FULL):
        page = Page(as_html(report))
        assert page.opened == []
        assert not {"script", "link", "img", "iframe", "form", "a"} & set(page.had)
        assert not {"href", "src", "action", "onclick"} & {name for name, _ in page.values}
        assert "url(" not in as_html(report)
        assert "default-src 'none'" in as_html(report)


def test_what_is_in_a_report_is_on_its_page_escaped():
    words = " ".join(Page(as_html(FULL)).words)
    for said in ("Ready.", "7 patients", "crashed", "1,234", "gaps", "kernel", "21", "<b>&"):
        assert said in words
    assert "Median 12, quartiles" in words
    assert "<b>" not in as_html(FULL)
    assert "too few patients for the policy" in words
    # The larger bar is the whole width; ranges go from small to large, what is not said comes last.
    widths = [value for name, value in Page(as_html(FULL)).values if name == "width"]
    assert widths[:2] == ["100.0", "33.3"]
    places = [words.index(name) for name in ("up to 0.75", "2.5 to 3.5", "not said")]
    assert places == sorted(places)


def test_an_empty_report_says_so():
    words = " ".join(Page(as_html(EMPTY)).words)
    assert "Too few patients." in words
    assert "None: no study" in words
    assert "Nothing." in words
