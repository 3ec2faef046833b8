"""What every page shares."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from aggregator.pages import site

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "path", ["/", "/datasets/fedstill/public", "/datasets/fedstill/absent", "/nowhere", "/?page=0"]
)
def test_every_page_is_fenced_in(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(
        directive.split(" ", 1) for directive in headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-cache"
    assert sorted(headers["Vary"].split(", ")) == ["Accept", "Authorization"]


def test_an_asset_is_kept_for_ever_under_its_hash(client: TestClient) -> None:
    named = client.get(site.asset_address("viewer.js"))
    assert named.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert named.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert named.content == (ROOT / "aggregator/pages/static/viewer.js").read_bytes()
    other = client.get("/static/viewer.js?v=0")
    assert other.headers["Cache-Control"] == "no-cache"
    known = client.get("/static/viewer.js", headers={"If-None-Match": other.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert client.head("/static/style.css").status_code == 200


@pytest.mark.parametrize(
    "name", ["absent.js", "VENDORED.md", "..%2Fsite.py", "%2e%2e/site.py", "%00", "x" * 4000]
)
def test_nothing_else_is_an_asset(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_scripts_ask_by_relative_names_that_are_assets() -> None:
    """A module that another imports has no hash in its address."""
    for name, asset in site.assets().items():
        if name.endswith(".js"):
            for line in asset.content.decode().splitlines():
                if line.startswith("import "):
                    assert line.split('"')[1].removeprefix("./") in site.assets()


def test_what_of_others_is_served_is_listed() -> None:
    told = (resources.files("aggregator.pages") / "static" / "VENDORED.md").read_text("utf-8")
    for name in site.assets():
        assert f"`{name}`" in told, f"static/VENDORED.md does not say whose {name} is"
    vendored = re.findall(r"^\| `([\w.]+)` \|.*\| `([0-9a-f]{64})` \|$", told, re.MULTILINE)
    assert len(vendored) >= 2
    assert {name: site.assets()[name].sha256 for name, _ in vendored} == dict(vendored)


def test_a_wheel_has_templates_and_assets(tmp_path: Path) -> None:
    """From the package's own list: what a wheel leaves out fails only where it is installed."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pages = ROOT / "aggregator" / "pages"
    listed = {
        file
        for pattern in about["tool"]["setuptools"]["package-data"]["aggregator.pages"]
        for file in pages.glob(pattern)
    }
    present = {
        file
        for folder in ("static", "templates")
        for file in (pages / folder).rglob("*")
        if file.is_file()
    }
    assert len(present) >= 10
    assert present == listed


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (33_600_000, "33.6 MB"), (2e9, "2 GB")],
)
def test_sizes_are_for_people(count: int, words: str) -> None:
    assert site.readable_size(int(count)) == words


@pytest.mark.parametrize(
    ("dp", "words"),
    [
        (None, "no differential privacy"),
        ({"epsilon": 1}, "no differential privacy"),
        ({"epsilon": 8.0, "delta": 1e-5}, "ε = 8 at δ = 1e-05, for each patient"),
    ],
)
def test_a_guarantee_is_told_or_denied(dp: object, words: str) -> None:
    assert site.guarantee(dp) == words
