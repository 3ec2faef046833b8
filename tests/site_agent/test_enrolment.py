import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from site_agent.enrolment import complete_enrolment, enrol, signing_key
from site_agent.settings import SettingsError, read_settings


def make(home, **changes):
    values = {"name": "site-a", "aggregator": "localhost:8443", "images": home / 'a "folder"'}
    return enrol(home=home, **(values | changes))


def test_a_new_home_can_be_read_and_its_key_is_private(tmp_path):
    made = make(tmp_path / "home")
    assert read_settings(tmp_path / "home") == made
    assert made.key_path.stat().st_mode & 0o777 == 0o600
    assert made.pseudonym_key_path.stat().st_mode & 0o777 == 0o600
    assert made.signing_key_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home" / "keys").stat().st_mode & 0o777 == 0o700


def test_the_enrolment_holds_the_public_key_and_nothing_secret(tmp_path):
    made = make(tmp_path / "home")
    private = load_ssh_private_key(made.key_path.read_bytes(), password=None)
    text = (tmp_path / "home" / "enrolment.json").read_text()
    enrolment = json.loads(text)
    assert set(enrolment) == {"version", "name", "flower_public_key", "signing_public_key"}
    public = load_ssh_public_key(enrolment["flower_public_key"].encode())
    assert public.curve.name == "secp384r1"
    assert public == private.public_key()
    assert "PRIVATE" not in text and str(tmp_path) not in text


def test_a_home_is_never_overwritten(tmp_path):
    make(tmp_path)
    key = (tmp_path / "keys" / "flower").read_bytes()
    with pytest.raises(SettingsError, match="is there already"):
        make(tmp_path, name="site-b")
    # A run that was cut short before the settings were written is completed with the same key.
    (tmp_path / "site.toml").unlink()
    make(tmp_path)
    assert (tmp_path / "keys" / "flower").read_bytes() == key


def test_a_policy_that_is_there_is_kept(tmp_path):
    tmp_path.joinpath("policy.toml").write_text("min_patients = 9\n")
    make(tmp_path)
    assert (tmp_path / "policy.toml").read_text() == "min_patients = 9\n"
    assert read_settings(tmp_path).policy.min_patients == 9


def test_mistakes_leave_nothing(tmp_path):
    with pytest.raises(SettingsError, match="aggregator: write HOST:PORT"):
        make(tmp_path / "home", aggregator="localhost")
    assert not (tmp_path / "home").exists()


def test_a_home_of_an_earlier_version_gets_its_signing_key_once(tmp_path):
    made = make(tmp_path)
    path = tmp_path / "enrolment.json"
    whole = json.loads(path.read_text())
    # As it was before there were secure sums.
    path.write_text(json.dumps({n: v for n, v in whole.items() if n != "signing_public_key"}))
    made.signing_key_path.unlink()
    complete_enrolment(made)
    completed = json.loads(path.read_text())
    public = signing_key(made).public_key().public_bytes_raw().hex()
    assert completed == whole | {"signing_public_key": public} != whole
    assert path.stat().st_mode & 0o777 == 0o644
    stamp = path.stat().st_mtime_ns
    complete_enrolment(made)
    assert path.stat().st_mtime_ns == stamp, "nothing changed: not written again"


def test_damaged_files_are_named(tmp_path):
    made = make(tmp_path)
    made.signing_key_path.write_bytes(b"")
    with pytest.raises(SettingsError, match="signing: is not an Ed25519"):
        signing_key(made)
    (tmp_path / "enrolment.json").write_text("[1]")
    with pytest.raises(SettingsError, match=r"enrolment\.json: is damaged"):
        complete_enrolment(made)


def test_the_importers_lines_of_the_template_hold_once_they_are_uncommented(
    tmp_path: Path,
) -> None:
    made = enrol(home=tmp_path, name="st-anna", aggregator="localhost:1", images=tmp_path / "spool")
    assert made.importer.listen is None
    file = tmp_path / "site.toml"
    before, head, table = file.read_text().partition("# [importer]\n")
    lines = (line.removeprefix("# ") for line in (head + table).splitlines())
    settings = [line for line in lines if line.startswith("[") or " = " in line]
    file.write_text(before + "\n".join(settings))
    read = read_settings(tmp_path).importer
    assert read.listen is not None and read.listen.callers == ("PACS",)
    assert read.listen.ca_file == Path("keys/hospital-ca.crt")
    assert read.dicomweb is not None and read.dicomweb.study_filters
    assert (read.quota_gb, read.listen.port) == (100.0, 11112)
