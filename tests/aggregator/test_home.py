import stat
from pathlib import Path

import pytest

from aggregator.home import AggregatorHome, HomeError, create_home
from shared.release.keys import read_private_key


def test_a_new_home_is_complete_and_private(tmp_path: Path) -> None:
    home = create_home(tmp_path / "h", {"superlink_port": 9555})
    assert home.settings.superlink_port == 9555
    assert home.superlink_address == "127.0.0.1:9555"
    read_private_key(home.release_key)
    for secret in (home.release_key, home.tls / "ca.key", home.tls / "server.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_creating_it_again_keeps_keys_and_settings(tmp_path: Path) -> None:
    home = create_home(tmp_path, {"api_port": 9001})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    create_home(tmp_path, {})
    assert {path: path.read_bytes() for path in before} == before
    assert home.settings.api_port == 9001


def test_a_changed_setting_keeps_the_others(tmp_path: Path) -> None:
    create_home(tmp_path, {"api_port": 9001})
    changed = create_home(tmp_path, {"public_name": "aggregator.example.org"})
    assert (changed.settings.api_port, changed.settings.public_name) == (
        9001,
        "aggregator.example.org",
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("superlink_port = 70000", "superlink_port"),
        ("unknown = 1", "unknown"),
        ('public_name = "a b"', "public_name"),
        ("superlink_port = ", "TOML"),
    ],
)
def test_bad_settings_name_the_field(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "aggregator.toml").write_text(text)
    with pytest.raises(HomeError, match=named):
        _ = AggregatorHome(tmp_path).settings


def test_a_missing_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="aggregator init"):
        _ = AggregatorHome(tmp_path / "none").settings
