// Which charts there are and what is on each, from what the history holds. How one looks on a canvas is plot.js.

const LINES_MAX = 12;
const GAUGE_GAP_S = 20; // probes that cost much are made rarer by the lab itself

const GAUGES = {
  memory: /\.(pss_bytes|resident_bytes)$/,
  cpu: /\.(cpu_percent|busy_percent)$/,
  connections: /(^|\.)connections(\.|$)/,
  waits: /\.wait(ing)?:/,
  lag: /(^|[._])lag([._]|$)/i,
  events: /^store\.events_total$/,
  rows: /\.(transactions|rows)_\w+_total$/,
  blocks: /\.(blocks|io)_\w+_total$/,
  written: /\.(wal_bytes|temp_bytes_total)$/,
  ages: /\.oldest_(writing_)?transaction_s$/,
  statements: /\.statement_mean_ms$/,
  sizes: /^\w+\.(database|table|index)_bytes$/,
  pool: /\.pool_(in_use|waiting)$/,
  counters: /_total$/, // of no chart, but a rate as well
};
const COUNTERS = ["events", "rows", "blocks", "written", "counters"];
const STORE_EVENTS = "store.events_total";
const kindOf = (name) => Object.keys(GAUGES).find((kind) => GAUGES[kind].test(name)) ?? "";

const OUTCOMES = [
  { name: "dropped", colour: "grey", pattern: "bars" },
  { name: "unknown", colour: "c4", pattern: "dots" },
  { name: "failed", colour: "c2", pattern: "crossed" },
  { name: "conflict", colour: "c5", pattern: "diagonal" },
  { name: "ok", colour: "ok", pattern: "plain" },
];

// One line of a chart: `values` is a ring; the colour is the name of one of the theme's.
const lineOf = (name, values, look, more = {}) => ({
  name,
  values,
  colour: `c${(look % 6) + 1}`,
  dash: DASHES[(look + Math.floor(look / 6)) % DASHES.length],
  gapS: 1,
  ...more,
});

function gaugeLines(history, kind, nameOf, { isOf = () => true, keptS = GAUGE_GAP_S } = {}) {
  const found = [...history.series].filter(([name]) => kindOf(name) === kind && isOf(name));
  found.sort(([a], [b]) => (a < b ? -1 : 1));
  return found.map(([name, values], i) =>
    lineOf(nameOf(name), COUNTERS.includes(kind) ? history.rates(values) : values, i, {
      gapS: keptS,
      looksBackS: keptS,
    }),
  );
}

const isTold = (history) => history.hasEnded;
const afterDot = (name) => name.slice(name.indexOf(".") + 1);

function memoryName(name) {
  const dot = name.lastIndexOf(".");
  return `${name.slice(0, dot)}, ${name.endsWith("pss_bytes") ? "PSS" : "resident"}`;
}

function cpuName(name) {
  const source = name.slice(0, name.lastIndexOf("."));
  return name.endsWith("busy_percent") ? `${source}, busy` : `${source}, of one core`;
}

// Most frequent first, so that what is left undrawn is what is rarest.
function waitLines(history) {
  const size = (line) => line.values.reduce((sum, v) => sum + (v > 0 ? v : 0), 0);
  const found = gaugeLines(history, "waits", (name) => name.replace(/^.*?\.wait(ing)?:/, ""));
  return found
    .map((line) => [size(line), line])
    .sort((a, b) => b[0] - a[0])
    .map(([, line], i) => ({ ...lineOf(line.name, line.values, i), gapS: GAUGE_GAP_S, looksBackS: GAUGE_GAP_S }));
}

const spoken = (name) => afterDot(name).replace(/_(total|bytes|s|ms)$/, "").replaceAll("_", " ");
const SIZED = { database: "database", table: "events, table", index: "events, indexes" };
const OF_COUNTERS = `What the counters grew by per second, each over ${RATE_OVER_S} s.`;

// A chart of gauges that is not missed where there are none; `more`: its note.
const gaugeChart = (id, title, unit, nameOf, { keptS, ...more } = {}) => ({
  id,
  title,
  group: title.toLowerCase(),
  unit,
  limits: [],
  isOptional: true,
  lines: (h) => gaugeLines(h, id, nameOf, { keptS }),
  ...more,
});

// Of a store that is only observed the events are what it counts.
function throughputLines(h) {
  const counted = h.isObserved && h.series.get(STORE_EVENTS);
  if (h.isObserved) {
    const gaps = { gapS: GAUGE_GAP_S, looksBackS: GAUGE_GAP_S, width: 2 };
    return [lineOf("events", counted ? h.rates(counted) : h.columns.events, 2, gaps)];
  }
  return [
    lineOf("due (offered)", h.columns.due, 0, { colour: "grey", dash: [], width: 1 }),
    lineOf("events", h.columns.events, 2, { dash: DASHES[1] }),
    lineOf("operations", h.columns.ok, 0, { width: 2 }),
  ];
}

const LAG_UNITS = { s: /_s$/, ms: /_ms$/, bytes: /_bytes$/, count: /(?<!_s|_ms|_bytes)$/ };
const lagChart = (unit, said, note) => ({
  id: `lag-${unit}`,
  title: `Lag, ${said}`,
  note,
  group: "lag",
  unit,
  limits: [],
  lines: (h) =>
    gaugeLines(
      h,
      "lag",
      (name) => afterDot(name).replace(/[._]?lag_(s|ms|bytes|events)$/, "") || name,
      { isOf: (name) => LAG_UNITS[unit].test(name) },
    ),
});

const CHARTS = [
  {
    id: "throughput",
    title: "Throughput",
    group: "throughput",
    unit: "rate",
    isTold: (h) => h.hasEnded || h.series.has(STORE_EVENTS) || h.columns.events.some((v) => v > 0),
    limits: [
      ["commands_per_second", "operations", 1],
      ["events_per_second", "events", 1],
    ],
    note: "Operations that were ok, their events, and operations that were due, each second.",
    observed: `Events added to the store, per second, each over ${RATE_OVER_S} s.`,
    lines: throughputLines,
  },
  {
    id: "latency",
    title: "Latency",
    group: "latency",
    unit: "ms",
    isLog: true,
    isTold,
    limits: [
      ["p50", "p50", 1],
      ["p95", "p95", 1],
      ["p99", "p99", 1],
    ],
    note: "Of all that ended in each second, from when it was due; logarithmic.",
    crowded:
      "Where several seconds share a pixel: the highest of p95, p99 and worst; of p50 the mean, and the range shaded.",
    lines: (h) => [
      lineOf("worst", h.columns.worst, 3, { dash: DASHES[3], takesHighest: true, width: 1.2 }),
      lineOf("p99", h.columns.p99, 1, { dash: DASHES[1], takesHighest: true }),
      lineOf("p95", h.columns.p95, 4, { dash: DASHES[2], takesHighest: true }),
      lineOf("p50", h.columns.p50, 0, { width: 2 }),
    ],
  },
  {
    id: "heat",
    title: "Latency, heat map",
    group: "heat map",
    unit: "ms",
    isLog: true,
    kind: "heat",
    isTold,
    limits: [],
    lines: () => [],
    crowded: "",
    note: "How many operations per second ended with which latency; both scales are logarithmic.",
  },
  {
    id: "outcomes",
    title: "Outcomes",
    group: "outcomes",
    unit: "rate",
    kind: "stack",
    isTold,
    limits: [],
    note: "Ended per second, upon each other. What is not ok is at least two pixels high.",
    crowded: "Where several seconds share a pixel: their mean.",
    lines: (h) =>
      OUTCOMES.map((o) => ({ ...lineOf(o.name, h.columns[o.name], 0), colour: o.colour, pattern: o.pattern })),
  },
  {
    id: "waiting",
    title: "Waiting operations",
    group: "waiting operations",
    unit: "count",
    isTold,
    limits: [],
    note: "Due or under way at the end of each second, and not ended.",
    lines: (h) => [lineOf("waiting", h.columns.waiting, 0, { width: 2 })],
    also: (h, slot) => `oldest for ${UNITS.s(h.columns.oldest_s[slot])}`,
  },
  {
    id: "memory",
    title: "Memory",
    group: "memory",
    unit: "bytes",
    limits: [["memory", "memory", 2 ** 20]],
    lines: (h) => gaugeLines(h, "memory", memoryName),
  },
  {
    id: "cpu",
    title: "Processor time",
    group: "CPU",
    unit: "percent",
    limits: [["cpu", "machine", 1]],
    note: "Of the machine: its share of all cores. Of a source: of one core, so that several cores are more than 100 %.",
    lines: (h) => gaugeLines(h, "cpu", cpuName),
  },
  {
    id: "connections",
    title: "Connections",
    group: "connections",
    unit: "count",
    limits: [],
    lines: (h) => gaugeLines(h, "connections", (name) => name.replace(/^.*connections\.?/, "") || "all"),
  },
  {
    id: "waits",
    title: "Wait events",
    group: "wait events",
    unit: "count",
    limits: [],
    note: "Server processes that waited when they were looked at, by what for.",
    lines: waitLines,
  },
  lagChart("s", "time", "For how long what has not been seen yet has been stored, or is held back from readers."),
  lagChart("ms", "milliseconds", "For how long what a reader or read model has not seen yet has been stored."),
  lagChart("count", "events", "How many events a reader or read model has not seen yet."),
  lagChart("bytes", "bytes", "How much of what was written a replica has not replayed yet."),
  gaugeChart("rows", "Transactions and rows", "rate", spoken, { note: OF_COUNTERS }),
  gaugeChart("ages", "Oldest transactions", "s", spoken, {
    note: "Any, and any that has written something: for that one a reader that must not miss an event waits.",
  }),
  gaugeChart("written", "WAL and temporary files", "byterate", (name) => (/wal/.test(name) ? "WAL" : "temporary files"), {
    note: OF_COUNTERS,
  }),
  gaugeChart("blocks", "Blocks and input/output", "rate", spoken, { note: OF_COUNTERS }),
  gaugeChart("statements", "Statements that name the events, mean", "ms", spoken, {
    note: "By pg_stat_statements, of those that ended since it was asked before.",
  }),
  gaugeChart("sizes", "Size on disk", "bytes", (name) => SIZED[spoken(name)], { keptS: LATEST_KEPT_S }),
  gaugeChart("pool", "Connection pool", "count", (name) => name.replace(/^(.*)\.pool_(.*)$/, "$1, $2").replace("_", " "), {
    note: "Connections of the load that are in use, and operations that wait for one.",
  }),
];

const isRecorded = (spec, history) => (spec.isTold ? spec.isTold(history) : spec.lines(history).length > 0);

// The cells of the heat map, their lowest and highest rate, and the latencies they lie between.
function heatOf(history, plot, view) {
  const rows = history.edges.length + 1;
  const bins = gathered(history, view.from, view.to, plot.area.width, (bin, slot) => {
    bin.counts ??= new Map();
    for (let row = 0; row < rows; row += 1) {
      const count = history.heat[slot * rows + row];
      if (count) bin.counts.set(row, (bin.counts.get(row) ?? 0) + count);
    }
  });
  const cells = bins.flatMap((bin) =>
    [...bin.counts].map(([row, count]) => ({ x: bin.x, width: bin.width, row, rate: count / bin.seconds })),
  );
  const rates = cells.map((c) => c.rate);
  const used = cells.map((c) => c.row);
  const fold = (values, of, start) => values.reduce((a, b) => of(a, b), start);
  return {
    cells,
    lowest: fold(rates, Math.min, Infinity),
    highest: fold(rates, Math.max, 0),
    low: lowerEdge(history.edges, fold(used, Math.min, rows)),
    high: upperEdge(history.edges, fold(used, Math.max, 0)),
  };
}

const upperEdge = (edges, row) => (row < edges.length ? edges[row] : (edges.at(-1) ?? 1) * 1.6);
const lowerEdge = (edges, row) => (row > 0 ? edges[row - 1] : (edges[0] ?? 1) / 1.6);

// What a line comes to within the view: lowest and highest.
function extremes(history, values, from, to) {
  let [low, high] = [Infinity, -Infinity];
  history.each(from, to, (slot) => {
    const value = values[slot];
    if (value < low) low = value;
    if (value > high) high = value;
  });
  return { low, high };
}

// The value of a line at an instant, or the newest within the seconds that it may look back.
function valueAt(history, line, t) {
  for (let back = 0; back <= (line.looksBackS ?? 0); back += 1) {
    const slot = history.slot(t - back);
    if (slot >= 0 && !Number.isNaN(line.values[slot])) return line.values[slot];
  }
  return NaN;
}
