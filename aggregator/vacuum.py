"""`aggregator vacuum`: gives the space back that SQLite's files hold without using it.

Nothing is dropped: Flower deletes a run's messages itself when the run ends, and its file stays as
large as it ever was. VACUUM writes what is left anew. Flower's database is vacuumed while no
SuperLink has it: at each start, by this command where `up` does not run, and where it runs by `up`
itself, which ends the SuperLink for that once no run is worked on. The catalog can be vacuumed at
any time: who writes meanwhile waits.
"""

import json
import shutil
import sqlite3
import time
from pathlib import Path

from aggregator.home import AggregatorHome
from aggregator.lifecycle import WORKING, read_state
from aggregator.occupancy import is_up, occupied
from aggregator.runs import RunError, is_held
from shared.durable import write_durably
from shared.frozen import Frozen

WANTED, DONE = "vacuum.wanted", "vacuum.json"
BUSY_S = 30.0
POLL_S = 0.2


class VacuumError(RuntimeError):
    """A database that cannot be vacuumed now; says why and what to do."""


class Won(Frozen):
    """What a VACUUM won of a database, bytes."""

    database: str
    before: int
    after: int


def vacuum_file(path: Path, *, name: str) -> Won:
    """Writes a database anew; raises ``VacuumError``. The file is whole whatever happens."""
    before = size_of(path)
    if shutil.disk_usage(path.parent).free < 2 * before:
        raise VacuumError(f"{name}: VACUUM needs {2 * before} bytes free for a while: make room")
    database = sqlite3.connect(path, timeout=BUSY_S)
    try:
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise VacuumError(f"{name}: {error}: see `aggregator doctor`") from None
    finally:
        database.close()
    return Won(database=name, before=before, after=size_of(path))


def vacuum_home(home: AggregatorHome, *, wait_s: float) -> list[Won]:
    """Vacuums what a home has; where `up` runs, it is asked to do Flower's database.

    Raises ``VacuumError`` where `up` has found no moment for it within ``wait_s`` seconds: it does
    it then as soon as no run is worked on.
    """
    won = []
    if isinstance(home.catalog, Path) and home.catalog.exists():
        won.append(vacuum_file(home.catalog, name="catalog"))
    if not home.database.exists():
        return won
    if is_up(home):
        return [*won, _asked(home, wait_s=wait_s)]
    with occupied(home):
        won.append(vacuum_file(home.database, name="Flower's database"))
    return won


def wanted(home: AggregatorHome) -> bool:
    """Whether somebody asked `up` for it, and no run is worked on."""
    return (home.root / WANTED).exists() and not _is_working(home)


def done(home: AggregatorHome, *, before: int) -> Won:
    """Tells who asked; called by `up` when the SuperLink, started again, has vacuumed."""
    won = Won(database="Flower's database", before=before, after=size_of(home.database))
    write_durably(home.root / DONE, won.model_dump_json().encode())
    (home.root / WANTED).unlink(missing_ok=True)
    return won


def _asked(home: AggregatorHome, *, wait_s: float) -> Won:
    (home.root / DONE).unlink(missing_ok=True)
    write_durably(home.root / WANTED, json.dumps({"asked": time.time()}).encode())
    deadline = time.monotonic() + wait_s
    while not (home.root / DONE).exists():
        if time.monotonic() >= deadline:
            why = "a run is worked on" if _is_working(home) else "the SuperLink is being started"
            raise VacuumError(
                f"Flower's database: not yet, {why}; `up` does it by itself at the first moment "
                "that it can"
            )
        time.sleep(POLL_S)
    return Won.model_validate_json((home.root / DONE).read_bytes())


def _is_working(home: AggregatorHome) -> bool:
    for run in home.runs.glob("*/"):
        if is_held(run):
            return True
        if not run.name.startswith("dry-"):
            try:
                if read_state(run).state in WORKING:
                    return True
            except RunError:
                continue
    return False


def size_of(path: Path) -> int:
    """Bytes of a database, with what waits in its log."""
    beside = (path, path.with_name(f"{path.name}-wal"))
    return sum(one.stat().st_size for one in beside if one.exists())
