import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aggregator.cli import app
from aggregator.home import AggregatorHome, create_home
from aggregator.publisher_keys import PublisherKeyError, PublisherKeys
from aggregator.release import publish
from shared.contract import RunContract
from shared.durable import write_durably
from shared.release.keys import key_id, read_private_key, read_public_key, write_key_pair
from shared.release.manifest import VERSION


@pytest.fixture
def keys(tmp_path: Path) -> PublisherKeys:
    write_key_pair(tmp_path / "release.key", tmp_path / "release.pub")
    made = PublisherKeys(tmp_path)
    made.ensure()
    return made


def in_force(keys: PublisherKeys, use: str) -> str:
    """The fingerprint of the private key that lies there, of which the public half beside is."""
    private = read_private_key(keys.folder / f"{use}.key").public_key()
    assert key_id(private) == key_id(read_public_key(keys.folder / f"{use}.pub"))
    return key_id(private)


def test_the_first_list_names_the_keys_that_are_there(keys: PublisherKeys) -> None:
    newest = keys.newest()
    assert newest.sequence == 1
    assert key_id(newest.release) == in_force(keys, "release")
    assert key_id(newest.head) == in_force(keys, "head")
    assert stat.S_IMODE((keys.folder / "head.key").stat().st_mode) == 0o600
    before = keys.chain_file.read_bytes()
    keys.ensure()
    assert keys.chain_file.read_bytes() == before


def test_rotation_and_revocation_keep_the_past(keys: PublisherKeys) -> None:
    first, head = in_force(keys, "release"), in_force(keys, "head")
    newest = keys.rotate("release")
    second = in_force(keys, "release")
    assert key_id(newest.release) == second != first
    assert [key_id(key) for key in newest.named("retired")] == [first]
    keys.rotate("head")
    assert in_force(keys, "head") != head
    assert in_force(keys, "release") == second
    newest = keys.revoke(second[:12], reason="lost", honoured=lambda name: [name])
    assert in_force(keys, "release") not in (first, second)
    assert [(one.reason, one.honoured) for one in newest.revoked] == [("lost", (second,))]
    assert [key_id(key) for key in newest.named("retired")] == [first]
    newest = keys.revoke(first, reason="old", honoured=lambda _: [])
    assert newest.sequence == 5
    assert not newest.named("retired")
    assert key_id(keys.signer().public_key()) == key_id(newest.release)


def test_what_names_no_key_revokes_none(keys: PublisherKeys) -> None:
    for name in ("", "0" * 64, in_force(keys, "release")[:7]):
        with pytest.raises(PublisherKeyError, match="names no one key"):
            keys.revoke(name, reason="lost", honoured=lambda _: [])
    with pytest.raises(PublisherKeyError, match="reason"):
        keys.revoke(in_force(keys, "release"), reason="", honoured=lambda _: [])
    assert keys.newest().sequence == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rotation_cut_off_is_undone_or_finished(
    keys: PublisherKeys, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    first = in_force(keys, "release")

    def write(path: Path, content: bytes, *, mode: int) -> None:
        if moment == "after":
            write_durably(path, content, mode=mode)
        raise KeyboardInterrupt

    monkeypatch.setattr("aggregator.publisher_keys.write_durably", write)
    with pytest.raises(KeyboardInterrupt):
        keys.rotate("release")
    monkeypatch.undo()
    assert (keys.folder / "release.next.key").exists()
    again = PublisherKeys(keys.folder)
    again.ensure()
    assert not list(keys.folder.glob("*.next.*"))
    assert (in_force(again, "release") == first) == (moment == "before")
    assert key_id(again.newest().release) == in_force(again, "release")


def test_a_release_key_kept_elsewhere_is_not_made_anew(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", {})
    home.release_key.rename(tmp_path / "safe")
    create_home(tmp_path / "home", {})
    keys = PublisherKeys(home.release_key.parent)
    assert not home.release_key.exists()
    for attempt in (keys.signer, lambda: keys.rotate("release")):
        with pytest.raises(Exception, match=r"release\.key"):
            attempt()
    write_key_pair(home.release_key, tmp_path / "wrong.pub")
    with pytest.raises(PublisherKeyError, match="newest list names"):
        keys.signer()
    (tmp_path / "safe").rename(home.release_key)
    assert keys.rotate("release").sequence == 2


def test_the_command(tmp_path: Path) -> None:
    root = tmp_path / "home"
    create_home(root, {})
    home = AggregatorHome(root.resolve())
    contract = RunContract(name="ct-demo")
    signer = PublisherKeys(home.release_key.parent).signer()
    version = publish(home=home.root, contract=contract, files={"a.txt": b"a"}, key=signer)
    stored = version.file(VERSION)
    assert stored is not None

    def aggregator(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["key", *arguments, "--home", str(root)])

    fingerprint = key_id(signer.public_key())
    assert fingerprint in aggregator("list").stdout
    assert "retired" in aggregator("rotate").stdout
    assert json.loads(aggregator("rotate", "head", "--json").stdout)["sequence"] == 3
    said = aggregator("revoke", fingerprint[:10], "--reason", "lost", "--honour-published")
    assert "lost, 1 versions honoured" in said.stdout
    listed = json.loads(aggregator("list", "--json").stdout)
    assert listed["revoked"][0]["honoured"] == [stored.sha256]
    wrong = aggregator("revoke", fingerprint[:10], "--reason", "again")
    assert wrong.exit_code == 1
    assert "names no one key" in wrong.stderr
