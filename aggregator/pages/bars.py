"""The utility table of a page: a row a training set, with its mark on a common scale."""

from dataclasses import dataclass

from markupsafe import Markup

from aggregator.pages import cards
from aggregator.worth import ROW_TITLES, Row, Utility, worth


@dataclass(frozen=True)
class Bar:
    """A row of the utility table: what it is, its figures, and where its mark stands, 0 to 100."""

    name: str
    trained_on: Markup
    row: Row
    at: float
    low: float
    high: float


def bars(utility: Utility) -> list[Bar]:
    """The rows as a card has them, on one scale."""
    figures = [row.psnr for row in utility.rows.values()]
    low = min((figure.mean - figure.std for figure in figures), default=0.0)
    high = max((figure.mean + figure.std for figure in figures), default=1.0)
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    order = [*ROW_TITLES, *sorted(set(utility.rows) - set(ROW_TITLES))]
    return [
        Bar(
            name=name,
            trained_on=cards.rendered(ROW_TITLES.get(name, "not described")),
            row=row,
            at=place(row.psnr.mean),
            low=place(row.psnr.mean - row.psnr.std),
            high=place(row.psnr.mean + row.psnr.std),
        )
        for name in order
        if (row := utility.rows.get(name)) is not None
    ]


def remarks(utility: Utility) -> Markup:
    """What a card says below its table: intervals, the gate, on whom it was measured."""
    return cards.rendered(worth(utility).partition("\n\n")[2])
