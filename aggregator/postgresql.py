"""PostgreSQL's own programs, which copy a database as a whole."""

import os
import shutil
import subprocess
from pathlib import Path

from sqlalchemy.engine import make_url

from aggregator.archive import ArchiveError

PACKAGE = "install your server's client programs (Debian: postgresql-client)"


def dump(url: str, *, into: Path) -> None:
    """Writes all of a database, as of one moment; raises ``ArchiveError``."""
    _run("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={into}")


def load(url: str, *, source: Path) -> None:
    """Fills an empty database, whole or not at all; raises ``ArchiveError``."""
    options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
    _run("pg_restore", url, *options, str(source))


def program(name: str) -> str:
    """Where the program is, the newest of several; raises ``ArchiveError``."""
    installed = [Path(folder) / name for folder in Path("/usr/lib/postgresql").glob("*/bin")]
    newest = max(
        (one for one in installed if one.exists()),
        key=lambda one: [int(part) for part in one.parent.parent.name.split(".") if part.isdigit()],
        default=None,
    )
    # Debian's wrapper in PATH takes the version of a server on this machine: an older one maybe.
    found = str(newest) if newest is not None else shutil.which(name)
    if found is None:
        raise ArchiveError(f"the catalog is in PostgreSQL, and {name} is missing: {PACKAGE}")
    return found


def _run(name: str, url: str, *options: str) -> None:
    place = make_url(url).set(drivername="postgresql")
    environment = dict(os.environ)
    if place.password is not None:
        environment["PGPASSWORD"] = str(place.password)
    # Others on this machine see a program's arguments.
    address = place.set(password=None).render_as_string()
    done = subprocess.run(
        [program(name), f"--dbname={address}", "--no-password", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise ArchiveError(f"{name} failed: {said}")
