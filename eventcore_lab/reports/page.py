"""A report as one page that reads like a short paper: the verdict, the text, the figures; code folded, parameters last.

`render` takes the executed notebook and the record of `report.json` and gives HTML that needs nothing else: no script,
no font, no image from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from eventcore_lab.reports.notebooks import opening_of
from eventcore_lab.reports.record import (
    SIGNS,
    answer_of,
    badge_of,
    comparison_of,
    conclusion_of,
    is_kept_invariant,
    plain,
    rows_of,
    runs_of,
    warnings_of,
)

if TYPE_CHECKING:
    from eventcore_lab.reports.parameters import Parameter

_SIMPLE = re.compile(r"[\w:./,=@+-]+", re.ASCII)
_FIGURES = ("image/svg+xml", "image/png", "image/jpeg")
_STREAM_CHARACTERS_MAX = 200_000
_VERDICT = re.compile("\\A\\s*<table class='verdict'")


@cache
def environment() -> Environment:
    """The templates; everything put into them is escaped unless it is Markup."""
    folder = Path(__file__).parent / "template"
    made = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.globals["style"] = Markup((folder / "style.css").read_text(encoding="utf-8"))
    made.globals["signs"] = SIGNS
    made.filters.update(value=value_text, duration=duration, plain=plain, quoted=lambda path: quote(str(path)))
    return made


def render(
    notebook: Any, record: Mapping[str, Any], declared: list[Parameter], cells: Mapping[int, int], folder: Path | None
) -> str:
    """The page of an executed notebook. `cells` numbers its code cells by index, `folder` holds its images.

    It is read from the end: the question, what was found and how it was judged come first, then the pictures, then the method,
    then what must be known about the runs."""
    error = record["error"]
    blocks = _Blocks(cells, folder, error["cell"] if error else 0, bool(rows_of(record)))
    for index, cell in enumerate(notebook["cells"]):
        blocks.add(index, cell)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            error=error,
            declared=declared,
            blocks=blocks.found,
            question=blocks.question,
            method=blocks.method,
            **_found(record),
        )
    )


def _found(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says, as the template wants it."""
    baseline = record.get("baseline")
    return {
        "badge": badge_of(record),
        "answer": answer_of(record),
        "title": plain(conclusion_of(record).get("title", "")),
        "rows": [row for row in rows_of(record) if not is_kept_invariant(row)],
        "kept": [row for row in rows_of(record) if is_kept_invariant(row)],
        "compared": comparison_of(record),
        "baseline": plain(baseline.get("of", "")) if isinstance(baseline, dict) else "",
        "warnings": warnings_of(record),
        "runs": runs_of(record),
        "machine": conclusion_of(record).get("environment") or {},
    }


@dataclass
class _Blocks:
    """The cells as the template wants them. Remembers the sentence that was said last: it describes the next figure."""

    cells: Mapping[int, int]
    folder: Path | None
    failed: int
    has_rows: bool = False  # the page has the verdict's table already
    found: list[dict[str, Any]] = field(default_factory=list)
    sentence: str = ""
    question: Markup = field(default_factory=Markup)
    method: Markup = field(default_factory=Markup)
    is_titled: bool = False

    def add(self, index: int, cell: Mapping[str, Any]) -> None:
        if cell["cell_type"] == "markdown":
            if html := self._text(cell):
                self.found.append({"kind": "text", "html": html})
        elif cell["cell_type"] == "code" and index in self.cells:
            self._code(self.cells[index], cell)

    def _text(self, cell: Mapping[str, Any]) -> Markup:
        source = cell["source"]
        if self.is_titled:
            return self._said(_markdown(source, cell.get("attachments"), self.folder))
        self.is_titled = True  # the heading of the notebook is that of the page, and its question stands below it
        source = re.sub(r"\A\s*#[ \t]+.+\n?", "", source)
        question, rest = opening_of(source)
        html = _markdown(rest, cell.get("attachments"), self.folder)
        if not question:
            return self._said(html)
        self.question, self.method = _markdown(question), html
        return Markup("")

    def _code(self, number: int, cell: Mapping[str, Any]) -> None:
        outputs = [html for output in merged(cell.get("outputs", [])) if (html := self._output(output))]
        is_parameters = {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", []))
        if is_parameters and number != self.failed:
            self.found.append({"kind": "outputs", "outputs": outputs})
            return
        block = {"kind": "code", "number": number, "source": plain(cell["source"]), "outputs": outputs}
        is_skipped = bool(self.failed) and number > self.failed
        self.found.append({**block, "is_failed": number == self.failed, "is_skipped": is_skipped})

    def _said(self, html: Markup) -> Markup:
        from eventcore_lab.reports.markup import last_sentence

        self.sentence = last_sentence(html) or self.sentence
        return html

    def _output(self, output: Mapping[str, Any]) -> Markup:
        kind = output["output_type"]
        if kind == "stream":
            return _pre(output["text"], f"stream {output['name']}")
        if kind == "error":
            return _traceback(output)
        return self._data(output["data"], output.get("metadata", {}))

    def _data(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Markup:
        from eventcore_lab.reports.markup import clean

        if self.has_rows and _VERDICT.search(_text(data.get("text/html", ""))):
            return Markup('<p>Line by line: <a href="#verdict">at the top</a>.</p>')
        if "text/html" in data:
            return self._said(Markup('<div class="output">{}</div>').format(clean(_text(data["text/html"]))))
        if "text/markdown" in data:
            return self._said(Markup('<div class="output">{}</div>').format(_markdown(_text(data["text/markdown"]))))
        for kind in _FIGURES:
            if kind in data:
                return _figure(kind, _text(data[kind]), metadata, self.sentence)
        return _pre(_text(data.get("text/plain", "")), "result")


def merged(outputs: list[Any]) -> list[Any]:
    """Streams that follow each other as one: a kernel sends what is printed in arbitrary pieces."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == "stream" == last.get("output_type") and output["name"] == last["name"]:
            found[-1] = {**last, "text": _text(last["text"]) + _text(output["text"])}
        else:
            found.append(output)
    return found


def _markdown(source: str, attachments: dict[str, Any] | None = None, folder: Path | None = None) -> Markup:
    from eventcore_lab.reports.markup import markdown

    return markdown(source, attachments, folder)


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _pre(text: Any, kind: str) -> Markup:
    lines = [line.rpartition("\r")[2] for line in _text(text).replace("\r\n", "\n").split("\n")]
    shown = plain("\n".join(lines)).strip("\n")
    more = len(shown) - _STREAM_CHARACTERS_MAX
    if more > 0:
        shown = f"{shown[:_STREAM_CHARACTERS_MAX]}\n… {more} more characters in the notebook"
    return Markup('<pre class="scroll {}" tabindex="0">{}</pre>').format(kind, shown) if shown.strip() else Markup("")


def _traceback(output: Mapping[str, Any]) -> Markup:
    lines = plain("\n".join(output.get("traceback", [])))
    head = plain(f"{output['ename']}: {output['evalue']}").partition("\n")[0]
    return Markup(
        '<details class="traceback"><summary>{}</summary><pre class="scroll" tabindex="0">{}</pre></details>'
    ).format(head, lines)


def _figure(kind: str, content: str, metadata: Mapping[str, Any], sentence: str) -> Markup:
    """The image inside the page; an SVG as an image too, where none of it can run and its ids meet no others."""
    import base64

    of_kind = metadata.get(kind)
    own = of_kind if isinstance(of_kind, dict) else {}
    said = own.get("alt") or metadata.get("alt") or (f"Figure: {sentence}" if sentence else "Figure")
    encoded = base64.b64encode(content.encode()).decode() if kind.endswith("xml") else "".join(content.split())
    width = f' width="{int(own["width"])}"' if str(own.get("width", "")).isdigit() else ""
    image = Markup('<figure><img src="data:{};base64,{}" alt="{}"{}></figure>')
    return image.format(kind, encoded, plain(said), Markup(width))


def value_text(value: object, characters_max: int = 400) -> str:
    """The value of a parameter on one line: simple words as they are, everything else as JSON."""
    is_simple = isinstance(value, str) and _SIMPLE.fullmatch(value)
    text = str(value) if is_simple else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= characters_max else f"{text[:characters_max]}… ({len(text)} characters)"


def duration(seconds: object) -> str:
    """Seconds for a reader: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
