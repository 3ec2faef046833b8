"""The trail of the desk: who did what, to which run, when, from where, and what came of it.

An action is written down before it is begun, and its outcome after it: what cannot be written down
is not begun, and one whose server was killed stays as begun.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from aggregator.access.tokens import stamp
from aggregator.api.principal import principal
from aggregator.database import Database
from aggregator.desk.tables import ActionRow
from shared.frozen import Frozen

MOST_DETAIL = 400
NOBODY = "nobody"
FAILURES = RateLimitItemPerMinute(1, 10)
"""Of sign-ins that fail, from one address: who has no token cannot fill the trail."""


class Action(Frozen):
    """Something that somebody did."""

    at: str = Field(description="UTC")
    principal: str
    token_id: str
    address: str = Field(description="of the browser, as the server sees it")
    action: str = Field(description="sign in, sign out, launch, pause, stop, abort, resume, …")
    run: str = Field(description="digest of the contract; empty where there is none")
    outcome: Literal["begun", "done", "refused"] = Field(
        description="begun: at work, or its server was killed meanwhile"
    )
    detail: str = Field(description="why it was refused, or what came of it")
    begun: int | None = Field(None, description="of an outcome: under which number it was begun")


class Trail:
    """The rows of an aggregator's desk."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failures = FixedWindowRateLimiter(MemoryStorage())

    def refuse(self, *, address: str) -> None:
        """Keeps that a token from there opened nothing; once in ``FAILURES``, however many came."""
        if self._failures.hit(FAILURES, address):
            self.record(
                Action(
                    at=stamp(datetime.now(UTC)),
                    principal=NOBODY,
                    token_id="",
                    address=address,
                    action="sign in",
                    run="",
                    outcome="refused",
                    detail="the token does not open the desk; others from there may have followed",
                )
            )

    def record(self, action: Action) -> int:
        """Keeps one, and gives its number; raises what the database raises."""
        with self._database.session(write=True) as session:
            row = ActionRow(**action.model_dump())
            session.add(row)
            session.flush()
            return row.id

    def newest(
        self, *, run: str | None = None, offset: int = 0, limit: int = 50
    ) -> tuple[list[Action], int]:
        """The newest first, and how many in all; ``run`` is the beginning of a digest.

        What has an outcome is told once, with it.
        """
        outcome = aliased(ActionRow)
        ended = select(outcome.id).where(outcome.begun == ActionRow.id).exists()
        chosen = select(ActionRow).where(~ended)
        if run is not None:
            chosen = chosen.where(ActionRow.run.startswith(run, autoescape=True))
        query = chosen.order_by(ActionRow.id.desc()).offset(offset).limit(limit)
        with self._database.session() as session:
            total = session.scalar(select(func.count()).select_from(chosen.subquery())) or 0
            return [_action(row) for row in session.scalars(query)], total

    def outcome(self, begun: int, *, by: str) -> Action | None:
        """What came of what ``by`` began under a number; None where that is not known, or ours."""
        query = select(ActionRow).where(ActionRow.begun == begun, ActionRow.principal == by)
        with self._database.session() as session:
            row = session.scalar(query)
            return _action(row) if row else None


@dataclass(frozen=True)
class Recording:
    """An action while it is done."""

    number: int
    """Under which it was begun."""
    told: list[str] = field(default_factory=list)
    """What came of it."""


@contextmanager
def recorded(request: Request, action: str, *, run: str = "") -> Iterator[Recording]:
    """Records that the block begins, and that it was done or refused, with what it told."""
    who = principal(request)
    trail: Trail = request.app.state.desk_trail
    begun = Action(
        at=stamp(datetime.now(UTC)),
        principal=who.name,
        token_id=who.token_id,
        address=getattr(request.state, "address", "unknown"),
        action=action,
        run=run,
        outcome="begun",
        detail="",
    )

    def end(outcome: str, detail: str) -> None:
        update = {"outcome": outcome, "detail": detail[:MOST_DETAIL], "begun": recording.number}
        now = {"at": stamp(datetime.now(UTC))}
        trail.record(Action.model_validate({**begun.model_dump(), **now, **update}))

    recording = Recording(trail.record(begun))
    try:
        yield recording
    except Exception as error:
        end("refused", str(error) or type(error).__name__)
        raise
    end("done", "; ".join(recording.told))


def _action(row: ActionRow) -> Action:
    return Action.model_validate({name: getattr(row, name) for name in Action.model_fields})
