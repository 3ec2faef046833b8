"""Tables of the desk, as step 0003 of ``aggregator/migrations`` makes them."""

from sqlalchemy import BigInteger, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from aggregator.schema import Base


class SessionRow(Base):
    """A browser that somebody signed in with; of its secret only the SHA-256."""

    __tablename__ = "desk_sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[str] = mapped_column(String(32))


class ActionRow(Base):
    """Something that somebody did at the desk."""

    __tablename__ = "desk_actions"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    at: Mapped[str] = mapped_column(String(32))
    principal: Mapped[str] = mapped_column(String(64))
    token_id: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    run: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    begun: Mapped[int | None] = mapped_column(BigInteger, index=True)
