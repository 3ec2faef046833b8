"""Checks of what the aggregator keeps: catalog, blobs, Flower's database, runs, sites."""

import hashlib
import random
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.exc import SQLAlchemyError

from aggregator.database import DatabaseError, condition, newest_step
from aggregator.enrolment import EnrolmentError, enrolled_sites, revoked_sites
from aggregator.heard import read_heard
from aggregator.home import AggregatorHome
from aggregator.lifecycle import NOBODY, read_state
from aggregator.occupancy import is_up
from aggregator.published import published_files
from aggregator.runs import RunError, is_held, read_plan, read_run_contract
from aggregator.store import BlobStore, StoreError
from shared.findings import Finding, failed, good, unjudged, warning

SAMPLE = 64
"""Blobs that are read without ``--deep``."""
MIB = 1 << 20
MUCH_UNUSED = 200 * MIB
SILENT_S = 900.0
"""A ServerApp writes into its journal every few seconds, whatever it waits for."""
BACKUP = "restore it from a backup: `aggregator restore`"


def catalog(home: AggregatorHome) -> Finding:
    """Whether the database of releases is whole, and of this version's schema."""
    check, address = "catalog", home.catalog
    if isinstance(address, Path) and not address.exists():
        return good(check, "none yet: `aggregator up` makes it")
    try:
        found = condition(address)
    except DatabaseError as error:
        return failed(check, str(error), "start the database's server, or check `database`"
                      if home.settings.database else BACKUP)  # fmt: skip
    if found.problems:
        return failed(check, f"it is damaged: {found.problems[0]}", BACKUP)
    newest = newest_step()
    if found.step is not None and found.step > newest:
        return failed(
            check,
            f"it was used by a later fedstill (step {found.step}; this one knows {newest})",
            "install that one",
        )
    if found.step != newest:
        return warning(
            check, f"it is of step {found.step}, before {newest}", "`aggregator up` brings it up"
        )
    return good(check, f"whole, step {newest}")


def blobs(home: AggregatorHome, *, deep: bool) -> Finding:
    """Whether each file of each version is there, and a sample, or all of them, as published."""
    check, address = "blobs", home.catalog
    if isinstance(address, Path) and not address.exists():
        return good(check, "nothing is published")
    try:
        wanted = published_files(address)
        store = BlobStore(home.blobs)
        read = set(wanted if deep else random.sample(sorted(wanted), min(SAMPLE, len(wanted))))
        missing, wrong = [], []
        for sha256, size in wanted.items():
            path = store.path(sha256)
            if path is not None and not path.is_file():
                missing.append(sha256)
            elif path is not None and path.stat().st_size != size:
                wrong.append(sha256)
            elif sha256 in read and path is None and not store.has(sha256):
                missing.append(sha256)
            elif sha256 in read and _digest(store, sha256) != sha256:
                wrong.append(sha256)
    except DatabaseError:
        return unjudged(check, "the catalog cannot be read", "see catalog")
    except SQLAlchemyError:
        return unjudged(check, "the catalog has no tables, or is damaged", "see catalog")
    except (StoreError, OSError) as error:
        return failed(check, str(error), "check `storage` in aggregator.toml")
    for what, found in (("missing", missing), ("not as published", wrong)):
        if found:
            return failed(
                check,
                f"{len(found)} of {len(wanted)} are {what}, {found[0][:16]}… first: downloads fail",
                "put blobs/ back from a backup",
            )
    return good(check, f"{len(wanted)} there, {len(read)} of them read and as published")


def _digest(store: BlobStore, sha256: str) -> str:
    found = hashlib.sha256()
    for chunk in store.read(sha256):
        found.update(chunk)
    return found.hexdigest()


def flower(home: AggregatorHome) -> Finding:
    """Whether the SuperLink's database is whole, and how much of its file is unused."""
    check, path = "Flower's database", home.database
    if not path.exists():
        return good(check, "none yet: `aggregator up` makes it")
    try:
        size, unused, said = examine_flower(path)
    except sqlite3.Error as error:
        size, unused, said = 0, 0, str(error)
    if said != "ok":
        return failed(
            check,
            f"it is damaged: {said}",
            "stop `aggregator up`, move flower/superlink.db away and start it again: sites are "
            "registered anew, runs go on after their last round",
        )
    told = f"whole, {size / MIB:.1f} MiB, {unused / MIB:.1f} of them unused"
    if unused > MUCH_UNUSED and unused > size / 2:
        return warning(check, told, "`aggregator vacuum` gives them back")
    return good(check, told)


def examine_flower(path: Path) -> tuple[int, int, str]:
    """Bytes of Flower's database, how many are unused, and ``ok`` or what is wrong with it."""
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10)
    try:
        page, pages, free = (
            int(database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        return page * pages, page * free, str(said)
    finally:
        database.close()


def runs(home: AggregatorHome) -> Finding:
    """The first run that a person has to look at."""
    check, up, count = "runs", is_up(home), 0
    worrying: Finding | None = None
    for run in sorted(home.runs.glob("[0-9a-f]" * 16)):
        count += 1
        try:
            contract, plan, state = read_run_contract(run), read_plan(run), read_state(run)
        except RunError as error:
            return failed(check, str(error), "put runs/ back from a backup, or move it away")
        called = f"run {contract.name} ({run.name})"
        if state.state == "failed":
            worrying = warning(
                check,
                f"{called} failed: {state.reason}",
                f"mend it, `aggregator run resume {run.name}`",
            )
        elif state.missing:
            worrying = warning(
                check,
                f"{called} waits for {', '.join(state.missing)}",
                "ask there for `site-agent preflight`; it goes on by itself",
            )
        elif state.state == "paused" and state.reason == NOBODY and not up:
            worrying = warning(
                check, f"{called} was interrupted", "`aggregator up`: it goes on by itself"
            )
        elif is_held(run) and (silent_s := _silent_s(run)) > max(SILENT_S, plan.round_timeout_s):
            return failed(
                check,
                f"{called} has said nothing for {silent_s / 60:.0f} minutes",
                f"`aggregator run stop {run.name}`, then resume it; nothing is lost",
            )
    return worrying or good(check, f"{count}, none of which needs anybody")


def _silent_s(run: Path) -> float:
    try:
        return time.time() - (run / "events.jsonl").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sites(home: AggregatorHome) -> Finding:
    """Whether the records of the sites can be read, each has its kit, and all are of one version.

    Of their versions is known what they last said to a dry run.
    """
    check = "sites"
    try:
        enrolled, gone = enrolled_sites(home), revoked_sites(home)
    except EnrolmentError as error:
        return failed(check, str(error), "put sites/ back from a backup")
    without = [one.name for one in enrolled if not (home.kits / f"{one.name}.kit.json").exists()]
    if without:
        return warning(
            check,
            f"no kit is there for {', '.join(without)}",
            f"`aggregator site add sites/{without[0]}.json` writes it again",
        )
    own, heard = version("fedstill"), read_heard(home)
    others = {
        one.name: said.version
        for one in enrolled
        if (said := heard.get(one.name)) and said.version not in (None, own)
    }
    if others:
        told = ", ".join(f"{name} has {theirs}" for name, theirs in sorted(others.items()))
        return warning(
            check,
            f"{told}, this is {own}",
            "install one version everywhere, then `aggregator launch --dry-run` asks again",
        )
    if not enrolled:
        return good(check, "none is enrolled: `aggregator site add ENROLMENT.json`")
    return good(check, f"{len(enrolled)} enrolled, {len(gone)} revoked")
