import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.release.errors import LocalError
from shared.release.keys import (
    decode_key,
    encode_key,
    is_signature,
    key_id,
    read_private_key,
    read_public_key,
    write_key_pair,
)


def test_a_key_pair_signs_and_is_private(tmp_path: Path) -> None:
    private, public = tmp_path / "release.key", tmp_path / "release.pub"
    made = write_key_pair(private, public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    signature = read_private_key(private).sign(b"document")
    assert len(signature) == 64
    assert is_signature(read_public_key(public), signature, b"document")
    assert not is_signature(read_public_key(public), signature, b"documenT")
    assert key_id(read_public_key(public)) == key_id(made)


def test_a_private_key_is_never_replaced(tmp_path: Path) -> None:
    private, public = tmp_path / "release.key", tmp_path / "release.pub"
    write_key_pair(private, public)
    before = (private.read_bytes(), public.read_bytes())
    with pytest.raises(FileExistsError):
        write_key_pair(private, public)
    assert (private.read_bytes(), public.read_bytes()) == before


def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "k", tmp_path / "p"
    make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    export = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(export, check=True, capture_output=True)
    assert key_id(read_private_key(private).public_key()) == key_id(read_public_key(public))


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PUBLIC KEY-----\n"])
def test_files_that_are_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for read in (read_private_key, read_public_key):
        with pytest.raises(LocalError, match="Ed25519"):
            read(path)
        with pytest.raises(LocalError, match="cannot be read"):
            read(tmp_path / "absent")


def test_raw_keys_travel_as_base64() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    # RFC 8032's construction, the published public key of an all-zero seed.
    assert key.public_bytes_raw().hex() == (
        "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    )
    assert key_id(decode_key(encode_key(key))) == key_id(key)
    for text in ("", "!", "AAAA", "é"):
        with pytest.raises(ValueError, match=r".+"):
            decode_key(text)
