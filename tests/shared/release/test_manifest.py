import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from shared.release.errors import (
    ExtraFileError,
    LocalError,
    MissingFileError,
    ReleaseError,
    SwappedVersionError,
    TamperedFileError,
    TamperedManifestError,
    TamperedSignatureError,
    UnsafePathError,
    UnsignedError,
    UntrustedKeyError,
)
from shared.release.manifest import manifest_bytes, parse_manifest, verify_folder

Contents = Callable[..., dict[str, bytes]]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def expect(
    kind: type[ReleaseError], name: str, folder: Path, key: Ed25519PrivateKey
) -> ReleaseError:
    with pytest.raises(ReleaseError) as caught:
        verify_folder(folder, keys=[key.public_key()])
    assert type(caught.value) is kind
    assert caught.value.file == name
    assert str(caught.value).startswith(f"{name}: ")
    return caught.value


def flip(path: Path, position: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_genuine_release_verifies(release: Path, key: Ed25519PrivateKey) -> None:
    verified = verify_folder(release, keys=[key.public_key()])
    assert verified.version.number == 1
    assert verified.digest == hashlib.sha256((release / "MANIFEST.json").read_bytes()).hexdigest()


def test_the_manifest_is_what_the_standard_library_would_write(release: Path) -> None:
    content = (release / "MANIFEST.json").read_bytes()
    document = json.loads(content)
    assert content == json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    for file in document["files"]:
        data = (release / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_sums_satisfy_sha256sum(release: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    done = subprocess.run(
        ["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=release, capture_output=True
    )
    assert done.returncode == 0
    assert b"MANIFEST.json: OK" in done.stdout


@pytest.mark.parametrize("document", ["MANIFEST.json", "VERSION.json"])
def test_signatures_verify_from_raw_bytes(
    release: Path, key: Ed25519PrivateKey, document: str
) -> None:
    public = Ed25519PublicKey.from_public_bytes(key.public_key().public_bytes_raw())
    content = (release / document).read_bytes()
    public.verify((release / f"{document}.sig").read_bytes(), content)
    with pytest.raises(InvalidSignature):
        public.verify((release / f"{document}.sig").read_bytes(), content + b" ")


@pytest.mark.parametrize("tampered", [False, True])
@pytest.mark.parametrize("document", ["MANIFEST.json", "VERSION.json"])
def test_openssl_agrees(
    release: Path,
    key: Ed25519PrivateKey,
    write_pem: Callable[[Ed25519PrivateKey], Path],
    document: str,
    tampered: bool,
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    if tampered:
        flip(release / document, 20)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(write_pem(key))]
    files = ["-in", str(release / document), "-sigfile", str(release / f"{document}.sig")]
    done = subprocess.run(command + files, capture_output=True)
    assert (done.returncode != 0) == tampered


def test_a_flipped_bit_in_a_file(release: Path, key: Ed25519PrivateKey) -> None:
    flip(release / "pairs.safetensors", 1000)
    expect(TamperedFileError, "pairs.safetensors", release, key)


def test_a_shortened_file(release: Path, key: Ed25519PrivateKey) -> None:
    path = release / "pairs.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    expect(TamperedFileError, "pairs.safetensors", release, key)


def test_changed_sums(release: Path, key: Ed25519PrivateKey) -> None:
    flip(release / "SHA256SUMS")
    expect(TamperedFileError, "SHA256SUMS", release, key)


def test_every_bit_of_the_manifest_counts(release: Path, key: Ed25519PrivateKey) -> None:
    size = (release / "MANIFEST.json").stat().st_size
    for position in range(0, size, 37):
        flip(release / "MANIFEST.json", position)
        expect(TamperedManifestError, "MANIFEST.json", release, key)
        flip(release / "MANIFEST.json", position)
    verify_folder(release, keys=[key.public_key()])


@pytest.mark.parametrize("name", ["MANIFEST.json.sig", "VERSION.json.sig"])
@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_a_changed_signature(release: Path, key: Ed25519PrivateKey, name: str, change: str) -> None:
    path = release / name
    if change == "flip":
        flip(path, 40)
    else:
        path.write_bytes(path.read_bytes()[: 63 if change == "cut" else 0])
    kind = UnsignedError if change == "empty" else TamperedSignatureError
    expect(kind, name, release, key)


def test_a_changed_version_record(release: Path, key: Ed25519PrivateKey) -> None:
    path = release / "VERSION.json"
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":2'))
    expect(TamperedSignatureError, "VERSION.json.sig", release, key)


@pytest.mark.parametrize(
    "name",
    ["README.md", "MANIFEST.json", "MANIFEST.json.sig", "VERSION.json", "SHA256SUMS"],
)
def test_a_missing_file(release: Path, key: Ed25519PrivateKey, name: str) -> None:
    (release / name).unlink()
    kind = UnsignedError if name.endswith(".sig") else MissingFileError
    expect(kind, name, release, key)


def test_a_file_that_is_a_link_is_missing(release: Path, key: Ed25519PrivateKey) -> None:
    path = release / "README.md"
    target = release.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    expect(MissingFileError, "README.md", release, key)


@pytest.mark.parametrize("name", ["more.txt", ".hidden", "readme.md"])
def test_an_extra_file(release: Path, key: Ed25519PrivateKey, name: str) -> None:
    (release / name).write_text("not signed")
    expect(ExtraFileError, name, release, key)


def test_an_extra_folder(release: Path, key: Ed25519PrivateKey) -> None:
    (release / "folder").mkdir()
    expect(ExtraFileError, "folder", release, key)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/b", "..", "C:evil", "..\\evil", ""])
def test_a_signed_manifest_that_leaves_the_folder(
    tmp_path: Path, contents: Contents, key: Ed25519PrivateKey, path: str
) -> None:
    document = json.loads(contents()["MANIFEST.json"])
    document["files"][0]["path"] = path
    manifest = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    folder = write(tmp_path / "unsafe", contents(manifest=manifest))
    error = expect(UnsafePathError, "MANIFEST.json", folder, key)
    assert repr(path) in str(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["files"].append(document["files"][0]),
        lambda document: document["files"][0].update(path="MANIFEST.json"),
        lambda document: document["files"][0].update(path=".hidden"),
        lambda document: document["files"][0].update(sha256="0"),
        lambda document: document["files"][0].update(bytes=-1),
        lambda document: document.update(files=[]),
        lambda document: document.update(extra=1),
        lambda document: document.update(format="fedstill-release/2"),
    ],
)
def test_a_signed_document_that_is_no_manifest(
    tmp_path: Path,
    contents: Contents,
    key: Ed25519PrivateKey,
    change: Callable[[dict[str, object]], None],
) -> None:
    document = json.loads(contents()["MANIFEST.json"])
    change(document)
    manifest = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    folder = write(tmp_path / "bad", contents(manifest=manifest))
    expect(TamperedManifestError, "MANIFEST.json", folder, key)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_bytes_that_are_no_manifest(content: bytes) -> None:
    with pytest.raises(TamperedManifestError):
        parse_manifest(content)


def test_a_manifest_that_is_not_canonical(contents: Contents) -> None:
    spaced = json.dumps(json.loads(contents()["MANIFEST.json"])).encode()
    with pytest.raises(TamperedManifestError, match="canonical"):
        parse_manifest(spaced)


def test_the_digest_depends_on_content_alone(contents: Contents) -> None:
    files = {"b": b"2", "a": b"1"}
    one = manifest_bytes(name="x", contract_digest="c" * 64, license="L", files=files)
    two = manifest_bytes(
        name="x", contract_digest="c" * 64, license="L", files=dict(reversed(files.items()))
    )
    assert one == two
    first, second = contents(number=1, files=files), contents(number=2, files=files)
    assert first["MANIFEST.json"] == second["MANIFEST.json"]
    assert first["VERSION.json"] != second["VERSION.json"]


def test_another_key(release: Path, key: Ed25519PrivateKey, other_key: Ed25519PrivateKey) -> None:
    error = expect(UntrustedKeyError, "VERSION.json", release, other_key)
    assert "--key" in error.hint
    both = [other_key.public_key(), key.public_key()]
    assert verify_folder(release, keys=both).version.number == 1


def test_a_forger_who_names_the_trusted_key(
    tmp_path: Path, contents: Contents, key: Ed25519PrivateKey, other_key: Ed25519PrivateKey
) -> None:
    forged = contents(signer=other_key)
    genuine = contents()
    forged["VERSION.json"] = genuine["VERSION.json"]
    expect(TamperedSignatureError, "VERSION.json.sig", write(tmp_path / "f", forged), key)


def test_a_version_record_of_another_release(
    release: Path, contents: Contents, key: Ed25519PrivateKey
) -> None:
    newer = contents(number=2)
    for name in ("VERSION.json", "VERSION.json.sig"):
        (release / name).write_bytes(newer[name])
    expect(SwappedVersionError, "VERSION.json", release, key)


def test_a_version_record_under_another_name(
    tmp_path: Path, contents: Contents, key: Ed25519PrivateKey
) -> None:
    manifest = contents(name="ct-demo")["MANIFEST.json"]
    renamed = contents(name="mr-demo", manifest=manifest)
    expect(SwappedVersionError, "VERSION.json", write(tmp_path / "r", renamed), key)


def test_an_enormous_document_is_not_read(release: Path, key: Ed25519PrivateKey) -> None:
    with (release / "MANIFEST.json").open("ab") as file:
        file.truncate(2**31)
    expect(TamperedFileError, "MANIFEST.json", release, key)


def test_a_folder_that_is_not_there(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    expect(LocalError, str(tmp_path / "none"), tmp_path / "none", key)
