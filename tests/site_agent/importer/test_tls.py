"""The listener over TLS, with pynetdicom and dcmtk's storescu as the senders."""

import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from site_agent.importer.listener import ListenerError
from site_agent.importer.settings import ListenSettings

STORESCU = Path("/usr/bin/storescu")  # beside the tests' interpreter lies pynetdicom's


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, folder.name)])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._signed(self.name, self.key, ca=True))

    def pair(self, name: str) -> dict[str, Path]:
        """A certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate, private = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._signed(subject, key, ca=False))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        private.chmod(0o600)
        return {"certificate_file": certificate, "key_file": private}

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(place, critical=False)
        )
        return built.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def associate(port: int, *, ca: Path | None, pair: dict[str, Path] | None = None) -> Association:
    entity = AE(ae_title="PACS")
    entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = 5, 20, 20
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    tls = None
    if ca is not None:
        context = ssl.create_default_context(cafile=ca)
        if pair is not None:
            context.load_cert_chain(pair["certificate_file"], pair["key_file"])
        tls = (context, "127.0.0.1")
    return entity.associate("127.0.0.1", port, ae_title="FEDSTILL", tls_args=tls)


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_object_comes_over_tls_and_no_plain_sender_is_heard(
    tmp_path, write_slice, open_spool, listening, authority
):
    path, spool = write_slice(tmp_path / "a"), open_spool()
    with listening(spool, **authority.pair("listener")) as (port, said):
        plain = associate(port, ca=None)
        assert not plain.is_established
        wait_for(lambda: said)
        assert "TLS" in said[0] and "127.0.0.1" not in said[0]
        association = associate(port, ca=authority.ca)
        assert association.send_c_store(path).Status == 0
        association.release()
    assert len(list(spool.folder.iterdir())) == 1
    # The control: the same sender is heard where no certificate is set.
    with listening(spool) as (port, _):
        plain = associate(port, ca=None)
        assert plain.send_c_store(path).Status == 0
        plain.release()


def test_a_sender_needs_a_certificate_of_the_authority_that_is_set(
    tmp_path, write_slice, open_spool, listening, authority
):
    path, spool = write_slice(tmp_path / "a"), open_spool()
    stranger = Authority(tmp_path / "stranger").pair("pacs")
    with listening(spool, **authority.pair("listener"), ca_file=authority.ca) as (port, said):
        for number, pair in enumerate((None, stranger), 1):
            refused = associate(port, ca=authority.ca, pair=pair)
            assert not refused.is_established
            wait_for(lambda number=number: len(said) == number)
        assert all("importer.listen.ca_file" in one for one in said)
        association = associate(port, ca=authority.ca, pair=authority.pair("pacs"))
        assert association.send_c_store(path).Status == 0
        association.release()


def test_one_who_connects_and_says_nothing_keeps_nobody_out(
    tmp_path, write_slice, open_spool, listening, authority
):
    path = write_slice(tmp_path / "a")
    with (
        listening(open_spool(), **authority.pair("listener"), timeout_s=1) as (port, said),
        socket.create_connection(("127.0.0.1", port)),
    ):
        association = associate(port, ca=authority.ca)
        assert association.send_c_store(path).Status == 0
        association.release()
        wait_for(lambda: any("TLS" in one for one in said))


@pytest.mark.skipif(not STORESCU.exists(), reason="needs Debian's dcmtk")
def test_storescu_sends_over_tls(tmp_path, write_slice, open_spool, listening, authority):
    path, spool = write_slice(tmp_path / "a"), open_spool()
    pair = authority.pair("pacs")
    to = ["-aet", "PACS", "-aec", "FEDSTILL", "127.0.0.1"]
    with listening(spool, **authority.pair("listener"), ca_file=authority.ca) as (port, _):
        command = [STORESCU, "+tls", pair["key_file"], pair["certificate_file"], "+cf"]
        sent = [*command, authority.ca, *to, str(port), path]
        done = subprocess.run(sent, capture_output=True, check=False, timeout=20, text=True)
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            [STORESCU, *to, str(port), path], capture_output=True, check=False, timeout=20
        )
        assert done.returncode != 0
    assert len(list(spool.folder.iterdir())) == 1


def test_certificates_that_cannot_be_used_are_named(tmp_path, open_spool, listening, authority):
    pair, other = authority.pair("listener"), authority.pair("other")
    wrong = {**pair, "key_file": other["key_file"]}
    missing = {**pair, "certificate_file": tmp_path / "none.pem"}
    for settings, words in (
        (wrong, "not a certificate and its key"),
        (missing, "cannot be read"),
        ({**pair, "ca_file": pair["key_file"]}, "importer.listen.ca_file"),
    ):
        with pytest.raises(ListenerError, match=words), listening(open_spool(), **settings):
            pass
    open_key = shutil.copy(pair["key_file"], tmp_path / "open.key")
    Path(open_key).chmod(0o644)
    settings = {**pair, "key_file": open_key}
    with pytest.raises(ListenerError, match="chmod 600"), listening(open_spool(), **settings):
        pass


def test_settings_of_tls_come_in_pairs_and_from_the_home() -> None:
    for half in ({"certificate_file": "a"}, {"key_file": "a"}, {"ca_file": "a"}):
        with pytest.raises(ValueError, match="key_file"):
            ListenSettings.model_validate({"callers": ["PACS"], **half})
    pair = {"certificate_file": "keys/dicom.crt", "key_file": "/etc/dicom.key"}
    beside = ListenSettings.model_validate({"callers": ["PACS"], **pair}).beside(Path("/home"))
    assert beside.certificate_file == Path("/home/keys/dicom.crt")
    assert (beside.key_file, beside.ca_file) == (Path("/etc/dicom.key"), None)
