"""A run's report in a headless Chromium: no request, nothing wider than the window, keyboard, contrast."""

from __future__ import annotations

import base64
import re

import pytest

from tests.reporting.browser import Browser, find_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")

LOOKS = [(375, False), (375, True), (1440, False), (1440, True)]

CONTRASTS = r"""
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const own = element.closest("svg") ? style.fill : style.color;
    let ink = rgba(own);
    const alpha = Number(style.opacity) * Number(style.fillOpacity);
    ink = ink.map((v, i) => alpha * v + (1 - alpha) * below[i]);
    const [light, dark] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), text.slice(0, 40)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def address(full_page):
    return full_page.path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(str(PROGRAM), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_opens_without_a_word_and_fits_the_window(browser, address, width, dark):
    browser.open(address, width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert browser.events_of(kind) == []
    asked = [event["request"]["url"] for event in browser.events_of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:image/")] == [address]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (375, True)])
def test_all_text_can_be_read(browser, address, width, dark):
    browser.open(address, width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    found = browser.run(CONTRASTS)
    assert len(found) > 400
    assert min(found)[0] >= 4.5, min(found)
    browser.run("document.querySelector('h1').style.color = 'rgb(120, 120, 120)'")
    assert min(browser.run(CONTRASTS))[0] < 4.5  # the measure sees what is too faint


HEAD = (
    "[...document.querySelectorAll('thead button')].find((button) => button.textContent.startsWith('recall'))"
)


def test_tables_sort_by_keyboard(browser, address, full_run):
    browser.open(address, 1440)
    rows = f"[...{HEAD}.closest('table').querySelector('tbody').rows].map((row) => row.cells[0].textContent)"
    recalls = {name: row["recall"] for name, row in full_run.metrics["per_class"].items()}
    written = browser.run(rows)
    assert written == list(recalls)
    # Reached by Tab from the heading before it, as a reader without a mouse does.
    browser.run(f"{HEAD}.closest('th').previousElementSibling.querySelector('button').focus()")
    browser.press("Tab")
    assert browser.run(f"document.activeElement === {HEAD}")
    assert browser.run(f"getComputedStyle({HEAD}).outlineStyle") == "solid"
    for key, order in (("Enter", "descending"), ("Space", "ascending"), ("Enter", "descending")):
        sign = 1 if order == "ascending" else -1
        browser.press(key)
        assert browser.run(f"{HEAD}.closest('th').getAttribute('aria-sort')") == order
        assert browser.run(rows) == sorted(written, key=lambda name: sign * recalls[name])
        written = browser.run(rows)
    others = browser.run(
        f"[...{HEAD}.closest('tr').cells].filter((head) => head.getAttribute('aria-sort') !== 'none').length"
    )
    assert others == 1


def test_rows_below_stay_below(browser, address):
    browser.open(address, 1440)
    head = "document.querySelector('#table-metrics-on-the-test-images + .scroll thead button')"
    browser.run(f"{head}.click()")
    rows = browser.run(
        f"[...{head}.closest('table').querySelectorAll('tbody th')].map((cell) => cell.textContent)"
    )
    assert rows[:3] == ["accuracy", "balanced accuracy", "Brier score"]
    assert rows[-2:] == ["chance", "most frequent class"]


def test_everything_has_a_name_for_a_screen_reader(browser, address):
    browser.open(address, 1440)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    told = {"image": 0, "button": 0, "region": 0, "table": 0, "link": 0}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in told and not node["ignored"]:
            told[role] += 1
            assert node.get("name", {}).get("value"), node
    assert all(told.values()), told
    roles = {node.get("role", {}).get("value") for node in nodes}
    assert {"main", "navigation", "banner", "contentinfo"} <= roles


def test_parts_are_reached_from_the_top(browser, address):
    browser.open(address, 375)
    links = browser.run("[...document.querySelectorAll('nav a')].map((link) => link.getAttribute('href'))")
    for link in links:
        assert browser.run(f"document.querySelector('{link}').tagName") == "H2"


def test_prints_whole(browser, address):
    """Everything is on paper: folded parts too, and no wider than the page."""
    browser.open(address, 1440)
    count = "document.querySelectorAll('details:not([open])').length"
    browser.run(f"window.folded = -1; addEventListener('beforeprint', () => {{ folded = {count}; }})")
    pdf = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF") and 4 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 20
    assert browser.run("folded") == 0
    paper = 703  # CSS pixels of A4 less its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    size = {"width": paper, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    assert browser.run("document.documentElement.scrollWidth") <= paper
