import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from aggregator import certificates
from aggregator.certificates import ensure_certificates


def handshake(folder: Path, *, name: str, trusted: Path) -> None:
    """A TLS 1.3 handshake over a socket pair, verified as strictly as Python can."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(trusted))
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(far, server_side=True).close()
        except (ssl.SSLError, OSError):
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name):
            pass
    finally:
        near.close()
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "aggregator.example.org"])
def test_the_server_is_known_under_all_its_names(tmp_path: Path, name: str) -> None:
    ensure_certificates(tmp_path, names=["aggregator.example.org"])
    handshake(tmp_path, name=name, trusted=tmp_path / "ca.crt")


def test_another_name_or_another_authority_is_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        ensure_certificates(folder, names=["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ours, name="elsewhere.example.org", trusted=ours / "ca.crt")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ours, name="localhost", trusted=theirs / "ca.crt")


def test_nothing_is_renewed_without_need(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, names=["localhost"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_certificates(tmp_path, names=["localhost"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_name_or_a_near_end_renews_the_server_but_never_the_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_certificates(tmp_path, names=["localhost"])
    authority = (tmp_path / "ca.crt").read_bytes()
    first = (tmp_path / "server.crt").read_bytes()
    ensure_certificates(tmp_path, names=["10.1.2.3"])
    second = (tmp_path / "server.crt").read_bytes()
    handshake(tmp_path, name="10.1.2.3", trusted=tmp_path / "ca.crt")
    monkeypatch.setattr(certificates, "RENEW_DAYS", certificates.SERVER_DAYS + 1)
    ensure_certificates(tmp_path, names=["10.1.2.3"])
    assert len({first, second, (tmp_path / "server.crt").read_bytes()}) == 3
    assert (tmp_path / "ca.crt").read_bytes() == authority


def test_the_authority_outlives_the_server_certificate(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, names=["localhost"])
    now = datetime.datetime.now(datetime.UTC)
    years = {
        name: (
            x509.load_pem_x509_certificate((tmp_path / name).read_bytes()).not_valid_after_utc - now
        ).days
        / 365
        for name in ("ca.crt", "server.crt")
    }
    assert 9 < years["ca.crt"] < 11
    assert 1 <= years["server.crt"] < 1.1
