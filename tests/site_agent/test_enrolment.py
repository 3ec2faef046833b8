import json

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from site_agent.enrolment import enrol
from site_agent.settings import SettingsError, read_settings


def make(home, **changes):
    values = {"name": "site-a", "aggregator": "localhost:8443", "images": home / 'a "folder"'}
    return enrol(home=home, **(values | changes))


def test_a_new_home_can_be_read_and_its_key_is_private(tmp_path):
    made = make(tmp_path / "home")
    assert read_settings(tmp_path / "home") == made
    assert made.key_path.stat().st_mode & 0o777 == 0o600
    assert made.pseudonym_key_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home" / "keys").stat().st_mode & 0o777 == 0o700


def test_the_enrolment_holds_the_public_key_and_nothing_secret(tmp_path):
    made = make(tmp_path / "home")
    private = load_ssh_private_key(made.key_path.read_bytes(), password=None)
    text = (tmp_path / "home" / "enrolment.json").read_text()
    enrolment = json.loads(text)
    assert set(enrolment) == {"version", "name", "flower_public_key"}
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


def test_mistakes_leave_nothing(tmp_path):
    with pytest.raises(SettingsError, match="aggregator: write HOST:PORT"):
        make(tmp_path / "home", aggregator="localhost")
    assert not (tmp_path / "home").exists()
