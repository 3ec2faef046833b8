import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aggregator.enrolment import (
    EnrolmentError,
    enrolled_sites,
    members_of,
    read_enrolment,
    record_site,
    register_sites,
)
from aggregator.home import AggregatorHome, create_home
from aggregator.superlink import Node


def openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def write(path: Path, *, name: str = "st-anna", key: str | None = None, **more: object) -> Path:
    document = {
        "version": 1,
        "name": name,
        "flower_public_key": key or openssh(ec.generate_private_key(ec.SECP384R1())),
        **more,
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def home(tmp_path: Path) -> AggregatorHome:
    return create_home(tmp_path / "home", {})


class FakeLink:
    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}

    def nodes(self) -> list[Node]:
        return [Node(name=name, public_key=key, online=False) for key, name in self.known.items()]

    def register(self, *, name: str, public_key: bytes) -> None:
        assert public_key not in self.known
        self.known[public_key] = name


def test_a_site_is_recorded_once_and_registered_once(home: AggregatorHome, tmp_path: Path) -> None:
    enrolment = read_enrolment(write(tmp_path / "e.json"))
    assert record_site(home, enrolment)
    assert not record_site(home, enrolment)
    assert [site.name for site in enrolled_sites(home)] == ["st-anna"]
    link = FakeLink()
    assert register_sites(home, link) == ["st-anna"]
    assert register_sites(home, link) == []
    (key,) = link.known
    assert key.startswith(b"-----BEGIN PUBLIC KEY-----")


def test_a_signing_key_is_taken_over_once_and_never_exchanged(
    home: AggregatorHome, tmp_path: Path
) -> None:
    key = openssh(ec.generate_private_key(ec.SECP384R1()))
    without = read_enrolment(write(tmp_path / "e.json", key=key))
    record_site(home, without)
    with pytest.raises(EnrolmentError, match="none is known of st-anna"):
        members_of(enrolled_sites(home))
    whole = read_enrolment(write(tmp_path / "e.json", key=key, signing_public_key="11" * 32))
    assert record_site(home, whole)
    assert not record_site(home, whole)
    assert not record_site(home, without), "what is known is not forgotten"
    (member,) = members_of(enrolled_sites(home))
    assert (member.name, member.signing_key) == ("st-anna", "11" * 32)
    other = write(tmp_path / "e.json", key=key, signing_public_key="22" * 32)
    with pytest.raises(EnrolmentError, match="another key"):
        record_site(home, read_enrolment(other))
    copied = write(tmp_path / "e.json", name="st-bob", signing_public_key="11" * 32)
    with pytest.raises(EnrolmentError, match="already, as site st-anna"):
        record_site(home, read_enrolment(copied))


def test_members_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    sites = [
        read_enrolment(write(tmp_path / "e.json", name=name, signing_public_key=digit * 64))
        for name, digit in [("st-bob", "1"), ("st-anna", "2")]
    ]
    assert [member.name for member in members_of(sites)] == ["st-anna", "st-bob"]


def test_a_comment_does_not_make_another_key(home: AggregatorHome, tmp_path: Path) -> None:
    key = openssh(ec.generate_private_key(ec.SECP384R1()))
    assert record_site(home, read_enrolment(write(tmp_path / "e.json", key=key)))
    assert not record_site(home, read_enrolment(write(tmp_path / "e.json", key=f"{key} it@host")))


def test_a_name_or_key_that_is_taken_is_refused(home: AggregatorHome, tmp_path: Path) -> None:
    key = openssh(ec.generate_private_key(ec.SECP384R1()))
    record_site(home, read_enrolment(write(tmp_path / "e.json", key=key)))
    with pytest.raises(EnrolmentError, match="another key"):
        record_site(home, read_enrolment(write(tmp_path / "other.json")))
    with pytest.raises(EnrolmentError, match="already, as site st-anna"):
        record_site(home, read_enrolment(write(tmp_path / "o.json", name="x", key=key)))
    assert len(enrolled_sites(home)) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "../../etc"}, "name"),
        ({"name": "St Anna"}, "name"),
        ({"key": "ssh-rsa AAAA"}, "OpenSSH"),
        ({"key": openssh(ed25519.Ed25519PrivateKey.generate())}, "P-384"),
        ({"key": openssh(ec.generate_private_key(ec.SECP256R1()))}, "P-384"),
        ({"salt": "secret"}, "salt"),
        ({"signing_public_key": "11" * 31}, "signing_public_key"),
        ({"version": 2}, "version"),
    ],
)
def test_a_bad_enrolment_names_the_field(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(EnrolmentError, match=named):
        read_enrolment(write(tmp_path / "e.json", **change))  # type: ignore[arg-type]


def test_a_file_that_is_no_enrolment_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[" * 70_000):
        (tmp_path / "e.json").write_bytes(content)
        with pytest.raises(EnrolmentError, match=r"e\.json"):
            read_enrolment(tmp_path / "e.json")
    with pytest.raises(EnrolmentError, match="cannot be read"):
        read_enrolment(tmp_path / "none.json")
