"""The trail of the desk, by pages."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from aggregator.api.datasets import strict
from aggregator.desk.frame import render
from aggregator.desk.session import reader
from aggregator.desk.trail import Action, Trail
from shared.frozen import Frozen

PAGE = 50
router = APIRouter(dependencies=[Depends(reader)])


class ActionPage(Frozen):
    """A page of the trail."""

    total: int
    limit: int
    offset: int
    actions: tuple[Action, ...]


@router.get("/desk/audit", include_in_schema=False)
def audit_page(
    request: Request, page: Annotated[int, Query(ge=1, le=100_000)] = 1, run: str = ""
) -> Response:
    """What was done, the newest first."""
    trail: Trail = request.app.state.desk_trail
    actions, total = trail.newest(run=run or None, offset=PAGE * (page - 1), limit=PAGE)
    pages = max(1, -(-total // PAGE))
    return render(
        request, "audit.html", actions=actions, total=total, number=page, pages=pages, run=run
    )


@router.get("/api/desk/audit", dependencies=strict, response_model=ActionPage)
def audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = PAGE,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    run: Annotated[str, Query(pattern="^[0-9a-f]{0,64}$")] = "",
) -> ActionPage:
    """What was done at the desk, the newest first: of all runs, or of one."""
    trail: Trail = request.app.state.desk_trail
    actions, total = trail.newest(run=run or None, offset=offset, limit=limit)
    return ActionPage(total=total, limit=limit, offset=offset, actions=tuple(actions))
