"""What was promised, and whether it was kept: thresholds, the chapter's two presets, and verdicts with three values."""

from __future__ import annotations

import html
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import polars as pl
from msgspec import Struct

from eventcore_lab.lab.disturbances import unsettled
from eventcore_lab.lab.measures import PERCENTILES, UNITS, Figure, Run
from eventcore_lab.lab.stats import samples_needed
from eventcore_lab.lab.wording import printable
from eventcore_lab.schema import ExitCode, data_folder
from eventcore_lab.spec import UsageError, shown, unknown

_THRESHOLD = re.compile(r"\s*([\w./]+)\s*(<=|>=|<|>)\s*([\d.]+(?:e\d+)?)\s*([%\w/]*)\s*\Z")
_FACTORS: dict[str, dict[str, float]] = {
    "ms": {"ms": 1, "s": 1000, "us": 0.001, "µs": 0.001, "": 1},
    "MiB": {"MiB": 1, "GiB": 1024, "KiB": 1 / 1024, "MB": 1e6 / 2**20, "GB": 1e9 / 2**20, "": 1},
    "/s": {"/s": 1, "": 1},
    "%": {"%": 1, "": 1},
}
_TOLD = ("p95", "commands_per_second")
"""The figures that an answer names although they met their targets."""
_PRESETS = ("production", "development")
_SYMBOLS = {
    "pass": "✓ pass",
    "fail": "✗ fail",
    "inconclusive": "? inconclusive",
    "violated": "✗ violated",
    "held": "✓ held",
    "not held": "✗ not held",
    "not settled": "? not settled",
}


class Threshold(Struct, frozen=True):
    """`name` must be below (`is_max`) or above `limit`, in the figure's own unit."""

    name: str
    limit: float
    is_max: bool

    def __str__(self) -> str:
        return f"{'<' if self.is_max else '>'} {self.limit:,.10g}{'' if UNITS[self.name] == '/s' else ' '}{UNITS[self.name]}"

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """`p99 < 100ms`, `events_per_second > 1000`, `memory_growth < 100MiB`, `conflicts/attempts < 1%`."""
        found = _THRESHOLD.match(text)
        if not found:
            raise UsageError(f"threshold {shown(text)}: write it as 'p99 < 100ms' or 'events_per_second > 1000'")
        name, sign, number, unit = found.groups()
        if name not in UNITS:
            raise unknown("figure", name, UNITS)
        factors = _FACTORS[UNITS[name]]
        if unit not in factors:
            raise UsageError(f"threshold {shown(text)}: {name} is measured in {', '.join(u for u in factors if u)}")
        try:
            return cls(name, float(number) * factors[unit], sign[0] == "<")
        except ValueError:
            raise UsageError(f"threshold {shown(text)}: {shown(number)} is not a number") from None


class Targets(Struct, frozen=True):
    """A named list of thresholds."""

    name: str
    thresholds: tuple[Threshold, ...]

    @classmethod
    def production(cls) -> Targets:
        """The chapter's production figures: 100 commands/s, 1000 events/s, 10/50/100 ms, 1024 MiB, 70 % CPU."""
        return cls.load("production")

    @classmethod
    def development(cls) -> Targets:
        """The chapter's development figures: 10 commands/s, 100 events/s, 50/200/500 ms, 512 MiB, 50 % CPU."""
        return cls.load("development")

    @classmethod
    def of(cls, *texts: str, name: str = "targets") -> Targets:
        """Targets written as text, one threshold each."""
        return cls(name, tuple(Threshold.parse(text) for text in texts))

    @property
    def title(self) -> str:
        """What a verdict against them is called."""
        if self.name in _PRESETS:
            return f"{self.name} targets"
        return "targets" if self.name == "targets" else f"targets ({self.name})"

    @classmethod
    def load(cls, name_or_file: str) -> Targets:
        """A preset by name, or a TOML file: `thresholds = ["p99 < 100ms", …]` and perhaps a `name`."""
        presets = {f.name.removesuffix(".toml"): f for f in files("eventcore_lab.lab").joinpath("presets").iterdir()}
        if name_or_file in presets:
            text, name = presets[name_or_file].read_text(), name_or_file
        elif (file := _found(name_or_file)) is not None:
            text, name = file.read_text(), file.stem
        elif name_or_file.endswith(".toml"):
            raise UsageError(f"targets file {shown(name_or_file)} does not exist")
        else:
            raise UsageError(
                f"unknown targets {shown(name_or_file)} (known: {', '.join(sorted(presets))}, or a TOML file with "
                'thresholds = ["p99 < 100ms", …])'
            )
        try:
            content = tomllib.loads(text)
            return cls.of(*content["thresholds"], name=str(content.get("name", name)))
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise UsageError(
                f'targets file {shown(name_or_file)}: expected thresholds = ["p99 < 100ms", …] ({error})'
            ) from None


def _html_row(j: Judgement) -> str:
    whole, kind = "style='white-space:nowrap'", j.status.replace(" ", "-")
    return (
        f"<tr class='{kind}'><th scope='row'>{html.escape(j.name)}</th><td {whole}>{html.escape(j.limit)}</td>"
        f"<td>{html.escape(j.shown)}</td><td {whole}>{_SYMBOLS[j.status]}</td>"
        f"<td style='min-width:12em'>{html.escape(j.reason)}</td></tr>"
    )


def _found(name: str) -> Path | None:
    """A targets file as named from here, or from the project's top: a notebook runs in a folder of its own."""
    places = (Path(name), data_folder().parent / name, data_folder() / "targets" / name)
    return next((place for place in places if place.is_file()), None)


class Judgement(Struct, frozen=True):
    """One line of a verdict: what was asked, what was measured (in `unit`), how that compares, and why. `kind` is `target`,
    `invariant` or `claim`; a claim has a `topic`, and decides nothing."""

    kind: str
    name: str
    limit: str
    measured: float
    low: float
    high: float
    unit: str
    status: str
    reason: str
    run_id: str
    topic: str = ""

    @property
    def shown(self) -> str:
        """The measured value with its interval, for people."""
        if math.isnan(self.measured):
            return "–"
        if self.kind == "invariant":
            return f"{self.measured:,.0f} {self.unit}"
        unit = "/s" if self.unit == "/s" else f" {self.unit}"
        value = "never ended" if math.isinf(self.measured) else f"{_rounded(self.measured)}{unit}"
        return value if math.isnan(self.low) else f"{value} [{_rounded(self.low)} – {_rounded(self.high)}]"


class Verdict(Struct, frozen=True):
    """What comes out of it all. `status`: violated before fail before inconclusive before pass. `runs`: ids of those that it is
    about beside the ones its judgements name."""

    title: str
    judgements: tuple[Judgement, ...]
    answer: str = ""
    runs: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        found = {j.status for j in self.judgements if j.kind != "claim"}
        return next(
            (s for s in ("violated", "fail", "inconclusive") if s in found), "pass" if found else "inconclusive"
        )

    @property
    def exit_code(self) -> ExitCode:
        codes = {"pass": ExitCode.PASS, "fail": ExitCode.FAIL, "violated": ExitCode.VIOLATED}
        return codes.get(self.status, ExitCode.INCONCLUSIVE)

    @property
    def targets(self) -> list[Judgement]:
        return [j for j in self.judgements if j.kind == "target"]

    @property
    def claims(self) -> list[Judgement]:
        return [j for j in self.judgements if j.kind == "claim"]

    def __str__(self) -> str:
        told = [(j.name, j.limit, j.shown, _SYMBOLS[j.status], j.reason) for j in self.judgements]
        rows = [[printable(cell) for cell in row] for row in (("target", "limit", "measured", "verdict", "why"), *told)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
        return "\n".join([f"{printable(self.title)}: {_SYMBOLS[self.status]}", *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{h}</th>" for h in ("Target", "Limit", "Measured [95 %]", "Verdict", "Why"))
        return (
            f"<table class='verdict'><caption>{html.escape(self.title)}: <strong>{_SYMBOLS[self.status]}</strong>"
            f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(map(_html_row, self.judgements))}</tbody></table>"
        )

    def frame(self) -> pl.DataFrame:
        """One row per judgement."""
        return pl.DataFrame([{k: getattr(j, k) for k in Judgement.__struct_fields__} for j in self.judgements])


def judge(targets: Targets, run: Run, *others: Run, **figure_from: Run) -> Verdict:
    """Hold `run` to `targets`, and every run named to its invariants.

    `figure_from` says which run answers for a figure where it is not `run`: `events_per_second=best`. Latency, memory and
    processor belong to a run at a given rate, throughput to one that went as fast as it could.
    """
    for name in figure_from:
        if name not in UNITS:
            raise unknown("figure", name, UNITS)
    judged = [_against(t, figure_from.get(t.name, run)) for t in targets.thresholds]
    runs = {r.run_id: r for r in (run, *others, *figure_from.values())}.values()
    verdict = Verdict(targets.title, (*judged, *_invariants(list(runs))))
    return msgspec.structs.replace(verdict, answer=_answer(verdict, run.row["store"]))


def _answer(verdict: Verdict, store: str) -> str:
    """The one sentence that somebody in a hurry reads."""
    judged = verdict.targets
    by_status = {s: [j for j in judged if j.status == s] for s in ("pass", "fail", "inconclusive")}
    broken = [j for j in verdict.judgements if j.status == "violated"]
    if broken:
        return f"{store} is not correct: " + "; ".join(f"{j.name}: {j.reason}" for j in broken[:3]) + "."
    missed = "; ".join(f"{j.name} is {j.shown}, limit {j.limit}" for j in by_status["fail"])
    unsure = ", ".join(j.name for j in by_status["inconclusive"])
    if missed:
        text = f"{store} misses {len(by_status['fail'])} of {len(judged)} {verdict.title}: {missed}"
    elif unsure or not judged:
        text = f"{store} meets {len(by_status['pass'])} of {len(judged)} {verdict.title}, and none was missed"
    else:
        text = f"{store} meets all {len(judged)} {verdict.title}"
    if not missed and (told := [j for name in _TOLD for j in by_status["pass"] if j.name == name]):
        text += ": " + ", ".join(f"{j.name} is {j.shown}" for j in told)
    return text + (f". Not settled: {unsure}." if unsure else ".")


def _against(threshold: Threshold, run: Run) -> Judgement:
    figure = run.figure(threshold.name)
    e = figure.estimate
    status, reason = _compared(threshold, figure)
    if status != "inconclusive" and run.row["status"] != "complete":
        status, reason = "inconclusive", f"the run was {run.row['status']}: {run.row['status_reason']}"
    elif status == "fail" and _is_all_offered(threshold, run):
        status, reason = "inconclusive", "no more than this was offered; a closed loop shows how far the store goes"
    elif status != "inconclusive" and (why := unsettled(run, threshold.name, threshold.limit, status)):
        status, reason = "inconclusive", why
    return Judgement(
        "target", threshold.name, str(threshold), e.value, e.low, e.high, figure.unit, status, reason, run.run_id
    )


def _is_all_offered(threshold: Threshold, run: Run) -> bool:
    """Whether a throughput is low because the schedule asked for no more and was answered."""
    is_throughput = threshold.name in ("commands_per_second", "events_per_second")
    return is_throughput and not run.is_closed_loop and set(run.outcomes) <= {"ok", "conflict"} and not threshold.is_max


def _compared(threshold: Threshold, figure: Figure) -> tuple[str, str]:
    """The value's whole interval must lie on one side of the limit. A value without one is compared as it is only where
    no interval is to be had (a peak), and is inconclusive where there was too little to have one."""
    e, p = figure.estimate, PERCENTILES.get(figure.name)
    if math.isnan(e.value):
        return "inconclusive", "nothing was recorded to measure it from"
    if p is not None and e.n < samples_needed(p):
        return "inconclusive", f"{e.n:,} samples; {figure.name} needs at least {samples_needed(p):,}"
    is_kept = [(v < threshold.limit) == threshold.is_max for v in (e.low, e.high) if not math.isnan(v)]
    if not is_kept and not figure.name.startswith("memory"):
        return "inconclusive", "too few blocks of time for an interval; run it longer"
    is_kept = is_kept or [(e.value < threshold.limit) == threshold.is_max]
    if all(is_kept):
        return "pass", figure.note
    if any(is_kept):
        return "inconclusive", "the limit lies inside the interval; run it longer, or more often"
    return "fail", figure.note


def _invariants(runs: Sequence[Run]) -> Iterable[Judgement]:
    """One line per invariant over all runs: violated if any run violates it, with that run's evidence."""
    frames = [run.invariants.with_columns(pl.lit(run.run_id).alias("run_id")) for run in runs]
    found = pl.concat(frames) if frames else pl.DataFrame()
    for name in found["name"].unique(maintain_order=True) if len(found) else []:
        rows = found.filter(pl.col("name") == name)
        worst = [r for s in ("violated", "broken", "passed") for r in rows.iter_rows(named=True) if r["status"] == s]
        if not worst:
            continue  # not tested by any run: said in `untested`, never a pass
        row, tested = worst[0], sum(r["status"] != "not tested" for r in rows.iter_rows(named=True))
        status = {"violated": "violated", "broken": "inconclusive"}.get(row["status"], "pass")
        reason = row["reason"] or f"in {tested} of {len(runs)} runs"
        wrong = float(rows["wrong"].sum())
        nan = math.nan
        yield Judgement("invariant", name, "= 0", wrong, nan, nan, "violations", status, reason, row["run_id"])


def untested(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Invariants that no part of any of these runs exercised: reason → names, in the checkers' order."""
    rows = [row for run in runs for row in run.invariants.select("name", "status", "reason").iter_rows()]
    tested = {name for name, status, _ in rows if status != "not tested"}
    found: dict[str, list[str]] = {}
    for name, reason in {name: reason for name, _, reason in rows if name not in tested}.items():
        found.setdefault(reason, []).append(name)
    return found


def _rounded(value: float) -> str:
    """Three significant digits, thousands separated, no exponent."""
    if math.isinf(value):
        return "∞"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 3)}f}"
