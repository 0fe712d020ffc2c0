"""What every report page must be, whichever notebook it is of: whole and small, with words for its pictures, asking nobody for
anything, as wide as a phone. A test that executed a notebook hands its page over; browser.py has the browser."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import browser

WIDTH_PX = 390
PAGE_BYTES_MAX, MARKDOWN_BYTES_MAX = 2_000_000, 60_000
_SCRIPTS = ("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
_PROBE = """<script>addEventListener("load", () => {
    const edge = document.documentElement.clientWidth + 1;
    const wide = [...document.querySelectorAll("body *")].filter(e => !e.parentElement.closest(".scroll") &&
        e.getBoundingClientRect().right > edge).map(e => e.outerHTML.slice(0, 80));
    parent.postMessage([document.documentElement.scrollWidth, wide], "*");
})</script>"""
_FRAME = f"""<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><body><pre id="answer"></pre><script>
    addEventListener("message", m => document.getElementById("answer").textContent = JSON.stringify(m.data));
    </script><iframe src="page.html" style="width:{WIDTH_PX}px;height:800px;border:0"></iframe>"""


def check(page: Path) -> None:
    """A notebook's `index.html`, with what lies beside it."""
    reads_well(page)
    markdown, junit = page.with_name("report.md"), page.with_name("junit.xml")
    assert 0 < markdown.stat().st_size < MARKDOWN_BYTES_MAX
    assert "Traceback" not in markdown.read_text(encoding="utf-8")
    suites = ElementTree.parse(junit).getroot()
    assert int(suites.get("tests", "0")) == len(list(suites.iter("testcase"))) > 0
    assert suites.get("errors") == "0"
    asks_nobody_and_fits_a_phone(page)


def reads_well(page: Path) -> None:
    """It is of a readable size, nothing broke into it, it has no scripts, and each picture has its words."""
    html = page.read_text(encoding="utf-8")
    assert 1000 < len(html.encode()) <= PAGE_BYTES_MAX
    assert "Traceback" not in html and "<script" not in html
    wordless = [i[:80] for i in re.findall(r"<img\b[^>]*>", html) if not re.search(r'\balt="\s*[^"\s]', i)]
    assert not wordless, wordless


def asks_nobody_and_fits_a_phone(page: Path) -> None:
    """In one visit, in a frame as wide as a phone (a window cannot be as narrow); passes where no Chromium is installed."""
    if browser.CHROMIUM is None:
        return
    html = page.read_text(encoding="utf-8")
    assert _SCRIPTS[0] in html  # the rest of its policy stays: what it forbids is told on the console
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "page.html").write_text(html.replace(*_SCRIPTS, 1) + _PROBE, encoding="utf-8")
        (here / "frame.html").write_text(_FRAME, encoding="utf-8")
        seen = browser.visit(here / "frame.html")
    found = re.search(r'<pre id="answer">(.+?)</pre>', seen.dom, re.DOTALL)
    assert found, "the page did not load"
    answer = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert (seen.requests, seen.console) == ([], [])
    assert json.loads(answer) == [WIDTH_PX, []]
