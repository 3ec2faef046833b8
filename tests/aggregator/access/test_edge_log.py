"""The edge's log, taken into the trail: each line once, whatever happens between."""

import os
import time
from pathlib import Path

import pytest

from aggregator.access import edge_log
from aggregator.access.audit import Audit, Download
from aggregator.access.edge_log import EdgeLog, read
from aggregator.api.errors import ApiError
from aggregator.api.rates import RESERVE, Rates
from aggregator.database import Database

GRANT = '{"principal":"ada","token_id":"t1","dataset":"fedstill/ct","number":2}'


def line(
    path: str, *, cache: str = "HIT", method: str = "GET", status: int = 200, sent: int = 9
) -> str:
    return f"1700000000.250\t{method}\t{cache}\t{status}\t{sent}\t{path}\t{GRANT}\n"


def paths(database: Database) -> list[str]:
    return [one.path for one in reversed(Audit(database).newest(limit=10_000))]


def test_lines_are_downloads_of_who_had_the_grant(tmp_path: Path) -> None:
    database = Database(tmp_path / "catalog.sqlite")
    told: list[tuple[str, int]] = []
    log = EdgeLog(tmp_path / "log", database, report=lambda *one: told.append(one))
    assert not log.kept  # nothing shows that the edge writes
    (tmp_path / "log" / "1.log").write_text(
        line("a.bin")
        + line("b.bin", cache="MISS")  # the API sent that, and has written it down
        + line("c.bin", method="HEAD", sent=0)
        + line("d.bin", status=304, sent=0)
        + line("e.bin").replace(GRANT, "null").replace("HIT", "BYPASS")
        + line("f.bin", sent=4)  # somebody hung up
        + line("half.bin")[:40]
    )
    log.take()
    newest = Audit(database).newest()
    assert newest == [
        Download("2023-11-14T22:13:20.250Z", "ada", "t1", "fedstill/ct", 2, "f.bin", 4),
        Download("2023-11-14T22:13:20.250Z", "ada", "t1", "fedstill/ct", 2, "a.bin", 9),
    ]
    assert told == [("ada", 4)]  # all the edge answered count, sent or not
    with (tmp_path / "log" / "1.log").open("a") as opened:
        opened.write(line("half.bin")[40:])
    log.take()
    assert paths(database) == ["a.bin", "f.bin", "half.bin"]
    log.close()
    assert log.kept
    database.close()


def test_each_line_is_taken_once_by_whoever_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "catalog.sqlite")
    expected = [f"{number}.bin" for number in range(300)]

    def another() -> EdgeLog:
        return EdgeLog(tmp_path / "log", database, report=lambda *_: None)

    monkeypatch.setattr(edge_log, "PART_BYTES", 1000)  # many transactions
    first, second = another(), another()
    for start in range(0, 300, 100):
        with (tmp_path / "log" / f"{start // 200}.log").open("a") as opened:
            opened.writelines(line(path) for path in expected[start : start + 100])
        with monkeypatch.context() as broken:
            # Killed within a transaction, after some of it has been taken.
            broken.setattr(edge_log, "row_of", _failing_after(30))
            with pytest.raises(KeyboardInterrupt):
                another().take()
        first.take()
        second.take()
        another().take()
    assert paths(database) == expected
    database.close()


def _failing_after(calls: int):  # type: ignore[no-untyped-def]
    left, real = [calls], edge_log.row_of

    def failing(one: edge_log.Line) -> dict[str, object]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(one)

    return failing


def test_an_old_file_goes_once_it_is_taken(tmp_path: Path) -> None:
    database = Database(tmp_path / "catalog.sqlite")
    log = EdgeLog(tmp_path / "log", database, report=lambda *_: None)
    file = tmp_path / "log" / "1.log"
    long_ago = time.time() - edge_log.KEPT_S - 60
    for content in (line("a.bin") * 2, line("b.bin")):  # the second is shorter: not the first
        file.write_text(content)
        os.utime(file, (long_ago, long_ago))
        log.take()
        assert not file.exists()
    assert paths(database) == ["a.bin", "a.bin", "b.bin"]
    log.close()
    assert not log.kept  # what was written is long ago
    database.close()


def test_what_is_no_line_is_left_out() -> None:
    good = line("a.bin").encode()
    hostile = (
        *(
            b"\n",
            b"\0" * 50 + b"\n",
            b"\xff\xfe\n",
            b"a\tb\n",
            b"\t" * 6 + b"\n",
            good[:30] + b"\n",
        ),
        good.replace(b"1700000000.250", b"99999999999999999999.0"),
        good.replace(b"\t9\t", b"\tnine\t"),
        good.replace(b"\t9\t", b"\t" + b"9" * 30 + b"\t"),
        good.replace(b"a.bin", b"a" * 129),
        good.replace(b"a.bin", b"a\0bin"),
        good.replace(b'"number":2', b'"number":2,"more":1'),
        good.replace(b'"principal":"ada"', b'"principal":"' + b"a" * 65 + b'"'),
        good.replace(b"a.bin", b"a.bin\tb.bin"),
    )
    assert [one.path for one in read(good + b"".join(hostile) + good)] == ["a.bin", "a.bin"]


def test_what_the_edge_answered_counts_against_the_limit() -> None:
    rates = Rates(RESERVE + 100)
    assert rates.ample("name ada")
    rates.reported("name ada", 99)
    assert rates.ample("name ada")
    rates.count("name ada")
    assert not rates.ample("name ada")  # the rest is asked of the API, which counts
    assert rates.ample("name bob")
    rates.reported("name ada", RESERVE + 5)  # more than there were
    with pytest.raises(ApiError) as refused:
        rates.count("name ada")
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "1"
    unlimited = Rates(0)
    unlimited.reported("name ada", 10**9)
    unlimited.count("name ada")
    assert unlimited.ample("name ada") and not unlimited.counted
