"""What Debian's ``minisign`` makes of our keys and signatures."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import TamperedSignatureError
from shared.release.manifest import verify_folder
from shared.release.minisign import is_signature_text, public_key_text, signature_text

COMMENT = "fedstill demo-ct sha256:00ff"


def minisign(folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("minisign") is None:
        pytest.skip("needs Debian's package minisign")
    command = ["minisign", "-Vm", "MANIFEST.json", "-p", "fedstill.pub"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    (tmp_path / "MANIFEST.json").write_bytes(b'{"a": 1}')
    signature = signature_text(b'{"a": 1}', key, comment=COMMENT)
    assert signature == signature_text(b'{"a": 1}', key, comment=COMMENT)
    (tmp_path / "MANIFEST.json.minisig").write_bytes(signature)
    (tmp_path / "fedstill.pub").write_bytes(public_key_text(key.public_key()))
    return tmp_path


def test_minisign_accepts_a_signature_and_prints_its_comment(signed: Path) -> None:
    done = minisign(signed)
    assert done.returncode == 0, done.stderr
    assert f"Trusted comment: {COMMENT}" in done.stdout


def test_minisign_refuses_a_flipped_byte(signed: Path) -> None:
    (signed / "MANIFEST.json").write_bytes(b'{"a": 2}')
    assert minisign(signed).returncode != 0


def test_minisign_refuses_another_comment(signed: Path) -> None:
    path = signed / "MANIFEST.json.minisig"
    path.write_text(path.read_text().replace("sha256:00ff", "sha256:00fe"))
    assert minisign(signed).returncode != 0


def test_minisign_refuses_another_key(signed: Path) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    (signed / "fedstill.pub").write_bytes(public_key_text(other.public_key()))
    assert minisign(signed).returncode != 0


def test_a_comment_of_two_lines_is_refused() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(ValueError, match="comment"):
        signature_text(b"", key, comment="a\nuntrusted comment: b")


def test_we_read_what_we_write_to_the_byte(key: Ed25519PrivateKey) -> None:
    content = signature_text(b"document", key, comment="of a release")
    assert is_signature_text(key.public_key(), content, b"document")
    assert not is_signature_text(key.public_key(), content, b"documenT")
    other = Ed25519PrivateKey.generate()
    assert not is_signature_text(other.public_key(), content, b"document")
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        assert not is_signature_text(key.public_key(), bytes(changed), b"document")
    for changed in (b"", content + b"\n", content[:-1], content + content, b"\xff" * 300):
        assert not is_signature_text(key.public_key(), changed, b"document")


def test_a_release_with_another_minisign_signature_is_refused(
    release: Path, key: Ed25519PrivateKey
) -> None:
    manifest = (release / "MANIFEST.json").read_bytes()
    path = release / "MANIFEST.json.minisig"
    path.write_bytes(signature_text(manifest, key, comment="genuine"))
    verify_folder(release, keys=[key.public_key()])
    path.write_bytes(signature_text(manifest, Ed25519PrivateKey.generate(), comment="genuine"))
    with pytest.raises(TamperedSignatureError, match="minisig"):
        verify_folder(release, keys=[key.public_key()])
