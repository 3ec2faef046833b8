"""The curves of a run, or of two over one another, as the pages draw them: plain numbers."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from aggregator.desk_api import RoundView, RunView
from shared.frozen import Frozen

MOST_LINES = 8
MIB = 1024 * 1024


class Line(Frozen):
    """A value a round; None where a round has none."""

    label: str
    values: tuple[float | None, ...]
    dashed: bool = False
    """The second run's, where two are compared."""


class Curve(Frozen):
    """One diagram: lines over the same rounds."""

    title: str
    unit: str
    absent: str
    """Why a round may have no value; empty where each has one."""
    rounds: tuple[int, ...]
    lines: tuple[Line, ...]


Value = Callable[[RoundView], float | None]
ANCHOR = "Rounds of local steps match nothing: they have no value."


def curves(*runs: RunView, names: Sequence[str] = ()) -> tuple[Curve, ...]:
    """What is drawn of one run, or of two, whose lines then begin with their ``names``."""
    rounds = tuple(sorted({one.round for run in runs for one in run.history}))
    if not rounds:
        return ()
    drawn = (
        ("Matching distance", "", ANCHOR, [("distance", lambda one: one.loss)]),
        ("Agreement with each persona", "cosine", ANCHOR, None),
        ("Time of a round", "s", "", [("seconds", lambda one: one.seconds)]),
        (
            "Bytes of a round",
            "MiB",
            "",
            [
                ("from sites", lambda one: _mib(one.bytes_up)),
                ("to sites", lambda one: _mib(one.bytes_down)),
            ],
        ),
        ("Privacy spent", "ε", "", [("ε", lambda one: one.epsilon)]),
    )
    found = []
    for title, unit, absent, wanted in drawn:
        lines: list[Line] = []
        for number, run in enumerate(runs):
            before = f"{names[number]}: " if names else ""
            known = {one.round: one for one in run.history}
            history = [known.get(one) for one in rounds]
            values = _personas(history) if wanted is None else _each(history, wanted)
            lines += [
                Line(label=f"{before}{label}", values=line, dashed=number > 0)
                for label, line in values
                if any(one is not None for one in line)
            ]
        if lines:
            found.append(
                Curve(title=title, unit=unit, absent=absent, rounds=rounds, lines=tuple(lines))
            )
    return tuple(found)


def _each(
    history: Sequence[RoundView | None], wanted: Iterable[tuple[str, Value]]
) -> list[tuple[str, tuple[float | None, ...]]]:
    return [
        (label, tuple(one if one is None else value(one) for one in history))
        for label, value in wanted
    ]


def _personas(history: Sequence[RoundView | None]) -> list[tuple[str, tuple[float | None, ...]]]:
    """A line a persona; where there are too many to tell apart, the extremes and the median."""
    told = [
        dict(zip(one.personas or map(str, range(len(one.cosine))), one.cosine, strict=False))
        if one is not None and one.cosine
        else {}
        for one in history
    ]
    labels = list(dict.fromkeys(label for one in told for label in one))
    if len(labels) <= MOST_LINES:
        return [(label, tuple(one.get(label) for one in told)) for label in labels]
    summaries: list[tuple[str, Callable[[Iterable[float]], float]]] = [
        ("highest", max),
        ("median", median),
        ("lowest", min),
    ]
    return [
        (f"{label} of {len(labels)}", tuple(of(one.values()) if one else None for one in told))
        for label, of in summaries
    ]


def _mib(count: int | None) -> float | None:
    return None if count is None else count / MIB
