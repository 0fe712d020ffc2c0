"""Headless Chromium for tests: what a page asks of the network, what it says on the console, how wide it really is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --no-default-browser-check --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
    "--disable-extensions --disable-dev-shm-usage --enable-logging=stderr --v=0 --virtual-time-budget=5000"
)
_CONSOLE = re.compile(r"[:\]](?:INFO|WARNING|ERROR):CONSOLE[:(]\d+\)?\]\s*(.*)")
_META_CSP = re.compile(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Visit:
    """What there was after a page had loaded."""

    dom: str
    requests: list[str]  # addresses with a host that the page asked for, whatever became of it
    console: list[str]


def visit(page: Path | str) -> Visit:
    """Loads a file or an address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "net.json"
        done = _chromium(folder, _address(page), f"--log-net-log={log}", "--dump-dom")
        requests = _requests(json.loads(log.read_text()))
    return Visit(done.stdout, requests, _CONSOLE.findall(done.stderr))


def widths(page: Path, width_px: int) -> tuple[int, list[str]]:
    """Scroll width of the page in a window of `width_px`, and what sticks out of it to the right.

    The page is loaded in a frame, because the window of a headless Chromium has a minimum width of about 500 px.
    """
    probe = """<script>addEventListener("load", () => {
        const wide = [...document.querySelectorAll("body *")].filter(e => !e.parentElement.closest(".scroll") &&
            e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
        parent.postMessage([document.documentElement.scrollWidth, wide], "*");
    })</script>"""
    frame = f"""<!DOCTYPE html><body><pre id="answer"></pre><script>
        addEventListener("message", m => document.getElementById("answer").textContent = JSON.stringify(m.data));
        </script><iframe src="page.html" style="width:{width_px}px;height:800px;border:0"></iframe>"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        here = Path(folder)
        (here / "page.html").write_text(_META_CSP.sub("", page.read_text(encoding="utf-8")) + probe, encoding="utf-8")
        (here / "frame.html").write_text(frame, encoding="utf-8")
        dom = _chromium(folder, (here / "frame.html").as_uri(), "--dump-dom").stdout
    found = re.search(r'<pre id="answer">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom[:2000]
    scroll_width, wide = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return scroll_width, wide


def screenshot(page: Path, png: Path, width_px: int, height_px: int, *, is_dark: bool = False) -> Path:
    """A picture of the page as far down as `height_px`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        address = page.as_uri()
        if width_px < 500:
            frame = Path(folder) / "frame.html"
            style = f"width:{width_px}px;height:{height_px}px;border:0"
            frame.write_text(f'<body style="margin:0"><iframe src="{address}" style="{style}"></iframe>')
            address = frame.as_uri()
        dark = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
        _chromium(folder, address, f"--screenshot={png}", f"--window-size={max(width_px, 500)},{height_px}", *dark)
    return png


def print_to_pdf(page: Path, pdf: Path) -> Path:
    """The page as it would be printed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _chromium(folder, page.as_uri(), f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    return pdf


def _address(page: Path | str) -> str:
    return page.as_uri() if isinstance(page, Path) else page


def _chromium(folder: str, address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *_FLAGS.split(), f"--user-data-dir={folder}/profile", *flags, address]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=True)


def _requests(log: dict[str, object]) -> list[str]:
    """Addresses with a host in a net log, of requests that a page initiated: Chromium's own have no origin."""
    constants, events = log["constants"], log["events"]
    assert isinstance(constants, dict)
    assert isinstance(events, list)
    started = constants["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [e["params"] for e in events if e["type"] == started and "url" in e.get("params", {})]
    pages = [p["url"] for p in found if p.get("initiator") != "not an origin"]
    return sorted({url for url in pages if urlsplit(url).hostname})
