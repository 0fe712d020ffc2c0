"""The dashboard as one self-contained page: the files of `page/` in one HTML text, and the policy that lets a browser run just
these. What the page shows and how it is told of it is written there; this module reads it once."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

SCRIPTS = (
    "format.js",
    "history.js",
    "plot.js",
    "charts.js",
    "figure.js",
    "tables.js",
    "observed.js",
    "stream.js",
    "heading.js",
    "dashboard.js",
)
"""In the order in which they build on each other."""
STYLE = "dashboard.css"
FRAMED_BY = "'self' http://127.0.0.1:* http://localhost:*"
"""Who may show the page in a frame: JupyterLab beside it."""


@cache
def page() -> tuple[str, str]:
    """The HTML, and the value of its Content-Security-Policy header: nothing but the two blocks in it is run or worn, and
    nobody but its own server is asked (`frame-ancestors` is obeyed only in a header, so the page carries no copy)."""
    script = f'(() => {{\n"use strict";\n{"".join(map(_text, SCRIPTS))}}})();\n'
    style = _text(STYLE)
    html = _filled(_filled(_text("dashboard.html"), "/*css*/", style), "/*js*/", script)
    policy = (
        "default-src 'none'",
        f"script-src {_digest(script)}",
        f"style-src {_digest(style)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        f"frame-ancestors {FRAMED_BY}",
    )
    return html, "; ".join(policy)


def _text(name: str) -> str:
    return files("eventcore_lab.monitor").joinpath("page", name).read_text(encoding="utf-8")


def _filled(html: str, place: str, block: str) -> str:
    """`block` where `place` stands. A browser would end the block at its first `</`, wherever that is."""
    if html.count(place) != 1 or "</s" in block.lower() or "<!--" in block:
        raise ValueError(f"the page's files do not fit together at {place}")
    return html.replace(place, block)


def _digest(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
