"""The trail of the desk: who did what, to which run, when, from where, and what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fastapi import Request
from pydantic import Field
from sqlalchemy import func, select

from aggregator.access.tokens import stamp
from aggregator.api.principal import principal
from aggregator.database import Database
from aggregator.desk.tables import ActionRow
from shared.frozen import Frozen

MOST_DETAIL = 400


class Action(Frozen):
    """Something that somebody did."""

    at: str = Field(description="UTC")
    principal: str
    token_id: str
    address: str = Field(description="of the browser, as the server sees it")
    action: str = Field(description="sign in, sign out, launch, pause, stop, abort, resume, …")
    run: str = Field(description="digest of the contract; empty where there is none")
    outcome: str = Field(description="done or refused")
    detail: str = Field(description="why it was refused, or what came of it")


class Trail:
    """Written before an action is said to be done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, action: Action) -> None:
        """Keeps one; raises what the database raises."""
        with self._database.session(write=True) as session:
            session.add(ActionRow(**action.model_dump()))

    def newest(
        self,
        *,
        run: str | None = None,
        by: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> tuple[list[Action], int]:
        """The newest first, and how many in all; ``run`` is the beginning of a digest."""
        chosen = select(ActionRow)
        if by is not None:
            chosen = chosen.where(ActionRow.principal == by)
        if run is not None:
            chosen = chosen.where(ActionRow.run.startswith(run, autoescape=True))
        query = chosen.order_by(ActionRow.id.desc()).offset(offset).limit(limit)
        with self._database.session() as session:
            total = session.scalar(select(func.count()).select_from(chosen.subquery())) or 0
            return [
                Action(**{name: getattr(row, name) for name in Action.model_fields})
                for row in session.scalars(query)
            ], total


@contextmanager
def recorded(request: Request, action: str, *, run: str = "") -> Iterator[list[str]]:
    """Records what the block did: ``done`` with what it appended, or ``refused`` with the error."""
    told: list[str] = []
    try:
        yield told
    except Exception as error:
        _record(request, action, run, "refused", str(error) or type(error).__name__)
        raise
    _record(request, action, run, "done", "; ".join(told))


def _record(request: Request, action: str, run: str, outcome: str, detail: str) -> None:
    who = principal(request)
    trail: Trail = request.app.state.desk_trail
    trail.record(
        Action(
            at=stamp(datetime.now(UTC)),
            principal=who.name,
            token_id=who.token_id,
            address=getattr(request.state, "address", "unknown"),
            action=action,
            run=run,
            outcome=outcome,
            detail=detail[:MOST_DETAIL],
        )
    )
