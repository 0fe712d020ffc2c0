// One chart in the page: its heading, its legend with the values at the cursor, its canvas, and a text for who cannot see it.

const SUMMARY_EVERY_MS = 10_000;
const MEAN = "Where several seconds share a pixel: their mean, and their range shaded.";

// An element; `text` is only ever text.
function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

class Chart {
  // `moved(t, chart)` is called with the instant under the cursor, NaN when it leaves.
  constructor(spec, moved) {
    this.spec = spec;
    this.moved = moved;
    this.canvas = element("canvas", { role: "img", tabindex: "0", "aria-label": spec.title });
    this.legend = element("ul", { class: "legend" });
    this.cursor = element("div", { class: "cursor", "aria-hidden": "true" });
    this.tip = element("p", { class: "tip", "aria-live": "polite" });
    this.note = element("p", { class: "note" });
    const title = element("h3", { text: spec.title });
    this.node = element(
      "figure",
      { id: `chart-${spec.id}` },
      element("figcaption", {}, title, this.legend),
      element("div", { class: "plot" }, this.canvas, this.cursor, this.tip),
      this.note,
    );
    this.cursor.hidden = this.tip.hidden = true;
    this.plot = new Plot(this.canvas);
    this.items = [];
    this.summaryMs = -Infinity;
    this._listen();
  }

  _listen() {
    const at = (event) => {
      const { left, width } = this.plot.area;
      const x = event.clientX - this.canvas.getBoundingClientRect().left - left;
      this.moved(x >= 0 && x <= width ? this.plot.from + (x / width) * (this.plot.to - this.plot.from) : NaN, this);
    };
    this.canvas.addEventListener("pointermove", at);
    this.canvas.addEventListener("pointerdown", at);
    this.canvas.addEventListener("pointerleave", () => this.moved(NaN, this));
    this.canvas.addEventListener("blur", () => this.moved(NaN, this));
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (event.key === "Escape") return this.moved(NaN, this);
      if (!step || !this.view || event.altKey || event.ctrlKey || event.metaKey) return undefined;
      event.preventDefault();
      const pixelS = Math.max(1, Math.round((this.view.to - this.view.from) / this.plot.area.width));
      const t = Number.isNaN(this.t) || this.t === undefined ? this.view.to - 0.5 : this.t + step * pixelS;
      return this.moved(Math.min(Math.max(t, this.view.from + 0.5), this.view.to - 0.5), this);
    });
  }

  draw(history, view) {
    this.view = view;
    const all = this.spec.lines(history);
    this.lines = all.slice(0, LINES_MAX);
    const isCrowded = view.to - view.from > this.canvas.clientWidth - EDGE.left - EDGE.right;
    const more = all.length > LINES_MAX ? `${all.length - LINES_MAX} more are not drawn.` : "";
    const note = (history.isObserved && this.spec.observed) || this.spec.note;
    setText(this.note, [note, isCrowded && (this.spec.crowded ?? MEAN), more].filter(Boolean).join(" "));
    this._legend(view.theme);
    if (!this.plot.begin(view.theme, view.from, view.to)) return;
    const draw = { heat: this._heat, stack: this._stack }[this.spec.kind] ?? this._lines;
    const isDrawn = draw.call(this, history, view);
    if (!isDrawn) this.plot.words("nothing in this window");
    for (const event of view.events) this.plot.upright(event.t, event.kind);
    this.plot.times(view.began);
    this.show(history, this.t ?? NaN, false);
    if (performance.now() - this.summaryMs >= SUMMARY_EVERY_MS) this.summarise(history, isDrawn);
  }

  _behind(view) {
    for (const run of view.runs) this.plot.shade(run.began, run.began + run.warmupS, view.theme.warm);
  }

  _axis(low, high, view) {
    const format = UNITS[this.spec.unit];
    const count = Math.max(2, Math.floor(this.plot.area.height / 38));
    if (this.spec.isLog) {
      this.plot.axis(low, high, true, logTicks(low, high, count * 2.2), format);
      return;
    }
    const marks = ticks(0, high, count, this.spec.unit);
    this.plot.axis(0, marks.at(-1), false, marks, format);
  }

  _lines(history, view) {
    this._behind(view);
    const { width } = this.plot.area;
    const drawn = this.lines.map((line) => [line, binned(history, line.values, view.from, view.to, width)]);
    const highest = drawn.reduce((m, [, bins]) => bins.reduce((n, b) => Math.max(n, b.high), m), -Infinity);
    const lowest = drawn.reduce(
      (m, [, bins]) => bins.reduce((n, b) => (b.low > 0 ? Math.min(n, b.low) : n), m),
      Infinity,
    );
    const isThere = drawn.some(([, bins]) => bins.length);
    const limits = this._limits(view);
    // A limit far above what is measured is named at the top instead of pressing the lines to the ground.
    const near = limits.map((l) => l.value).filter((v) => this.spec.isLog || v <= highest * 5);
    if (this.spec.isLog) {
      const known = [...near, ...(isThere && lowest < Infinity ? [lowest, highest] : [])];
      const [low, high] = known.length ? [Math.min(...known) / 1.4, Math.max(...known) * 1.4] : [1, 100];
      this._axis(high / low < 10 ? low / 2 : low, high / low < 10 ? high * 2 : high, view);
    } else {
      this._axis(
        0,
        Math.max(highest * 1.04, ...near.map((v) => v * 1.04), this.spec.unit === "count" ? 4 : 0) || 1,
        view,
      );
    }
    for (const [line, bins] of drawn) this.plot.course(bins, view.theme[line.colour], line);
    const taken = [];
    for (const limit of limits) this.plot.limit(limit.value, limit.text, view.theme.limit, taken);
    return isThere;
  }

  _limits(view) {
    return this.spec.limits.flatMap(([figure, said, factor]) =>
      view.thresholds
        .filter((t) => t.name === figure)
        .map((t) => ({
          value: t.limit * factor,
          text: `${said} ${t.is_max ? "<" : ">"} ${UNITS[this.spec.unit](t.limit * factor)}`,
        })),
    );
  }

  _stack(history, view) {
    this._behind(view);
    const rings = this.lines.map((line) => line.values);
    const bins = gathered(history, view.from, view.to, this.plot.area.width, (bin, slot) => {
      bin.sums ??= rings.map(() => 0);
      rings.forEach((ring, i) => (bin.sums[i] += ring[slot] || 0));
    });
    for (const bin of bins) bin.parts = bin.sums.map((sum) => sum / bin.seconds);
    const highest = bins.reduce(
      (m, bin) =>
        Math.max(
          m,
          bin.parts.reduce((a, b) => a + b, 0),
        ),
      0,
    );
    this._axis(0, highest * 1.04 || 1, view);
    this.plot.stack(
      bins,
      this.lines.map((line) => ({ colour: view.theme[line.colour], pattern: line.pattern })),
    );
    return highest > 0;
  }

  _heat(history, view) {
    const heat = heatOf(history, this.plot, view);
    this.heat = heat;
    this._behind(view);
    if (!heat.cells.length) {
      this._axis(1, 100, view);
      return false;
    }
    this._axis(heat.low / 1.2, Math.max(heat.high, heat.low * 10) * 1.1, view);
    const range = Math.log(heat.highest / heat.lowest);
    for (const cell of heat.cells) {
      cell.y0 = this.plot.y(lowerEdge(history.edges, cell.row));
      cell.y1 = this.plot.y(upperEdge(history.edges, cell.row));
      cell.share = range > 0 ? 0.06 + 0.94 * (Math.log(cell.rate / heat.lowest) / range) : 1;
    }
    this.plot.cells(heat.cells);
    this._scaleSays(heat);
    return true;
  }

  // The names with their lines; made anew only where there are others than before.
  _legend(theme) {
    const key =
      this.spec.kind === "heat" ? `heat ${theme.name}` : theme.name + this.lines.map((l) => l.name).join("\n");
    if (key === this.legendKey) return;
    this.legendKey = key;
    this.items = this.spec.kind === "heat" ? [] : this._named().map((line) => ({ line, ...legendItem(line.name) }));
    for (const item of this.items) swatch(item.canvas, item.line, theme);
    this.also = element("li", { class: "also" });
    this.legend.replaceChildren(...this.items.map((i) => i.node), ...(this.spec.also ? [this.also] : []));
    if (this.spec.kind === "heat") this._scale(theme);
  }

  // Of a chart whose lines are given, the uppermost one is the last drawn and the first named.
  _named() {
    return this.spec.isTold ? [...this.lines].reverse() : this.lines;
  }

  _scale(theme) {
    const canvas = element("canvas", { class: "scale", "aria-hidden": "true", width: "128", height: "10" });
    const context = canvas.getContext("2d");
    ramp(theme.name).forEach((colour, i) => {
      context.fillStyle = colour;
      context.fillRect(i * 2, 0, 2, 10);
    });
    this.scaleLow = element("span", { class: "value" });
    this.scaleHigh = element("span", { class: "value" });
    this.legend.replaceChildren(element("li", {}, this.scaleLow, canvas, this.scaleHigh));
  }

  _scaleSays(heat) {
    setText(this.scaleLow, UNITS.rate(heat.lowest));
    setText(this.scaleHigh, UNITS.rate(heat.highest));
  }

  // The cursor at an instant, NaN for none; the tip only on the chart that the pointer is over.
  show(history, t, isHere) {
    this.t = t;
    const { from, to, theme } = this.plot;
    const isShown = t >= from && t <= to && theme !== undefined;
    this.cursor.hidden = !isShown;
    if (isShown) this.cursor.style.transform = `translateX(${this.plot.x(t)}px)`;
    const second = isShown ? Math.floor(t) : Math.ceil(this.view.to) - 1;
    const format = UNITS[this.spec.unit];
    const named = this._named(); // their rings may be others than when the legend was made
    for (const [i, item] of this.items.entries()) {
      const line = named[i];
      const isUnknown = !isShown && this.view.isUnseen;
      setText(item.value, format(isUnknown ? NaN : valueAt(history, line, isShown ? second : this._newest(history))));
    }
    if (this.spec.also) {
      const slot = history.slot(isShown ? second : this._newest(history));
      setText(this.also, slot >= 0 ? this.spec.also(history, slot) : "");
    }
    if (!isHere && !isShown) this.tip.hidden = true;
    else if (isHere || !this.tip.hidden) this._tip(isShown, t);
  }

  _newest(history) {
    const second = Math.ceil(this.view.to) - 1;
    for (let back = 0; back < 3; back += 1) if (history.slot(second - back) >= 0) return second - back;
    return second;
  }

  _tip(isShown, t) {
    this.tip.hidden = !isShown;
    if (!isShown) return;
    const nearS = (6 * (this.plot.to - this.plot.from)) / this.plot.area.width;
    const events = this.view.events
      .filter((e) => Math.abs(e.t - t) <= Math.max(nearS, 0.5))
      .slice(-4)
      .map((e) => e.text);
    const began = this.view.began;
    const since = Number.isFinite(began) && t >= began ? ` (+${grouped(Math.floor(t - began))} s)` : "";
    setText(this.tip, [`${clockTime(Math.floor(t))}${since}`, ...events].join(" · "));
    const x = this.plot.x(t);
    const { left, right } = this.plot.area;
    const width = this.tip.offsetWidth;
    const beside = x + 8 + width > right ? x - width - 8 : x + 8;
    this.tip.style.transform = `translateX(${Math.max(left, Math.min(beside, right - width))}px)`;
  }

  // What the picture shows, in words.
  summarise(history, isDrawn) {
    this.summaryMs = performance.now();
    const { from, to } = this.view;
    const format = UNITS[this.spec.unit];
    const said =
      this.spec.kind === "heat" && isDrawn
        ? [
            `most operations per second in one bucket: ${UNITS.rate(this.heat.highest)}`,
            `latencies between ${ms(this.heat.low)} and ${ms(this.heat.high)}`,
          ]
        : this.lines.map((line) => {
            const { low, high } = extremes(history, line.values, from, to);
            return low <= high ? `${plain(line.name, 40)} between ${format(low)} and ${format(high)}` : "";
          });
    const text = isDrawn ? said.filter(Boolean).join("; ") : "nothing in this window";
    this.canvas.setAttribute(
      "aria-label",
      `${this.spec.title}, ${clockTime(from)} to ${clockTime(to)}: ${text}. Arrow keys move a cursor.`,
    );
  }
}

function legendItem(name) {
  const canvas = element("canvas", { class: "swatch", "aria-hidden": "true" });
  const value = element("span", { class: "value" });
  const said = element("bdi", { text: plain(name, 40) });
  return { canvas, value, node: element("li", {}, canvas, said, value) };
}

// What a line or a fill looks like, before its name.
function swatch(canvas, line, theme) {
  const ratio = Math.min(devicePixelRatio || 1, 3);
  canvas.width = 26 * ratio;
  canvas.height = 10 * ratio;
  const c = canvas.getContext("2d");
  c.scale(ratio, ratio);
  if (line.pattern) {
    c.fillStyle = patternOf(c, theme[line.colour], line.pattern, theme, ratio);
    c.fillRect(0, 0, 26, 10);
    return;
  }
  c.strokeStyle = theme[line.colour];
  c.lineWidth = line.width ?? 1.6;
  c.setLineDash(line.dash);
  c.beginPath();
  c.moveTo(0, 5);
  c.lineTo(26, 5);
  c.stroke();
}
