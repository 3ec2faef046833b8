"""Which run an address names."""

from pathlib import Path
from typing import Annotated

from fastapi import Path as PathParameter
from fastapi import Request

from aggregator.api.errors import ApiError
from aggregator.desk_api import RunView, run_view
from aggregator.home import AggregatorHome
from aggregator.publishing import find_run
from aggregator.runs import RunError, read_run_contract

DIGEST = "^[0-9a-f]{8,64}$"
Digest = Annotated[
    str, PathParameter(pattern=DIGEST, description="of the run's contract, or its beginning")
]


def found_run(request: Request, digest: str) -> Path:
    """The run's folder; raises the 404, or the 409 where it cannot be told."""
    home: AggregatorHome = request.app.state.home
    if not home.runs.is_dir():
        raise absent(digest)
    try:
        run = find_run(home, digest)
        whole = read_run_contract(run).digest()
    except RunError as error:
        if not list(home.runs.glob(f"{digest[:16]}*/contract.json")):
            raise absent(digest) from None
        raise unreadable(home, error) from None
    if not whole.startswith(digest):
        raise absent(digest)
    return run


def found_view(request: Request, digest: str) -> RunView:
    """The run, whole; raises as :func:`found_run` does."""
    run = found_run(request, digest)
    home: AggregatorHome = request.app.state.home
    try:
        return run_view(home, run.name)
    except RunError as error:
        raise unreadable(home, error) from None


def absent(digest: str) -> ApiError:
    """The 404 of a run that is not there."""
    return ApiError(404, f"no run {digest[:16]}", "GET /api/desk/runs lists them")


def unreadable(home: AggregatorHome, error: RunError) -> ApiError:
    """The 409 of a run in which something is damaged, or of several that begin alike."""
    said = str(error).replace(f"{home.root}/", "")
    return ApiError(409, f"this run cannot be shown: {said}", "mend it in the aggregator's home")
