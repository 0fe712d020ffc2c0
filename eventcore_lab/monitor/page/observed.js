// What is said of a store that is only observed: figures from its own counters and gauges, and what it cannot tell.

const UNTOLD = "a store that is only observed does not tell it"; // judging.UNTOLD, by which such targets are known
const UNTELLABLE = ["latency", "heat map", "outcomes", "waiting operations", "memory", "CPU"];
const FIRST_S = 3;
const isObserved = (watched) => watched?.status === "observed";
const isUntold = (h) => h.status === "inconclusive" && h.reason === UNTOLD;

// What the newest look said, and what came of it within the window that ends at `to`.
class Looked {
  constructor(history, to, windowS) {
    Object.assign(this, { history, to, windowS });
  }

  latest(name) {
    const found = this.history.latest.get(name);
    return found && this.to - found.t <= LATEST_KEPT_S ? found.value : NaN;
  }

  rate(name) {
    return this.history.rateOver(name, this.to - this.windowS, this.to);
  }

  // [name without its beginning, value] of all that begin so, largest first.
  all(beginning, ending = "") {
    return [...this.history.latest.keys()]
      .filter((name) => name.startsWith(beginning) && name.endsWith(ending))
      .map((name) => [name.slice(beginning.length, name.length - ending.length), this.latest(name)])
      .filter(([, value]) => !Number.isNaN(value))
      .sort((a, b) => b[1] - a[1]);
  }

  sum(beginning) {
    const found = this.all(beginning);
    return found.length ? found.reduce((sum, [, value]) => sum + value, 0) : NaN;
  }
}

const beside = (value, said) => (value > 0 ? said : "");
const furthest = (looked) => looked.all("lag.", "_lag_events")[0] ?? ["", NaN];

// As FIGURES in tables.js; `isOptional`: left out where the store does not tell it.
const OBSERVED_FIGURES = [
  { name: "events_per_second", title: "Events", of: (v) => UNITS.rate(v) },
  {
    title: "Transactions",
    of: (v) => UNITS.rate(v),
    from: (l) => l.rate("server.transactions_committed_total"),
    beside: (l) =>
      beside(
        l.rate("server.transactions_rolled_back_total"),
        `${UNITS.rate(l.rate("server.transactions_rolled_back_total"))} rolled back`,
      ),
    why: "Committed in this database, the monitor's own looks among them.",
  },
  { title: "Rows inserted", of: (v) => UNITS.rate(v), from: (l) => l.rate("server.rows_inserted_total") },
  {
    title: "Connections",
    of: short,
    from: (l) => l.sum("server.connections."),
    beside: (l) => beside(1, `${short(l.latest("server.connections.active"))} active`),
  },
  {
    title: "Waiting backends",
    of: short,
    from: (l) => l.sum("server.wait:"),
    beside: (l) => {
      const [event, count] = l.all("server.wait:")[0] ?? ["", 0];
      return beside(count, plain(event, 40));
    },
    why: "Active backends that waited when they were looked at, and most of them for what.",
  },
  {
    title: "Oldest transaction",
    of: (v) => UNITS.s(v),
    from: (l) => l.latest("server.oldest_transaction_s"),
    beside: (l) => `writing: ${UNITS.s(l.latest("server.oldest_writing_transaction_s"))}`,
  },
  {
    title: "Visibility lag",
    of: (v) => UNITS.s(v),
    from: (l) => l.latest("store.visibility_lag_s"),
    why: "For how long a reader that must not miss an event has to hold back: the age of the oldest transaction that writes.",
    isOptional: true,
  },
  {
    title: "Furthest behind",
    of: short,
    from: (l) => furthest(l)[1],
    beside: (l) => `events: ${plain(furthest(l)[0], 60)}`,
    why: "How many events the subscription has not seen whose checkpoint is furthest behind, and which that is.",
    isOptional: true,
  },
  {
    title: "WAL written",
    of: (v) => UNITS.byterate(v),
    from: (l) => l.rate("server.wal_bytes"),
    why: "By the whole server.",
    isOptional: true,
  },
  {
    title: "Statement, mean",
    of: ms,
    from: (l) => l.latest("store.statement_mean_ms"),
    beside: (l) => beside(1, `of ${UNITS.rate(l.latest("store.statements_per_s"))}`),
    why: "Of statements that name the events, by pg_stat_statements.",
    isOptional: true,
  },
  {
    title: "Database size",
    of: (v) => UNITS.bytes(v),
    from: (l) => l.latest("server.database_bytes"),
    beside: (l) =>
      beside(
        l.latest("store.table_bytes"),
        `events ${UNITS.bytes(l.latest("store.table_bytes") + l.latest("store.index_bytes"))}`,
      ),
  },
  { name: "memory", title: "Memory", of: (v) => inUnit(v, "MiB"), isOptional: true },
  { name: "cpu", title: "CPU", of: (v) => UNITS.percent(v), isOptional: true },
];

// Columns of the newest minute: [heading, gauge, whether it counts, how it is written].
const OBSERVED_COLUMNS = [
  ["events", "store.events_total", true, "rate"],
  ["transactions", "server.transactions_committed_total", true, "rate"],
  ["rows inserted", "server.rows_inserted_total", true, "rate"],
  ["WAL", "server.wal_bytes", true, "byterate"],
  ["active", "server.connections.active", false, "count"],
  ["oldest transaction", "server.oldest_transaction_s", false, "s"],
  ["visibility lag", "store.visibility_lag_s", false, "s"],
];

// Of one second, as many texts as there are columns.
function observedSecond(history, slot) {
  return OBSERVED_COLUMNS.map(([, name, isCounter, unit]) => {
    const values = history.series.get(name);
    if (!values) return NOTHING;
    return UNITS[unit]((isCounter ? history.rates(values) : values)[slot]);
  });
}

// Why some groups of charts are not there.
function absentSaid(missing, { watched, now }, history) {
  const all = [...missing];
  const list = (names, said) => (names.length ? `${said}: ${names.join(", ")}.` : "");
  if (isObserved(watched)) {
    const untold = all.filter((name) => UNTELLABLE.includes(name));
    const rest = all.filter((name) => !UNTELLABLE.includes(name));
    return [
      list(untold, "A store that is only observed does not tell it"),
      list(rest, history.count <= FIRST_S ? "Waiting for the first second" : "Not recorded"),
    ]
      .filter(Boolean)
      .join(" ");
  }
  const isComing = ["preparing", "loading"].includes(watched?.status);
  const isEarly = isComing && (!history.hasEnded || !(now - watched.began > FIRST_S));
  return list(all, isEarly ? "Waiting for the first second" : "Not recorded");
}
