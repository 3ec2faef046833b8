from collections.abc import Callable

import pytest

from site_agent.policy import Policy
from site_agent.preflight.enrolment import coordinators, keys, kit, own_signing_key
from site_agent.settings import SiteSettings, read_settings

NewSite = Callable[..., SiteSettings]


def test_keys_of_a_new_home_are_good(new_site: NewSite) -> None:
    settings = new_site(1)
    assert keys(settings).verdict == kit(settings).verdict == "good"


@pytest.mark.parametrize("name", ["flower", "signing", "pseudonym.key"])
def test_a_key_that_others_may_read_is_named_with_the_command_that_closes_it(
    new_site: NewSite, name: str
) -> None:
    settings = new_site(1)
    path = settings.home / "keys" / name
    path.chmod(0o640)
    found = keys(settings)
    assert found.verdict == "failed" and "mode 640" in found.problem
    assert found.fix == f"chmod 600 {path}"
    path.unlink()
    assert "is missing" in keys(settings).problem
    path.symlink_to("/dev/null")
    assert "is not a file" in keys(settings).problem


def test_a_folder_that_others_may_enter_and_a_foreign_owner_are_named(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_site(1)
    (settings.home / "keys").chmod(0o755)
    assert keys(settings).fix == f"chmod 700 {settings.home / 'keys'}"
    (settings.home / "keys").chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert "belongs to another user" in keys(settings).problem


def test_a_key_that_was_not_handed_over_is_told(new_site: NewSite) -> None:
    settings = new_site(1)
    path = settings.home / "enrolment.json"
    key = path.read_text().split('"signing_public_key": "')[1][:64]
    path.write_text(path.read_text().replace(key, "1" * 64))
    assert "other public keys" in keys(settings).problem
    assert kit(settings).verdict == "failed", "the kit answers another enrolment"


def test_a_kit_that_does_not_hold_any_more_is_told(new_site: NewSite) -> None:
    settings = new_site(1)
    settings.ca_path.write_text("another")
    assert "is not the kit's" in kit(settings).problem
    settings.ca_path.unlink()
    assert kit(settings).verdict == "failed"
    (settings.home / "kit.json").unlink()
    assert kit(settings).verdict == "unjudged"


def test_whom_the_site_answers_is_looked_at(new_site: NewSite) -> None:
    settings = new_site(1)
    (key,) = settings_with(settings).policy.coordinators or ()
    assert coordinators(settings_with(settings)).verdict == "good"
    nobody = coordinators(settings_with(settings, []))
    assert nobody.verdict == "failed" and key in nobody.fix
    stranger = coordinators(settings_with(settings, ["ab" * 32]))
    assert stranger.verdict == "warning" and "kit" in stranger.problem
    assert coordinators(settings_with(settings, [key, key])).verdict == "warning"
    own = own_signing_key(settings)
    assert own is not None
    assert "this site's own" in coordinators(settings_with(settings, [own])).problem


def test_before_joining_it_cannot_be_told_whom_the_site_answers(new_site: NewSite) -> None:
    found = coordinators(settings_with(new_site(1, joins=False)))
    assert (found.verdict, "join" in found.fix) == ("unjudged", True)


def settings_with(settings: SiteSettings, keys: list[str] | None = None) -> SiteSettings:
    """The settings as they are read, with other coordinators in policy.toml."""
    read = read_settings(settings.home)
    if keys is None:
        return read
    policy = Policy.model_validate({**read.policy.model_dump(), "coordinators": keys})
    return read.model_copy(update={"policy": policy})
