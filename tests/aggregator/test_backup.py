"""Backups: taken in use, restored to the last byte, refused where a byte is not as it was."""

import io
import json
import os
import signal
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from aggregator import archive, backup, restore
from aggregator.access.agreements import Agreements
from aggregator.access.tables import AcceptanceRow
from aggregator.access.tokens import Tokens, digest, principal_of
from aggregator.api import create_app
from aggregator.archive import MANIFEST, ArchiveError, BackupManifest, Entry
from aggregator.catalog import Catalog
from aggregator.cli import app
from aggregator.doctor import checks
from aggregator.home import AggregatorHome, create_home
from aggregator.release import publish
from aggregator.runs import prepare_run
from shared.contract import RunContract
from shared.release.keys import read_private_key
from tests.aggregator.api.conftest import TestClient

CONTRACT = RunContract(name="ct-demo")


def nothing(done: int, total: int) -> None:
    pass


def release(home: AggregatorHome, content: bytes) -> None:
    key = read_private_key(home.release_key)
    files = {"README.md": b"# demo", "pairs.bin": content}
    publish(home=home.root, contract=CONTRACT, files=files, key=key)


def set_to(home: AggregatorHome, **settings: str) -> AggregatorHome:
    text = home.settings_file.read_text()
    for name, value in settings.items():
        text = text.replace(f'{name} = ""', f'{name} = "{value}"')
    home.settings_file.write_text(text)
    return AggregatorHome(home.root)


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    made = create_home(tmp_path / "home", {"superlink_port": 1, "public_name": "a.example.org"})
    release(made, b"first" * 1000)
    run = prepare_run(made, CONTRACT, sites=["hospital-a"], public=None)
    (run / "events.jsonl").write_text('{"time": 1}\n')
    (run / "lock").touch()
    for name in ("enabled/mine.conf", "tmp/cache", "nginx.conf"):
        (made.root / "edge" / name).parent.mkdir(parents=True, exist_ok=True)
        (made.root / "edge" / name).write_text("# what nginx reads")
    (made.runs / "dry-0123").mkdir()
    (made.runs / "dry-0123" / "verdicts.json").write_text("[]")
    return made


def back_up(home: AggregatorHome, file: Path, *, with_keys: bool = True) -> backup.Backup:
    return backup.back_up(home, file, with_keys=with_keys, advance=nothing)


def bring_back(file: Path, root: Path, database: str | None = None) -> AggregatorHome:
    return restore.restore(file, root, database=database, advance=nothing).home


def versions(address: Path | str) -> dict[int, str]:
    catalog = Catalog(address)
    found = {one.number: one.digest for one in catalog.versions("fedstill", "ct-demo")}
    catalog.close()
    return found


def blobs(home: AggregatorHome) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(home.blobs).glob("*/*")}


def verdicts(home: AggregatorHome, *names: str) -> list[str]:
    return [one.run().verdict for one in checks(home.root, deep=True) if one.name in names]


def test_a_home_comes_back_as_it_was(home: AggregatorHome, tmp_path: Path) -> None:
    catalog = Catalog(home.catalog)
    dataset = catalog.configure("fedstill", "ct-demo", visibility="gated", agreement="Be kind.")
    secret, token = Tokens(catalog.database).create("anna", scopes=["read:dataset"])
    person = principal_of(token)
    assert person is not None
    Agreements(catalog.database).accept(person, dataset, version=1)
    catalog.close()
    invoke = CliRunner().invoke
    file, new = tmp_path / "backup.tar", tmp_path / "new"
    said = invoke(app, ["backup", str(file), "--home", str(home.root), "--with-keys"])
    assert said.exit_code == 0, said.output
    assert "PRIVATE KEYS ARE IN IT" in said.output
    assert file.stat().st_mode & 0o777 == 0o600
    result = invoke(app, ["restore", str(file), "--home", str(new), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["missing"]) == (0, [])
    back = AggregatorHome(new)
    assert versions(back.catalog) == versions(home.catalog) != {}
    assert blobs(back) == blobs(home)
    for name in ("keys", "tls", "coordinators"):
        for path in (home.root / name).iterdir():
            twin = new / name / path.name
            assert twin.read_bytes() == path.read_bytes()
            assert twin.stat().st_mode & 0o777 == path.stat().st_mode & 0o777
    (run,) = back.runs.iterdir()
    assert {path.name for path in run.iterdir()} == {"contract.json", "plan.json", "events.jsonl"}
    edge = {path for path in (new / "edge").rglob("*") if path.is_file()}
    assert edge == {new / "edge" / "enabled" / "mine.conf"}
    catalog = Catalog(back.catalog)
    assert Tokens(catalog.database).find(digest(secret)) == token
    assert Agreements(catalog.database).accepted(person, dataset)
    with catalog.database.session() as session:
        (accepted,) = session.scalars(select(AcceptanceRow)).all()
        assert (accepted.principal, accepted.token_id) == ("anna", token.id)
    catalog.close()
    told = invoke(app, ["doctor", "--home", str(new), "--deep", "--json"])
    found = {one["check"]: one["verdict"] for one in json.loads(told.stdout)["checks"]}
    bad = {name for name, verdict in found.items() if verdict not in ("good", "warning")}
    # Who is not root may not listen on port 1, here or there.
    assert bad <= {"SuperLink", "API", "disk"}


def test_it_is_taken_while_somebody_publishes_and_others_ask(
    home: AggregatorHome, tmp_path: Path
) -> None:
    stop, wrong = threading.Event(), list[int]()

    def publishing() -> None:
        for number in range(12):
            release(home, f"version {number}".encode() * 500)

    with TestClient(create_app(home.root)) as client:

        def asking() -> None:
            while not stop.is_set():
                answer = client.get("/datasets/fedstill/ct-demo/resolve/main/pairs.bin")
                if answer.status_code != 200:
                    wrong.append(answer.status_code)

        threads = [threading.Thread(target=publishing), threading.Thread(target=asking)]
        for thread in threads:
            thread.start()
        made = []
        while threads[0].is_alive():
            made.append(back_up(home, tmp_path / f"{len(made)}.tar").file)
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    whole = versions(home.catalog)
    assert len(whole) == 13
    seen = []
    for number, file in enumerate(made[:: max(1, len(made) // 3)]):
        back = bring_back(file, tmp_path / f"back-{number}")
        found = versions(back.catalog)
        assert found == {n: whole[n] for n in range(1, len(found) + 1)}
        assert verdicts(back, "blobs") == ["good"]
        seen.append(len(found))
    assert seen == sorted(seen)


def test_without_the_option_no_private_key_is_in_it(home: AggregatorHome, tmp_path: Path) -> None:
    keys = [path for path in home.root.rglob("*.key") if path.is_file()]
    lines = {path: path.read_bytes().splitlines()[1] for path in keys}
    public, private = tmp_path / "public.tar", tmp_path / "private.tar"
    manifest = back_up(home, public, with_keys=False).manifest
    back_up(home, private)
    assert len(lines) == 5
    assert all(line in private.read_bytes() for line in lines.values()), "positive control"
    assert not any(line in public.read_bytes() for line in lines.values())
    back = bring_back(public, tmp_path / "new")
    assert set(manifest.left_out) == {str(one.relative_to(home.root)) for one in keys}
    assert "good" not in verdicts(back, "CA", "certificate", "keys")
    for name in manifest.left_out:
        (back.root / name).write_bytes((home.root / name).read_bytes())
        (back.root / name).chmod(0o600)
    assert set(verdicts(back, "CA", "certificate", "keys", "key files")) == {"good"}


def test_a_byte_that_is_not_as_it_was_is_refused(home: AggregatorHome, tmp_path: Path) -> None:
    file = back_up(home, tmp_path / "a.tar").file
    content = file.read_bytes()
    with tarfile.open(file) as opened:
        inside = [(one.offset, one.offset_data, one.size) for one in opened if one.size]
    places = [at for head, data, size in inside for at in (head + 5, data, data + size - 1)]
    for number, at in enumerate(places):
        changed = content[:at] + bytes([content[at] ^ 0x01]) + content[at + 1 :]
        (tmp_path / "b.tar").write_bytes(changed)
        with (tmp_path / "b.tar").open("rb") as damaged, pytest.raises(ArchiveError):
            archive.examine(damaged, nothing)
        if number % 30 == 0:
            with pytest.raises(ArchiveError, match=r"b\.tar"):
                bring_back(tmp_path / "b.tar", tmp_path / "new")
            assert sorted(one.name for one in tmp_path.iterdir()) == ["a.tar", "b.tar", "home"]
    for end in (0, 100, 512, len(content) // 2, inside[-1][0], inside[-1][1] + 10):
        (tmp_path / "b.tar").write_bytes(content[:end])
        with pytest.raises(ArchiveError):
            bring_back(tmp_path / "b.tar", tmp_path / "new")
    bring_back(file, tmp_path / "new")  # positive control


def hostile(file: Path, changes: dict[str, Any], *, named: bool = True) -> Path:
    """An archive whose one file was changed, and is in the manifest all the same."""
    info, content = tarfile.TarInfo("sites/a.json"), b"{}"
    info.size, info.mode = len(content), 0o600
    for name, value in changes.items():
        setattr(info, name, value)
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    entry = Entry.model_construct(name=info.name, bytes=2, sha256=sha256, mode=info.mode)
    manifest = BackupManifest.model_construct(
        fedstill="0",
        created="",
        home="",
        catalog="none",
        private_keys=False,
        files=(entry,) if named else (),
    )
    with tarfile.open(file, "w") as opened:
        opened.addfile(info, io.BytesIO(content) if info.isreg() else None)
        last = tarfile.TarInfo(MANIFEST)
        last.size, last.mode = len(manifest.encoded()), 0o600
        opened.addfile(last, io.BytesIO(manifest.encoded()))
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../evil"},
        {"name": "/etc/evil"},
        {"name": "sites/../../evil"},
        {"name": "sites/.hidden"},
        {"name": "sites//evil"},
        {"name": "logs/evil"},
        {"name": "evil"},
        {"name": "sites/a\\b"},
        {"name": "sites/a\nb"},
        {"name": "sites/" + "a" * 600},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.DIRTYPE},
        {"mode": 0o4755},
        {"mode": 0o666},
    ],
    ids=lambda changes: next(iter(changes.items()))[1:].__repr__()[:30],
)
def test_an_archive_of_somebody_else_writes_nowhere(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    file = hostile(tmp_path / "evil.tar", changes)
    with pytest.raises(ArchiveError):
        bring_back(file, place / "new")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_what_the_manifest_does_not_name_as_it_is_is_refused(tmp_path: Path) -> None:
    for named, size in ((False, 2), (True, 1)):
        file = hostile(tmp_path / "a.tar", {"size": size}, named=named)
        with pytest.raises(ArchiveError, match="is not what"):
            bring_back(file, tmp_path / "new")
    # Positive control: what is left of the reasons is that it has no settings.
    with hostile(tmp_path / "a.tar", {}).open("rb") as opened:
        assert archive.examine(opened, nothing).catalog == "none"


def test_nothing_that_exists_is_replaced(home: AggregatorHome, tmp_path: Path) -> None:
    file = back_up(home, tmp_path / "a.tar").file
    before = file.read_bytes()
    with pytest.raises(ArchiveError, match="choose another name"):
        back_up(home, file)
    with pytest.raises(ArchiveError, match="is no folder"):
        back_up(home, tmp_path / "none" / "a.tar")
    with pytest.raises(ArchiveError, match="not empty"):
        bring_back(file, home.root)
    (tmp_path / "empty").mkdir()
    bring_back(file, tmp_path / "empty")
    assert file.read_bytes() == before
    assert versions(tmp_path / "empty" / "catalog.sqlite") == versions(home.catalog)


def test_a_damaged_release_is_no_backup(home: AggregatorHome, tmp_path: Path) -> None:
    (blob, *_) = Path(home.blobs).glob("*/*")
    blob.chmod(0o600)
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    with pytest.raises(ArchiveError, match=r"has changed .*doctor"):
        back_up(home, tmp_path / "a.tar")
    assert [one.name for one in tmp_path.iterdir()] == ["home"]


def in_a_child(work: Callable[[Callable[[], None]], None], at: int) -> int:
    """Does ``work`` in a child that kills itself at its ``at``-th step; how many steps it has.

    -9 where it was killed.
    """
    child = os.fork()
    if child == 0:
        passed = 0

        def step() -> None:
            nonlocal passed
            passed += 1
            if passed == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            work(step)
            os._exit(passed)
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def moments(steps: int) -> list[int]:
    """A few of so many, and the last ones, where a name is given."""
    assert 20 < steps < 255
    return [*range(1, steps - 4, steps // 6), *range(steps - 3, steps + 1)]


def test_a_backup_that_is_killed_is_none(home: AggregatorHome, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"

    def work(step: Callable[[], None]) -> None:
        link = os.link

        def linking(*arguments: Any, **options: Any) -> None:
            step()
            link(*arguments, **options)
            step()

        os.link = linking
        backup.back_up(home, file, with_keys=True, advance=lambda *_: step())

    made, steps = 0, in_a_child(work, 0)
    file.unlink()
    for at in moments(steps):
        assert in_a_child(work, at) == -signal.SIGKILL
        left = {one.name for one in tmp_path.iterdir() if not one.name.startswith("back-")}
        assert left <= {"home", "a.tar", ".a.tar.catalog.part"}
        if file.exists():
            made += 1
            assert versions(bring_back(file, tmp_path / f"back-{at}").catalog)
            file.unlink()
    assert made == 1
    assert in_a_child(work, 0) == steps
    assert file.exists() and not (tmp_path / ".a.tar.catalog.part").exists()


def test_a_restore_that_is_killed_leaves_no_home(home: AggregatorHome, tmp_path: Path) -> None:
    file, new = back_up(home, tmp_path / "a.tar").file, tmp_path / "new"

    def work(step: Callable[[], None]) -> None:
        rename = Path.rename

        def renaming(path: Path, target: Path) -> Path:
            step()
            made = rename(path, target)
            step()
            return made

        Path.rename = renaming  # type: ignore[method-assign,assignment]
        restore.restore(file, new, database=None, advance=lambda *_: step())

    made, steps = 0, in_a_child(work, 0)
    new.rename(tmp_path / "made-0")
    for at in moments(steps):
        assert in_a_child(work, at) == -signal.SIGKILL
        if new.exists():
            made += 1
            assert versions(new / "catalog.sqlite") == versions(home.catalog)
            new.rename(tmp_path / f"made-{at}")
    assert made == 1
    assert in_a_child(work, 0) == steps
    assert versions(new / "catalog.sqlite") == versions(home.catalog)
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_a_catalog_in_postgresql_goes_into_an_empty_one(
    tmp_path: Path, empty_postgresql: str, postgresql: str
) -> None:
    import psycopg

    home = set_to(create_home(tmp_path / "home", {}), database=empty_postgresql)
    release(home, b"one")
    release(home, b"two")
    file = back_up(home, tmp_path / "a.tar").file
    with pytest.raises(ArchiveError, match=r"not empty .*--database"):
        bring_back(file, tmp_path / "new")
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    other = postgresql.replace("/postgres?", "/restored?")
    back = bring_back(file, tmp_path / "new", database=other)
    assert back.catalog == other
    assert versions(other) == versions(empty_postgresql)
    assert len(versions(other)) == 2
    assert blobs(back) == blobs(home)
    assert verdicts(back, "catalog", "blobs") == ["good", "good"]
    release(back, b"three")
    assert len(versions(other)) == 3


def test_files_in_a_bucket_are_named_and_stay_there(tmp_path: Path, bucket: str) -> None:
    home = set_to(create_home(tmp_path / "home", {}), storage=bucket)
    release(home, b"one")
    file = tmp_path / "a.tar"
    said = CliRunner().invoke(app, ["backup", str(file), "--home", str(home.root)])
    assert "versioning of the bucket" in said.output
    with file.open("rb") as opened:
        manifest = archive.examine(opened, nothing)
    assert manifest.storage == bucket
    assert len(manifest.elsewhere) > 2
    assert not any(one.name.startswith("blobs/") for one in manifest.files)
    back = bring_back(file, tmp_path / "new")
    assert back.blobs == bucket
    assert verdicts(back, "blobs") == ["good"]
