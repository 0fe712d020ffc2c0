// The page itself: what it was told last, what it shows of that, and its controls.

const WIRE_VERSION = 1;
const WINDOWS_MIN = [1, 5, 15, 60, 120];
const THEMES = ["auto", "light", "dark"];
const LIST_MAX = 200;
const DRAW_EVERY_MS = 1000;
const THEME_COLOURS = [
  "text",
  "muted",
  "grid",
  "axis",
  "panel",
  "veil",
  "warm",
  "accent",
  "fail",
  "limit",
  "grey",
  "ok",
  "c1",
  "c2",
  "c3",
  "c4",
  "c5",
  "c6",
];

// What the page is told from time to time, beside the seconds.
const NOTHING_TOLD = { now: NaN, unseenS: NaN, watched: null, figures: {}, held: [], health: {} };
const keyOf = (item) => `${item.t}\n${item.name}\n${item.state ?? item.detail}`;

// Those of `more` that are not in the list yet: what was in the hello may come once more right after it.
function fresh(list, more) {
  const known = new Set(list.map(keyOf));
  return listOf(more)
    .slice(-LIST_MAX)
    .filter((item) => !known.has(keyOf(item)) && known.add(keyOf(item)));
}

const SPAN_MIN_S = 60;

class Dashboard {
  constructor() {
    Object.assign(this, {
      told: NOTHING_TOLD,
      targets: null,
      windowS: NaN,
      marks: [],
      alerts: [],
      runs: new Map(),
      version: WIRE_VERSION,
    });
    this.history = new History((name) => kindOf(name) !== "");
    Object.assign(this, {
      minutes: 5,
      isPaused: false,
      pausedAt: NaN,
      drawnMs: -Infinity,
      frame: 0,
      timer: 0,
      draws: 0,
    });
    this.voice = new Voice($("said"));
    this.tiles = new Tiles($("figures"));
    this.tables = new Tables();
    this.charts = CHARTS.map(
      (spec) =>
        new Chart(spec, (t, chart) => this.charts.forEach((c) => c.view && c.show(this.history, t, c === chart))),
    );
    $("charts").append(...this.charts.map((chart) => chart.node));
    this._controls();
    this.stream = new Stream({
      hello: (d) => this.hello(d),
      second: (d) => this.second(d),
      changed: () => this.connection(),
    });
    this.stream.open();
  }

  hello(data) {
    this.version = data.version;
    this.windowS = finite(data.window_s);
    this.targets = data.targets && typeof data.targets === "object" ? data.targets : null;
    this.history.clear(data.edges_ms);
    Object.assign(this, { marks: [], alerts: [], runs: new Map() });
    this._take(data);
    if (this.isPaused) this.showStill();
    this.schedule(true);
  }

  second(data) {
    for (const alert of this._take(data)) {
      if (["firing", "resolved", "unwatched"].includes(alert.state))
        this.voice.say(`Alert ${alert.state}: ${plain(alert.name, 60)}. ${plain(alert.text, 120)}`);
    }
    this.schedule(false);
  }

  // Gives the alerts that are new.
  _take(data) {
    for (const second of listOf(data.seconds).slice(-SECONDS_MAX)) this.history.put(second);
    const alerts = fresh(this.alerts, data.alerts);
    this.marks = [...this.marks, ...fresh(this.marks, data.marks)].slice(-LIST_MAX);
    this.alerts = [...this.alerts, ...alerts].slice(-LIST_MAX);
    const watched = data.watched && typeof data.watched === "object" ? data.watched : null;
    this.history.isObserved = isObserved(watched);
    if (watched && Number.isFinite(watched.began)) {
      const key = plain(watched.run_id, 60);
      this.runs.delete(key);
      this.runs.set(key, { began: watched.began, warmupS: Math.max(0, finite(watched.warmup_s) || 0) });
      if (this.runs.size > LIST_MAX) this.runs.delete(this.runs.keys().next().value);
    }
    this.told = {
      now: finite(data.now),
      watched,
      figures: data.figures ?? {},
      unseenS: finite(data.unseen_s),
      held: listOf(data.held).slice(0, LIST_MAX),
      health: data.health ?? {},
    };
    this.is = "told";
    return alerts;
  }

  // Where the charts end: the instant of the newest news.
  get edge() {
    if (this.isPaused && Number.isFinite(this.pausedAt)) return this.pausedAt;
    const last = this.history.newest + 1;
    return Number.isFinite(last)
      ? Math.max(last, Math.min(Math.floor(this.told.now), last + 2))
      : Math.floor(this.told.now);
  }

  get isNothing() {
    const { watched } = this.told;
    return !watched || !watched.status || isOver(watched.status);
  }

  // At most once a second, never while nobody sees it; `isAsked` by the user: at once.
  schedule(isAsked) {
    if (document.hidden || this.frame) return;
    const wait = isAsked ? 0 : this.drawnMs + DRAW_EVERY_MS - performance.now();
    if (wait > 20) {
      if (!this.timer)
        this.timer = setTimeout(() => {
          this.timer = 0;
          this.schedule(true);
        }, wait);
      return;
    }
    clearTimeout(this.timer);
    this.timer = 0;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    this.drawnMs = performance.now();
    this.draws += 1;
    if (this.is !== "told") return;
    if (!this.isPaused) this.showTold();
    this.drawCharts();
    this.connection();
  }

  // Words and numbers; while paused they stay as they are.
  showTold() {
    const { told } = this;
    Object.assign(this, showHeading(told));
    this.showEmptiness();
    const windowS = this.windowS || 30;
    const { history } = this;
    this.tiles.wear(history.isObserved ? OBSERVED_FIGURES : FIGURES);
    const now = history.isObserved ? new Looked(history, this.edge, windowS) : this.newestSecond();
    this.tiles.show(told.figures, told.held, now, told.unseenS);
    setText(
      $("figures-note"),
      told.unseenS >= 0
        ? `not known: not looked at since ${clockTime(told.now - told.unseenS)}, ${span(Math.floor(told.unseenS))} ago`
        : `over the last ${span(windowS)} · as of ${clockTime(told.now)}`,
    );
    this.tables.showHeld(told.held, this.targets, this.windowS);
    this.tables.showAlerts(this.alerts, told.now);
    this.tables.showMarks(this.marks, told.now);
    this.tables.showGauges(history, told.now, windowS);
    if ($("minute").open) this.tables.showMinute(this.history, this.edge);
    setText($("kept"), `${grouped(this.history.count)} of at most ${grouped(SECONDS_MAX)} seconds kept`);
    const firing = firingOf(this.alerts).length;
    const who = plain(told.watched?.store || told.watched?.title, 60);
    document.title = `${firing ? `▲ ${firing} · ` : ""}${who ? `${who} · ` : ""}eventcore_lab`;
  }

  newestSecond() {
    const { columns } = this.history;
    let [waiting, oldestS, worst] = [NaN, NaN, -Infinity];
    this.history.each(this.edge - (this.windowS || 30), this.edge, (slot) => {
      [waiting, oldestS] = [columns.waiting[slot], columns.oldest_s[slot]];
      worst = Math.max(worst, columns.worst[slot] || -Infinity);
    });
    if (!this.history.hasEnded) waiting = NaN; // of a store that is only observed, nobody knows
    return { waiting, oldestS, worst: worst > 0 ? worst : NaN };
  }

  // Before anything was ever told of, there is nothing to draw.
  showEmptiness() {
    const never = !this.history.count && this.isNothing;
    $("notice").hidden = !never;
    setText(
      $("notice"),
      never ? "Nothing is running. Start a run, or watch a store, and this page fills by itself." : "",
    );
    $("charts-section").hidden = $("figures-section").hidden = never;
  }

  drawCharts() {
    const { history } = this;
    const to = this.edge;
    if (!Number.isFinite(to)) return;
    // Of what began a moment ago as much as there is: a short run would be a sliver at the right.
    const from = Math.max(to - this.minutes * 60, Math.min(this.history.first() - 2, to - SPAN_MIN_S));
    this.shownS = to - from;
    const runs = [...this.runs.values()];
    const untold = new Set(this.told.held.filter(isUntold).map((h) => h.name));
    const view = {
      from,
      to,
      isUnseen: this.told.unseenS >= 0,
      theme: this.theme,
      began: runs.findLast((r) => r.began <= to)?.began ?? NaN,
      runs,
      events: this.events(from, to),
      thresholds: listOf(this.targets?.thresholds)
        .filter((t) => Number.isFinite(t.limit) && !untold.has(t.name))
        .slice(0, 50),
    };
    const missing = new Set();
    for (const chart of this.charts) {
      const isThere = isRecorded(chart.spec, history);
      if (chart.node.hidden === isThere) chart.node.hidden = !isThere;
      if (isThere) chart.draw(history, view);
      else if (!chart.spec.isOptional) missing.add(chart.spec.group);
    }
    for (const chart of this.charts) if (!chart.node.hidden) missing.delete(chart.spec.group);
    setText($("unrecorded"), absentSaid(missing, this.told, history));
    const key = [
      view.events.some((e) => e.kind === "mark") && "◆ mark",
      view.events.some((e) => e.kind === "alert") && "▲ alert",
      view.events.some((e) => e.kind === "run") && "■ another run",
      runs.some((r) => r.warmupS && r.began + r.warmupS > from) && "shaded: warm-up",
    ];
    setText($("charts-key"), key.filter(Boolean).join(" · "));
  }

  // Marks, alerts that fired, and where another run began, oldest first.
  events(from, to) {
    const found = this.marks.map((m) => ({
      t: finite(m.t),
      kind: "mark",
      text: plain([m.name, m.detail].filter(Boolean).join(": "), 110),
    }));
    for (const a of this.alerts)
      if (a.state === "firing") found.push({ t: finite(a.t), kind: "alert", text: `alert ${plain(a.name, 60)}` });
    let before = null;
    this.history.each(from, to, (slot, t) => {
      const run = this.history.runs[slot];
      if (before !== null && run !== before && found.length < 1000)
        found.push({ t, kind: "run", text: run ? `run ${plain(run, 60)}` : "between runs" });
      before = run;
    });
    return found.filter((e) => e.t >= from && e.t <= to).sort((a, b) => a.t - b.t);
  }

  connection() {
    const { state, faults } = this.stream;
    const [text, kind] = connectionSaid(this.stream, this.isNothing, this.isPaused ? this.pausedAt : null);
    const version =
      this.version === WIRE_VERSION ? "" : " · this page is of another version than its server: reload it";
    setText($("connection"), text + (faults ? ` · ${faults} unreadable` : "") + version);
    $("connection").className = `state ${kind}`;
    const isLost = state !== "live";
    setText(
      $("health"),
      isLost && this.healthSaid ? `? health not known since ${clockTime(this.told.now)}` : (this.healthSaid ?? ""),
    );
    $("health").className = `state ${isLost ? "" : (this.healthKind ?? "")}`;
    $("retry").hidden = state !== "reconnecting";
    if (kind !== this.kindSaid && this.kindSaid !== undefined) this.voice.say(text.replace(/ in \d+ s/, ""));
    this.kindSaid = kind;
  }

  showStill() {
    setText($("pause"), this.isPaused ? "Continue" : "Pause");
    $("pause").setAttribute("aria-pressed", String(this.isPaused));
    document.body.classList.toggle("paused", this.isPaused);
  }

  pause() {
    const { edge } = this;
    this.isPaused = !this.isPaused;
    this.pausedAt = this.isPaused ? edge : NaN;
    this.showStill();
    this.connection();
    this.schedule(true);
  }

  _controls() {
    $("pause").addEventListener("click", () => this.pause());
    $("retry").addEventListener("click", () => this.stream.now());
    $("minute").addEventListener("toggle", () => this.tables.showMinute(this.history, this.edge));
    addEventListener("keydown", (event) => {
      const isTaken = event.target.closest?.("button, summary, a, input, select, textarea");
      if (event.key !== " " || event.ctrlKey || event.altKey || event.metaKey || isTaken) return;
      event.preventDefault();
      if (!event.repeat) this.pause();
    });
    choices(
      $("windows"),
      WINDOWS_MIN.map((m) => [m, `${m} min`]),
      this.minutes,
      (m) => {
        this.minutes = m;
        this.schedule(true);
      },
    );
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const wear = () => this.wear(this.wanted === "auto" ? (dark.matches ? "dark" : "light") : this.wanted);
    this.wanted = THEMES.find((t) => t === remembered()) ?? "auto";
    choices(
      $("themes"),
      THEMES.map((t) => [t, t]),
      this.wanted,
      (t) => {
        this.wanted = t;
        remember(t);
        wear();
      },
    );
    dark.addEventListener("change", wear);
    addEventListener("beforeprint", () => {
      this.wear("light");
      this.draw();
    });
    addEventListener("afterprint", wear);
    document.addEventListener("visibilitychange", () => {
      this.schedule(true);
      if (!document.hidden) this.stream?.now();
    });
    new ResizeObserver(() => this.schedule(true)).observe($("charts"));
    wear();
  }

  wear(name) {
    document.documentElement.dataset.theme = name;
    const style = getComputedStyle(document.documentElement);
    this.theme = {
      name,
      ...Object.fromEntries(THEME_COLOURS.map((c) => [c, style.getPropertyValue(`--${c}`).trim()])),
    };
    this.schedule(true);
  }

  // For tests and the curious: how much is kept, as numbers.
  get state() {
    const { history } = this;
    return {
      seconds: history.count,
      ring: history.times.length,
      series: history.series.size,
      latest: history.latest.size,
      refused: history.refused,
      marks: this.marks.length,
      alerts: this.alerts.length,
      runs: this.runs.size,
      edge: this.edge,
      newest: history.newest,
      draws: this.draws,
      connection: this.stream.state,
      isPaused: this.isPaused,
      minutes: this.minutes,
      shownS: this.shownS,
      nodes: document.getElementsByTagName("*").length,
    };
  }

  secondAt(t) {
    const slot = this.history.slot(t);
    return slot < 0 ? null : Object.fromEntries(COLUMNS.map((name) => [name, this.history.columns[name][slot]]));
  }
}

const dashboard = new Dashboard();
window.eventcoreLab = Object.freeze({
  get state() {
    return dashboard.state;
  },
  secondAt: (t) => dashboard.secondAt(t),
});
