"""What may be done to a run: pause, stop, abort, resume, build, publish; each is written down.

Pages send a form and are led back to the run; programs get the run's state, or what was made.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from aggregator.access.principals import Principal
from aggregator.api.datasets import strict
from aggregator.api.models import NOT_DONE
from aggregator.desk.clerk import NotDoneError, order, publication, refused
from aggregator.desk.finding import Digest, found_run
from aggregator.desk.session import writer
from aggregator.desk.trail import recorded
from aggregator.home import AggregatorHome
from aggregator.lifecycle import Wanted, read_state
from aggregator.lifecycle import request as ask_for
from aggregator.runs import RunError, read_run_contract
from shared.frozen import Frozen

router = APIRouter()
ActionName = Literal["pause", "stop", "abort", "resume", "build", "publish"]
RESUMED_WITHIN_S = 60.0


class Outcome(Frozen):
    """What came of an action."""

    run: str
    action: ActionName
    state: str
    told: str


def act(request: Request, digest: str, action: ActionName, who: Principal) -> Outcome:
    """Does it, and writes down that it was done or refused. Raises ``NotDoneError``."""
    home: AggregatorHome = request.app.state.home
    run = found_run(request, digest)
    whole = read_run_contract(run).digest()
    with recorded(request, action, run=whole) as recording:
        request.state.begun = recording.number
        try:
            recording.told.append(DO[action](home, run, who.name))
        except RunError as error:
            raise refused(home, str(error)) from None
    return Outcome(run=whole, action=action, state=read_state(run).state, told=recording.told[0])


def _asked(wanted: Wanted) -> Callable[[AggregatorHome, Path, str], str]:
    def ask(_home: AggregatorHome, run: Path, _by: str) -> str:
        state = ask_for(run, wanted)
        return f"the run is {state.state}" + (f": {state.reason}" if state.reason else "")

    return ask


def _resumed(home: AggregatorHome, run: Path, _by: str) -> str:
    found = order(home, ["run", "resume", run.name], within_s=RESUMED_WITHIN_S)
    return f"the run is {found['state']}"


def _made(step: Literal["build", "publish"]) -> Callable[[AggregatorHome, Path, str], str]:
    return lambda home, run, by: publication(home, run, step=step, by=by)


DO: dict[ActionName, Callable[[AggregatorHome, Path, str], str]] = {
    "pause": _asked("pause"),
    "stop": _asked("stop"),
    "abort": _asked("abort"),
    "resume": _resumed,
    "build": _made("build"),
    "publish": _made("publish"),
}
Acting = Annotated[Principal, Depends(writer)]


@router.post("/desk/runs/{digest}/{action}", include_in_schema=False)
def act_by_form(request: Request, digest: Digest, action: ActionName, who: Acting) -> Response:
    """Does it, and leads back to the run, which says what came of it."""
    with suppress(NotDoneError):  # the trail has it, and the page shows that
        act(request, digest, action, who)
    begun = getattr(request.state, "begun", "")
    return RedirectResponse(f"/desk/runs/{digest}?done={begun}", status_code=303)


@router.post(
    "/api/desk/runs/{digest}/{action}",
    dependencies=strict,
    response_model=Outcome,
    responses=NOT_DONE,
)
def act_by_program(request: Request, digest: Digest, action: ActionName, who: Acting) -> Any:
    """Does something to a run: pause, stop, abort, resume, build or publish it."""
    return act(request, digest, action, who)
