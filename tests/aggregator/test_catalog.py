import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from aggregator.catalog import Catalog, CatalogError, StoredFile, Version


@pytest.fixture
def catalog(address: Path | str) -> Iterator[Catalog]:
    opened = Catalog(address)
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


def numbers(catalog: Catalog, name: str = "ct-demo") -> list[int]:
    return [one.number for one in catalog.versions("fedstill", name)]


def test_versions_are_counted_by_dataset(catalog: Catalog) -> None:
    assert [publish(catalog, digit).number for digit in "abc"] == [1, 2, 3]
    assert publish(catalog, "a", name="mr-demo").number == 1
    assert numbers(catalog) == [3, 2, 1]
    assert [one.number for one in catalog.versions("fedstill", "ct-demo", offset=1, limit=1)] == [2]
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
    assert number("v999999999") is None
    assert catalog.find("fedstill", "other", "main") is None
    assert catalog.find("fedstill", "ct-demo", "v1").files[0].bytes == 1  # type: ignore[union-attr]


def test_what_no_name_can_hold_is_not_found(catalog: Catalog) -> None:
    publish(catalog, "a")
    for text in ("\0", "a\0b", "\0" * 40, "世界", "'; --", "%", "x" * 10_000):
        assert catalog.find("fedstill", "ct-demo", text) is None
        assert catalog.find("fedstill", text, "main") is None
        assert catalog.find(text, "ct-demo", "main") is None
        assert catalog.describe("fedstill", text) is None
        assert catalog.head("fedstill", text) is None
        assert catalog.versions("fedstill", text) == []
        assert catalog.datasets(matching=text) == (0, [])


def test_datasets_are_searched_by_name_and_task(catalog: Catalog) -> None:
    for name in ("ct-demo", "mr-demo"):
        publish(catalog, "a", name=name)
    both = ["ct-demo", "mr-demo"]
    for text, names in (("MR-", ["mr-demo"]), ("demo", both), ("Noise", both)):
        total, page = catalog.datasets(matching=text)
        assert (total, [one.name for one in page]) == (len(names), names)


def test_a_failed_publication_adds_nothing(catalog: Catalog) -> None:
    publish(catalog, "a", name="other")
    given = []

    def fail(number: int) -> list[StoredFile]:
        given.append(number)
        raise OSError("disk full")

    for digit in "bc":
        with pytest.raises(OSError, match="disk full"):
            catalog.publish(
                namespace="fedstill", name="other", digest=digit * 64, summary={}, files=fail
            )
    assert given == [2, 2]
    assert numbers(catalog, "other") == [1]
    assert publish(catalog, "d", name="other").number == 2


FORBIDDEN = (
    "UPDATE versions SET digest = 'x'",
    "DELETE FROM versions",
    "UPDATE files SET sha256 = 'x'",
    "DELETE FROM files",
    "UPDATE withdrawals SET reason = 'x'",
    "DELETE FROM withdrawals",
    "DELETE FROM datasets",
    "UPDATE datasets SET last_number = 0",
    "UPDATE datasets SET head_sequence = 0",
    "UPDATE datasets SET name = 'x'",
    "UPDATE datasets SET visibility = 'x'",
)


def test_what_was_published_never_changes(catalog: Catalog) -> None:
    publish(catalog, "a")
    catalog.withdraw("fedstill", "ct-demo", 1, "a test")
    before = catalog.find("fedstill", "ct-demo", "v1")
    for statement in FORBIDDEN:
        with (
            pytest.raises(IntegrityError, match=r"never changes|only grow|visibility"),
            catalog.database.engine.begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert catalog.find("fedstill", "ct-demo", "v1") == before


def test_tables_are_not_emptied_either(empty_postgresql: str) -> None:
    catalog = Catalog(empty_postgresql)
    for table in ("versions", "files", "withdrawals", "datasets"):
        with (
            pytest.raises(IntegrityError, match=r"never changes|only grow"),
            catalog.database.engine.begin() as connection,
        ):
            connection.exec_driver_sql(f"TRUNCATE {table} CASCADE")
    catalog.close()


def test_a_withdrawn_version_keeps_its_place(catalog: Catalog) -> None:
    for digit in "abc":
        publish(catalog, digit)
    kept = catalog.find("fedstill", "ct-demo", "v3")
    gone = catalog.withdraw("fedstill", "ct-demo", 3, "  wrong\n window ")
    assert gone.withdrawn is not None
    assert gone.withdrawn.reason == "wrong window"
    found = catalog.find("fedstill", "ct-demo", "v3")
    assert found == gone
    assert kept is not None
    assert (found.digest, found.files) == (kept.digest, kept.files)
    assert catalog.find("fedstill", "ct-demo", "main").number == 2  # type: ignore[union-attr]
    assert [one.number for one in catalog.datasets()[1]] == [2]
    assert [bool(one.withdrawn) for one in catalog.versions("fedstill", "ct-demo")] == [
        True,
        False,
        False,
    ]
    again = catalog.withdraw("fedstill", "ct-demo", 3, "another reason")
    assert again == gone
    assert publish(catalog, "d").number == 4
    assert catalog.find("fedstill", "ct-demo", "main").number == 4  # type: ignore[union-attr]


def test_where_all_versions_are_withdrawn_main_says_so(catalog: Catalog) -> None:
    for digit in "ab":
        publish(catalog, digit)
    for number in (2, 1):
        catalog.withdraw("fedstill", "ct-demo", number, f"reason {number}")
    newest = catalog.find("fedstill", "ct-demo", "main")
    assert newest is not None
    assert newest.withdrawn is not None
    assert (newest.number, newest.withdrawn.reason) == (2, "reason 2")
    assert catalog.datasets() == (0, [])


def test_a_withdrawal_has_a_reason_that_people_can_read(catalog: Catalog) -> None:
    publish(catalog, "a")
    for reason in ("", " \n ", "x" * 501, "a\x1b[31m"):
        with pytest.raises(CatalogError, match="1 to 500 printable"):
            catalog.withdraw("fedstill", "ct-demo", 1, reason)
    with pytest.raises(CatalogError, match="no version fedstill/ct-demo@v2"):
        catalog.withdraw("fedstill", "ct-demo", 2, "reason")
    with pytest.raises(CatalogError, match="no version fedstill/none@v1"):
        catalog.withdraw("fedstill", "none", 1, "reason")


def test_withdrawn_content_is_not_published_again(catalog: Catalog) -> None:
    publish(catalog, "a")
    catalog.withdraw("fedstill", "ct-demo", 1, "a site took back its consent")
    with pytest.raises(CatalogError, match="took back its consent"):
        publish(catalog, "a")
    assert publish(catalog, "b").number == 2


def test_the_head_counts_what_changed(catalog: Catalog) -> None:
    assert catalog.head("fedstill", "ct-demo") is None
    catalog.configure("fedstill", "ct-demo", visibility="private")
    assert catalog.head("fedstill", "ct-demo") is None
    seen = []
    for digit in "abc":
        publish(catalog, digit)
        publish(catalog, digit)
        seen.append(catalog.head("fedstill", "ct-demo"))
    for number in (3, 1, 1, 2):
        catalog.withdraw("fedstill", "ct-demo", number, "a test")
        seen.append(catalog.head("fedstill", "ct-demo"))
    heads = [
        (one.sequence, one.newest.number if one.newest else None, one.withdrawn)
        for one in seen
        if one
    ]
    assert heads == [
        (1, 1, ()),
        (2, 2, ()),
        (3, 3, ()),
        (4, 2, (3,)),
        (5, 2, (1, 3)),
        (5, 2, (1, 3)),
        (6, None, (1, 2, 3)),
    ]


def test_private_datasets_are_shown_to_those_named(catalog: Catalog) -> None:
    catalog.configure("fedstill", "b", visibility="private")
    catalog.configure("fedstill", "c", visibility="gated", agreement="Be good.")
    for name in "abc":
        publish(catalog, "a", name=name)

    def shown(visible_to: Collection[str] | None = ()) -> list[str]:
        total, page = catalog.datasets(visible_to=visible_to)
        assert total == len(page)
        return [one.name for one in page]

    assert shown() == ["a", "c"]
    assert shown({"fedstill/b", "fedstill/none"}) == ["a", "b", "c"]
    assert shown({"b"}) == ["a", "c"]
    assert shown(None) == ["a", "b", "c"]
    assert catalog.find("fedstill", "b", "main").dataset.visibility == "private"  # type: ignore[union-attr]


def test_an_agreement_that_changes_is_a_new_one(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="no agreement"):
        catalog.configure("fedstill", "ct-demo", visibility="gated")
    assert catalog.describe("fedstill", "ct-demo") is None
    for text, version in (("one", 1), ("one", 1), ("two", 2)):
        made = catalog.configure("fedstill", "ct-demo", visibility="gated", agreement=text)
        assert (made.agreement_version, made.agreement_text) == (version, text)
        assert catalog.describe("fedstill", "ct-demo") == made
    assert catalog.configure("fedstill", "ct-demo", visibility="public").agreement_version == 2


def test_a_page_costs_the_same_however_many_there_are(catalog: Catalog) -> None:
    statements: list[str] = []
    event.listen(
        catalog.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )
    costs = []
    for names in ("ab", "cdefgh"):
        for name in names:
            for digit in "abc":
                publish(catalog, digit, name=name)
        statements.clear()
        catalog.datasets()
        catalog.versions("fedstill", "a")
        catalog.find("fedstill", "a", "main")
        costs.append(len(statements))
    assert costs[0] == costs[1] <= 3 + 1 + 2 + 3  # SQLite's BEGIN is a statement too


def test_it_is_durable(address: Path | str) -> None:
    catalog = Catalog(address)
    publish(catalog, "a")
    with catalog.database.engine.connect() as connection:
        if isinstance(address, Path):
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    again = Catalog(address)
    assert again.versions("fedstill", "ct-demo") == catalog.versions("fedstill", "ct-demo")
    again.close()
    catalog.close()


PUBLISH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_catalog as t
address = sys.argv[2] if "://" in sys.argv[2] else Path(sys.argv[2])
catalog = t.Catalog(address)
for digit in sys.argv[3]:
    t.publish(catalog, digit)
catalog.close()
"""


def test_two_publishers_at_once_get_different_numbers(address: Path | str) -> None:
    # Both also find no table: one of them makes all.
    command = [sys.executable, "-c", PUBLISH, str(Path(__file__).parent), str(address)]
    processes = [subprocess.Popen([*command, digits]) for digits in ("01234567", "89abcdef")]
    assert [process.wait() for process in processes] == [0, 0]
    catalog = Catalog(address)
    assert numbers(catalog) == list(range(16, 0, -1))
    head = catalog.head("fedstill", "ct-demo")
    assert head is not None
    assert head.sequence == 16
    catalog.close()


def test_publishers_of_two_datasets_do_not_wait_for_each_other(empty_postgresql: str) -> None:
    catalog, other = Catalog(empty_postgresql), Catalog(empty_postgresql)
    inside, done = threading.Event(), threading.Event()

    def slow(number: int) -> list[StoredFile]:
        inside.set()
        assert done.wait(20)
        return [StoredFile("a.txt", number, "a" * 64)]

    first = threading.Thread(
        target=catalog.publish,
        kwargs={
            "namespace": "fedstill",
            "name": "slow",
            "digest": "a" * 64,
            "summary": {},
            "files": slow,
        },
    )
    first.start()
    assert inside.wait(20)
    assert publish(other, "a", name="quick").number == 1
    assert numbers(other, "slow") == []
    done.set()
    first.join()
    assert numbers(other, "slow") == [1]
    other.close()
    catalog.close()
