"""All runs: the desk's first page, and its twin."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from aggregator.api.datasets import strict
from aggregator.desk.frame import render
from aggregator.desk.session import reader
from aggregator.desk_api import Survey, survey

router = APIRouter(dependencies=[Depends(reader)])


@router.get("/desk", include_in_schema=False)
def runs_page(request: Request) -> Response:
    """The runs, the newest first."""
    return render(request, "runs.html", survey=survey(request.app.state.home))


@router.get("/api/desk/runs", dependencies=strict, response_model=Survey)
def runs(request: Request) -> Survey:
    """All runs, the newest first, and those whose folder is damaged, with the reason."""
    return survey(request.app.state.home)
