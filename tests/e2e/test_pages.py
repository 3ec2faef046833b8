"""The catalogue in Debian's Chromium: what a person sees and does, what the browser asks for."""

import base64
import io
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright
from safetensors.numpy import save_file

from aggregator.catalog import Catalog
from aggregator.release import publish_run
from shared.contract import RunContract
from shared.release.keys import write_key_pair

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RESULT = {"rounds": 6, "sites": {"a": {}, "b": {}}, "provenance": {"kind": "procedural phantom"}}
SERVE = """
import sys
from pathlib import Path
import uvicorn
from aggregator.api import create_app
uvicorn.run(create_app(Path(sys.argv[1])), fd=int(sys.argv[2]), log_level="warning", ws="none")
"""
SIZE, COUNT = 32, 5
LOW, HIGH = -1000.0, 1000.0
ONE, BOTH, AGREED = (f"/datasets/fedstill/{name}" for name in ("ct-one", "ct-both", "ct-agreed"))
LEAST_CONTRAST = 4.5


def figure(psnr: float) -> dict[str, Any]:
    return {
        "psnr": {"mean": psnr, "std": 0.07, "n": 5},
        "ssim": {"mean": psnr / 40, "std": 0.004, "n": 5},
    }


def utility(contract: RunContract) -> dict[str, Any]:
    """A table that the gate lets through."""
    rows = {"input": 24.1, "prior": 30.2, "prior_textured": 30.9, "distilled": 31.7, "full": 32.4}
    return {
        "rows": {name: figure(psnr) for name, psnr in rows.items()},
        "best_null": "prior_textured",
        "gain_over_best_null": 0.8,
        "gain_interval": [0.6, 1.0],
        "worth_of_hospital_data": 1.5,
        "worth_interval": [1.2, 1.8],
        "share_recovered": 0.53,
        "evaluation": "20 patients, 4 slices each, simulated.",
        "contract_digest": contract.digest(),
    }


@pytest.fixture(scope="module")
def pairs() -> dict[str, np.ndarray]:
    """What the releases hold, in window units; some of it lies outside of the window."""
    random = np.random.default_rng(6)
    hq = random.uniform(-0.05, 1.05, (COUNT, 1, SIZE, SIZE)).astype(np.float32)
    lq = (hq + random.normal(0, 0.1, (2, *hq.shape))).astype(np.float32)
    return {"hq": hq, "lq": lq[0], "other": lq[1]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, np.ndarray]) -> Iterator[str]:
    """A live server of one task, of two, and of a gated dataset."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's package chromium")
    home = tmp_path_factory.mktemp("home")
    (home / "keys").mkdir()
    write_key_pair(home / "keys" / "release.key", home / "keys" / "release.pub")
    (home / "aggregator.toml").write_text("api_requests_a_minute = 0\n")
    denoise = {"name": "ct-denoise", "size_px": SIZE}
    two = {"name": "multi", "parts": [denoise, {"name": "ct-sr", "size_px": SIZE}]}
    for name, task in {"ct-one": denoise, "ct-both": two, "ct-agreed": denoise}.items():
        contract = RunContract.model_validate(
            {"name": name, "task": task, "anchor": {"crop_px": SIZE}}
        )
        lq = [pairs["lq"], pairs["other"]][: 1 + (task is two)]
        hq = np.concatenate([pairs["hq"]] * len(lq))
        save_file({"lq": np.concatenate(lq), "hq": hq}, home / "pairs.safetensors")
        publish_run(
            home=home,
            contract=contract,
            pairs=home / "pairs.safetensors",
            result=RESULT,
            utility=utility(contract),
        )
    catalog = Catalog(home / "catalog.sqlite")
    catalog.configure("fedstill", "ct-agreed", visibility="gated", agreement="1. Research only.\n")
    catalog.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVE, str(home), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.terminate()


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Watched:
    """A page, with all that its console said and all that it asked for."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._url = url
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.ranges: list[str] = []
        context.on("request", self._request)

    def open(self, path: str, *, viewer: bool = False) -> Page:
        self.page.goto(self._url + path)
        if viewer:
            self.page.wait_for_selector("#viewer:not([hidden])")
        return self.page

    def _request(self, request: Request) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/pairs.safetensors"):
            self.ranges.append(request.headers["range"])

    @property
    def elsewhere(self) -> list[str]:
        return [asked for asked in self.asked if not asked.startswith(f"{self._url}/")]


@pytest.fixture
def watch(browser: Browser, url: str) -> Iterator[Callable[..., Watched]]:
    """Opens private windows, which close with the test."""
    opened: list[BrowserContext] = []

    def window(**options: Any) -> Watched:
        opened.append(
            browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        )
        return Watched(opened[-1], url)

    yield window
    for context in opened:
        context.close()


def grey(hounsfield: np.ndarray, *, window: float, level: float) -> np.ndarray:
    """The linear window of DICOM PS3.3 C.11.2.1.2 without its half steps, as 8 bits."""
    scaled = (hounsfield - (level - window / 2)) / window
    return np.rint(np.clip(255 * scaled, 0, 255)).astype(np.uint8)


def in_hounsfield(images: np.ndarray) -> np.ndarray:
    return LOW + images.astype(np.float64) * (HIGH - LOW)


def canvas(page: Page, name: str) -> np.ndarray:
    """The red, green and blue of a canvas, which must be equal."""
    address = page.evaluate("name => document.getElementById(name).toDataURL()", name)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    assert pixels.shape == (SIZE, SIZE, 4)
    assert (pixels[..., 3] == 255).all()
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0]


def assert_same(shown: np.ndarray, exact: np.ndarray) -> None:
    np.testing.assert_array_equal(shown, exact)
    assert len(np.unique(shown)) > 10  # no blank canvas passes


def test_pixels_are_those_of_the_release(
    watch: Callable[..., Watched], pairs: dict[str, np.ndarray]
) -> None:
    watched = watch()
    page = watched.open(ONE, viewer=True)
    page.fill("#pair-number", "3")
    expect(page.locator("#viewer-status")).to_contain_text("Pair 3")
    hq, lq = (in_hounsfield(pairs[name][3, 0]) for name in ("hq", "lq"))
    for window, level in ((2000.0, 0.0), (1500.0, -600.0), (400.0, 40.0)):
        page.fill("#window", str(window))
        page.fill("#level", str(level))
        assert_same(canvas(page, "hq"), grey(hq, window=window, level=level))
        assert_same(canvas(page, "lq"), grey(lq, window=window, level=level))
    for span in (200.0, 55.0):
        page.fill("#span", str(span))
        assert_same(canvas(page, "difference"), grey(lq - hq, window=2 * span, level=0))
    page.check("input[value=slider]")
    page.fill("#divider", "25")
    both = np.concatenate([lq[:, : SIZE // 4], hq[:, SIZE // 4 :]], axis=1)
    assert_same(canvas(page, "both"), grey(both, window=400, level=40))
    # The header, which task each pair is of, and two images of two pairs: no more of the file.
    assert len(watched.ranges) == 2 + 2 * 2
    assert watched.ranges[0] == "bytes=0-65535"
    spans = [re.findall(r"\d+", asked) for asked in watched.ranges[1:]]
    image = 4 * SIZE * SIZE
    assert [int(end) - int(start) + 1 for start, end in spans] == [4 * COUNT, *[image] * 4]
    assert not watched.said
    assert not watched.elsewhere


def test_each_task_has_its_own_degradation(
    watch: Callable[..., Watched], pairs: dict[str, np.ndarray]
) -> None:
    watched = watch()
    page = watched.open(BOTH, viewer=True)
    assert page.locator("#task option").all_text_contents() == ["ct-denoise", "ct-sr"]
    assert_same(canvas(page, "lq"), grey(in_hounsfield(pairs["lq"][0, 0]), window=2000, level=0))
    page.select_option("#task", "ct-sr")
    expect(page.locator("#viewer-status")).to_contain_text("ct-sr")
    other = in_hounsfield(pairs["other"][0, 0])
    assert_same(canvas(page, "lq"), grey(other, window=2000, level=0))
    assert not watched.said


def test_a_fast_hand_reads_no_more_than_it_sees(
    watch: Callable[..., Watched], pairs: dict[str, np.ndarray]
) -> None:
    watched = watch()
    page = watched.open(ONE, viewer=True)
    before = len(watched.ranges)
    page.evaluate(
        """() => { const slider = document.getElementById("pair");
        for (const at of [1, 2, 3, 4]) {
          slider.value = at; slider.dispatchEvent(new Event("input")) } }"""
    )
    expect(page.locator("#viewer-status")).to_contain_text("Pair 4")
    hq = in_hounsfield(pairs["hq"][4, 0])
    assert_same(canvas(page, "hq"), grey(hq, window=2000, level=0))
    assert len(watched.ranges) == before + 2 * 2  # the first, which was under way, and the last
    assert not watched.said


def test_a_pair_that_cannot_be_read_says_so(watch: Callable[..., Watched]) -> None:
    watched = watch()
    page = watched.open(ONE, viewer=True)
    page.route("**/pairs.safetensors", lambda route: route.fulfill(status=429))
    page.click("#after")
    expect(page.locator("#viewer-status")).to_have_text("Not loaded: the server answered 429")
    page.unroute("**/pairs.safetensors")
    page.click("#before")
    page.click("#after")
    expect(page.locator("#viewer-status")).to_contain_text("Pair 1 of")


def test_keys_do_what_the_mouse_does(
    watch: Callable[..., Watched], pairs: dict[str, np.ndarray]
) -> None:
    watched = watch()
    page = watched.open(ONE, viewer=True)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "hq":
            break
    assert page.evaluate("document.activeElement.id") == "hq"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    for key in ("ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    shown = [page.input_value(f"#{name}") for name in ("window", "level")]
    assert shown == ["2020", "40"]
    hq = in_hounsfield(pairs["hq"][:, 0])
    assert_same(canvas(page, "hq"), grey(hq[0], window=2020, level=40))
    page.keyboard.press("0")
    assert page.input_value("#window") == "2000"
    page.keyboard.press("]")
    expect(page.locator("#viewer-status")).to_contain_text("Pair 1")
    page.keyboard.press("Shift+ArrowRight")
    middle = SIZE // 2
    words = page.inner_text("#readout")
    assert words.startswith(f"x {middle + 1}, y {middle}: HQ {hq[1, middle, middle + 1]:.1f} HU")
    # The mouse: 40 pixels to the right widen the window by a tenth of the whole.
    box = page.locator("#lq").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 50)
    page.mouse.up()
    assert page.input_value("#window") == "2200"
    assert not watched.said


def test_lines_are_copied(watch: Callable[..., Watched], url: str) -> None:
    watched = watch(permissions=["clipboard-read", "clipboard-write"])
    page = watched.open(ONE)
    for at, button in enumerate(page.locator("button.copy").all(), start=1):
        button.click()
        expect(button).to_have_text("Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.inner_text(f"#way-{at}")
        assert url in copied
    assert at == 3


def test_lines_for_what_a_system_has_work(watch: Callable[..., Watched], tmp_path: Path) -> None:
    """As copied, in a shell; those of the other two are tested with their programs."""
    for program in ("curl", "jq", "minisign"):
        if shutil.which(program) is None:
            pytest.skip(f"needs Debian's package {program}")
    lines = watch().open(ONE).inner_text("#way-3")
    run = ["bash", "-ec", lines]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Signature and comment signature verified" in done.stdout
    assert "pairs.safetensors: OK" in done.stdout
    (tmp_path / "ct-one-v1-curl" / "pairs.safetensors").write_bytes(b"other")
    check = ["bash", "-ec", f"cd ct-one-v1-curl; {lines.splitlines()[-1]}"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_a_search_finds(watch: Callable[..., Watched]) -> None:
    watched = watch()
    page = watched.open("/")
    assert page.locator("ul.cards > li").count() == 3
    page.fill("#q", "both")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=both")
    assert page.locator("ul.cards > li").count() == 1
    page.click("ul.cards a")
    assert "ct-both" in page.inner_text("h1")
    assert not watched.said
    assert not watched.elsewhere


@pytest.mark.parametrize("path", ["/", ONE, AGREED, "/datasets/fedstill/absent"])
def test_a_phone_does_not_scroll_sideways(watch: Callable[..., Watched], path: str) -> None:
    watched = watch(viewport={"width": 375, "height": 800}, has_touch=True)
    page = watched.open(path, viewer=path == ONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 375
    if path == ONE:
        page.check("input[value=slider]")
        assert page.evaluate(width) == 375
        page.evaluate("document.querySelector('h1').style.width = '400px'")
        assert page.evaluate(width) > 375  # the control
    assert not watched.elsewhere


CONTRASTS = """() => {
  const parsed = text => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length === 3 ? [...found, 1] : found;
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = parsed(getComputedStyle(element).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error("a ground that shows through");
    }
    throw new Error("no ground");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest(":disabled, noscript")) continue;
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(
      colour => light(typeof colour === "string" ? parsed(colour) : colour));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent]);
  }
  return found;
}"""
"""Of each text that is seen: the contrast of WCAG 2.2 with what is behind it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(watch: Callable[..., Watched], scheme: str) -> None:
    watched = watch(color_scheme=scheme)
    for path in ("/", ONE, AGREED, "/datasets/fedstill/absent"):
        page = watched.open(path, viewer=path == ONE)
        found = page.evaluate(CONTRASTS)
        assert len(found) >= 8
        faint = [one for one in found if one[0] < LEAST_CONTRAST]
        assert not faint
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")
    page.evaluate("document.querySelector('h1').style.color = 'rgb(119, 119, 119)'")
    assert min(page.evaluate(CONTRASTS))[0] < LEAST_CONTRAST  # the control


def test_all_but_the_viewer_is_there_without_scripts(watch: Callable[..., Watched]) -> None:
    watched = watch(java_script_enabled=False)
    page = watched.open(ONE)
    text = page.inner_text("main")
    for words in (
        "How to download",
        "distilled get fedstill/ct-one@v1",
        "31.70 ± 0.07",
        "The viewer needs JavaScript",
        "No differential privacy",
        "pairs.safetensors",
    ):
        assert words in text
    assert not page.locator("#viewer").is_visible()
    assert page.locator("button:visible").count() == 0
    sheet = page.locator("#sheet img")
    assert sheet.is_visible()
    assert sheet.evaluate("image => image.naturalWidth") > 100
    assert not any(asked.endswith(".js") for asked in watched.asked)
    page.click("nav a")
    assert page.locator("ul.cards > li").count() == 3


def test_a_gated_page_asks_for_no_file(watch: Callable[..., Watched]) -> None:
    watched = watch()
    page = watched.open(AGREED)
    assert "1. Research only." in page.inner_text("main")
    assert page.locator("canvas").count() == 0
    assert not any("/resolve/" in asked for asked in watched.asked)
    assert not watched.said


def test_what_would_reach_elsewhere_is_refused_and_seen(watch: Callable[..., Watched]) -> None:
    """The control of the console, and of the policy: a script that runs may not tell anybody."""
    watched = watch()
    page = watched.open(ONE)
    tries = """() => { const add = (tag, set) => document.body.append(
        Object.assign(document.createElement(tag), set));
      add("img", { src: "http://127.0.0.2:9/image" });
      add("script", { textContent: "window.planted = true" });
      add("iframe", { src: "http://127.0.0.2:9/frame" });
      return fetch("http://127.0.0.2:9/told").then(() => "told", () => "refused") }"""
    assert page.evaluate(tries) == "refused"
    assert page.evaluate("window.planted") is None
    page.wait_for_timeout(100)
    refused = [line for line in watched.said if "Content Security Policy" in line]
    assert len(refused) >= 4
