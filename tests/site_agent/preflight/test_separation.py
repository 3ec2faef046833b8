from collections.abc import Callable
from pathlib import Path

import pytest

from site_agent.apart import set_apart
from site_agent.preflight import checks
from site_agent.preflight.separation import separation
from site_agent.settings import SiteSettings, read_settings

NewSite = Callable[..., SiteSettings]


@pytest.fixture
def homes(new_site: NewSite, tmp_path: Path) -> tuple[SiteSettings, SiteSettings]:
    """The worker's and the connector's, set apart as the command does it."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    whole = new_site(1)
    connector = set_apart(whole, connector=tmp_path / "link", socket=folder / "worker.sock")
    return read_settings(whole.home), connector


def test_homes_that_separate_made_are_good_and_looked_at(
    homes: tuple[SiteSettings, SiteSettings],
) -> None:
    for settings, part in zip(homes, ("worker", "connector"), strict=True):
        found = separation(settings)
        assert (found.verdict, part in found.problem) == ("good", True)
        assert "separation" in {one.name for one in checks(settings.home, part=part)}


@pytest.mark.parametrize("mode", [0o755, 0o751, 0o770])
def test_a_socket_folder_that_is_too_open_is_told(
    homes: tuple[SiteSettings, SiteSettings], mode: int
) -> None:
    folder = homes[0].socket_path.parent
    folder.chmod(mode)
    for settings in homes:
        found = separation(settings)
        assert found.verdict == "failed"
        assert found.fix == f"chmod 750 {folder}"
    folder.rmdir()
    assert "mode 750" in separation(homes[0]).fix


def test_homes_that_others_can_change_or_look_into_are_told(
    homes: tuple[SiteSettings, SiteSettings],
) -> None:
    for settings in homes:
        settings.home.chmod(0o775)
        assert separation(settings).verdict == "failed"
        settings.home.chmod(0o755)
        assert separation(settings).verdict == "warning"


def test_the_other_parts_secrets_are_told(homes: tuple[SiteSettings, SiteSettings]) -> None:
    worker, connector = homes
    worker.key_path.write_text("back again")
    assert "separate" in separation(worker).fix
    connector.pseudonym_key_path.write_text("copied")
    found = separation(connector)
    assert found.verdict == "failed" and "the worker's" in found.problem


def test_a_site_in_one_home_has_no_such_check(new_site: NewSite) -> None:
    assert "separation" not in {one.name for one in checks(new_site(1).home)}
