import shutil
from pathlib import Path

import pytest
from setuptools import find_packages

from aggregator import edge
from aggregator.edge import CONFIGURATION, FILES, EdgeError, write_configuration
from aggregator.home import AggregatorHome, HomeError, create_home, read_settings

ROOT = Path(__file__).parents[2]


def with_edge(root: Path, *lines: str) -> AggregatorHome:
    made = create_home(root, {"superlink_port": 19443, "api_port": 18080})
    text = made.settings_file.read_text()
    for line in ("edge = true", "behind_proxy = true", *lines):
        text = text.replace(f"\n{line.partition(' = ')[0]} = ", f"\n{line} # ")
    made.settings_file.write_text(text)
    return AggregatorHome(made.root)


def test_the_packages_files_are_those_that_are_deployed() -> None:
    for name in FILES:
        deployed = (ROOT / "deploy" / "edge" / name).read_bytes()
        packaged = (CONFIGURATION / name).read_bytes()
        assert packaged == deployed, f"cp deploy/edge/{name} aggregator/edge/"
    assert {path.name for path in CONFIGURATION.glob("*.conf")} == set(FILES)
    assert "aggregator.edge" in find_packages(str(ROOT), include=["aggregator*"])
    assert '"aggregator.edge" = ["*.conf"]' in (ROOT / "pyproject.toml").read_text()


def test_the_configuration_has_the_homes_paths_and_ports_and_no_others(tmp_path: Path) -> None:
    home = with_edge(tmp_path / "home", "edge_port = 18443")
    folder = write_configuration(home)
    texts = {name: (folder / name).read_text() for name in FILES}
    assert "listen 18443 ssl;" in texts["edge.conf"]
    assert "proxy_pass https://127.0.0.1:19443/v1/fleet/;" in texts["edge.conf"]
    assert f"alias {home.root}/blobs/;" in texts["edge.conf"]
    assert f"include {folder}/edge.conf;" in texts["nginx.conf"]
    assert "http://127.0.0.1:18080;" in texts["desk.conf"]
    for text in texts.values():
        lines = [one for one in text.splitlines() if not one.strip().startswith("#")]
        live = "\n".join(lines).replace(str(home.root), "HOME")
        assert not [place for place in ("/aggregator", "/etc", "/tmp/") if f" {place}" in live]
        assert "8080" not in live.replace("18080", "")
        assert "9443" not in live.replace("19443", "")
    (folder / "enabled" / "mine.conf").write_text("# mine")
    write_configuration(home)
    assert (folder / "enabled" / "mine.conf").read_text() == "# mine"
    assert home.settings.public_address == "localhost:18443"
    taken = [folder / place / name for name, place in edge.SMALL_FILES.items()]
    assert not any(file.exists() for file in taken)
    logging = with_edge(tmp_path / "home", f'edge_log = "{home.root}/log"')
    write_configuration(logging)
    assert f"access_log {home.root}/log/$edge_span.log" in taken[1].read_text()
    assert taken[0].exists()
    write_configuration(home)
    assert not any(file.exists() for file in taken)


def test_a_missing_nginx_is_told_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EdgeError, match=r"apt-get install nginx\), or set edge = false"):
        edge.start_edge(with_edge(tmp_path / "home"))


def test_a_path_that_nginx_would_misread_is_refused(tmp_path: Path) -> None:
    for name in ("a home", "home;x", "home{", 'ho"me'):
        with pytest.raises(EdgeError, match="move it"):
            write_configuration(with_edge(tmp_path / name))


def test_an_edge_is_believed_or_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "aggregator.toml").write_text("edge = true")
    with pytest.raises(HomeError, match="edge needs behind_proxy = true"):
        read_settings(tmp_path / "aggregator.toml")
