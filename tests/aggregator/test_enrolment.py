import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.enrolment import (
    EnrolmentError,
    enrolled_sites,
    members_of,
    public_key_bytes,
    read_enrolment,
    record_site,
    register_sites,
    revoke_site,
    revoked_keys,
    revoked_sites,
    site_states,
    write_kit,
)
from aggregator.heard import keep_heard
from aggregator.home import AggregatorHome, create_home
from aggregator.superlink import Node
from shared.contract import RunContract
from shared.release.keys import read_private_key


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
        return [
            Node(id=number, name=name, public_key=key, online=False)
            for number, (key, name) in enumerate(self.known.items())
        ]

    def unregister(self, node_id: int) -> None:
        del self.known[list(self.known)[node_id]]

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


def test_a_revoked_site_is_refused_and_its_keys_never_taken_again(
    home: AggregatorHome, tmp_path: Path
) -> None:
    key = openssh(ec.generate_private_key(ec.SECP384R1()))
    anna = read_enrolment(write(tmp_path / "a.json", key=key, signing_public_key="11" * 32))
    bob = read_enrolment(write(tmp_path / "b.json", name="st-bob"))
    record_site(home, anna)
    record_site(home, bob)
    link = FakeLink()
    register_sites(home, link)
    assert revoke_site(home, "st-anna")
    assert not revoke_site(home, "st-anna"), "twice is once"
    assert register_sites(home, link) == []
    assert set(link.known.values()) == {"st-bob"}
    assert [site.name for site in enrolled_sites(home)] == ["st-bob"]
    assert revoked_keys(home) == [public_key_bytes(anna, source=tmp_path)]
    signing = write(tmp_path / "c.json", signing_public_key="11" * 32)
    for taken in (anna, read_enrolment(signing), read_enrolment(write(tmp_path / "d", key=key))):
        with pytest.raises(EnrolmentError, match="revoked, as site st-anna"):
            record_site(home, taken)
    with pytest.raises(EnrolmentError, match=r"no site st-carl is enrolled .*st-bob"):
        revoke_site(home, "st-carl")
    # The hospital itself may come back, with new keys.
    assert record_site(home, read_enrolment(write(tmp_path / "new.json")))
    assert {site.name for site in enrolled_sites(home)} == {"st-anna", "st-bob"}
    assert [state.state for state in site_states(home)] == ["unknown", "unknown", "revoked"]
    said = {"site": "st-bob", "verdict": "accept", "version": "0.1.0", "policy": "5" * 64}
    keep_heard(home, RunContract(name="x"), [said])
    known = {state.name: (state.version, state.policy) for state in site_states(home)}
    assert known == {"st-anna": (None, None), "st-bob": ("0.1.0", "5" * 64)}
    told = CliRunner().invoke(app, ["site", "list", "--home", str(home.root)]).stdout
    assert f"  version 0.1.0  policy {'5' * 16}  on 20" in told
    assert told.count("version") == 1
    assert revoke_site(home, "st-anna")
    assert len(revoked_sites(home)) == 2


def test_a_crash_in_the_middle_of_revoking_leaves_the_site_refused(
    home: AggregatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_site(home, read_enrolment(write(tmp_path / "e.json")))

    def power_cut(*_: object, **__: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", power_cut)
        with pytest.raises(OSError):
            revoke_site(home, "st-anna")
    assert (home.sites / "st-anna.json").exists()
    assert enrolled_sites(home) == []
    assert not revoke_site(home, "st-anna")


def test_the_kit_has_the_public_address_and_nothing_secret(tmp_path: Path) -> None:
    home = create_home(tmp_path, {"public_name": "agg.example.org", "public_port": 443})
    enrolment = read_enrolment(write(tmp_path / "e.json"))
    path = write_kit(home, enrolment)
    kit = json.loads(path.read_text())
    assert path.name == "st-anna.kit.json"
    assert kit["aggregator"] == "agg.example.org:443"
    assert kit["ca"] == (home.tls / "ca.crt").read_text()
    assert kit["enrolment"] == enrolment.digest()
    raw = read_private_key(home.release_key).public_key().public_bytes_raw()
    assert kit["release_key"] == hashlib.sha256(raw).hexdigest()
    assert "PRIVATE" not in path.read_text()
