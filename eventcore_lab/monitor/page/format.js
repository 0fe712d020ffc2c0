// Numbers, instants and foreign text as people read them. Pure: nothing here knows of the page or of the wire.
//
// The scripts of this folder are joined by ../page.py, in its order, inside one function of their own: what one of them
// declares the next may use, and nothing of it is global.

const NOTHING = "–";

// What is not a finite number is a gap.
const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : NaN);

// Text from elsewhere: on one line, without controls and without what turns the direction of writing, cut.
function plain(text, charsMax = 120) {
  if (text === null || text === undefined) return "";
  const head = String(text).slice(0, charsMax * 2 + 2);
  const clean = [
    ...head
      .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f\ufeff]/g, "")
      .replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, " ")
      .replace(/[\p{Cs}\p{Co}]/gu, "□"),
  ];
  return clean.length <= charsMax ? clean.join("") : clean.slice(0, charsMax - 1).join("") + "…";
}

const digits = (value, significant) => String(Number(value.toPrecision(significant)));
const grouped = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");

// 0.012, 1.5, 340, 1,234, 12.3k, 4.56M
function short(value) {
  if (!Number.isFinite(value)) return NOTHING;
  const size = Math.abs(value);
  for (const [unit, letter] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (size >= (unit === 1e3 ? 9999.5 : unit * 0.9995)) return digits(value / unit, 3) + letter;
  }
  if (size >= 99.95) return (value < 0 ? "-" : "") + grouped(Math.round(size));
  return size >= 1 || size === 0 ? digits(value, 3) : size < 1e-6 ? "0" : digits(value, 2);
}

function scaled(value, steps) {
  if (!Number.isFinite(value)) return NOTHING;
  const [factor, unit] = steps.find(([least]) => Math.abs(value) >= least * 0.9995) ?? steps.at(-1);
  return `${short(value / factor)} ${unit}`;
}

const DURATIONS_MS = [
  [3600e3, "h"],
  [60e3, "min"],
  [1000, "s"],
  [1, "ms"],
  [1e-3, "µs"],
];
const SIZES = [
  [2 ** 40, "TiB"],
  [2 ** 30, "GiB"],
  [2 ** 20, "MiB"],
  [2 ** 10, "KiB"],
  [1, "B"],
];
const ms = (value) => (value === 0 ? "0 ms" : scaled(value, DURATIONS_MS));

const UNITS = {
  rate: (v) => (Number.isFinite(v) ? `${short(v)}/s` : NOTHING),
  count: short,
  ms: ms,
  s: (v) => (v === 0 ? "0 s" : ms(v * 1000)),
  bytes: (v) => (v === 0 ? "0 B" : scaled(v, SIZES)),
  byterate: (v) => (Number.isFinite(v) ? `${UNITS.bytes(v)}/s` : NOTHING),
  percent: (v) => (Number.isFinite(v) ? `${short(v)} %` : NOTHING),
};

// A figure in the words of the lab's own units.
function inUnit(value, unit) {
  if (!Number.isFinite(value)) return NOTHING;
  if (unit === "ms") return ms(value);
  if (unit === "MiB") return UNITS.bytes(value * 2 ** 20);
  return unit === "/s" ? UNITS.rate(value) : `${short(value)} ${plain(unit, 12)}`.trim();
}

// What the last part of a gauge's name says of its unit.
function unitOf(name) {
  if (/_per_s$/.test(name)) return "rate";
  const found = /[._:](bytes|percent|ms|s)$/.exec(name);
  return found ? found[1] : "count";
}

const CLOCK = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const isInstant = (t) => Number.isFinite(t) && Math.abs(t) < 8e12;

// Local time of the day, with seconds.
const clockTime = (t) => (isInstant(t) ? CLOCK.format(new Date(t * 1000)) : NOTHING);

// The same, with the day where that is not the day of `now`.
function instant(t, now) {
  if (!isInstant(t)) return NOTHING;
  const day = DATE.format(new Date(t * 1000));
  return day === DATE.format(new Date((isInstant(now) ? now : t) * 1000)) ? clockTime(t) : `${day}, ${clockTime(t)}`;
}

// 45 s, 3:20 min, 2:05 h
function span(seconds) {
  if (!Number.isFinite(seconds)) return NOTHING;
  const s = Math.max(0, Math.round(seconds));
  const two = (v) => String(v).padStart(2, "0");
  if (s < 60) return `${s} s`;
  return s < 3600
    ? `${Math.floor(s / 60)}:${two(s % 60)} min`
    : `${Math.floor(s / 3600)}:${two(Math.floor((s % 3600) / 60))} h`;
}

// Round values from 0 (or `low`) to at least `high`, about `count` of them; of bytes, powers of two; of counts, whole.
function ticks(low, high, count, unit) {
  const rough = (high - low) / count;
  if (!(rough > 0) || !Number.isFinite(rough)) return [low, low + 1];
  const isBytes = unit === "bytes" || unit === "byterate";
  const base = isBytes ? 2 ** Math.floor(Math.log2(rough)) : 10 ** Math.floor(Math.log10(rough));
  const factors = isBytes ? [1, 2] : unit === "count" ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10];
  const wanted = base * (factors.find((f) => base * f >= rough * 0.999) ?? factors.at(-1));
  const step = unit === "count" ? Math.max(1, wanted) : wanted;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: Math.min(last - first, 20) + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// 1, 2, 5, 10 … within the borders, thinned to powers of ten where there are many.
function logTicks(low, high, countMax) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
    for (const f of [1, 2, 5]) found.push(Number(`${f}e${e}`));
  }
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  return inside.length <= countMax ? inside : inside.filter((v) => String(v).replace(/[.0]/g, "") === "1");
}

const TIME_STEPS_S = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

// Instants for an axis of time, on round local times.
function timeTicks(from, to, countMax) {
  const step = TIME_STEPS_S.find((s) => (to - from) / s <= countMax) ?? TIME_STEPS_S.at(-1);
  const offset = -new Date(to * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from + offset) / step) * step - offset;
  return Array.from({ length: Math.max(0, Math.floor((to - first) / step) + 1) }, (_, i) => first + i * step);
}
