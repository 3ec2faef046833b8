"""Rows of figures as tables, for people: an attack's JSON holds the same, in full."""

from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = ("trials", "people", "patients", "images")
"""Counts that the JSON has and a table can do without."""


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header, then a line a row, in the order in which the columns first appear."""
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    return [
        [name.replace("_", " ") for name in names],
        *([_cell(row.get(name)) for name in names] for row in rows),
    ]


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with its columns aligned, for a terminal."""
    table = cells(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a page."""
    header, *lines = ([cell.replace("|", "\\|") for cell in line] for line in cells(rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        low, high = (_cell(end) for end in value["interval"])
        return f"{_cell(value['mean'])} [{low}, {high}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
