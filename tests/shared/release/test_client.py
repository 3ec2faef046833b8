import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release import transfer
from shared.release.client import get, parse_reference
from shared.release.errors import (
    LocalError,
    MissingFileError,
    NetworkError,
    NotFoundError,
    OversizedError,
    ReleaseError,
    RollbackError,
    SwappedVersionError,
    TamperedFileError,
    TamperedManifestError,
    TamperedSignatureError,
    TruncatedError,
    UntrustedKeyError,
)
from shared.release.keys import encode_key
from shared.release.publishers import known_publisher

Contents = Callable[..., dict[str, bytes]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.001)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads" / "here"


def refused(kind: type[ReleaseError], name: str, server: Any, target: Path, what: str) -> None:
    """The error is of that kind, names that file, and nothing at all is left."""
    with pytest.raises(ReleaseError) as caught:
        get(parse_reference(what), url=server.url, to=target)
    assert type(caught.value) is kind
    assert name in str(caught.value)
    assert list(target.parent.iterdir()) == []


def tampered(files: dict[str, bytes], name: str, position: int = 30) -> dict[str, bytes]:
    content = bytearray(files[name])
    content[position] ^= 1
    return {**files, name: bytes(content)}


def test_get_puts_a_verified_release_in_place(
    server: Any, contents: Contents, target: Path, key: Ed25519PrivateKey
) -> None:
    server.publish("main", contents())
    seen: list[tuple[int, int]] = []
    fetched = get(
        parse_reference("ct-demo"),
        url=server.url,
        to=target,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert {path.name: path.read_bytes() for path in target.iterdir()} == contents()
    assert fetched.newly_pinned
    assert not fetched.already_there
    assert encode_key(fetched.key) == encode_key(key.public_key())
    assert seen[-1][0] == seen[-1][1] > 1_000_000
    assert [path.name for path in target.parent.iterdir()] == ["here"]


def test_the_default_folder_names_dataset_and_version(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.publish("v3", contents(number=3))
    assert get(parse_reference("ct-demo@3"), url=server.url).folder == Path("ct-demo-v3")
    assert (tmp_path / "ct-demo-v3" / "README.md").exists()


def test_get_again_downloads_nothing(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())
    get(parse_reference("ct-demo"), url=server.url, to=target)
    server.requests.clear()
    again = get(parse_reference("ct-demo"), url=server.url, to=target)
    assert again.already_there
    assert not again.newly_pinned
    assert not [path for path, _ in server.requests if path.endswith("pairs.safetensors")]


def test_get_does_not_touch_a_folder_that_is_something_else(
    server: Any, contents: Contents, target: Path
) -> None:
    server.publish("main", contents())
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(LocalError, match="exists"):
        get(parse_reference("ct-demo"), url=server.url, to=target)
    assert [path.name for path in target.parent.rglob("*")] == ["here", "thesis.tex"]


def test_a_broken_connection_is_resumed(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())
    server.cut_after, server.cuts_left = 400_000, 2
    get(parse_reference("ct-demo"), url=server.url, to=target)
    ranges = [wanted for path, wanted in server.requests if path.endswith("pairs.safetensors")]
    assert ranges == [None, "bytes=400000-", "bytes=800000-"]


def test_a_server_without_ranges_is_read_from_the_start(
    server: Any, contents: Contents, target: Path
) -> None:
    server.publish("main", contents())
    server.cut_after, server.cuts_left, server.ignores_range = 400_000, 2, True
    get(parse_reference("ct-demo"), url=server.url, to=target)
    assert (target / "pairs.safetensors").read_bytes() == contents()["pairs.safetensors"]


def test_a_truncated_download(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())
    server.cut_after, server.ignores_range = 400_000, True
    refused(TruncatedError, "pairs.safetensors", server, target, "ct-demo")


def test_a_trickle_does_not_last_for_ever(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())
    server.cut_after = 1000
    refused(TruncatedError, "pairs.safetensors", server, target, "ct-demo")


def test_a_tampered_file(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", tampered(contents(), "pairs.safetensors"))
    refused(TamperedFileError, "pairs.safetensors", server, target, "ct-demo")


def test_a_file_that_is_too_long(server: Any, contents: Contents, target: Path) -> None:
    files = contents()
    server.publish("main", {**files, "README.md": files["README.md"] + b"x" * 10**6})
    refused(OversizedError, "README.md", server, target, "ct-demo")


def test_a_tampered_manifest(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", tampered(contents(), "MANIFEST.json"))
    refused(TamperedManifestError, "MANIFEST.json", server, target, "ct-demo")


def test_a_tampered_signature(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", tampered(contents(), "MANIFEST.json.sig"))
    refused(TamperedSignatureError, "MANIFEST.json.sig", server, target, "ct-demo")


def test_a_file_the_server_does_not_have(server: Any, contents: Contents, target: Path) -> None:
    files = contents()
    server.publish("main", {name: files[name] for name in files if name != "README.md"})
    refused(MissingFileError, "README.md", server, target, "ct-demo")


def test_a_version_the_server_does_not_have(server: Any, contents: Contents, target: Path) -> None:
    server.publish("v1", contents())
    refused(NotFoundError, "no such file", server, target, "ct-demo@v2")


def test_the_pinned_key_is_kept(
    server: Any,
    contents: Contents,
    target: Path,
    key: Ed25519PrivateKey,
    other_key: Ed25519PrivateKey,
) -> None:
    server.publish("v1", contents())
    get(parse_reference("ct-demo@v1"), url=server.url, to=target.with_name("first"))
    first = target.with_name("first")
    first.rename(target.parent.parent / "first")
    # The server is taken over: other signatures, and the list it cannot change.
    server.publish("main", contents(number=2, signer=other_key))
    refused(UntrustedKeyError, "VERSION.json", server, target, "ct-demo")
    known = known_publisher(server.url)
    assert known is not None
    assert known.key == encode_key(key.public_key())


def test_a_key_given_by_hand_is_pinned_only_once_it_verified(
    server: Any,
    contents: Contents,
    target: Path,
    key: Ed25519PrivateKey,
    other_key: Ed25519PrivateKey,
) -> None:
    server.publish("main", contents())
    reference = parse_reference("ct-demo")
    with pytest.raises(UntrustedKeyError):
        get(reference, url=server.url, to=target, key=other_key.public_key())
    assert known_publisher(server.url) is None
    assert get(reference, url=server.url, to=target, key=key.public_key()).newly_pinned


def test_nothing_is_pinned_by_a_failure(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", tampered(contents(), "pairs.safetensors"))
    refused(TamperedFileError, "pairs.safetensors", server, target, "ct-demo")
    assert known_publisher(server.url) is None


def test_another_version_than_asked_for(server: Any, contents: Contents, target: Path) -> None:
    server.publish("v2", contents(number=1))
    refused(SwappedVersionError, "VERSION.json", server, target, "ct-demo@v2")


def test_another_dataset_than_asked_for(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents(name="mr-demo"))
    refused(SwappedVersionError, "VERSION.json", server, target, "ct-demo")


def test_an_older_version_as_the_newest(
    server: Any, contents: Contents, target: Path, tmp_path: Path
) -> None:
    server.publish("main", contents(number=2))
    get(parse_reference("ct-demo"), url=server.url, to=tmp_path / "v2")
    server.publish("main", contents(number=1))
    refused(RollbackError, "state 1", server, target, "ct-demo")
    server.publish("main", contents(number=2))
    get(parse_reference("ct-demo@v1"), url=server.url, to=target)  # by number it may be old


def test_a_version_that_changed_its_content(
    server: Any, contents: Contents, target: Path, tmp_path: Path
) -> None:
    server.publish("v1", contents())
    get(parse_reference("ct-demo@v1"), url=server.url, to=tmp_path / "v1")
    server.publish("v1", contents(files={"other.txt": b"other"}))
    refused(SwappedVersionError, "VERSION.json", server, target, "ct-demo@v1")


def test_a_digest_names_one_release(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())
    digest = next(revision for revision in server.revisions if len(revision) == 40)
    assert get(parse_reference(f"ct-demo@{digest}"), url=server.url, to=target).folder == target


def test_no_server(target: Path, contents: Contents) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(NetworkError, match="cannot be reached"):
            get(parse_reference("ct-demo"), url=url, to=target)
    assert list(target.parent.iterdir()) == []


def test_an_interruption_leaves_nothing(server: Any, contents: Contents, target: Path) -> None:
    server.publish("main", contents())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(parse_reference("ct-demo"), url=server.url, to=target, on_progress=interrupt)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("ct-demo", "main"),
        ("fedstill/ct-demo@3", "v3"),
        ("ct-demo@v12", "v12"),
        ("ct-demo@" + "a" * 40, "a" * 40),
        ("ct-demo@" + "a" * 64, "a" * 40),
    ],
)
def test_references(text: str, revision: str) -> None:
    reference = parse_reference(text)
    assert (reference.namespace, reference.name) == ("fedstill", "ct-demo")
    assert reference.revision == revision


@pytest.mark.parametrize("text", ["", "a/b/c", "../x", "x@", "x@main/..", "x@vv1", "x?y", "é"])
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        parse_reference(text)
