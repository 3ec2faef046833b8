import datetime
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from shared.enrolment import Kit
from site_agent.cli import app
from site_agent.enrolment import enrol
from site_agent.kit import KitError, join, own_enrolment
from site_agent.policy_file import read_policy
from site_agent.settings import SettingsError

ADDRESS = "aggregator.example.org:443"


def authority(*, ca=True, starts_in_days=-1, days=30):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=starts_in_days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


@pytest.fixture
def settings(tmp_path):
    return enrol(home=tmp_path / "home", name="st-anna", aggregator=ADDRESS, images=tmp_path)


def write(path, settings, **changes):
    document = {
        "site": "st-anna",
        "enrolment": own_enrolment(settings).digest(),
        "aggregator": ADDRESS,
        "ca": authority(),
        "release_key": "2" * 64,
        "coordinators": ("3" * 64,),
    }
    path.write_text(Kit(**(document | changes)).model_dump_json())
    return path


def content(home):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in home.rglob("*") if p.is_file()}


def test_joining_installs_the_certificate_and_again_changes_nothing(settings, tmp_path):
    path = write(tmp_path / "st-anna.kit.json", settings)
    kit = join(settings, path, replace=False)
    assert settings.ca_path.read_text() == kit.ca
    assert json.loads((settings.home / "kit.json").read_text()) == kit.model_dump(mode="json")
    assert read_policy(settings.home).coordinators == kit.coordinators
    before = content(settings.home)
    join(settings, path, replace=False)
    assert content(settings.home) == before


def test_another_certificate_is_installed_only_when_asked_to(settings, tmp_path):
    first = join(settings, write(tmp_path / "1", settings), replace=False)
    other = write(tmp_path / "2", settings)
    with pytest.raises(KitError, match="another certificate than the kit's"):
        join(settings, other, replace=False)
    assert settings.ca_path.read_text() == first.ca
    second = join(settings, other, replace=True)
    assert settings.ca_path.read_text() == second.ca != first.ca


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"site": "st-bob"}, "site: is for st-bob"),
        ({"enrolment": "0" * 64}, "enrolment: answers another"),
        ({"aggregator": "elsewhere.example.org:443"}, "aggregator: is elsewhere"),
        ({"ca": "nothing"}, "ca: is not one certificate"),
        ({"ca": authority() + authority()}, "ca: is not one certificate"),
        ({"ca": authority(ca=False)}, "ca: is a certificate that may not vouch"),
        ({"ca": authority(starts_in_days=-40)}, "ca: is valid from"),
        ({"ca": authority(starts_in_days=2)}, "ca: is valid from"),
    ],
)
def test_a_kit_that_is_not_for_this_site_changes_nothing(settings, tmp_path, changes, named):
    path = write(tmp_path / "kit", settings, **changes)
    before = content(settings.home)
    with pytest.raises(KitError, match=named):
        join(settings, path, replace=True)
    assert content(settings.home) == before


def test_a_file_that_is_no_kit_is_refused(settings, tmp_path):
    for text in ("", "{}", "[" * 70_000):
        (tmp_path / "kit").write_text(text)
        with pytest.raises(KitError, match="kit: "):
            join(settings, tmp_path / "kit", replace=False)
    with pytest.raises(KitError, match="cannot be read"):
        join(settings, tmp_path / "none", replace=False)


def test_a_lost_enrolment_of_ones_own_is_named_and_the_fix_brings_it_back(settings, tmp_path):
    path = write(tmp_path / "kit", settings)
    own = settings.home / "enrolment.json"
    handed = own.read_bytes()
    own.write_text("[]")
    with pytest.raises(SettingsError, match=r"enrolment\.json: is damaged: move site\.toml away"):
        join(settings, path, replace=False)
    own.unlink()
    with pytest.raises(SettingsError, match=r"enrolment\.json: is missing: move site\.toml away"):
        join(settings, path, replace=False)
    (settings.home / "site.toml").rename(tmp_path / "site.toml")
    enrol(home=settings.home, name="st-anna", aggregator=ADDRESS, images=tmp_path)
    assert own.read_bytes() == handed
    join(settings, path, replace=False)


def test_the_command_says_whom_the_site_trusts_and_what_stops_it(settings, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["join", *map(str, arguments), "--home", str(settings.home)])

    done = run(write(tmp_path / "kit", settings))
    assert done.exit_code == 0
    assert ADDRESS in done.stdout and "2" * 64 in done.stdout
    other = write(tmp_path / "other", settings)
    refused = run(other)
    assert refused.exit_code == 2 and "--replace" in refused.stderr
    assert run(other, "--replace").exit_code == 0
