// The figures in large and everything that is a table: what is said in words and numbers beside the charts.

const ROWS_MAX = 200;
const SIGNS = { pass: "✓", fail: "✗", inconclusive: "?" };
const STATES = {
  firing: "▲ firing",
  resolved: "✓ resolved",
  pending: "… pending",
  silenced: "– silenced",
  unwatched: "○ unwatched",
};
const SEVERITIES = { critical: "‼", warning: "!", info: "i" };
const own = (object, name) => (object && Object.hasOwn(object, name) ? object[name] : undefined);

const FIGURES = [
  { name: "commands_per_second", title: "Operations", of: (v) => UNITS.rate(v) },
  { name: "events_per_second", title: "Events", of: (v) => UNITS.rate(v) },
  { name: "p50", title: "p50", of: ms },
  { name: "p95", title: "p95", of: ms },
  { name: "p99", title: "p99", of: ms },
  { name: "worst", title: "Worst", of: ms, from: (now) => now.worst },
  {
    name: "waiting",
    title: "Waiting",
    of: short,
    from: (now) => now.waiting,
    beside: (now) => (now.waiting > 0 ? `oldest ${UNITS.s(now.oldestS)}` : ""),
  },
  { name: "failures/attempts", title: "Failures", of: (v) => UNITS.percent(v) },
  { name: "memory", title: "Memory", of: (v) => inUnit(v, "MiB") },
  { name: "cpu", title: "CPU", of: (v) => UNITS.percent(v) },
];

class Tiles {
  constructor(list) {
    this.list = list;
    this.wear(FIGURES);
  }

  // Other figures than before; what was known of those is forgotten.
  wear(all) {
    if (this.worn === all) return;
    this.worn = all;
    this.tiles = all.map((figure) => {
      const [value, target] = [element("dd", { class: "big" }), element("dd", { class: "target" })];
      const why = figure.why ? { title: figure.why } : {};
      const node = element("div", { class: "tile", ...why }, element("dt", { text: figure.title }), value, target);
      return { figure, value, target, node, last: "" };
    });
    this.list.className = all === FIGURES ? "" : "observed";
    this.list.replaceChildren(...this.tiles.map((tile) => tile.node));
  }

  // `now`: what figures are taken from that are not told: worst, waiting, oldestS of the window and its newest second; of a
  // store that is only observed a Looked. `unseenS`: for how long nobody could look, NaN while somebody can.
  show(figures, held, now, unseenS) {
    for (const tile of this.tiles) {
      const { figure, value, target } = tile;
      if (unseenS >= 0) {
        setText(value, NOTHING);
        target.className = "target";
        setText(target, [tile.last, `${span(Math.floor(unseenS))} ago`].filter(Boolean).join(", "));
        target.title = "what was known last, and when";
        continue;
      }
      const given = own(figures, figure.name);
      const known = given === undefined && figure.from ? figure.from(now) : finite(given);
      const mine = held.filter((h) => h.name === figure.name);
      const worst = mine.find((h) => h.status === "fail") ?? mine.find((h) => h.status === "inconclusive") ?? mine[0];
      // A percentile that is missed and has no value is one that never ended: JSON has no word for it.
      const isEndless = Number.isNaN(known) && worst?.status === "fail" && worst.unit === "ms";
      setText(value, isEndless ? "∞" : figure.of(known));
      tile.last = Number.isNaN(known) ? "" : figure.of(known);
      tile.node.hidden = Boolean(figure.isOptional) && Number.isNaN(known) && (!worst || isUntold(worst));
      target.className = `target ${worst ? worst.status : ""}`;
      const said = worst ? `${SIGNS[worst.status] ?? "?"} ${plain(worst.limit, 24)}` : (figure.beside?.(now) ?? "");
      setText(target, said);
      target.title = worst ? plain(`${worst.status}${worst.reason ? `: ${worst.reason}` : ""}`, 200) : "";
    }
  }
}

// A table of texts that keeps its rows: a cell is touched only where it says something else than before.
class Table {
  // `columns`: [heading, class]; the first column is the row's heading.
  constructor(table, columns, caption) {
    this.columns = columns;
    this.body = element("tbody");
    const heads = columns.map(([text, kind]) => element("th", { scope: "col", text, class: kind }));
    table.replaceChildren(
      element("caption", { class: "unseen", text: caption }),
      element("thead", {}, element("tr", {}, ...heads)),
      this.body,
    );
  }

  // `rows`: lists of texts, as many as there are columns, and perhaps one more: the row's class.
  show(rows) {
    while (this.body.rows.length > rows.length) this.body.lastChild.remove();
    rows.forEach((texts, i) => {
      const row = this.body.rows[i] ?? this._row();
      const kind = texts[this.columns.length] ?? "";
      if (row.className !== kind) row.className = kind;
      this.columns.forEach((_, k) => setText(row.cells[k], texts[k]));
    });
  }

  _row() {
    const cells = this.columns.map(([heading, kind], k) =>
      element(k ? "td" : "th", {
        ...(k ? {} : { scope: "row" }),
        class: kind,
        "data-label": heading,
        dir: "auto",
      }),
    );
    const row = element("tr", {}, ...cells);
    this.body.append(row);
    return row;
  }
}

class Tables {
  constructor() {
    const of = (id, columns, caption) => new Table(document.getElementById(id), columns, caption);
    this.held = of(
      "held",
      [
        ["Target", ""],
        ["Limit", "nowrap"],
        ["Measured", "number"],
        ["Verdict", "status"],
        ["Why", "wide"],
      ],
      "Targets, held to the sliding window",
    );
    this.alerts = of(
      "alerts",
      [
        ["Time", "nowrap"],
        ["Alert", ""],
        ["Severity", "nowrap"],
        ["State", "status"],
        ["What", "wide"],
      ],
      "Alerts, newest first",
    );
    this.marks = of(
      "marks",
      [
        ["Time", "nowrap"],
        ["Mark", ""],
        ["Detail", "wide"],
      ],
      "What happened, newest first",
    );
    this.gauges = of(
      "gauges",
      [
        ["Gauge", ""],
        ["Value", "number"],
        ["At", "nowrap"],
      ],
      "Latest values of the gauges that have no chart",
    );
  }

  showHeld(all, targets, windowS) {
    const held = all.filter((h) => !isUntold(h));
    const untold = all.filter(isUntold).map((h) => plain(`${h.name} ${h.limit}`, 100));
    setText(
      document.getElementById("held-untold"),
      untold.length ? `Not judged, for ${UNTOLD}: ${untold.join(", ")}.` : "",
    );
    this.held.show(
      held.map((h) => [
        plain(h.name, 60),
        plain(h.limit, 40),
        measured(h),
        `${SIGNS[own(SIGNS, h.status) ? h.status : "inconclusive"]} ${plain(h.status, 20)}`,
        plain(h.reason, 200),
        own(SIGNS, h.status) ? h.status : "inconclusive",
      ]),
    );
    const count = (status) => held.filter((h) => h.status === status).length;
    const counts = `${count("pass")} ✓, ${count("fail")} ✗, ${count("inconclusive")} ?${untold.length ? `, ${untold.length} not judged` : ""}`;
    const said = `${plain(targets?.name, 40)}: ${counts}, over the last ${span(windowS)}`;
    setText(document.getElementById("held-note"), targets ? said : "none were given");
    document.getElementById("held").hidden = !held.length;
  }

  showAlerts(alerts, now) {
    this.alerts.show(
      [...alerts]
        .reverse()
        .map((a) => [
          instant(a.t, now),
          plain(a.name, 80),
          `${own(SEVERITIES, a.severity) ?? "·"} ${plain(a.severity, 20)}`,
          own(STATES, a.state) ?? plain(a.state, 20),
          plain([a.text, a.detail].filter(Boolean).join(" · "), 300),
          own(STATES, a.state) ? a.state : "",
        ]),
    );
    const firing = firingOf(alerts);
    setText(
      document.getElementById("alerts-note"),
      firing.length ? `▲ ${firing.length} firing` : alerts.length ? "none firing" : "none so far",
    );
    document.getElementById("alerts").hidden = !alerts.length;
  }

  showMarks(marks, now) {
    this.marks.show([...marks].reverse().map((m) => [instant(m.t, now), plain(m.name, 80), plain(m.detail, 300)]));
    setText(document.getElementById("marks-note"), marks.length ? "◆ in the charts" : "none so far");
    document.getElementById("marks").hidden = !marks.length;
  }

  // Of counters what they grew by per second, over the window.
  showGauges(history, now, windowS) {
    const isCounter = (name) => kindOf(name) === "counters";
    const found = [...history.latest]
      .filter(([name]) => !kindOf(name) || isCounter(name))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .slice(0, ROWS_MAX);
    this.gauges.show(
      found.map(([name, { value, t }]) => [
        plain(name, 100),
        isCounter(name) ? UNITS.rate(history.rateOver(name, now - windowS, now)) : UNITS[unitOf(name)](value),
        instant(t, now),
      ]),
    );
    const left = history.refused ? `; of charted ones no more than ${SERIES_MAX} are kept` : "";
    setText(document.getElementById("gauges-note"), `${found.length || "none"}${left}`);
    document.getElementById("gauges").hidden = !found.length;
  }

  showMinute(history, edge) {
    const rows = [];
    const isOther = this.isObserved !== history.isObserved;
    this.isObserved = history.isObserved;
    if (isOther) this.seconds = minuteTable(this.isObserved);
    history.each(edge - 60, edge, (slot, t) => {
      if (history.isObserved) {
        rows.push([clockTime(t), ...observedSecond(history, slot)]);
        return;
      }
      const of = (name) => history.columns[name][slot];
      const counts = ["ok", "conflict", "failed", "unknown", "dropped", "due", "events"].map((n) => short(of(n)));
      rows.push([
        clockTime(t),
        ...counts,
        ...["p50", "p95", "p99", "worst"].map((n) => ms(of(n))),
        short(of("waiting")),
        UNITS.s(of("oldest_s")),
      ]);
    });
    this.seconds.show(rows.reverse());
  }
}

function minuteTable(isOfObserved) {
  const ofRun = ["ok", "conflict", "failed", "unknown", "dropped", "due", "events"];
  ofRun.push("p50", "p95", "p99", "worst", "waiting", "oldest");
  const names = isOfObserved ? OBSERVED_COLUMNS.map(([name]) => name) : ofRun;
  const columns = [["Time", "nowrap"], ...names.map((name) => [name, "number"])];
  return new Table(document.getElementById("seconds"), columns, "The newest minute, second by second");
}

const measured = (h) =>
  h.value === null && h.status === "fail" && h.unit === "ms" ? "never ended" : inUnit(finite(h.value), h.unit);

// The alerts whose newest change is that they fire.
function firingOf(alerts) {
  const newest = new Map(alerts.map((a) => [a.name, a]));
  return [...newest.values()].filter((a) => a.state === "firing");
}
