"""What is watched for: a rule, the chapter's three rules out of the targets, and rules from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from msgspec import Struct

from eventcore_lab.lab.targets import Targets, Threshold
from eventcore_lab.schema import data_folder
from eventcore_lab.spec import UsageError, shown, unknown

SEVERITIES = ("info", "warning", "critical")
NAME_MAX = 100
_LIMITS = {"for_s": 86_400.0, "resolve_for_s": 86_400.0, "cooldown_s": 604_800.0}
CHAPTER = {
    ("p95", True): "high_latency",
    ("commands_per_second", False): "low_throughput",
    ("memory", True): "high_memory",
}
"""(figure, whether the limit is a highest value) → the chapter's name for missing it."""
RULES_MAX, FILE_BYTES_MAX = 200, 1_000_000
_SHARED = ("for_s", "resolve_for_s", "cooldown_s", "severity")
_OF_A_RULE = ("name", "expect", "enabled", *_SHARED)
_OF_A_FILE = ("rules", "all", *_SHARED)


class Rule(Struct, frozen=True, kw_only=True):
    """`threshold` is what should hold. Times in seconds: missed for `for_s` fires, kept for `resolve_for_s` resolves, told
    again after `cooldown_s` at the earliest. Raises UsageError."""

    name: str
    threshold: Threshold
    for_s: float = 10.0
    resolve_for_s: float = 10.0
    cooldown_s: float = 300.0
    severity: str = "warning"
    enabled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= NAME_MAX:
            raise UsageError(f"alert rule: a name is text of 1 to {NAME_MAX} characters, not {shown(str(self.name))}")
        where = f"alert rule {shown(self.name)}"
        for key, most in _LIMITS.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise UsageError(f"{where}: {key} is {shown(str(value))}; give seconds from 0 to {most:,.0f}")
        if self.severity not in SEVERITIES:
            raise UsageError(f"{where}: severity is {shown(str(self.severity))}; give one of {', '.join(SEVERITIES)}")
        if not isinstance(self.enabled, bool):
            raise UsageError(f"{where}: enabled is {shown(str(self.enabled))}; give true or false")


def rules_of(targets: Targets | None, file: str = "") -> list[Rule]:
    """The chapter's three rules, as far as `targets` has limits for them; or the rules of `file`, and with its `all = true` one
    more for each of the targets. Raises UsageError."""
    thresholds = targets.thresholds if targets is not None else ()
    if not file:
        return [Rule(name=CHAPTER[key], threshold=t) for t in thresholds if (key := (t.name, t.is_max)) in CHAPTER]
    where = f"alerts file {shown(file)}"
    content = _content(file, where)
    shared = {key: content[key] for key in _SHARED if key in content}
    tables = content.get("rules", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f'{where}: rules are tables: [[rules]], then name = "…" and expect = "p95 < 50ms"')
    rules = [_rule({**shared, **table}, f"{where}, rule {n}") for n, table in enumerate(tables, 1)]
    if _all(content, where):
        rules += [_made(where, name=_name(t), threshold=t, **shared) for t in thresholds]
    return _checked(rules, where)


def _content(file: str, where: str) -> dict[str, Any]:
    path = _found(file)
    if path is None:
        raise UsageError(f"{where} does not exist")
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise UsageError(f"{where} is larger than {FILE_BYTES_MAX:,} bytes; this is no list of rules")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not TOML: {error}") from None
    for key in content:
        if key not in _OF_A_FILE:
            raise UsageError(f"{where}: {unknown('key', key, _OF_A_FILE)}")
    return content


def _found(name: str) -> Path | None:
    """A file as named from here, or from the project's top, or in data/alerts."""
    places = (Path(name), data_folder().parent / name, data_folder() / "alerts" / name)
    return next((place for place in places if place.is_file()), None)


def _rule(table: dict[str, Any], where: str) -> Rule:
    name, expect = table.get("name"), table.get("expect")
    where += f" ({shown(name)})" if isinstance(name, str) else ""
    for key in table:
        if key not in _OF_A_RULE:
            raise UsageError(f"{where}: {unknown('key', key, _OF_A_RULE)}")
    if not isinstance(name, str):
        raise UsageError(f'{where}: give it a name, as in name = "slow commands"')
    if not isinstance(expect, str):
        raise UsageError(f'{where}: write what should hold as expect = "p95 < 50ms"; it alerts when that does not hold')
    try:
        threshold = Threshold.parse(expect)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return _made(where, threshold=threshold, **{key: value for key, value in table.items() if key != "expect"})


def _made(where: str, **fields: Any) -> Rule:
    try:
        return Rule(**fields)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _all(content: dict[str, Any], where: str) -> bool:
    is_all = content.get("all", False)
    if not isinstance(is_all, bool):
        raise UsageError(f"{where}: all is {shown(str(is_all))}; give true or false")
    return is_all


def _name(threshold: Threshold) -> str:
    return CHAPTER.get((threshold.name, threshold.is_max), threshold.name)


def _checked(rules: list[Rule], where: str) -> list[Rule]:
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two rules are called {shown(twice)}; give each a name of its own")
    if not rules:
        raise UsageError(f"{where} has no rules; add [[rules]], or all = true with targets")
    if len(rules) > RULES_MAX:
        raise UsageError(f"{where} has {len(rules)} rules; {RULES_MAX} is the most")
    return rules
