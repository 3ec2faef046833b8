"""A run's page in Debian's Chromium: it follows the run, and shows its pairs round by round."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from aggregator.access.tokens import Tokens
from aggregator.catalog import Catalog
from aggregator.home import create_home
from aggregator.lifecycle import transition
from aggregator.runs import hold_run, prepare_run
from shared.contract import RunContract
from tests.aggregator.desk.runs import ended, images, snapshot, tell, waiting
from tests.e2e.test_pages import (
    ARGUMENTS,
    CHROMIUM,
    CONTRASTS,
    LEAST_CONTRAST,
    SERVE,
    SIZE,
    assert_same,
    canvas,
    grey,
    in_hounsfield,
)

TASK = {"name": "ct-denoise", "size_px": SIZE}
LIVE_MS = 2000
"""How soon a page shows what has happened."""


def contract(seed: int) -> RunContract:
    return RunContract.model_validate(
        {"name": "ct-live", "seed": seed, "task": TASK, "anchor": {"crop_px": SIZE}}
    )


class Desk:
    """A server with runs, which can be stopped and started again at the same port."""

    def __init__(self, home: Path, listener: socket.socket) -> None:
        self.home = create_home(home, {"api_requests_a_minute": 0})
        catalog = Catalog(self.home.catalog)
        self.token = Tokens(catalog.database).create("anna", scopes=["launch:run"])[0]
        catalog.close()
        self._listener = listener
        self._server: subprocess.Popen[bytes] | None = None
        self._runs = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        place = self._listener.fileno()
        command = [sys.executable, "-c", SERVE, str(self.home.root), str(place)]
        self._server = subprocess.Popen(command, pass_fds=[place])

    def stop(self) -> None:
        assert self._server is not None
        self._server.terminate()
        self._server.wait(timeout=20)

    @contextmanager
    def working(self) -> Iterator[tuple[Path, RunContract]]:
        """A run of its own that is at work, after two rounds."""
        self._runs += 1
        made = contract(self._runs)
        run = prepare_run(self.home, made, sites=["st-anna", "st-bruno"], public=None)
        now = time.time()
        for round in range(3):
            snapshot(run, made, round)
        tell(run, ended(1, time=now - 60), ended(2, time=now - 20))
        transition(run, "running", round=2)
        with hold_run(run):
            tell(run, waiting("st-anna", "computing", time=now))
            yield run, made


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's package chromium")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Desk(tmp_path_factory.mktemp("desk") / "home", listener)
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def browser(desk: Desk) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Window:
    """A window that has signed in, with what its console said and what it asked for."""

    def __init__(self, context: BrowserContext, desk: Desk) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.goto(f"{desk.url}/desk/login")
        self.page.fill("#token", desk.token)
        self.page.click("main button[type=submit]")
        self.page.wait_for_url(f"{desk.url}/desk")
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        context.on("request", lambda request: self.asked.append(request.url))
        self._url = desk.url

    def open(self, made: RunContract) -> Page:
        self.page.goto(f"{self._url}/desk/runs/{made.digest()}")
        return self.page

    def check(self) -> None:
        """That nothing failed, and nothing was asked of anybody else."""
        assert not self.said
        assert not [one for one in self.asked if not one.startswith(f"{self._url}/")]


@pytest.fixture
def window(browser: Browser, desk: Desk) -> Iterator[Callable[..., Window]]:
    opened: list[BrowserContext] = []

    def open_one(**options: Any) -> Window:
        size = {"width": 1200, "height": 900}
        opened.append(browser.new_context(**{"viewport": size, **options}))
        return Window(opened[-1], desk)

    yield open_one
    for context in opened:
        context.close()


def shown_hq(round: int, *, pair: int = 0) -> np.ndarray:
    kept = images(round, size_px=SIZE)["hq"][pair, 0].astype(np.float32)
    return grey(in_hounsfield(kept), window=2000, level=0)


def test_what_happens_is_on_the_page_within_two_seconds(
    desk: Desk, window: Callable[..., Window]
) -> None:
    watched = window()
    with desk.working() as (run, made):
        page = watched.open(made)
        expect(page.locator("#live")).to_have_text("Live: this page follows the run.")
        page.click("#actions summary:has-text('Abort')")
        expect(page.locator("#actions button:has-text('Yes, abort')")).to_be_visible()
        reason = "st-bruno is not connected, waited 4 s"
        tell(run, waiting("st-bruno", "offline", time=time.time(), reason=reason))
        row = page.locator("#sites tr", has_text="st-bruno")
        expect(row).to_contain_text("is not connected", timeout=LIVE_MS)
        # What somebody has opened stays open while other parts change.
        expect(page.locator("#actions button:has-text('Yes, abort')")).to_be_visible()
        tell(run, ended(3, time=time.time()))
        expect(page.locator("#rounds tbody tr")).to_have_count(3, timeout=LIVE_MS)
        drawn = page.locator("#curves canvas").count()
        assert drawn == 4  # distance, cosine, seconds, bytes
        snapshot(run, made, 3)
        expect(page.locator("#round-name")).to_have_text("after round 3", timeout=LIVE_MS)
        expect(page.locator("#viewer-status")).to_contain_text("after round 3")
        assert_same(canvas(page, "hq"), shown_hq(3))
        transition(run, "paused", reason="1 of 2 sites gave a usable summary")
        expect(page.locator("#now .state")).to_have_text("paused", timeout=LIVE_MS)
        expect(page.locator("#now")).to_contain_text("1 of 2 sites gave a usable summary")
        expect(page.locator("#actions form button").first).to_have_text("Resume")
    watched.check()


def test_the_slider_goes_from_round_to_round_by_keyboard(
    desk: Desk, window: Callable[..., Window]
) -> None:
    watched = window()
    with desk.working() as (run, made):
        page = watched.open(made)
        page.wait_for_selector("#viewer:not([hidden])")
        expect(page.locator("#round-name")).to_have_text("after round 2")
        page.fill("#pair-number", "1")
        page.fill("#window", "2000")
        page.focus("#round")
        for round, name in ((1, "after round 1"), (0, "before the first round")):
            page.keyboard.press("ArrowLeft")
            expect(page.locator("#viewer-status")).to_contain_text(name)
            assert page.get_attribute("#round", "aria-valuetext") == name
            # The pair that was chosen stays chosen.
            assert_same(canvas(page, "hq"), shown_hq(round, pair=1))
        expect(page.locator("#round-before")).to_be_disabled()
        # Who looks back is not taken along by what is new.
        snapshot(run, made, 3)
        expect(page.locator("#round")).to_have_attribute("max", "3", timeout=LIVE_MS)
        assert page.input_value("#round") == "0"
        page.focus("#round-after")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer-status")).to_contain_text("after round 1")
        page.fill("#level", "500")
        page.fill("#window", "400")
        lq = images(1, size_px=SIZE)["lq"][1, 0].astype(np.float32)
        assert_same(canvas(page, "lq"), grey(in_hounsfield(lq), window=400, level=500))
    watched.check()


def test_everything_is_reached_by_the_tab_key(desk: Desk, window: Callable[..., Window]) -> None:
    watched = window()
    with desk.working() as (_, made):
        page = watched.open(made)
        page.wait_for_selector("#viewer:not([hidden])")
        reached: list[str] = []
        for _ in range(70):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "(at => at.id || at.textContent.trim().slice(0, 40))(document.activeElement)"
                )
            )
        wanted = ["Pause", "Stop…", "Abort…", "round", "pair", "hq", "level-slider", "Every field"]
        places = [reached.index(one) for one in wanted]
        assert places == sorted(places), "in the order of the page"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.focus("#actions summary:has-text('Stop')")
        page.keyboard.press("Enter")
        expect(page.locator("#actions button:has-text('Yes, stop')")).to_be_visible()
    watched.check()


def test_a_broken_connection_is_said_and_comes_back(
    desk: Desk, window: Callable[..., Window]
) -> None:
    watched = window()
    with desk.working() as (run, made):
        page = watched.open(made)
        live = page.locator("#live")
        expect(live).to_have_text("Live: this page follows the run.")
        desk.stop()
        try:
            expect(live).to_contain_text("The connection is lost since", timeout=8000)
            tell(run, waiting("st-anna", "late", time=time.time()))
        finally:
            desk.start()
        expect(live).to_have_text("Live: this page follows the run.", timeout=15_000)
        expect(page.locator("#sites")).to_contain_text("deadline", timeout=LIVE_MS)


def test_who_is_signed_out_is_told_so(desk: Desk, window: Callable[..., Window]) -> None:
    watched = window()
    with desk.working() as (run, made):
        page = watched.open(made)
        expect(page.locator("#live")).to_have_text("Live: this page follows the run.")
        page.context.clear_cookies()
        tell(run, waiting("st-bruno", "offline", time=time.time()))
        expect(page.locator("#live")).to_contain_text("You are signed out", timeout=LIVE_MS)
        assert "st-bruno" in page.inner_text("#sites")


def test_without_scripts_the_page_is_as_of_loading(
    desk: Desk, window: Callable[..., Window]
) -> None:
    watched = window(java_script_enabled=False)
    with desk.working() as (run, made):
        tell(run, waiting("st-bruno", "refused", time=1, reason="st-bruno: refused: budget-spent"))
        page = watched.open(made)
        text = page.inner_text("main")
        for words in (
            "Load the page again",
            "its privacy budget is spent",
            "all sites 0.510",
            "Pause",
            made.digest(),
        ):
            assert words in text, words
        picture = page.locator("#sheet img")
        assert picture.is_visible()
        assert picture.evaluate("image => image.naturalWidth") > 300
        assert not page.locator("#viewer").is_visible()
        page.click("summary:has-text('Abort')")
        assert page.locator("button:has-text('Yes, abort')").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_stand_out(
    desk: Desk, window: Callable[..., Window], scheme: str
) -> None:
    watched = window(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    with desk.working() as (_, first), desk.working() as (_, second):
        page = watched.open(first)
        page.wait_for_selector("#viewer:not([hidden])")
        page.click("#actions summary:has-text('Abort')")
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) == 390
        faint = [one for one in page.evaluate(CONTRASTS) if one[0] < LEAST_CONTRAST]
        assert not faint
        page.goto(f"{desk.url}/desk/compare?a={first.digest()[:16]}&b={second.digest()[:16]}")
        page.wait_for_selector("#viewer-b:not([hidden])")
        assert page.evaluate(width) == 390
        assert not [one for one in page.evaluate(CONTRASTS) if one[0] < LEAST_CONTRAST]
    watched.check()


def test_the_pairs_of_two_runs_go_together(desk: Desk, window: Callable[..., Window]) -> None:
    watched = window()
    with desk.working() as (_, first), desk.working() as (_, second):
        page = watched.page
        page.goto(f"{desk.url}/desk/compare?a={first.digest()}&b={second.digest()}")
        page.wait_for_selector("#viewer-b:not([hidden])")
        page.wait_for_selector("#viewer:not([hidden])")
        page.fill("#pair-number", "2")
        page.fill("#window-b", "400")
        page.focus("#round")
        page.keyboard.press("ArrowLeft")
        for suffix in ("", "-b"):
            status = page.locator(f"#viewer-status{suffix}")
            expect(status).to_contain_text("Pair 2 of 0 to 2, ct-denoise, after round 1")
            assert page.input_value(f"#window{suffix}") == "400"
        assert page.locator("#curves canvas").count() == 4
        assert "seed" in page.inner_text(".differs")
    watched.check()
