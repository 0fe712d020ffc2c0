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

if TYPE_CHECKING:
    from eventcore_lab.reports.parameters import Parameter

_SIMPLE = re.compile(r"[\w:./,=@+-]+", re.ASCII)
_FIGURES = ("image/svg+xml", "image/png", "image/jpeg")
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_STREAM_CHARACTERS_MAX = 200_000


@dataclass(frozen=True)
class Badge:
    """A verdict as a word and a sign, so that it does not hang on its colour."""

    kind: str
    sign: str
    word: str


_VERDICTS = {
    "pass": Badge("pass", "✓", "Pass"),
    "fail": Badge("fail", "✗", "Fail"),
    "inconclusive": Badge("inconclusive", "?", "Inconclusive"),
    "violated": Badge("violated", "!", "Invariant violated"),
}
_BROKEN = Badge("none", "✗", "Broken")
_INTERRUPTED = Badge("none", "■", "Interrupted")
_NO_VERDICT = Badge("none", "–", "No verdict")


def badge_of(record: Mapping[str, Any]) -> Badge:
    """The badge of a `report.json`: how the run ended, and only if it did, what it found."""
    if record.get("status") == "failed":
        return _BROKEN
    if record.get("status") == "interrupted":
        return _INTERRUPTED
    conclusion = record.get("conclusion")
    status = conclusion.get("status") if isinstance(conclusion, dict) else None
    return _VERDICTS.get(status, _NO_VERDICT) if isinstance(status, str) else _NO_VERDICT


def answer_of(record: Mapping[str, Any]) -> str:
    """The sentence beside the badge."""
    conclusion, error = record.get("conclusion"), record.get("error")
    if isinstance(error, dict) and record.get("status") != "complete":
        return plain(error.get("message", "")).partition("\n")[0]
    return plain(conclusion.get("answer", "")) if isinstance(conclusion, dict) else ""


@cache
def environment() -> Environment:
    """The templates; everything put into them is escaped unless it is Markup."""
    folder = Path(__file__).parent / "template"
    made = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.globals["style"] = Markup((folder / "style.css").read_text(encoding="utf-8"))
    made.filters.update(value=value_text, duration=duration, plain=plain, quoted=lambda path: quote(str(path)))
    return made


def render(
    notebook: Any, record: Mapping[str, Any], declared: list[Parameter], cells: Mapping[int, int], folder: Path | None
) -> str:
    """The page of an executed notebook. `cells` numbers its code cells by index, `folder` holds its images."""
    error = record["error"]
    blocks = _Blocks(cells, folder, error["cell"] if error else 0)
    for index, cell in enumerate(notebook["cells"]):
        blocks.add(index, cell)
    facts = {"record": record, "badge": badge_of(record), "answer": answer_of(record), "error": error}
    return environment().get_template("page.html.j2").render(**facts, declared=declared, blocks=blocks.found)


@dataclass
class _Blocks:
    """The cells as the template wants them. Remembers the sentence that was said last: it describes the next figure."""

    cells: Mapping[int, int]
    folder: Path | None
    failed: int
    found: list[dict[str, Any]] = field(default_factory=list)
    sentence: str = ""
    is_titled: bool = False

    def add(self, index: int, cell: Mapping[str, Any]) -> None:
        if cell["cell_type"] == "markdown":
            self.found.append({"kind": "text", "html": self._text(cell)})
        elif cell["cell_type"] == "code" and index in self.cells:
            self._code(self.cells[index], cell)

    def _text(self, cell: Mapping[str, Any]) -> Markup:
        source = cell["source"]
        if not self.is_titled:  # the heading of the notebook is that of the page
            self.is_titled, source = True, re.sub(r"\A\s*#[ \t]+.+\n?", "", source)
        return self._said(_markdown(source, cell.get("attachments"), self.folder))

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


def plain(text: object) -> str:
    """Text without terminal colours and control characters, which HTML cannot hold."""
    return _CONTROLS.sub("", _COLOURS.sub("", str(text)))


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
