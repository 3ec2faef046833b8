"""What the edge proxy sent by itself: its log, taken into the trail of downloads, each line once.

nginx writes a line for each answer into a file of the ten minutes it is in. What is taken of a file
and how far it was read are one transaction, so a killed process neither loses lines nor takes them
twice. A file that is old and taken is deleted. Lines name whose token it was; no address.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from shutil import disk_usage

from pydantic import Field, TypeAdapter
from sqlalchemy import delete, insert
from sqlalchemy.exc import SQLAlchemyError

from aggregator.access.tables import DownloadRow, EdgeLogRow
from aggregator.access.tokens import stamp
from aggregator.database import Database
from aggregator.measure import downloaded
from shared.frozen import Frozen

EVERY_S = 0.25
WRITTEN_WITHIN_S = 60.0
"""A log without a new line for this long has to show anew that it is written."""
TAKEN_WITHIN_S = 2.0
KEPT_S = 1800.0
LEAST_FREE_BYTES = 64 * 2**20
PART_BYTES = 2**20
log = logging.getLogger(__name__)


class Grant(Frozen):
    """Whom the API let have the files of a version."""

    principal: str = Field(max_length=64)
    token_id: str = Field(max_length=16)
    dataset: str = Field(max_length=127)
    number: int = Field(ge=1)


@dataclass(frozen=True)
class Line:
    """A line of the log: what was answered, of which file, to whom."""

    at: str
    method: str
    cache: str
    """``HIT``: the edge answered by itself; all others the API answered and wrote down."""
    status: str
    bytes: int
    path: str
    grant: Grant | None
    """None where the edge only shows that it writes."""

    @property
    def answered(self) -> bool:
        """Whether the edge did, and nobody else."""
        return self.cache == "HIT" and self.grant is not None

    @property
    def sent(self) -> bool:
        """Whether it sent bytes of the file."""
        return self.answered and self.method == "GET" and self.status == "200" and self.bytes > 0


GRANT: TypeAdapter[Grant | None] = TypeAdapter(Grant | None)


class EdgeLog:
    """Takes what the edge's log says, in a thread, while it is open."""

    def __init__(
        self, folder: Path, database: Database, *, report: Callable[[str, int], None]
    ) -> None:
        """``report`` is told how many requests of a principal the edge has answered."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._database = database
        self._report = report
        self._sizes: dict[str, int] = {}
        self._taken_at = -TAKEN_WITHIN_S
        self._well = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take_on, name="edge log", daemon=True)

    @property
    def kept(self) -> bool:
        """Whether lines are seen to be written, and are taken: only then may the edge answer."""
        if time.monotonic() - self._taken_at > TAKEN_WITHIN_S:
            return False
        try:
            newest = max((file.stat().st_mtime for file in self._files()), default=0.0)
            free = disk_usage(self._folder).free
        except OSError:
            return False
        return time.time() - newest < WRITTEN_WITHIN_S and free > LEAST_FREE_BYTES

    def start(self) -> None:
        """Begins to take."""
        self._thread.start()

    def close(self) -> None:
        """Takes what is there, and stops."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._take_well()

    def take(self) -> None:
        """Takes all whole lines that are new; raises ``SQLAlchemyError`` or ``OSError``."""
        for file in self._files():
            size = file.stat().st_size
            if self._sizes.get(file.name) == size:
                continue
            before, taken = -1, 0
            while before < taken < size:  # what is left may be half a line
                before, taken = taken, self._part(file)
            self._sizes[file.name] = size
        self._delete_old()

    def _part(self, file: Path) -> int:
        """Takes at most ``PART_BYTES``; how far the file has been taken."""
        with self._database.session(write=True) as session:
            row = session.get(EdgeLogRow, file.name, with_for_update=True)
            if row is None:
                row = EdgeLogRow(file=file.name, bytes=0)
                session.add(row)
            with file.open("rb") as opened:
                # One that is shorter than what was taken of it is another of the same name.
                start = row.bytes if row.bytes <= os.fstat(opened.fileno()).st_size else 0
                opened.seek(start)
                part = opened.read(PART_BYTES)
            part = part[: part.rfind(b"\n") + 1]
            lines = read(part)
            sent = [line for line in lines if line.sent]
            if sent:
                rows = [row_of(line) for line in sent]
                # The table, not the class: a third of the time.
                session.connection().execute(insert(DownloadRow.__table__), rows)  # type: ignore[arg-type]
            row.bytes = taken = start + len(part)
        for line in lines:
            if line.sent:
                downloaded(line.bytes)
        answered = Counter(line.grant.principal for line in lines if line.grant and line.answered)
        for principal, requests in answered.items():
            self._report(principal, requests)
        return taken

    def _delete_old(self) -> None:
        before = time.time() - KEPT_S
        for file in self._files():
            known = file.stat()
            if known.st_mtime < before and self._sizes.get(file.name) == known.st_size:
                # nginx writes into a file for ten minutes: this one is complete.
                file.unlink()  # first: a row without its file is nothing
                with self._database.session(write=True) as session:
                    session.execute(delete(EdgeLogRow).where(EdgeLogRow.file == file.name))

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.log"))

    def _take_on(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._take_well()

    def _take_well(self) -> None:
        try:
            self.take()
        except (SQLAlchemyError, OSError) as error:
            if self._well:
                log.warning("the edge's log cannot be taken now: %s", type(error).__name__)
            self._well = False
        else:
            self._well = True
            self._taken_at = time.monotonic()


def read(part: bytes) -> list[Line]:
    """The lines of a part; those that are none are counted in the log and left out."""
    found: list[Line] = []
    grants: dict[str, Grant | None] = {}
    broken = 0
    for text in part.decode("ascii", "replace").splitlines():
        try:
            moment, method, cache, status, sent, path, grant = text.split("\t")
            if grant not in grants:
                grants[grant] = GRANT.validate_json(grant)
            second, _, thousandths = moment.partition(".")
            at = f"{_clock(int(second))}.{int(thousandths):03d}Z"
            if len(sent) > 18 or not 0 < len(path) <= 128 or not path.isprintable():
                raise ValueError
            found.append(Line(at, method, cache, status, int(sent), path, grants[grant]))
        except (ValueError, OverflowError, OSError):
            broken += 1
    if broken:
        log.error("%d lines of the edge's log cannot be read", broken)
    return found


def row_of(line: Line) -> dict[str, object]:
    """As the trail has it."""
    assert line.grant is not None
    return {
        "at": line.at,
        "principal": line.grant.principal,
        "token_id": line.grant.token_id,
        "dataset": line.grant.dataset,
        "number": line.grant.number,
        "path": line.path,
        "bytes": line.bytes,
    }


@lru_cache(maxsize=64)
def _clock(second: int) -> str:
    return stamp(datetime.fromtimestamp(second, UTC)).partition(".")[0]
