"""Where the notebooks are and what they contain, read as plain JSON: no question here imports Jupyter."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from eventcore_lab.spec import UsageError, shown, unknown

_NUMBER = re.compile(r"\d+")


def find_notebook(name: str, folder: Path) -> Path:
    """The notebook called `name`: a path, a file name, a stem, its leading number, or the stem without it.

    UsageError when there is none, or more than one.
    """
    if name.endswith(".ipynb") and _is_file(Path(name)):
        return Path(name)
    known = sorted(folder.glob("*.ipynb"))
    found = [path for path in known if name in (path.name, path.stem)] or [p for p in known if name in _short_names(p)]
    if len(found) > 1:
        raise UsageError(f"notebook {shown(name)} is ambiguous: {', '.join(path.stem for path in found)}")
    if not found and not known:
        raise UsageError(f"unknown notebook {shown(name)}: there are no notebooks in {folder}")
    if not found and "=" in name:
        raise UsageError(f"{shown(name)} is no notebook; a parameter is given with -p {shown(name)}")
    if not found:
        raise unknown("notebook", name, (path.stem for path in known))
    return found[0]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name of 10 kB, or with a NUL in it
        return False


def _short_names(path: Path) -> tuple[str, ...]:
    number, dash, rest = path.stem.partition("-")
    return (number, rest) if dash and _NUMBER.fullmatch(number) else ()


def read_json(notebook: Path) -> dict[str, Any]:
    """The notebook as it is on disk; UsageError when it cannot be read or is not a notebook of format 4."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"notebook {notebook} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{notebook} is not a notebook: it holds no JSON") from None
    if not isinstance(content, dict) or content.get("nbformat") != 4 or not isinstance(content.get("cells"), list):
        raise UsageError(f"{notebook} is not a notebook of format 4")
    return content


def source_of(cell: dict[str, Any]) -> str:
    """The text of a cell, which is one string or a list of lines on disk."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def title_of(notebook: dict[str, Any], otherwise: str) -> str:
    """The first heading `# …` of a notebook's first Markdown cell, without emphasis and backquotes."""
    for cell in notebook["cells"]:
        if cell.get("cell_type") == "markdown":
            heading = re.match(r"\s*#[ \t]+(.+)", source_of(cell))
            return re.sub(r"[`*]+", "", heading.group(1)).strip(" \t#") if heading else otherwise
    return otherwise


def opening_of(source: str) -> tuple[str, str]:
    """The question of a notebook's first cell (the paragraph that begins with `**Question.**`, without these words), and the
    other paragraphs; no question where there is none."""
    paragraphs = re.split(r"\n\s*\n", source.strip())
    for at, paragraph in enumerate(paragraphs):
        if found := re.match(r"\s*\*\*Question\.?\*\*\.?\s*", paragraph):
            return paragraph[found.end() :].strip(), "\n\n".join(paragraphs[:at] + paragraphs[at + 1 :])
    return "", source


def question_of(notebook: dict[str, Any]) -> str:
    """The question that a notebook says it answers, as Markdown on one line; empty where it says none."""
    texts = (source_of(cell) for cell in notebook["cells"] if cell.get("cell_type") == "markdown")
    return " ".join(opening_of(next(texts, ""))[0].split())


def is_stripped(notebook: Path) -> bool:
    """Whether the notebook has no outputs, no execution counts and no traces of a run: what is committed."""
    content = read_json(notebook)
    return content == _stripped(content)


def strip(notebook: Path) -> bool:
    """Removes outputs, execution counts and traces of a run from the file; True when there was anything to remove."""
    content = read_json(notebook)
    stripped = _stripped(content)
    if content == stripped:
        return False
    write_atomically(notebook, json.dumps(stripped, indent=1, ensure_ascii=False) + "\n")
    return True


def _stripped(content: dict[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in content.get("metadata", {}).items() if k not in ("papermill", "widgets")}
    cells = [_stripped_cell(c) for c in content["cells"] if "injected-parameters" not in _tags(c)]
    return {**content, "cells": cells, "metadata": metadata}


def _stripped_cell(cell: dict[str, Any]) -> dict[str, Any]:
    traces = ("papermill", "execution", "ExecuteTime")
    kept = {**cell, "metadata": {k: v for k, v in cell.get("metadata", {}).items() if k not in traces}}
    return {**kept, "outputs": [], "execution_count": None} if cell.get("cell_type") == "code" else kept


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def parameters_cell(notebook: dict[str, Any]) -> str:
    """The source of the cell tagged `parameters`; empty when there is none."""
    return next((source_of(cell) for cell in notebook["cells"] if "parameters" in _tags(cell)), "")


def write_atomically(path: Path, text: str) -> None:
    """`text` as the file's new content, in UTF-8; a reader sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        # A lone surrogate can be in a Python string and in JSON, but not in a file of UTF-8.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
