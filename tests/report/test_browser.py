"""The report in a real browser: chromium, headless, at the widths of a desktop and of a phone."""

from __future__ import annotations

import html as escaping
import json
import re
import shutil
import subprocess

import pytest

from tests.report.conftest import NAMES

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium is installed: the report is not looked at in a browser"
)

WIDTHS = (1280, 390)

MEASURE = """
const out = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
  const own = (e) => !e.closest(".scroll > *, pre > *, .skip");
  const wide = [...page.body.querySelectorAll("*")].filter((e) => own(e) && e.getBoundingClientRect().right > width + 1);
  const table = [...page.querySelectorAll("table")].find((t) => t.caption || t.rows.length === 11);
  const column = (j) => [...table.tBodies[0].rows].map((row) => row.cells[j].textContent);
  const before = column(0);
  table.tHead.rows[0].cells[0].querySelector("button").click();
  const up = column(0);
  table.tHead.rows[0].cells[0].querySelector("button").click();
  const down = column(0);
  out.push({
    width: width, content: root.scrollWidth, wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    images: [...page.images].map((i) => [i.complete, i.naturalWidth, i.getBoundingClientRect().width, i.getBoundingClientRect().height]),
    resources: page.defaultView.performance.getEntriesByType("resource").map((r) => r.name),
    before: before, up: up, down: down, names: [...page.querySelectorAll("td")].map((t) => t.textContent),
  });
}
document.body.replaceChildren();
document.body.textContent = JSON.stringify(out);
"""


def browse(path, tmp_path, *options):
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio"),
        f"--user-data-dir={tmp_path / 'profile'}",
        *("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", *options),
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def measured(html, tmp_path_factory):
    """What a script beside the report finds in it, at each width; the report is held in frames as it is."""
    folder = tmp_path_factory.mktemp("browser")
    frames = "".join(
        f'<iframe width="{w}" height="900" style="border:0" srcdoc="{escaping.escape(html)}"></iframe>' for w in WIDTHS
    )
    file = folder / "frames.html"
    file.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>onload = () => setTimeout(() => {{{MEASURE}}}, 500);</script>',
        encoding="utf-8",
    )
    dom, console = browse(file, folder)
    found = json.loads(escaping.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))
    return found, console


def test_nothing_is_wider_than_the_screen(measured):
    for page, width in zip(measured[0], WIDTHS, strict=True):
        # a scroll bar may take some of the frame's width
        assert width - 20 <= page["width"] <= width
        assert page["content"] <= page["width"]
        assert page["wide"] == []


def test_every_figure_is_drawn(measured, page):
    for found in measured[0]:
        assert len(found["images"]) >= 5
        for complete, natural, width, height in found["images"]:
            assert complete
            assert natural > 0
            assert 100 < width <= found["width"]
            assert height > 50


def test_nothing_is_fetched_and_the_console_is_silent(measured, html, tmp_path):
    found, console = measured
    assert console == []
    assert [name for page in found for name in page["resources"] if not name.startswith("data:")] == []
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    dom, console = browse(file, tmp_path)
    assert console == []
    assert dom.count("<button") > 20


def test_the_console_would_be_heard(tmp_path):
    """The test above can fail: a script that the policy of the page does not let in is reported."""
    file = tmp_path / "bad.html"
    file.write_text('<script>throw new Error("heard")</script>', encoding="utf-8")
    assert any("heard" in line for line in browse(file, tmp_path)[1])


def test_tables_are_sorted_by_a_click(measured):
    for page in measured[0]:
        rows = [int(text) for text in page["up"]]
        assert rows == sorted(map(int, page["before"]))
        assert [int(text) for text in page["down"]] == rows[::-1]


def test_names_are_seen_as_they_are(measured):
    for page in measured[0]:
        assert set(NAMES) <= set(page["names"])
