"""Signing in to the desk, and out of it."""

from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from aggregator.api.errors import ApiError
from aggregator.desk.frame import render
from aggregator.desk.session import (
    SCOPES,
    Fields,
    Sessions,
    forget,
    identify,
    keep,
    writer,
)
from aggregator.desk.trail import Trail, recorded

router = APIRouter(include_in_schema=False)


def local(path: str) -> str:
    """Where to go after signing in: a page of the desk, nothing of another server's."""
    ours = path == "/desk" or path.startswith(("/desk/", "/desk?"))
    return path if ours and "\\" not in path and not path.startswith("/desk/log") else "/desk"


@router.get("/desk/login")
def ask(request: Request, next: str = "/desk") -> Response:
    """The form that asks for a token."""
    if identify(request).scopes & SCOPES:
        return RedirectResponse(local(next), status_code=303)
    return render(request, "login.html", next=local(next), wrong=False)


@router.post("/desk/login")
def sign_in(request: Request, given: Fields) -> Response:
    """Opens a session; what is wrong with a token is not told."""
    # A page of another server's must not sign a browser in as somebody else.
    if not _is_ours(request):
        raise ApiError(403, "the form is not of this server", "open /desk/login and sign in there")
    sessions: Sessions = request.app.state.desk_sessions
    opened = sessions.open(given.get("token", "").strip())
    to = local(given.get("next", "/desk"))
    if opened is None:
        trail: Trail = request.app.state.desk_trail
        trail.refuse(address=getattr(request.state, "address", "unknown"))
        return render(request, "login.html", status=401, next=to, wrong=True)
    secret, who = opened
    request.state.principal = who
    with recorded(request, "sign in"):
        answer = RedirectResponse(to, status_code=303)
        keep(request, answer, secret)
    return answer


def _is_ours(request: Request) -> bool:
    """Whether a form came from this server's page, as far as the browser tells."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


@router.post("/desk/logout", dependencies=[Depends(writer)])
def sign_out(request: Request) -> Response:
    """Ends the session."""
    sessions: Sessions = request.app.state.desk_sessions
    with recorded(request, "sign out"):
        secret = getattr(request.state, "desk_secret", None)
        if secret:
            sessions.close(secret)
        answer = RedirectResponse("/desk/login", status_code=303)
        forget(request, answer)
    return answer


def led_to_sign_in(request: Request) -> HTMLResponse | RedirectResponse | None:
    """Where a browser that has not signed in is led; None where it is no page that it asks for."""
    page = request.method in ("GET", "HEAD") and request.url.path.startswith("/desk")
    if not page or "text/html" not in request.headers.get("Accept", ""):
        return None
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/desk/login?next={quote(asked, safe='')}", status_code=303)
