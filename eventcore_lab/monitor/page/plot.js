// Drawing on one canvas: axes and what lies on them. It is given numbers and pixels, and knows nothing of what they mean.

const EDGE = { left: 62, right: 14, top: 14, bottom: 34 };
const FONT =
  '11px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif';
const DASHES = [[], [6, 3], [7, 3, 2, 3], [2, 2], [10, 3], [6, 2, 2, 2, 2, 2]];
const PATTERNS = ["plain", "diagonal", "crossed", "dots", "bars"];
// Of equal steps in lightness, so that they keep their order in grey and whatever colours an eye tells apart (after cividis).
const RAMPS = {
  light: ["#f1ead0", "#d8c478", "#a59c74", "#777776", "#4b556d", "#1c3763", "#00204d"],
  dark: ["#1d2a44", "#33456b", "#565f77", "#7c7b78", "#a59c74", "#d3c164", "#ffea46"],
};

class Plot {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.patterns = new Map();
    this.area = { left: EDGE.left, right: 100, top: EDGE.top, bottom: 100, width: 1, height: 1 };
  }

  // Clears the canvas at its present size; false where it has none.
  begin(theme, from, to) {
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (width < 120 || height < 60) return false;
    const ratio = Math.min(devicePixelRatio || 1, 3);
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    if (this.theme !== theme || this.ratio !== ratio) this.patterns.clear();
    Object.assign(this, { theme, ratio, from, to });
    const right = width - EDGE.right;
    const bottom = height - EDGE.bottom;
    this.area = { left: EDGE.left, right, top: EDGE.top, bottom, width: right - EDGE.left, height: bottom - EDGE.top };
    const c = this.context;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = FONT;
    c.lineJoin = "round";
    return true;
  }

  x(t) {
    return this.area.left + (this.area.width * (t - this.from)) / (this.to - this.from);
  }

  y(value) {
    const { low, high, isLog } = this.scale;
    const share = isLog ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    return this.area.bottom - this.area.height * Math.min(1, Math.max(0, share));
  }

  // Vertical axis: `marks` are the values to be named, in the words of `format`.
  axis(low, high, isLog, marks, format) {
    this.scale = { low, high, isLog };
    const { left, right } = this.area;
    const c = this.context;
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const value of marks) {
      const y = Math.round(this.y(value)) + 0.5;
      this.line(left, y, right, y, this.theme.grid);
      c.fillStyle = this.theme.muted;
      c.fillText(format(value), left - 6, y);
    }
  }

  // Horizontal axis: local time of the day, and seconds since `began` where that is known.
  times(began) {
    const { left, right, bottom, width } = this.area;
    const c = this.context;
    this.line(left, bottom + 0.5, right, bottom + 0.5, this.theme.axis);
    c.textBaseline = "top";
    const found = timeTicks(this.from, this.to, Math.max(2, Math.floor(width / 84)));
    for (const t of found) {
      const x = Math.round(this.x(t)) + 0.5;
      this.line(x, bottom, x, bottom + 4, this.theme.axis);
      const said = [clockTime(t), Number.isFinite(began) && t >= began ? `+${grouped(Math.round(t - began))} s` : ""];
      said.forEach((text, row) => {
        const half = c.measureText(text).width / 2;
        c.textAlign = "center";
        c.fillStyle = row ? this.theme.muted : this.theme.text;
        c.fillText(
          text,
          Math.min(Math.max(x, left - EDGE.left + half + 2), right + EDGE.right - half - 1),
          bottom + 6 + row * 13,
        );
      });
    }
  }

  line(x0, y0, x1, y1, colour, dash = [], width = 1) {
    const c = this.context;
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    c.moveTo(x0, y0);
    c.lineTo(x1, y1);
    c.stroke();
    c.setLineDash([]);
  }

  // From one instant to another, behind everything.
  shade(began, ended, colour) {
    const [x0, x1] = [Math.max(this.x(began), this.area.left), Math.min(this.x(ended), this.area.right)];
    if (x1 <= x0) return;
    this.context.fillStyle = colour;
    this.context.fillRect(x0, this.area.top, x1 - x0, this.area.height);
  }

  // Something that happened at an instant: a line over the whole height with a head, by which its kind is told.
  upright(t, kind) {
    if (t < this.from || t > this.to) return;
    const x = Math.round(this.x(t)) + 0.5;
    const { top, bottom } = this.area;
    const colour = { alert: this.theme.fail, mark: this.theme.accent, run: this.theme.axis }[kind];
    this.line(x, top, x, bottom, colour, { alert: [], mark: [4, 3], run: [1, 3] }[kind]);
    const c = this.context;
    c.fillStyle = colour;
    c.beginPath();
    if (kind === "alert") {
      c.moveTo(x, top - 9);
      c.lineTo(x - 5, top);
      c.lineTo(x + 5, top);
    } else if (kind === "mark") {
      c.moveTo(x, top - 9);
      c.lineTo(x + 4, top - 4.5);
      c.lineTo(x, top);
      c.lineTo(x - 4, top - 4.5);
    } else {
      c.rect(x - 3, top - 6, 6, 6);
    }
    c.fill();
  }

  // A line of bins, through their means or what is highest in each; where more than `gapS` lie between two of them, it breaks.
  course(bins, colour, { dash = [], width = 1.6, gapS = 1, takesHighest = false } = {}) {
    const c = this.context;
    const { left } = this.area;
    c.strokeStyle = c.fillStyle = colour;
    if (!takesHighest) this._range(bins);
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    bins.forEach((bin, i) => {
      const [x, y] = [left + bin.x, this.y(takesHighest ? bin.high : bin.sum / bin.count)];
      const isJoined = i > 0 && bin.began - bins[i - 1].t <= gapS;
      const goesOn = i + 1 < bins.length && bins[i + 1].began - bin.t <= gapS;
      if (isJoined) c.lineTo(x, y);
      else c.moveTo(x, y);
      if (!isJoined && !goesOn) c.fillRect(x - 2, y - 2, 4, 4); // a point alone
    });
    c.stroke();
    c.setLineDash([]);
  }

  // From the lowest to the highest of each bin, where those differ.
  _range(bins) {
    const c = this.context;
    c.globalAlpha = 0.28;
    for (const bin of bins) {
      if (bin.low !== bin.high)
        c.fillRect(this.area.left + Math.floor(bin.x), this.y(bin.high), 1, this.y(bin.low) - this.y(bin.high));
    }
    c.globalAlpha = 1;
  }

  // A value that should not be crossed, named at the right; `taken` has the heights of the names that are there already.
  limit(value, text, colour, taken) {
    const { left, right, top } = this.area;
    const c = this.context;
    const isAbove = value > this.scale.high;
    const y = isAbove ? top : Math.round(this.y(value)) + 0.5;
    if (!isAbove) this.line(left, y, right, y, colour, [2, 3], 1.2);
    const said = isAbove ? `${text} ↑ above` : text;
    const width = c.measureText(said).width + 6;
    const beside = taken.filter((t) => Math.abs(t.y - y) < 15).reduce((sum, t) => sum + t.width + 4, 0);
    taken.push({ y, width });
    const x = right - beside;
    if (x - width < left) return;
    const middle = y - 8 < top ? y + 9 : y - 8;
    c.textAlign = "right";
    c.textBaseline = "middle";
    c.fillStyle = this.theme.veil;
    c.fillRect(x - width, middle - 7, width, 14);
    c.fillStyle = this.theme.text;
    c.fillText(said, x - 3, middle);
  }

  // Bars of parts upon each other: bins have `parts`, of the kinds in `fills` ({colour, pattern}), lowest first.
  stack(bins, fills) {
    const c = this.context;
    const { left, bottom, right } = this.area;
    const heightOf = (value) => bottom - this.y(value);
    fills.forEach((fill, kind) => {
      c.fillStyle = this.pattern(fill.colour, fill.pattern);
      for (const bin of bins) {
        if (!(bin.parts[kind] > 0)) continue;
        bin.drawn = bin.drawn ?? 0;
        const height = Math.max(2, heightOf(bin.parts[kind])); // one failure among thousands must not vanish
        const x = left + bin.x;
        c.fillRect(x, bottom - bin.drawn - height, Math.min(bin.width + 0.4, right - x), height);
        bin.drawn += height;
      }
    });
  }

  // Cells of {x, width, y0, y1, share}; share from 0 to 1 is looked up in the ramp.
  cells(cells) {
    const c = this.context;
    const colours = ramp(this.theme.name);
    for (const cell of cells) {
      c.fillStyle = colours[Math.min(colours.length - 1, Math.floor(cell.share * colours.length))];
      const x = this.area.left + cell.x;
      c.fillRect(x, cell.y1, Math.min(cell.width + 0.4, this.area.right - x), cell.y0 - cell.y1 + 0.4);
    }
  }

  pattern(colour, kind) {
    const key = colour + kind;
    if (!this.patterns.has(key)) this.patterns.set(key, patternOf(this.context, colour, kind, this.theme, this.ratio));
    return this.patterns.get(key);
  }

  words(text) {
    const c = this.context;
    const { left, width, top, height } = this.area;
    c.fillStyle = this.theme.muted;
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillText(text, left + width / 2, top + height / 2, width);
  }
}

// A fill that is told from the others without its colour.
function patternOf(context, colour, kind, theme, ratio) {
  if (kind === "plain") return colour;
  const tile = document.createElement("canvas");
  tile.width = tile.height = Math.round(8 * ratio);
  const c = tile.getContext("2d");
  c.scale(tile.width / 8, tile.width / 8);
  const isSolid = kind === "crossed";
  c.fillStyle = isSolid ? colour : theme.panel;
  c.fillRect(0, 0, 8, 8);
  c.strokeStyle = isSolid ? theme.panel : colour;
  c.fillStyle = colour;
  c.lineWidth = isSolid ? 1 : 2.2;
  const strokes = {
    diagonal: [
      [-2, 2, 2, -2],
      [-2, 10, 10, -2],
      [6, 10, 10, 6],
    ],
    crossed: [
      [0, 0, 8, 8],
      [0, 8, 8, 0],
    ],
    bars: [
      [0, 2, 8, 2],
      [0, 6, 8, 6],
    ],
    dots: [],
  }[kind];
  c.beginPath();
  for (const [x0, y0, x1, y1] of strokes) {
    c.moveTo(x0, y0);
    c.lineTo(x1, y1);
  }
  c.stroke();
  for (const [x, y] of kind === "dots"
    ? [
        [2, 2],
        [6, 6],
      ]
    : []) {
    c.beginPath();
    c.arc(x, y, 1.7, 0, 7);
    c.fill();
  }
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(8 / tile.width));
  return pattern;
}

const RAMP_STEPS = 64;
const rampsMade = new Map();

function ramp(name) {
  if (!rampsMade.has(name)) {
    const stops = RAMPS[name].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    const steps = Array.from({ length: RAMP_STEPS }, (_, i) => {
      const place = (i / (RAMP_STEPS - 1)) * (stops.length - 1);
      const k = Math.min(stops.length - 2, Math.floor(place));
      return `rgb(${stops[k].map((v, j) => Math.round(v + (stops[k + 1][j] - v) * (place - k))).join(" ")})`;
    });
    rampsMade.set(name, steps);
  }
  return rampsMade.get(name);
}
