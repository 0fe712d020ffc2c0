"""What a notebook lets its reader change: the literals of its cell tagged `parameters`, set by `name=value`."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from eventcore_lab.reports import passwords
from eventcore_lab.reports.notebooks import parameters_cell, read_json
from eventcore_lab.spec import UsageError, shown, unknown, value_of


@dataclass(frozen=True)
class Parameter:
    """One name of the parameters cell.

    `type` is `int float str bool list tuple dict`, or `any` where the default is None and no annotation says more.
    """

    name: str
    type: str
    default: Any
    help: str
    is_optional: bool = False  # None is a value of it

    def __str__(self) -> str:
        return f"{self.name}={passwords.blank(_short(self.default))}"


def declared_parameters(notebook: Path) -> list[Parameter]:
    """The parameters of a notebook in their order, read without running anything; the help is the trailing comment.

    A name whose value is computed is not a parameter: only literals are.
    """
    return parameters_in(parameters_cell(read_json(notebook)), str(notebook))


def parameters_in(source: str, where: str) -> list[Parameter]:
    """The parameters that the source of a parameters cell declares."""
    try:
        assignments = list(_assignments(ast.parse(source)))
    except SyntaxError as error:
        raise UsageError(f"{where}: the parameters cell is not Python: {error.msg} (line {error.lineno})") from None
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    for name, annotation, value, line in assignments:
        try:
            default = ast.literal_eval(value)
        except (ValueError, TypeError):
            continue
        kind, is_optional = _type(default, annotation)
        found[name] = Parameter(name, kind, default, comments.get(line, ""), is_optional)
    return list(found.values())


def _assignments(module: ast.Module) -> Iterator[tuple[str, str, ast.expr, int]]:
    """Name, annotation, value and last line of each assignment to a name."""
    for statement in module.body:
        line = statement.end_lineno or 0
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, "", statement.value, line
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            yield statement.target.id, ast.unparse(statement.annotation).strip("'\""), statement.value, line


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _type(default: object, annotation: str) -> tuple[str, bool]:
    if default is not None:
        return type(default).__name__, "None" in annotation
    named = [word.strip().partition("[")[0] for word in annotation.split("|")]
    known = [word for word in named if word in ("int", "float", "str", "bool", "list", "dict")]
    return (known[0] if len(known) == 1 else "any"), True


def parse_parameters(notebook: Path, given: Sequence[str]) -> dict[str, object]:
    """Texts `name=value` as values of the types that the notebook's own defaults have.

    A whole number is good for a float; a list is `1,10,100` or JSON; a dict is JSON. UsageError on the first text that
    is wrong, before anything has started: unknown name, wrong type, name given twice, no `=`, a password.
    """
    declared = {parameter.name: parameter for parameter in declared_parameters(notebook)}
    values: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"parameter {shown(str(passwords.blank(text)))} is not name=value")
        passwords.refuse(name, value)
        check_known(name, declared)
        if name in values:
            raise UsageError(f"parameter {name} is given twice")
        values[name] = _value(declared[name], value)
    return values


def typed_parameters(notebook: Path, given: Mapping[str, object]) -> dict[str, object]:
    """Values of a file (TOML, JSON) as values of the types that the notebook's own defaults have, checked as the texts of a
    command line are. UsageError on the first that is wrong."""
    declared = {parameter.name: parameter for parameter in declared_parameters(notebook)}
    values: dict[str, object] = {}
    for name, value in given.items():
        check_known(name, declared)
        passwords.refuse(name, str(value))
        parameter = declared[name]
        if isinstance(value, str):
            values[name] = _value(parameter, value)
            continue
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):  # a date, a NaN
            _wrong(parameter, str(value), f"of type {parameter.type}")
        values[name] = _value(parameter, text) if parameter.type != "str" else _wrong(parameter, text, "a text")
    return values


def check_known(name: str, declared: Mapping[str, Parameter]) -> None:
    """UsageError, naming the nearest parameter and all of them with their defaults, when the notebook has no `name`."""
    if name in declared:
        return
    if not declared:
        raise UsageError(f"unknown parameter {shown(name)}: this notebook has no parameters")
    error, _, _ = str(unknown("parameter", name, declared)).partition(" (known: ")
    raise UsageError(f"{error} (known: {', '.join(str(parameter) for parameter in declared.values())})")


def check_values(values: Mapping[str, object], declared: Iterable[Parameter]) -> None:
    """The same checks for values that come from Python instead of from a command line: known names, no passwords."""
    known = {parameter.name: parameter for parameter in declared}
    for name, value in values.items():
        check_known(name, known)
        passwords.refuse(name, "" if value is None else str(value))


def _value(parameter: Parameter, text: str) -> object:
    if parameter.is_optional and text.strip().lower() in ("none", "null"):
        return None
    kind = parameter.type
    if kind in ("int", "float", "bool"):
        return _scalar(parameter, kind, text)
    if kind in ("list", "tuple"):
        return _list(parameter, text)
    if kind == "dict":
        found = _json(text)
        return found if isinstance(found, dict) else _wrong(parameter, text, 'a JSON object such as {"a": 1}')
    if kind == "any":
        return _guessed(text)
    return text if kind == "str" else _wrong(parameter, text, f"settable from outside: its default is a {kind}")


def _scalar(parameter: Parameter, kind: str, text: str) -> object:
    kinds: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
    try:
        return value_of(text if kind == "str" else text.strip(), kinds[kind], parameter.name)
    except UsageError as error:
        raise UsageError(f"{error} (default {_short(parameter.default)})") from None


def _list(parameter: Parameter, text: str) -> list[object]:
    """Items are of the type that the default's items share; strings and anything else when they share none."""
    is_json = text.lstrip().startswith("[")
    items = _json(text) if is_json else None
    if is_json and not isinstance(items, list):
        _wrong(parameter, text, "a list: write 1,10,100 or JSON [1,10]")
    kinds = {type(item).__name__ for item in parameter.default or ()}
    kind = kinds.pop() if len(kinds) == 1 else "any"
    if kind not in ("int", "float", "bool", "str"):
        return items if isinstance(items, list) else [_guessed(part) for part in _parts(text)]
    if isinstance(items, list):
        return [_item(parameter, kind, item) for item in items]
    return [_scalar(parameter, kind, part) for part in _parts(text)]


def _item(parameter: Parameter, kind: str, item: object) -> object:
    if kind == "str" and isinstance(item, str):
        return item
    if kind == "str" or isinstance(item, str | list | dict | None):
        _wrong(parameter, str(item), f"of type {kind}, like the items of the default")
    return _scalar(parameter, kind, json.dumps(item))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _guessed(text: str) -> object:
    """A number, a truth value or a list where the text is JSON, else the text itself."""
    found = _json(text)
    if found is None and text.strip() != "null" and _is_infinite(text):
        raise UsageError(f"{shown(text)} is not a finite number")
    return text if found is None and text.strip() != "null" else found


def _is_infinite(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _json(text: str) -> object:
    """The value of a JSON text; None where it is none, or holds a NaN or an infinity."""
    try:
        return _finite(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError):
        return None


def _finite(value: object) -> object:
    json.dumps(value, allow_nan=False)  # 1e999 is an infinity that is spelled as a number
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def _wrong(parameter: Parameter, text: str, wanted: str) -> NoReturn:
    raise UsageError(f"{parameter.name}: {shown(text)} is not {wanted} (default {_short(parameter.default)})")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
