"""Who is at the desk: a browser's session, or a program's token.

A person signs in once with a token of scope ``launch:run`` or ``admin``; the browser then keeps a
secret of its own in a cookie that no script reads and no other site's page sends, and the server
keeps that secret's SHA-256. A session ends after ``HOURS``, at sign-out, or with its token, within
a second. What changes something must carry a number of the session's besides, which another site's
page cannot know.
"""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy import delete, select

from aggregator.access.principals import ANONYMOUS, Principal
from aggregator.access.recall import Recall
from aggregator.access.tables import TokenRow
from aggregator.access.tokens import Token, Tokens, digest, principal_of, stamp
from aggregator.api.errors import ApiError
from aggregator.database import Database
from aggregator.desk.tables import SessionRow

HOURS = 8
SCOPES = frozenset({"launch:run", "admin"})
COOKIE = "fedstill_desk"
HEADER = "X-CSRF-Token"
FIELD = "csrf"


class SignInError(ApiError):
    """Nobody has signed in: a browser is led to where one does."""

    def __init__(self) -> None:
        super().__init__(
            401,
            "the desk needs a token of scope launch:run or admin",
            "sign in at /desk/login, or send Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )


class Sessions:
    """The sessions of an aggregator."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tokens = Tokens(database)

    def open(self, token: str) -> tuple[str, Principal] | None:
        """A new session's secret and whose it is; None where the token does not open the desk."""
        found = self._tokens.find(digest(token))
        who = principal_of(found)
        if found is None or who is None or not who.scopes & SCOPES:
            return None
        secret, now = secrets.token_urlsafe(32), datetime.now(UTC)
        ends = min(stamp(now + timedelta(hours=HOURS)), found.expires_at)
        row = SessionRow(sha256=digest(secret), token_id=found.id, expires_at=ends)
        with self._database.session(write=True) as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= stamp(now)))
            session.add(row)
        return secret, who

    def close(self, secret: str) -> None:
        """Ends one."""
        with self._database.session(write=True) as session:
            session.execute(delete(SessionRow).where(SessionRow.sha256 == digest(secret)))

    def find(self, sha256: str) -> tuple[str, Token] | None:
        """Until when it lasts, and the token that it was opened with, valid or not."""
        with self._database.session() as session:
            row = session.get(SessionRow, sha256)
            token = row and session.scalar(
                select(TokenRow.sha256).where(TokenRow.id == row.token_id)
            )
        found = self._tokens.find(token) if token else None
        return (row.expires_at, found) if row and found else None


def identify(request: Request) -> Principal:
    """Who asks, by token or else by session; ``ANONYMOUS`` where neither says."""
    by_token = request.state.principal
    assert isinstance(by_token, Principal)
    secret = request.cookies.get(cookie(request), "")
    if by_token != ANONYMOUS or not secret:
        return by_token
    sessions: Sessions = request.app.state.desk_sessions
    recall: Recall = request.app.state.recall
    key = digest(secret)
    found = recall.answer(("session", key), lambda: sessions.find(key))
    if found is None or found[0] <= stamp(datetime.now(UTC)):
        return ANONYMOUS
    who = principal_of(found[1]) or ANONYMOUS
    request.state.principal = who
    request.state.desk_secret = secret
    return who


def reader(request: Request, response: Response) -> Principal:
    """Who looks at the desk; the dependency of its routes. Raises 401 and 403."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Vary"] = "Cookie"
    who = identify(request)
    if who == ANONYMOUS:
        raise SignInError
    if not who.scopes & SCOPES:
        raise ApiError(
            403,
            "this token does not open the desk",
            "ask for one of scope launch:run: aggregator token create NAME --scope launch:run",
        )
    return who


async def form(request: Request) -> dict[str, str]:
    """The fields of a form, the last of each name; none of what is not a form. Raises 422."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    try:
        text = (await request.body()).decode("utf-8")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=4000, errors="strict"))
    except ValueError:
        raise ApiError(422, "the form cannot be read", "send it as UTF-8, url-encoded") from None


Fields = Annotated[dict[str, str], Depends(form)]


def writer(request: Request, response: Response, given: Fields) -> Principal:
    """Who changes something at the desk: as ``reader``, and by a session's own form or script."""
    who = reader(request, response)
    secret = getattr(request.state, "desk_secret", None)
    if secret is None:  # by a token in a header, which no other site's page can make a browser send
        return who
    number = request.headers.get(HEADER) or given.get(FIELD, "")
    if not hmac.compare_digest(number.encode(), csrf(secret).encode()):
        raise ApiError(
            403,
            "the form is not of this session",
            "load the page again and send the form from there",
        )
    return who


def csrf(secret: str) -> str:
    """What a session's forms carry."""
    return hmac.new(secret.encode(), b"fedstill desk form", hashlib.sha256).hexdigest()


def cookie(request: Request) -> str:
    """The cookie's name: over https one that is for this host alone."""
    return f"__Host-{COOKIE}" if request.url.scheme == "https" else COOKIE


def keep(request: Request, response: Response, secret: str) -> None:
    """Has the browser keep its session."""
    response.set_cookie(
        cookie(request),
        secret,
        max_age=HOURS * 3600,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def forget(request: Request, response: Response) -> None:
    """Has the browser forget its session."""
    response.delete_cookie(
        cookie(request), httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
