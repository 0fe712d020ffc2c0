"""Small tables of text, as people read them in a notebook, a page and a terminal."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from eventcore_lab.lab.wording import printable


class Table:
    """Rows of text under heads. The first cell names its row."""

    def __init__(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.heads, self.rows = list(heads), [list(row) for row in rows]

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in self.heads)
        body = "".join(
            f"<tr><th scope='row'>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
            for name, *cells in self.rows
        )
        return f"<table class='dataframe'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        lines = [[printable(cell) for cell in line] for line in (self.heads, *self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.heads))]
        told = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in told)
