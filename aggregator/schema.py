"""Tables of the catalog, as the steps of ``aggregator/migrations`` make them."""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """All tables of the aggregator's database."""


class DatasetRow(Base):
    """A dataset: a name, who may have it, and how many versions it has had."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    last_number: Mapped[int] = mapped_column(default=0)
    """The highest number given out."""
    newest_number: Mapped[int | None]
    """The newest version that is not withdrawn; None where there is none."""
    head_sequence: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often what is published has changed: by a version, or by a withdrawal."""
    visibility: Mapped[str] = mapped_column(String(16), default="public", server_default="public")
    agreement_version: Mapped[int] = mapped_column(default=0, server_default="0")
    """0: there is no agreement."""
    agreement_text: Mapped[str] = mapped_column(Text, default="", server_default="")


class VersionRow(Base):
    """A published version; never changed."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("dataset_id", "number"),
        UniqueConstraint("dataset_id", "digest"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(String(32))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    dataset: Mapped[DatasetRow] = relationship()
    files: Mapped[list["FileRow"]] = relationship(order_by="FileRow.path")
    withdrawal: Mapped["WithdrawalRow | None"] = relationship()


class FileRow(Base):
    """A file of a version: a name for a blob; never changed."""

    __tablename__ = "files"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(128), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class WithdrawalRow(Base):
    """That a version was withdrawn, and why; never changed."""

    __tablename__ = "withdrawals"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    withdrawn_at: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text)
