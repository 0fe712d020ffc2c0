"""The list of all reports in a folder, made anew from their `report.json`: newest first, broken ones tolerated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eventcore_lab.reports.notebooks import write_atomically
from eventcore_lab.reports.record import answer_of, badge_of


def rewrite_index(out: Path) -> Path:
    """Writes `out/index.html`, a row for each folder that holds a `report.json`; returns its path."""
    from eventcore_lab.reports.page import environment

    rows = sorted((row for row in map(_row, _folders(out)) if row), key=lambda row: row["order"], reverse=True)
    write_atomically(out / "index.html", environment().get_template("index.html.j2").render(rows=rows))
    return out / "index.html"


def _folders(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.is_dir()]


def _row(folder: Path) -> dict[str, Any] | None:
    """What the index says of a folder; None for one that is no report."""
    try:
        record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        record = None
    row = {"folder": folder.name, "order": (folder.name, ""), "has_page": (folder / "index.html").is_file()}
    if not isinstance(record, dict):
        return {**row, "is_broken": True}
    return {
        **row,
        "order": (_stamp(record, folder), folder.name),
        "record": record,
        "is_suite": record.get("kind") == "suite",
        "jobs": len(jobs) if isinstance(jobs := record.get("jobs"), list) else 0,
        "title": str(record.get("title") or record.get("name") or folder.name),
        "date": str(record.get("started", ""))[:16].replace("T", " "),
        "badge": badge_of(record),
        "answer": answer_of(record),
        "changed": _changed(record.get("parameters"), record.get("changed")),
    }


def _stamp(record: dict[str, Any], folder: Path) -> str:
    """`20261123T092836Z`: of the record, or as the folder's own name begins with it."""
    started = "".join(c for c in str(record.get("started", ""))[:19] if c.isalnum())
    return f"{started}Z" if started else folder.name


def _changed(values: object, names: object) -> dict[str, object]:
    if not isinstance(values, dict) or not isinstance(names, list):
        return {}
    return {name: values[name] for name in names if isinstance(name, str) and name in values}
