"""The frame of the desk's pages: who is signed in, where one may go, what was just done."""

import re
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from aggregator.access.principals import ANONYMOUS
from aggregator.api.principal import principal
from aggregator.desk.session import csrf
from aggregator.desk.trail import Action, Trail
from aggregator.pages.site import page

PLACES = (
    ("/desk", "Runs"),
    ("/desk/launch", "Launch"),
    ("/desk/sites", "Sites"),
    ("/desk/audit", "Audit"),
)
"""Of the navigation, once somebody has signed in."""


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of the desk: ``values``, and ``who``, ``csrf``, ``places``, ``here``, ``notice``.

    ``notice`` is what came of the action of who asks that led here (``?done=NUMBER``).
    Kept by no cache: what it shows is for who is signed in.
    """
    secret = getattr(request.state, "desk_secret", None)
    answer = page(
        template,
        status=status,
        who=principal(request),
        csrf=csrf(secret) if secret else "",
        places=PLACES if principal(request) != ANONYMOUS else (),
        here=request.url.path,
        notice=_notice(request),
        **values,
    )
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["Vary"] = "Cookie, Authorization"
    return answer


def _notice(request: Request) -> Action | None:
    number = request.query_params.get("done", "")
    if not re.fullmatch("[0-9]{1,15}", number):
        return None
    trail: Trail = request.app.state.desk_trail
    return trail.outcome(int(number), by=principal(request).name)
