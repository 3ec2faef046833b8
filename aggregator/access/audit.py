"""The trail of downloads: written in batches beside the requests, within a second.

An orderly stop writes what is left. A process that is killed loses at most its last second; where
the database cannot be written, downloads are refused once ``MAX_WAITING`` wait to be.
"""

import logging
import threading
from collections import deque
from dataclasses import asdict, dataclass

from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError

from aggregator.access.tables import DownloadRow
from aggregator.database import Database
from aggregator.measure import downloaded

EVERY_S = 0.5
MAX_WAITING = 50_000
BATCH = 1000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """What of a file was sent to whom."""

    at: str
    principal: str | None
    """None: anonymous. No address is kept of anybody."""
    token_id: str | None
    dataset: str
    number: int
    path: str
    bytes: int


class Audit:
    """Writes downloads into the catalog's database, and reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[Download] = deque()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """Whether so much waits that no more can be promised to be written."""
        return len(self._waiting) >= MAX_WAITING

    def record(self, download: Download) -> None:
        """Has it written within a second."""
        self._waiting.append(download)
        downloaded(download.bytes)
        if self._writer is None:
            with self._lock:
                if self._writer is None and not self._stop.is_set():
                    self._writer = threading.Thread(target=self._write, name="audit", daemon=True)
                    self._writer.start()

    def close(self) -> None:
        """Writes what is left; logs how many could not be."""
        self._stop.set()
        if self._writer is not None:
            self._writer.join()
        try:
            self.flush()
        except SQLAlchemyError:
            log.error("%d downloads are missing in the audit trail", len(self._waiting))

    def flush(self) -> None:
        """Writes what waits; what cannot be written waits on."""
        while self._waiting:
            batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
            with self._database.session(write=True) as session:
                session.execute(insert(DownloadRow), [asdict(one) for one in batch])
            for _ in batch:
                self._waiting.popleft()

    def newest(self, *, dataset: str | None = None, limit: int = 100) -> list[Download]:
        """The newest downloads first, of one dataset (``namespace/name``) or of all."""
        query = select(DownloadRow).order_by(DownloadRow.id.desc()).limit(limit)
        if dataset is not None:
            query = query.where(DownloadRow.dataset == dataset)
        fields = list(Download.__dataclass_fields__)
        with self._database.session() as session:
            return [
                Download(**{name: getattr(row, name) for name in fields})
                for row in session.scalars(query)
            ]

    def _write(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.flush()
            except SQLAlchemyError:
                log.warning("audit trail cannot be written now; %d wait", len(self._waiting))
