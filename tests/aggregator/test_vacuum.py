import re
import sqlite3
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator import services, vacuum
from aggregator.catalog import Catalog
from aggregator.cli import app
from aggregator.home import AggregatorHome, create_home
from aggregator.occupancy import occupied
from aggregator.runs import hold_run
from aggregator.superlink import tidy_database
from aggregator.supervisor import Service, Supervisor
from aggregator.vacuum import VacuumError, vacuum_home
from shared.processes import Process, spawn


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    """Whose Flower has sent messages of 4 MiB and deleted all but one of them."""
    made = create_home(tmp_path / "home", {})
    with sqlite3.connect(made.database) as database:
        database.execute("CREATE TABLE objects (content BLOB)")
        database.executemany("INSERT INTO objects VALUES (?)", [(bytes(100_000),)] * 40)
        database.execute("DELETE FROM objects WHERE rowid > 1")
    database.close()
    return made


def objects(home: AggregatorHome) -> int:
    database = sqlite3.connect(home.database)
    (count,) = database.execute("SELECT count(*) FROM objects").fetchone()
    database.close()
    return int(count)


def test_what_is_unused_is_given_back_and_said(home: AggregatorHome) -> None:
    Catalog(home.catalog).close()
    assert home.database.stat().st_size > 4_000_000
    result = CliRunner().invoke(app, ["vacuum", "--home", str(home.root)])
    assert re.search(r"Flower's database: [34]\.\d MiB before, 0\.1 MiB now", result.output)
    assert "catalog: " in result.output
    assert home.database.stat().st_size < 200_000
    assert objects(home) == 1


def test_a_running_up_is_asked_and_waits_until_no_run_is_worked_on(
    home: AggregatorHome, tmp_path: Path
) -> None:
    starts = 0

    def start() -> list[Process]:
        nonlocal starts
        starts += 1
        tidy_database(home.database)
        return [spawn(["sleep", "60"], log=tmp_path / "superlink.log")]

    tidied = home.database.stat().st_size
    kept = Supervisor([Service("superlink", start)], log=tmp_path / "up.log")
    run = home.runs / ("0" * 16)
    run.mkdir()
    stop = threading.Event()

    def errand() -> None:
        services._vacuum(home, kept)

    with occupied(home):
        kept.begin()
        assert home.database.stat().st_size < tidied, "each start does it"
        with sqlite3.connect(home.database) as database:
            database.executemany("INSERT INTO objects VALUES (?)", [(bytes(100_000),)] * 40)
            database.execute("DELETE FROM objects WHERE rowid > 1")
        database.close()
        watching = threading.Thread(target=kept.watch, args=(stop,), kwargs={"errands": [errand]})
        watching.start()
        try:
            with (
                hold_run(run),
                pytest.raises(VacuumError, match="a run is worked on"),
            ):
                vacuum_home(home, wait_s=1.2)
            assert starts == 1
            (won,) = vacuum_home(home, wait_s=20)
        finally:
            stop.set()
            watching.join()
            kept.end()
    assert starts == 2
    assert won.before > 4_000_000 > 200_000 > won.after
    assert not (home.root / vacuum.WANTED).exists()


def test_without_room_nothing_is_begun(
    home: AggregatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 100

    monkeypatch.setattr(vacuum.shutil, "disk_usage", lambda _: Full)
    before = home.database.read_bytes()
    with pytest.raises(VacuumError, match="make room"):
        vacuum_home(home, wait_s=0)
    assert home.database.read_bytes() == before
