// What is kept of the seconds that came: rings of a fixed size, so that the page is as large after a night as after two hours.
//
// A second lies in the slot that its instant gives it: one that comes twice is there once, one that came late is in its place,
// and one that never came is a gap.

const SECONDS_MAX = 7200;
const SERIES_MAX = 200;
const LATEST_MAX = 500;
const NAME_CHARS_MAX = 300;
const LATEST_KEPT_S = 150; // the slowest gauge is looked at once a minute
const RATE_OVER_S = 5; // looks are not to the second: over one alone a steady counter would seem to jump
const RATE_GAP_S = 20;
const LATE_MAX_S = 60;
const COLUMNS = [
  "ended",
  "ok",
  "conflict",
  "failed",
  "unknown",
  "dropped",
  "due",
  "events",
  "p50",
  "p95",
  "p99",
  "worst",
  "waiting",
  "oldest_s",
];

class History {
  // `isDrawn(name)`: whether a gauge's whole course is wanted; of the others only the latest value is kept.
  constructor(isDrawn) {
    this.isDrawn = isDrawn;
    this.times = new Float64Array(SECONDS_MAX);
    this.runs = new Array(SECONDS_MAX).fill("");
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, new Float64Array(SECONDS_MAX)]));
    this.clear([]);
  }

  // The oldest second there is; of none long ago.
  first() {
    const first = this.times.reduce((least, t) => (t < least ? t : least), Infinity);
    return Number.isFinite(first) ? first : -Infinity;
  }

  // `edges`: upper edges of the latency buckets, ms; above the last lies one more.
  clear(edges) {
    this.edges = Array.isArray(edges)
      ? edges
          .map(finite)
          .filter((e) => e > 0)
          .slice(0, 200)
      : [];
    this.heat = new Uint32Array(SECONDS_MAX * (this.edges.length + 1));
    this.times.fill(NaN);
    this.runs.fill("");
    this.series = new Map();
    this.latest = new Map();
    this.refused = 0;
    this.newest = NaN;
    this.hasEnded = this.isObserved = false;
    this.puts = 0;
    this.derived = new WeakMap();
  }

  slot(t) {
    const slot = ((t % SECONDS_MAX) + SECONDS_MAX) % SECONDS_MAX;
    return this.times[slot] === t ? slot : -1;
  }

  get count() {
    return this.times.reduce((sum, t) => sum + (Number.isNaN(t) ? 0 : 1), 0);
  }

  put(second) {
    const t = second && typeof second === "object" ? Math.floor(finite(second.t)) : NaN;
    if (!Number.isSafeInteger(t)) return;
    const slot = ((t % SECONDS_MAX) + SECONDS_MAX) % SECONDS_MAX;
    this.times[slot] = t;
    this.newest = t;
    this.puts += 1;
    for (const name of COLUMNS) this.columns[name][slot] = finite(second[name]);
    this.hasEnded ||= second.ended > 0 || second.waiting > 0;
    const run = typeof second.run_id === "string" ? second.run_id.slice(0, NAME_CHARS_MAX) : "";
    const before = this.runs[(slot + SECONDS_MAX - 1) % SECONDS_MAX];
    this.runs[slot] = before === run ? before : run; // the same text once, not 7,200 times
    this._heatOf(slot, second.heat);
    for (const values of this.series.values()) values[slot] = NaN;
    for (const [name, value] of Object.entries(second.gauges ?? {}))
      this._gauge(slot, t, name.slice(0, NAME_CHARS_MAX), finite(value));
  }

  _heatOf(slot, cells) {
    const rows = this.edges.length + 1;
    this.heat.fill(0, slot * rows, (slot + 1) * rows);
    for (const cell of Array.isArray(cells) ? cells : []) {
      if (Array.isArray(cell) && Number.isInteger(cell[0]) && cell[0] >= 0 && cell[0] < rows) {
        this.heat[slot * rows + cell[0]] = Math.max(0, finite(cell[1]));
      }
    }
  }

  _gauge(slot, t, name, value) {
    if (Number.isNaN(value)) return;
    if (this.latest.has(name) || this.latest.size < LATEST_MAX) this.latest.set(name, { value, t });
    if (!this.isDrawn(name)) return;
    let values = this.series.get(name);
    if (!values) {
      if (this.series.size >= SERIES_MAX && !this._forgetOne(t)) {
        this.refused += 1;
        return;
      }
      values = new Float64Array(SECONDS_MAX).fill(NaN);
      this.series.set(name, values);
    }
    values[slot] = value;
  }

  // What a counter grew by per second, as a ring: each over the RATE_OVER_S before; a counter that began anew makes a gap.
  rates(values) {
    let made = this.derived.get(values);
    if (!made) this.derived.set(values, (made = { ring: new Float64Array(SECONDS_MAX), puts: -1 }));
    if (made.puts === this.puts) return made.ring;
    made.puts = this.puts;
    made.ring.fill(NaN);
    let seen = [];
    const to = this.newest + LATE_MAX_S; // the newest to come may be one that is late
    this.each(to - SECONDS_MAX, to, (slot, t) => {
      const value = values[slot];
      if (Number.isNaN(value)) return;
      const last = seen.at(-1);
      if (last && (value < last.value || t - last.t > RATE_GAP_S)) seen = [];
      while (seen.length > 1 && seen[1].t <= t - RATE_OVER_S) seen.shift();
      if (seen.length) made.ring[slot] = (value - seen[0].value) / (t - seen[0].t);
      seen.push({ t, value });
    });
    return made.ring;
  }

  // What a counter grew by per second between its first and its last look of from ≤ t < to.
  rateOver(name, from, to) {
    const values = this.series.get(name);
    let [first, last, grown] = [null, null, 0];
    if (values)
      this.each(from, to, (slot, t) => {
        const value = values[slot];
        if (Number.isNaN(value)) return;
        if (last) grown += Math.max(0, value - last.value);
        last = { t, value };
        first ??= last;
      });
    return first && last.t > first.t ? grown / (last.t - first.t) : NaN;
  }

  // Makes room by a series that has nothing within the ring any more.
  _forgetOne(t) {
    for (const name of this.series.keys()) {
      const seen = this.latest.get(name);
      if (seen && t - seen.t < SECONDS_MAX) continue;
      return this.series.delete(name);
    }
    return false;
  }

  // Calls `see(slot, t)` for every second that is kept of from ≤ t < to, oldest first.
  each(from, to, see) {
    const last = Math.min(Math.ceil(to), Math.ceil(from) + SECONDS_MAX);
    for (let t = Math.ceil(from); t < last; t += 1) {
      const slot = this.slot(t);
      if (slot >= 0) see(slot, t);
    }
  }
}

// The values of one ring as at most one bin per pixel, oldest first: {x, low, high, sum, count, began, t}; x in pixels, `began` and
// `t` the first and last second of it.
function binned(history, values, from, to, width) {
  const bins = [];
  const perSecond = width / (to - from);
  let bin = null;
  let pixel = -1;
  history.each(from, to, (slot, t) => {
    const value = values[slot];
    if (Number.isNaN(value)) return;
    const x = (t + 0.5 - from) * perSecond;
    if (bin && Math.floor(x) === pixel) {
      bin.low = Math.min(bin.low, value);
      bin.high = Math.max(bin.high, value);
      bin.sum += value;
      bin.count += 1;
      bin.t = t;
      return;
    }
    pixel = Math.floor(x);
    bin = { x, low: value, high: value, sum: value, count: 1, began: t, t };
    bins.push(bin);
  });
  return bins;
}

// What seconds come to per pixel (or per second, where those are wider): `add(bin, slot)` is called for each of its seconds;
// bins are {x, width, seconds} and whatever `add` puts in.
function gathered(history, from, to, width, add) {
  const perSecond = width / (to - from);
  const bins = [];
  let bin = null;
  history.each(from, to, (slot, t) => {
    const left = (t - from) * perSecond;
    if (!bin || perSecond >= 1 || Math.floor(left) !== Math.floor(bin.x)) {
      bin = { x: perSecond >= 1 ? left : Math.floor(left), width: Math.max(1, perSecond), seconds: 0 };
      bins.push(bin);
    }
    bin.seconds += 1;
    add(bin, slot);
  });
  return bins;
}
