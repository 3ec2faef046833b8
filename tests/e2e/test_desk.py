"""A whole run in Debian's Chromium: two hospitals, from signing in to the published release."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from deploy.demo.federation import Federation, enrol, index, program, start
from shared.processes import become_subreaper
from tests.e2e.test_pages import ARGUMENTS, CHROMIUM

HOSPITALS = ("hospital-a", "hospital-b")
FIELDS = {
    "name": "desk-ct",
    "images": "2",
    "task.size_px": "64",
    "task.pixel_mm": "5.6",
    "task.angles": "60",
    "task.bins": "96",
    "student.depth": "2",
    "student.width": "4",
    "anchor_network.depth": "2",
    "anchor_network.width": "8",
    "anchor.rounds": "2",
    "anchor.local_steps": "10",
    "anchor.public_steps": "40",
    "probes.requests": "1",
    "probes.depths": "5",
    "probes.steps": "4",
}
"""Typed into the form; what is not is the default."""
WIDTHS = {"desktop": 1280, "phone": 390}


@dataclass(frozen=True)
class Running:
    federation: Federation
    url: str
    token: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two hospitals with six simulated patients each, an aggregator, a token for its desk."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's package chromium")
    become_subreaper()
    federation = Federation(tmp_path_factory.mktemp("desk"))
    images = {name: federation.folder / "images" / name for name in HOSPITALS}
    write = ["python", "-m", "deploy.demo.hospitals"]
    try:
        federation.run(
            {f"{name}-images": [*write, str(at), "--patients", "6"] for name, at in images.items()},
            on_line=lambda _: None,
        )
        url = enrol(federation, images)
        index(federation, HOSPITALS, on_line=lambda _: None)
        start(federation, HOSPITALS, on_ready=lambda _: None)
        home = ["--home", str(federation.aggregator)]
        create = ["aggregator", "token", "create", "dr-hall", "--scope", "launch:run", *home]
        yield Running(federation, url, str(federation.ask(create, name="token")["token"]))
    finally:
        federation.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def seen(page: Page, name: str, folder: Path) -> None:
    """Looks at the page in both widths: nothing is cut off. Leaves pictures for a person."""
    before = page.viewport_size
    for kind, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, kind)
        page.screenshot(path=folder / f"{name}-{kind}.png", full_page=True)
    if before is not None:
        page.set_viewport_size(before)


def fill(page: Page, path: str, value: str) -> None:
    field = page.locator(f'[id="i-{path}"]')
    if not field.is_visible():
        page.locator("details.panel", has=field).locator("summary").click()
    field.fill(value)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_from_the_form_to_the_release(
    running: Running, browser: Browser, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url.split("/", 3)[2]))

    page.goto(f"{running.url}/desk")
    seen(page, "login", tmp_path)
    page.get_by_label("Token").fill(running.token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()

    page.get_by_role("link", name="Sites").click()
    for name in HOSPITALS:
        expect(page.locator(f"#{name} .state").first).to_have_text("online")
    seen(page, "sites", tmp_path)

    page.get_by_role("link", name="Launch", exact=True).click()
    for path, value in FIELDS.items():
        fill(page, path, value)
    fill(page, "task.photons", "none")
    page.get_by_role("button", name="Check").click()
    expect(page.locator('[id="f-task.photons"]')).to_contain_text("valid number")
    seen(page, "wrong", tmp_path)
    fill(page, "task.photons", "")
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#result")).to_contain_text("Valid")
    page.get_by_role("button", name="Dry run").click(no_wait_after=True)
    expect(page.locator(".verdicts .state")).to_have_text(["accept"] * 2, timeout=90_000)
    expect(page.locator(".verdicts")).to_contain_text("3 rounds, 3 gradient vectors")
    seen(page, "dry-run", tmp_path)
    page.get_by_role("button", name="Launch").click()

    # The page follows the run by itself: nothing below loads it again.
    expect(page.get_by_role("status").first).to_contain_text("launch", timeout=60_000)
    page.get_by_role("button", name="Pause").click()
    state = page.locator("#state .state, .state").first
    expect(state).to_have_text("paused", timeout=120_000)
    seen(page, "paused", tmp_path)
    page.get_by_role("button", name="Resume").click()
    expect(state).to_have_text("finished", timeout=180_000)
    for name in HOSPITALS:
        expect(page.get_by_role("row", name=name).first).to_contain_text("answered")
    seen(page, "finished", tmp_path)

    page.get_by_text("Publish…").click()
    page.get_by_role("button", name="Yes, publish").click()
    expect(page.get_by_text("published as desk-ct v1").first).to_be_visible(timeout=120_000)
    expect(state).to_have_text("published")
    seen(page, "published", tmp_path)

    page.get_by_role("link", name="Audit").click()
    cells = page.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert [text.splitlines()[0] for text in cells] == [
        "publish",
        "resume",
        "pause",
        "launch",
        "dry run",
        "sign in",
    ]
    seen(page, "audit", tmp_path)
    page.get_by_role("link", name="Catalogue").click()
    page.get_by_role("link", name="desk-ct").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("desk-ct")
    page.goto(f"{running.url}/desk")
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{running.url}/desk/audit")
    expect(page.get_by_label("Token")).to_be_visible()
    assert broken == []
    assert asked == {running.url.removeprefix("http://")}, "no page needs another server"
    context.close()

    get = ["distilled", "get", "desk-ct@v1", "--from", running.url, "--to", str(tmp_path / "got")]
    environment = {"FEDSTILL_CONFIG": str(tmp_path / "researcher"), "PATH": "/usr/bin:/bin"}
    fetched = subprocess.run(program(get), capture_output=True, text=True, env=environment)
    assert fetched.returncode == 0, fetched.stderr
    contract = json.loads((tmp_path / "got" / "provenance.json").read_text())
    assert "desk-ct" in json.dumps(contract) and sys.executable not in json.dumps(contract)
