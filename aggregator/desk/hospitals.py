"""The federation: each site, whether it is there, and what it last said of itself."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from aggregator.api.datasets import strict
from aggregator.api.models import UNREADABLE
from aggregator.desk.clerk import refused
from aggregator.desk.frame import render
from aggregator.desk.session import reader
from aggregator.desk_api import RunView, survey
from aggregator.enrolment import EnrolmentError, enrolled_sites, revoked_sites
from aggregator.heard import Heard, read_heard
from aggregator.home import AggregatorHome
from aggregator.lifecycle import ENDED
from aggregator.meanings import REFUSALS
from shared.frozen import Frozen

PATIENCE = 2
"""Flower takes a node for gone after as many intervals without a heartbeat."""
router = APIRouter(dependencies=[Depends(reader)])


@dataclass(frozen=True)
class Presence:
    """What the SuperLink knows of a site's node."""

    online: bool
    heartbeat: float
    """The last one, seconds since 1970."""


class SiteRun(Frozen):
    """A run that the site takes part in, and that has not ended."""

    digest: str
    name: str
    state: str | None
    why: str = Field(description="what the site does, or why it is waited for")


class SiteCard(Frozen):
    """A site."""

    name: str
    revoked: bool = Field(False, description="its keys are refused, for good")
    online: bool | None = Field(None, description="None where the SuperLink does not say")
    heartbeat: float | None = Field(None, description="the last one, seconds since 1970")
    runs: tuple[SiteRun, ...] = ()
    heard: Heard | None = Field(None, description="its last answer to a dry run")
    why: str = Field("", description="of a refusal then, in words")


class Federation(Frozen):
    """All sites that were ever enrolled."""

    sites: tuple[SiteCard, ...]
    now: float = Field(description="seconds since 1970, of the aggregator")


def federation(home: AggregatorHome) -> Federation:
    """The sites by name, revoked ones last. Raises ``ApiError`` where a record is damaged."""
    try:
        enrolled = sorted(one.name for one in enrolled_sites(home))
        revoked = {one.name for one in revoked_sites(home)} - set(enrolled)
    except EnrolmentError as error:
        raise refused(home, str(error), hint="mend or remove it in the home") from None
    there, heard = presences(home), read_heard(home)
    views = [run for run in survey(home).runs if run.state.state not in ENDED]
    cards = [
        SiteCard(
            name=name,
            online=there[name].online if name in there else None,
            heartbeat=there[name].heartbeat if name in there else None,
            runs=_runs_of(name, views),
            heard=heard.get(name),
            why=_why(heard.get(name)),
        )
        for name in enrolled
    ]
    cards += [SiteCard(name=name, revoked=True) for name in sorted(revoked)]
    return Federation(sites=tuple(cards), now=time.time())


def presences(home: AggregatorHome) -> dict[str, Presence]:
    """Sites by name, from the SuperLink's database, which is only read; none where it has none."""
    if not home.database.exists():
        return {}
    query = (
        "SELECT name, status, online_until, heartbeat_interval FROM node "
        "WHERE status != 'unregistered'"
    )
    try:
        place = f"file:{home.database}?mode=ro"
        with closing(sqlite3.connect(place, uri=True, timeout=2)) as database:
            rows = database.execute(query).fetchall()
    except sqlite3.Error:
        return {}
    now = time.time()
    return {
        str(name): Presence(
            online=status == "online" and until > now,
            heartbeat=until - PATIENCE * interval if until and interval else 0.0,
        )
        for name, status, until, interval in rows
        if name
    }


def _why(heard: Heard | None) -> str:
    code = heard.code if heard else None
    return next((text for known, text in REFUSALS.items() if known == code), code or "")


def _runs_of(name: str, views: Sequence[RunView]) -> tuple[SiteRun, ...]:
    return tuple(
        SiteRun(digest=run.digest, name=run.name, state=site.state, why=site.why)
        for run in views
        for site in run.sites
        if site.name == name
    )


@router.get("/desk/sites", include_in_schema=False)
def sites_page(request: Request) -> Response:
    """The sites."""
    return render(request, "sites.html", federation=federation(request.app.state.home))


@router.get("/api/desk/sites", dependencies=strict, response_model=Federation, responses=UNREADABLE)
def sites(request: Request) -> Federation:
    """The sites: whether each is there, and what it last said of itself."""
    return federation(request.app.state.home)
