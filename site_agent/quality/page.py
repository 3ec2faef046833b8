"""The report as one HTML file: no script, nothing loaded from anywhere, readable on a telephone."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from site_agent.intake.inventory import SPACING_EDGES_MM, THICKNESS_EDGES_MM, between
from site_agent.quality import QualityReport

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --line: #dbe1e8;
  --ground: #fff; --panel: #f5f7f9; --bar: #2b6cb0; --good: #1a7f4b; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa7b6; --line: #323c48;
  --ground: #14191f; --panel: #1c232b; --bar: #63a4e8; --good: #5cc98f; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; } p { margin: .4rem 0; }
.soft { color: var(--soft); font-size: .9rem; } .good { color: var(--good); }
.bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
dl div { background: var(--panel); border-radius: .4rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.4rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
.plots section { background: var(--panel); border-radius: .4rem; padding: .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem .3rem 0; }
.wide th, .wide td { border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 45%; } svg { display: block; width: 100%; height: .8rem; margin-top: .35rem; }
rect { fill: var(--bar); } code { font-size: .9em; }
@media (max-width: 34rem) { .wide thead { display: none; } .wide tr { display: block;
  border-bottom: 1px solid var(--line); padding: .4rem 0; } .wide td { display: block; border: 0;
  padding: 0; text-align: left; } .wide td[data-of]::before { content: attr(data-of) ": ";
  color: var(--soft); } }
"""


def as_html(report: QualityReport) -> str:
    """The page; all its text is escaped."""
    inventory, title = report.inventory, f"Data quality at {report.site}"
    ct = report.modality == "CT"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="soft">{report.modality}, {report.made:%Y-%m-%d %H:%M} UTC. For the hospital '
        "itself: counts are exact. No patient is named, no file and no date of an image.</p>",
        "</header><main>",
        _eligible(report),
        _figures(report),
        "<h2>Series</h2><div class='plots'>",
        _plot("Maker", _largest_first(inventory.makers)),
        _plot("Reconstruction kernel", _largest_first(inventory.kernels)) if ct else "",
        _plot("Slice thickness, mm", _in_order(inventory.thickness_mm, THICKNESS_EDGES_MM)),
        _plot("Pixel size, mm", _in_order(inventory.spacing_mm, SPACING_EDGES_MM)),
        _noise(report),
        "</div>",
        '<p class="soft">A kernel or a maker that is written as no vendor writes it is “other”: '
        "such text could name a person.</p>",
        _pairs(report) if ct else "",
        _codes(report),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _eligible(report: QualityReport) -> str:
    found = report.eligible
    if found.enough:
        return (
            f'<p><strong class="good">Ready.</strong> {_many(found.patients, "patient")} can take '
            f"part; the site's policy wants {found.wanted}.</p>"
        )
    return (
        f'<p><strong class="bad">Too few patients.</strong> {found.patients} can take part, and '
        f"the site's policy wants {found.wanted}: requests will be refused.</p>"
    )


def _figures(report: QualityReport) -> str:
    figures = (
        ("files", report.files),
        ("not taken in", report.quarantined),
        ("patients", report.inventory.patients),
        ("series", report.inventory.series),
        ("patients kept", report.kept_patients),
        ("slices kept", report.kept_slices),
        ("good, not needed", report.not_needed),
    )
    return (
        "<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{count:,}</dd></div>" for name, count in figures)
        + "</dl>"
    )


def _plot(title: str, counts: Sequence[tuple[str, int]]) -> str:
    """Bars of counts, each with its name and number beside it."""
    most = max((count for _, count in counts), default=0)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="bar">{_bar(count, most)}</td>'
        f'<td class="number">{count:,}</td></tr>'
        for name, count in counts
    )
    rows = rows or "<tr><td>none</td></tr>"
    return f"<section><h3>{escape(title)}</h3><table>{rows}</table></section>"


def _bar(count: int, most: int) -> str:
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * count / max(most, 1):.1f}" height="8" rx="1"/></svg>'
    )


def _noise(report: QualityReport) -> str:
    noise = report.noise
    edges = (5, 10, 15, 20, 30, 50, 100)
    counts: dict[str, int] = {}
    for level in noise.levels:
        counts[between(level, edges)] = counts.get(between(level, edges), 0) + 1
    unit = escape(noise.unit)
    middle = ""
    if noise.levels:
        ordered = noise.levels
        quarter, half, last = (
            ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)
        )
        middle = f"Median {half:g}, quartiles {quarter:g} and {last:g} {unit}. "
    return (
        _plot(f"Noise of patients, {noise.unit}", _in_order(counts, edges)).removesuffix(
            "</section>"
        )
        + f'<p class="soft">{middle}Of {_many(noise.slices, "slice")}, at most four a patient. '
        f"{escape(noise.estimator)}.</p></section>"
    )


def _pairs(report: QualityReport) -> str:
    if not report.real_pairs:
        return (
            "<h2>Real pairs</h2><p>None: no study holds two reconstructions of the same positions. "
            "Contracts that ask for real pairs will be refused.</p>"
        )
    rows = [
        (
            ("kind", f"<code>{escape(one.kind)}</code>"),
            ("patients", f"{one.patients:,}"),
            ("pairs", f"{one.pairs:,}"),
            ("for a contract", "enough" if one.enough else "too few patients for the policy"),
        )
        for one in report.real_pairs
    ]
    return "<h2>Real pairs</h2>" + _table(rows)


def _codes(report: QualityReport) -> str:
    rows = [
        (
            ("code", f"<code>{one.code.value}</code>"),
            ("count", f"{one.count:,}"),
            ("meaning", escape(one.meaning)),
            ("what to do", escape(one.remedy)),
        )
        for one in report.codes
    ]
    page = "<h2>Not taken in</h2>" + (_table(rows) if rows else "<p>Nothing.</p>")
    if report.oddities:
        odd = [
            (
                ("code", f"<code>{one.code.value}</code>"),
                ("series", f"{one.series:,}"),
                ("meaning", escape(one.meaning)),
            )
            for one in report.oddities
        ]
        page += "<h2>Odd, and used all the same</h2>" + _table(odd)
    return page


def _table(rows: Iterable[Sequence[tuple[str, str]]]) -> str:
    """Cells are HTML already."""
    listed = list(rows)
    heads = "".join(f"<th>{name}</th>" for name, _ in listed[0])
    body = "".join(
        "<tr>" + "".join(f'<td data-of="{name}">{cell}</td>' for name, cell in row) + "</tr>"
        for row in listed
    )
    return f'<table class="wide"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _in_order(counts: Mapping[str, int], edges: Sequence[float]) -> list[tuple[str, int]]:
    """Ranges from the smallest to the largest, then what is not said."""
    names = [between(value, edges) for value in (*edges, edges[-1] + 1, None)]
    return [(name, counts[name]) for name in names if name in counts]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
