"""The Source for an event store that exists: somebody's PostgreSQL, named by an environment variable, only looked at.

Nothing is made, written or locked there; see stores/observing.py for how. The DSN is in no text that comes from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from eventcore_lab.clock import NS_PER_S, three_clocks_ns
from eventcore_lab.monitor.facts import Gauge, Mark, News, Watched
from eventcore_lab.spec import Spec, UsageError, parse, shown, unknown
from eventcore_lab.stores.observed_events import KINDS
from eventcore_lab.stores.observing import DIALECTS, Observer
from eventcore_lab.stores.variants import variants

_OPTIONS = ("schema", "store")
SCHEMAS_SHOWN = 10
_KINDS = {"chapter_unique": "chapter", **dict.fromkeys((*filter(None, variants()), "copy"), "eventcore_lab")}


class Observed:
    """A store as `env:NAME`, or `env:NAME,schema=…` where a database has several; with `store=…` only that kind is looked for
    (eventcore, chapter, eventsourcing, eventcore_lab, or a variant of ours). UsageError for anything else. `tell` is given a
    line for the terminal of what was found, and how its events are counted."""

    def __init__(self, store: str, tell: Callable[[str], None] | None = None) -> None:
        spec = parse(store, "store")
        options = dict(spec.options)
        self._store = f"env:{spec.variant}"
        self._observer = Observer(_dsn(spec), options.get("schema", ""), _kind(options.get("store", "")))
        self._schema, self._tell = options.get("schema", ""), tell
        self._watched = Watched(store=self._store, title=self._store, status="observed")
        self._first: News | None = None

    async def begin(self) -> None:
        """Look for the first time, which the next look tells of. UsageError if the server answers and has no such schema."""
        self._first = await self._looked()
        if not self._schema or self._first.error:
            return
        names = await self._observer.schemas(self._schema)
        if names and self._schema not in names:
            await self.close()
            others = ", ".join(shown(name) for name in names[:SCHEMAS_SHOWN])
            raise UsageError(f"store {self._store}: there is no schema {shown(self._schema)} in it, but {others}")

    async def look(self) -> News:
        """What the server and its event store tell now; within 3 s, whatever happens there."""
        is_first, news = self._first is not None, self._first or await self._looked()
        self._first = None
        if self._tell is not None:
            found = "; ".join(mark.detail for mark in news.marks if mark.name in ("observed", "observed in part"))
            if is_first and news.error:
                self._tell(f"{self._store} cannot be looked at yet: {news.error}")
            elif found:
                self._tell(f"{self._store}: {found}")
        return news

    async def _looked(self) -> News:
        try:
            seen = await self._observer.look()
        except Exception as error:  # a fault of ours: said, without its text, which might hold anything
            return News(t=_now(), watched=self._watched, error=f"the look failed ({type(error).__name__})")
        t = _now()
        if self._observer.described:
            title = f"{self._store} · {self._observer.described}"
            self._watched = Watched(store=self._store, title=title, status="observed")
        gauges = [Gauge(t, *_source_and_name(key), value) for key, value in seen.gauges.items()]
        gauges.append(Gauge(t, "probe", "server_cost_ms", seen.cost_ms))
        return News(
            t=t,
            watched=self._watched,
            gauges=tuple(gauges),
            marks=tuple([Mark(t, name, detail) for name, detail in seen.notes]),
            error=seen.error,
        )

    async def close(self) -> None:
        await self._observer.close()


def _dsn(spec: Spec) -> str:
    """What the variable holds; it is looked at here, and in no message."""
    if spec.name != "env" or spec.inner is not None:
        raise UsageError(
            f"store {shown(str(spec))}: only a store that is there already can be observed, as in env:LAB_DSN, where the "
            "variable holds its DSN; the stores of runs are watched through their runs (leave out --store, or run … --live)"
        )
    if not spec.variant:
        raise UsageError("store env: say which environment variable holds the DSN, as in env:LAB_DSN")
    for name, _ in spec.options:
        if name not in _OPTIONS:
            raise unknown(f"option of a store that is only observed, env:{spec.variant}:", name, _OPTIONS)
    dsn = os.environ.get(spec.variant, "")
    if not dsn:
        raise UsageError(f"store env:{spec.variant}: the environment variable {spec.variant} is not set or empty")
    if not dsn.startswith(DIALECTS):
        raise UsageError(
            f"store env:{spec.variant}: the variable does not hold a DSN of PostgreSQL (postgresql://user:password@host/database)"
        )
    return dsn


def _kind(variant: str) -> str:
    """Which kind a `store=…` means: one of ours is as good as another here. An unknown one is refused."""
    known = [kind.name for kind in KINDS]
    if not variant or variant in known:
        return variant
    if variant in _KINDS:
        return _KINDS[variant]
    raise unknown("kind of event store", variant, [*known, *_KINDS])


def _source_and_name(key: str) -> tuple[str, str]:
    source, _, name = key.partition(".")
    return source, name


def _now() -> float:
    return three_clocks_ns()[1] / NS_PER_S
