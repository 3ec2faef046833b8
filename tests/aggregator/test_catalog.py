import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.catalog import Catalog, StoredFile, Version


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(tmp_path / "catalog.sqlite")
    yield opened
    opened.close()


def publish(catalog: Catalog, digit: str, name: str = "ct-demo") -> Version:
    return catalog.publish(
        namespace="fedstill",
        name=name,
        digest=digit * 64,
        summary={"task": "ct-denoise"},
        files=lambda number: [StoredFile("a.txt", number, digit * 64)],
    )


def test_versions_are_counted_by_dataset(catalog: Catalog) -> None:
    assert [publish(catalog, digit).number for digit in "abc"] == [1, 2, 3]
    assert publish(catalog, "a", name="mr-demo").number == 1
    assert [one.number for one in catalog.versions("fedstill", "ct-demo")] == [3, 2, 1]
    total, newest = catalog.datasets()
    assert total == 2
    assert [(one.name, one.number) for one in newest] == [("ct-demo", 3), ("mr-demo", 1)]
    total, page = catalog.datasets(offset=1, limit=5)
    assert (total, [one.name for one in page]) == (2, ["mr-demo"])


def test_equal_content_is_one_version(catalog: Catalog) -> None:
    first = publish(catalog, "a")
    publish(catalog, "b")
    assert publish(catalog, "a") == first


def test_versions_are_found(catalog: Catalog) -> None:
    for digit in "abc":
        publish(catalog, digit)

    def number(revision: str) -> int | None:
        found = catalog.find("fedstill", "ct-demo", revision)
        return found.number if found else None

    assert number("main") == 3
    assert number("v2") == 2
    assert number("a" * 40) == 1
    assert number("b" * 64) == 2
    for revision in ("v4", "v02", "v", "2", "latest", "a" * 39, "d" * 40, "v" + "9" * 30, "v²"):
        assert number(revision) is None
    assert catalog.find("fedstill", "other", "main") is None
    assert catalog.find("fedstill", "ct-demo", "v1").files[0].bytes == 1  # type: ignore[union-attr]


def test_a_failed_publication_adds_nothing(catalog: Catalog) -> None:
    def fail(number: int) -> list[StoredFile]:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        catalog.publish(
            namespace="fedstill", name="ct-demo", digest="a" * 64, summary={}, files=fail
        )
    assert catalog.datasets() == (0, [])
    assert publish(catalog, "a").number == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET digest = 'x'",
        "DELETE FROM versions",
        "UPDATE files SET sha256 = 'x'",
        "DELETE FROM files",
    ],
)
def test_a_published_version_never_changes(
    catalog: Catalog, tmp_path: Path, statement: str
) -> None:
    publish(catalog, "a")
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        connection.execute(statement)
    connection.close()


def test_it_is_durable(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    publish(catalog, "a")
    again = Catalog(tmp_path / "catalog.sqlite")
    assert again.versions("fedstill", "ct-demo") == catalog.versions("fedstill", "ct-demo")
    again.close()


PUBLISH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_catalog as t
catalog = t.Catalog(Path(sys.argv[2]))
for digit in sys.argv[3]:
    t.publish(catalog, digit)
catalog.close()
"""


def test_two_publishers_at_once_get_different_numbers(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    command = [sys.executable, "-c", PUBLISH, str(Path(__file__).parent), str(path)]
    processes = [subprocess.Popen([*command, digits]) for digits in ("01234567", "89abcdef")]
    assert [process.wait() for process in processes] == [0, 0]
    catalog = Catalog(path)
    assert [one.number for one in catalog.versions("fedstill", "ct-demo")] == list(range(16, 0, -1))
    catalog.close()
