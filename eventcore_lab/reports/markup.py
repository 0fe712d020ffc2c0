"""Markdown and HTML of a notebook as HTML that is safe and self-contained: only known tags and attributes, no script,
no address of another host, no table wider than the page. The page's Content-Security-Policy says the same once more.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import PreformattedString, Tag
from markupsafe import Markup

from eventcore_lab.reports.jupyter import imported_quickly

with imported_quickly():
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

_TAGS = """
    p br hr h1 h2 h3 h4 h5 h6 div span section article blockquote pre code kbd samp var ul ol li dl dt dd details
    summary a abbr b bdi bdo cite del dfn em i ins mark q s small strong sub sup time u wbr img figure figcaption
    table caption colgroup col thead tbody tfoot tr th td
    svg g path rect circle ellipse line polyline polygon text tspan
"""
_ALLOWED = frozenset(_TAGS.split())
_TAGS_WITH_CONTENT = "script style iframe object embed template noscript head title textarea select form math link meta"
_DROPPED = frozenset(_TAGS_WITH_CONTENT.split())
_KNOWN = """
    alt align class colspan dir height href id lang open role rowspan scope src start style title value width
    aria-label aria-hidden cx cy d fill opacity points r rx ry stroke stroke-width text-anchor transform viewbox
    x x1 x2 y y1 y2
"""
_ATTRIBUTES = frozenset(_KNOWN.split())
_BOX = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"}
_LINK = re.compile(r"https?://|mailto:|#|\.\./[\w.%-]+/index\.html\Z", re.IGNORECASE)  # the last: another report
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,", re.IGNORECASE)
_STYLE_NOT = re.compile(r"url\s*\(|position|expression|import|@|\\", re.IGNORECASE)
_IMAGE_BYTES_MAX = 500_000


def markdown(source: str, attachments: dict[str, Any] | None = None, folder: Path | None = None) -> Markup:
    """Markdown as clean HTML. Images in `folder`, the notebook's, are put into the page; others become their text."""
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True, attachments=attachments or {})
    return clean(MarkdownWithMath(renderer=renderer).render(source), folder)


def clean(fragment: str, folder: Path | None = None) -> Markup:
    """A fragment of HTML with only what is allowed, every tag closed, tables in boxes of their own that scroll."""
    soup = BeautifulSoup(fragment, "html.parser")
    for comment in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        comment.extract()
    for tag in soup.find_all(True):
        if not tag.decomposed:
            _clean_tag(tag, folder)
    for table in soup.find_all("table"):
        if table.find_parent("table") is None:
            table.wrap(soup.new_tag("div", attrs=_BOX))
    for block in soup.find_all("pre"):
        block.attrs = {"class": "scroll", "tabindex": "0"}
    return Markup(soup.decode(formatter="minimal"))


def _clean_tag(tag: Tag, folder: Path | None) -> None:
    if tag.name in _DROPPED:
        tag.decompose()
        return
    if tag.name not in _ALLOWED:
        tag.unwrap()
        return
    tag.attrs = {key: value for key, value in tag.attrs.items() if key.lower() in _ATTRIBUTES}
    if _STYLE_NOT.search(str(tag.get("style", ""))):
        del tag["style"]
    if "href" in tag.attrs and not (tag.name == "a" and _LINK.match(str(tag["href"]))):
        del tag["href"]  # of the notebook's neighbours, none but reports is a neighbour of the report
    if tag.name == "img":
        _clean_image(tag, folder)
    elif "src" in tag.attrs:
        del tag["src"]


def _clean_image(tag: Tag, folder: Path | None) -> None:
    source = str(tag.get("src", ""))
    embedded = source if _IMAGE.match(source) else _embedded(source, folder)
    if embedded:
        tag["src"], tag["alt"] = embedded, str(tag.get("alt", ""))
    else:
        tag.replace_with(str(tag.get("alt", "")))


def _embedded(source: str, folder: Path | None) -> str:
    """The image file `source` of the notebook's own folder as a data URL; empty when it is anything else."""
    kind = mimetypes.guess_type(source)[0] or ""
    if folder is None or "://" in source or not _IMAGE.match(f"data:{kind};base64,"):
        return ""
    try:
        path = (folder / source).resolve()
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > _IMAGE_BYTES_MAX:
            return ""
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except (OSError, ValueError):
        return ""


def last_sentence(html: str) -> str:
    """What the last paragraph or heading of `html` says first: the sentence that a figure below it stands for."""
    paragraphs = BeautifulSoup(html, "html.parser").find_all(["p", "h1", "h2", "h3", "h4", "li"])
    text = " ".join(paragraphs[-1].get_text().split()) if paragraphs else ""
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].rstrip(":")
    return sentence if len(sentence) <= 250 else sentence[:249] + "…"
