"""Tables of access, as step 0002 of ``aggregator/migrations`` makes them."""

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from aggregator.schema import Base


class TokenRow(Base):
    """A token: whose it is and what it opens; of itself only the SHA-256."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    principal: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(Text)
    """Words, separated by spaces."""
    datasets: Mapped[str] = mapped_column(Text)
    """``namespace/name``, separated by spaces; empty: not restricted."""
    created_at: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[str] = mapped_column(String(32))
    revoked_at: Mapped[str | None] = mapped_column(String(32))


class AcceptanceRow(Base):
    """That somebody accepted a version of a dataset's agreement."""

    __tablename__ = "acceptances"

    principal: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    agreement_version: Mapped[int] = mapped_column(primary_key=True)
    token_id: Mapped[str] = mapped_column(String(16))
    accepted_at: Mapped[str] = mapped_column(String(32))


class DownloadRow(Base):
    """What of a file was sent to whom; of anonymous ones neither name nor address."""

    __tablename__ = "downloads"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    at: Mapped[str] = mapped_column(String(32))
    principal: Mapped[str | None] = mapped_column(String(64))
    token_id: Mapped[str | None] = mapped_column(String(16))
    dataset: Mapped[str] = mapped_column(String(127))
    number: Mapped[int]
    path: Mapped[str] = mapped_column(String(128))
    bytes: Mapped[int] = mapped_column(BigInteger)


class EdgeLogRow(Base):
    """How much of a file of the edge proxy's log is in the trail of downloads."""

    __tablename__ = "edge_logs"

    file: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
