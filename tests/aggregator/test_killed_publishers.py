"""``kill -9`` of who publishes, at every step of it: a version is absent or complete.

One process imports what publishing needs and forks a publisher for each step. The publisher kills
itself there, or ends where there are no more steps. Steps are: before and after each sync and each
rename, each statement to the database, each commit.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator import release
from aggregator.catalog import Catalog, Version
from aggregator.home import AggregatorHome
from aggregator.store import BlobStore
from shared.contract import RunContract
from shared.release.keys import read_private_key, read_public_key, write_key_pair
from shared.release.manifest import VERSION, verify_folder

KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_killed_publishers as t
from shared.release.manifest import sha256
from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

home, kind = Path(sys.argv[2]), sys.argv[3]


def publisher(last):
    passed = 0

    def step(label):
        nonlocal passed
        passed += 1
        if passed == last:
            os.write(told, label.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, attribute, label):
        function = getattr(owner, attribute)

        def wrapped(*arguments):
            step(f"before {label}")
            result = function(*arguments)
            step(f"after {label}")
            return result

        setattr(owner, attribute, wrapped)

    if kind == "all":
        around(os, "fsync", "sync")
        around(Path, "replace", "rename")
    around(DefaultDialect, "do_commit", "commit")
    if kind == "late":  # one that does it wrong: blobs are to follow the row that names them
        t.BlobStore.put = lambda store, content: sha256(content)
    else:
        for when in ("before", "after"):
            label = when + " {0[2]:.6}"
            event.listen(Engine, f"{when}_cursor_execute", lambda *a, l=label: step(l.format(a)))
    t.publish(home, f"ct-{last}", b"second")
    os._exit(0)


labels, last = [], 1
while True:
    t.publish(home, f"ct-{last}", b"first")
    hear, told = os.pipe()
    child = os.fork()
    if child == 0:
        publisher(last)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(told)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    labels.append(os.read(hear, 100).decode())
    os.close(hear)
    t.check(home, f"ct-{last}", [1], [2, 1])
    assert t.publish(home, f"ct-{last}", b"second").number == 2
    t.check(home, f"ct-{last}", [2, 1])
    last += 1
print(json.dumps(labels))
"""


def publish(home: Path, name: str, content: bytes) -> Version:
    return release.publish(
        home=home,
        contract=RunContract(name=name),
        files={"README.md": name.encode(), "data.bin": content + name.encode()},
        key=read_private_key(home / "keys" / "release.key"),
    )


def check(home: Path, name: str, *allowed: list[int]) -> None:
    """There are these versions, or those, and all verify."""
    catalog, store = Catalog(AggregatorHome(home).catalog), BlobStore(home / "blobs")
    numbers = [one.number for one in catalog.versions("fedstill", name)]
    assert numbers in allowed
    key = read_public_key(home / "keys" / "release.pub")
    for number in numbers:
        version = catalog.find("fedstill", name, f"v{number}")
        assert version is not None
        folder = home / "downloaded"
        folder.mkdir()
        for file in version.files:
            content = b"".join(store.read(file.sha256))
            assert len(content) == file.bytes
            (folder / file.path).write_bytes(content)
        verified = verify_folder(folder, keys=[key])
        assert verified.digest == version.digest
        assert json.loads((folder / VERSION).read_bytes())["number"] == number
        shutil.rmtree(folder)
    catalog.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "keys").mkdir(parents=True)
    write_key_pair(folder / "keys" / "release.key", folder / "keys" / "release.pub")
    (folder / "aggregator.toml").write_text("")
    for number in range(256):
        # Else a publisher has more steps, the fewer have gone before.
        (folder / "blobs" / f"{number:02x}").mkdir(parents=True)
    return folder


def killed(home: Path, kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(home), kind]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_publisher_killed_anywhere_leaves_all_or_nothing(home: Path) -> None:
    done = killed(home, "all")
    assert done.returncode == 0, done.stderr
    labels = json.loads(done.stdout)
    for label in ("sync", "rename", "commit", "INSERT", "UPDATE", "SELECT", "BEGIN "):
        assert {f"before {label}", f"after {label}"} <= set(labels)
    assert labels.count("before rename") >= 6  # a file, its manifest, its sums, its number


def test_so_it_is_with_postgresql(home: Path, empty_postgresql: str) -> None:
    (home / "aggregator.toml").write_text(f'database = "{empty_postgresql}"\n')
    done = killed(home, "database")
    assert done.returncode == 0, done.stderr
    assert {"before commit", "after commit", "after INSERT"} <= set(json.loads(done.stdout))


def test_one_that_does_it_in_the_wrong_order_is_found_out(home: Path) -> None:
    done = killed(home, "late")
    assert done.returncode != 0
    assert "a blob or the bucket is missing" in done.stderr


def test_a_commit_that_was_cut_short_is_none(home: Path, tmp_path: Path) -> None:
    publish(home, "ct-demo", b"first")
    catalog = Catalog(home / "catalog.sqlite")
    keeper = catalog.database.engine.connect()
    keeper.exec_driver_sql("SELECT 1")  # the log is not folded into the file while one looks on
    publish(home, "ct-demo", b"second")
    log = (home / "catalog.sqlite-wal").read_bytes()
    before = len(log)
    last = publish(home, "ct-demo", b"third")
    log = (home / "catalog.sqlite-wal").read_bytes()
    database = (home / "catalog.sqlite").read_bytes()
    keeper.close()
    catalog.close()
    assert len(log) > before > 0
    seen = set()
    for length in [*range(before, len(log), 1031), len(log)]:
        copy = tmp_path / f"{length}"
        copy.mkdir()
        (copy / "catalog.sqlite").write_bytes(database)
        (copy / "catalog.sqlite-wal").write_bytes(log[:length])
        cut = Catalog(copy / "catalog.sqlite")
        newest = cut.find("fedstill", "ct-demo", "main")
        assert newest is not None
        assert cut.datasets()[0] == 1
        assert len(newest.files) == len(last.files)
        seen.add(newest.number)
        cut.close()
    assert seen == {2, 3}
