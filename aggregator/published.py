"""Which blobs a catalog stands on, asked without opening it to write."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator.database import look
from aggregator.schema import FileRow


def published_files(address: Path | str) -> dict[str, int]:
    """SHA-256 and bytes of every published file. Raises ``DatabaseError``, ``SQLAlchemyError``."""
    engine = look(address)
    try:
        with Session(engine) as session:
            rows = session.execute(select(FileRow.sha256, FileRow.bytes).distinct())
            return {row.sha256: row.bytes for row in rows}
    finally:
        engine.dispose()
