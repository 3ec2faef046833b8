"""Access tokens: 256 random bits, shown once, kept as their SHA-256, ending by themselves.

A hash without salt is enough: nobody can try 2**256 tokens.
"""

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select

from aggregator.access.principals import SCOPES, Principal
from aggregator.access.tables import TokenRow
from aggregator.database import Database

PREFIX = "fdst_"
"""So that a token that leaked is found by who searches for it."""
MAX_DAYS = 730
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class TokenError(ValueError):
    """A token that cannot be made or found; names what is wrong and the fix."""


@dataclass(frozen=True)
class Token:
    """What is known of a token: all but itself."""

    id: str
    principal: str
    scopes: tuple[str, ...]
    datasets: tuple[str, ...]
    """``namespace/name``; none: not restricted."""
    created_at: str
    expires_at: str
    revoked_at: str | None

    @property
    def state(self) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at <= stamp(datetime.now(UTC)) else "valid"


class Tokens:
    """The tokens of an aggregator."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        principal: str,
        *,
        scopes: Collection[str],
        datasets: Collection[str] = (),
        days: int = 90,
    ) -> tuple[str, Token]:
        """A new token, and what is kept of it. Raises ``TokenError``."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise TokenError(f"a token has scopes of {', '.join(SCOPES)}")
        if not _NAME.fullmatch(principal):
            raise TokenError("a token is for a name of 1 to 64 letters, digits and . _ @ -")
        if datasets and "read:dataset" not in scopes:
            raise TokenError("datasets restrict the scope read:dataset, which is not given")
        if datasets and "admin" in scopes:
            raise TokenError("admin is restricted to no dataset: leave one of the two out")
        if not 1 <= days <= MAX_DAYS:
            raise TokenError(f"a token is valid for 1 to {MAX_DAYS} days")
        secret, now = PREFIX + secrets.token_urlsafe(32), datetime.now(UTC)
        row = TokenRow(
            id=secrets.token_hex(5),
            sha256=digest(secret),
            principal=principal,
            scopes=" ".join(sorted(scopes)),
            datasets=" ".join(sorted(datasets)),
            created_at=stamp(now),
            expires_at=stamp(now + timedelta(days=days)),
        )
        with self._database.session(write=True) as session:
            session.add(row)
        return secret, _token(row)

    def all(self) -> list[Token]:
        """All of them, the newest first."""
        query = select(TokenRow).order_by(TokenRow.created_at.desc(), TokenRow.id)
        with self._database.session() as session:
            return [_token(row) for row in session.scalars(query)]

    def revoke(self, name: str) -> list[Token]:
        """Ends a token by its id, or all of a principal, for good; raises ``TokenError``."""
        query = select(TokenRow).where(or_(TokenRow.id == name, TokenRow.principal == name))
        with self._database.session(write=True) as session:
            rows = list(session.scalars(query))
            if not rows:
                raise TokenError("no token has that id or name: `aggregator token list` has them")
            for row in rows:
                row.revoked_at = row.revoked_at or stamp(datetime.now(UTC))
            return [_token(row) for row in rows]

    def find(self, sha256: str) -> Token | None:
        """The token of that hash, valid or not."""
        with self._database.session() as session:
            row = session.scalar(select(TokenRow).where(TokenRow.sha256 == sha256))
            return _token(row) if row else None


def principal_of(token: Token | None) -> Principal | None:
    """Whose token it is, if it is valid now."""
    if token is None or token.state != "valid":
        return None
    return Principal(
        name=token.principal,
        scopes=frozenset(token.scopes),
        datasets=frozenset(token.datasets) or None,
        token_id=token.id,
    )


def digest(secret: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(secret.encode()).hexdigest()


def stamp(moment: datetime) -> str:
    """A UTC time as the tables have it; in order as text."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _token(row: TokenRow) -> Token:
    return Token(
        id=row.id,
        principal=row.principal,
        scopes=tuple(row.scopes.split()),
        datasets=tuple(row.datasets.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
