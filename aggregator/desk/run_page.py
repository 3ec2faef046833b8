"""A run as its coordinator follows it, two runs side by side, and the twins of both."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ValidationError

from aggregator.api.datasets import strict
from aggregator.api.models import UNREADABLE
from aggregator.desk.comparison import Comparison, compared
from aggregator.desk.curves import curves
from aggregator.desk.events import OVER
from aggregator.desk.finding import DIGEST, Digest, found_view
from aggregator.desk.frame import render
from aggregator.desk.session import reader
from aggregator.desk.trail import Trail
from aggregator.desk_api import RunView, survey
from aggregator.lifecycle import State
from aggregator.meanings import PHASES
from aggregator.pages.bars import bars, remarks
from aggregator.worth import ROW_TITLES, Row, Utility
from shared.frozen import Frozen

router = APIRouter(dependencies=[Depends(reader)], responses=UNREADABLE)
Chosen = Annotated[str, Query(pattern=DIGEST)]


class Button(Frozen):
    """Something that may be done to a run in its state."""

    action: str
    name: str
    does: str
    asks: str = ""
    """What is asked before it is done, where it cannot be taken back."""


PAUSE = Button(
    action="pause", name="Pause", does="ends after the round it is in; nothing is asked twice"
)
STOP = Button(
    action="stop",
    name="Stop",
    does="ends at once",
    asks="What was computed in this round here is lost; it is asked again when you resume, and "
    "sites repeat the answers they have given.",
)
ABORT = Button(
    action="abort",
    name="Abort",
    does="ends it for good",
    asks="It can never be resumed, and what the hospitals have spent on it stays spent. The same "
    "study needs a contract with another seed, which is another run.",
)
RESUME = Button(action="resume", name="Resume", does="goes on after the last round kept")
BEGIN = RESUME.model_copy(update={"name": "Begin", "does": "hands it to Flower"})
GO_ON = RESUME.model_copy(update={"name": "Go on", "does": "takes back what was asked"})
ASK_AGAIN = RESUME.model_copy(
    update={"name": "Ask again", "does": "asks the hospitals that have not judged yet"}
)
BUILD = Button(
    action="build",
    name="Build",
    does="makes the release's files and asks the gates; nothing is published",
)
PUBLISH = Button(
    action="publish",
    name="Publish",
    does="asks the gates, signs, and hands it out",
    asks="A published version never changes; it can only be withdrawn, with a reason that all "
    "can read. The gates are asked first.",
)
BUTTONS: dict[State, tuple[Button, ...]] = {
    "prepared": (BEGIN, ABORT),
    "submitted": (PAUSE, ABORT),
    "running": (PAUSE, STOP, ABORT),
    "stopping": (GO_ON, STOP, ABORT),
    "paused": (RESUME, ABORT),
    "failed": (RESUME, ABORT),
    "finished": (BUILD, PUBLISH),
    "published": (),
    "aborted": (),
}


@router.get("/desk/runs/{digest}", include_in_schema=False)
def run_page(request: Request, digest: Digest) -> Response:
    """The run: state, sites, curves, pairs, figures, contract, and what was done to it."""
    run = found_view(request, digest)
    trail: Trail = request.app.state.desk_trail
    actions, total = trail.newest(run=run.digest, limit=20)
    utility = _utility(run)
    return render(
        request,
        "run.html",
        run=run,
        buttons=_buttons(run),
        over=run.state.state in OVER,
        working=run.state.state in ("submitted", "running", "stopping"),
        phase=PHASES.get(run.phase, run.phase),
        left=left(run.eta_s),
        figures={
            "curves": [one.model_dump(mode="json") for one in curves(run)],
            "snapshots": [one.model_dump(mode="json") for one in run.snapshots],
        },
        bars=bars(utility) if utility else (),
        remarks=remarks(utility) if utility else "",
        contract=json.dumps(run.contract.model_dump(mode="json"), indent=2, ensure_ascii=False),
        actions=actions,
        more=total > len(actions),
    )


@router.get("/api/desk/runs/{digest}", dependencies=strict, response_model=RunView)
def run_twin(request: Request, digest: Digest) -> RunView:
    """The run as its page shows it."""
    return found_view(request, digest)


@router.get("/desk/compare", include_in_schema=False)
def compare_page(
    request: Request,
    a: Annotated[str, Query(max_length=64)] = "",
    b: Annotated[str, Query(max_length=64)] = "",
    run: Annotated[list[str], Query(max_length=64)] = [],  # noqa: B006
) -> Response:
    """Two runs side by side; those of two boxes of the list, or ``a`` and ``b``."""
    chosen = [one for one in (a, b, *run) if one][:2]
    both = [found_view(request, one) for one in chosen] if len(chosen) == 2 else []
    names = ("A", "B") if both else ()
    return render(
        request,
        "compare.html",
        survey=survey(request.app.state.home),
        chosen=[*chosen, "", ""][:2],
        many=len(run) > 2,
        both=both,
        comparison=compared(*both) if both else None,
        rows=beside(*map(_utility, both)) if both else (),
        figures={
            "curves": [one.model_dump(mode="json") for one in curves(*both, names=names)],
            "snapshots": [[kept.model_dump(mode="json") for kept in one.snapshots] for one in both],
        },
    )


@router.get("/api/desk/compare", dependencies=strict, response_model=Comparison)
def compare_twin(request: Request, a: Chosen, b: Chosen) -> Comparison:
    """Two runs, and the fields that their contracts differ in."""
    return compared(found_view(request, a), found_view(request, b))


def _buttons(run: RunView) -> tuple[Button, ...]:
    found = BUTTONS[run.state.state]
    hospitals = run.hospitals
    silent = hospitals and set(hospitals.asked) - set(hospitals.figures)
    if (
        run.state.state == "finished"
        and run.contract.evaluation.sites
        and (silent or not hospitals)
    ):
        return (ASK_AGAIN, *found)
    return found


def beside(a: Utility | None, b: Utility | None) -> list[tuple[str, Row | None, Row | None]]:
    """The rows of two utility tables, by the names of either."""
    first, second = (one.rows if one else {} for one in (a, b))
    names = [*ROW_TITLES, *sorted({*first, *second} - set(ROW_TITLES))]
    found = [(name, first.get(name), second.get(name)) for name in names]
    return [one for one in found if one[1] or one[2]]


def _utility(run: RunView) -> Utility | None:
    """What the run's pairs were measured to be worth; None where that is not known, or damaged."""
    try:
        return Utility.model_validate(run.utility) if run.utility else None
    except ValidationError:
        return None


def left(eta_s: float | None) -> str:
    """How long it will still take: ``about 1:05:00``, or nothing where that is not known."""
    if eta_s is None:
        return ""
    minutes, seconds = divmod(round(eta_s), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"about {hours}:{minutes:02d}:{seconds:02d}" if hours else f"about {minutes}:{seconds:02d}"
    )
