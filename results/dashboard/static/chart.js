// Curves, one chart for each metric, drawn as SVG elements from plain data. What is not finite is marked, not hidden.
import { element } from "./page.js";

const WIDTH = 560, HEIGHT = 250, LEFT = 62, RIGHT = 12, TOP = 10, BOTTOM = 34;
const MOST_CHARTS = 24, MOST_DRAWN = 700, MOST_KEPT = 4000, COLOURS = 8, MOST_ROWS = 60;
const WORDS = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };
const number = (value) => (typeof value === "number" ? value : Object.hasOwn(WORDS, value) ? WORDS[value] : NaN);
const shown = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(5))) : String(value));

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

export class Charts {
  // by: "arm" colours by arm, "sprint" by the sprint that a curve says it is of. clock: seconds are the only axis.
  constructor(place, { by = "arm", clock = false, empty = "Nothing has been recorded yet." } = {}) {
    this.by = by;
    this.clock = clock;
    this.curves = new Map();
    this.colours = new Map();
    this.hidden = new Set();
    this.phase = "";
    this.leftOut = 0;
    this.notes = [];
    this.axis = clock ? "t" : "x";
    this.log = false;
    this.charts = new Map();
    this.controls = element("div", { class: "controls" });
    this.said = element("p", { class: "quiet" }, empty);
    this.place = element("div", { class: "charts" });
    place.append(this.controls, this.said, this.place);
    this.drawn = 0;
  }

  set(found) {
    this.curves.clear();
    this.add(found);
  }

  add(found) {
    for (const one of found) {
      const key = JSON.stringify([one.sprint || "", one.name, one.arm, one.seed, one.phase, one.origin]);
      let curve = this.curves.get(key);
      if (!curve) {
        curve = { ...one, x: [], y: [], t: [], seen: 0 };
        this.curves.set(key, curve);
      }
      for (let i = 0; i < one.y.length; i++) {
        curve.x.push(number(one.x[i]));
        curve.y.push(number(one.y[i]));
        curve.t.push(number(one.t[i]));
      }
      curve.seen = one.seen;
      if (curve.y.length > 2 * MOST_KEPT) Object.assign(curve, pick(curve, important(curve.y, MOST_KEPT)));
      const label = this.label(curve);
      if (!this.colours.has(label)) this.colours.set(label, this.colours.size % COLOURS);
    }
    this.later();
  }

  label(curve) {
    return (this.by === "sprint" ? curve.sprint : curve.arm) || "";
  }

  later() {
    // At most twice a second, however often news come.
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.draw();
    }, Math.max(0, 500 - (performance.now() - this.drawn)));
  }

  draw() {
    this.drawn = performance.now();
    const metrics = new Map();
    for (const curve of this.curves.values()) {
      if (this.hidden.has(this.label(curve)) || (this.phase && curve.phase !== this.phase)) continue;
      if (!metrics.has(curve.name)) metrics.set(curve.name, []);
      metrics.get(curve.name).push(curve);
    }
    this.said.hidden = this.curves.size > 0 && !this.leftOut && metrics.size <= MOST_CHARTS && !this.notes.length;
    if (this.curves.size) {
      const notes = [...this.notes];
      if (this.leftOut) notes.push(`${this.leftOut} more curves are not drawn; metrics.jsonl has them.`);
      if (metrics.size > MOST_CHARTS) notes.push(`${metrics.size - MOST_CHARTS} more metrics are not drawn.`);
      this.said.textContent = notes.join(" · ");
    }
    this.drawControls();
    const names = [...metrics.keys()].slice(0, MOST_CHARTS);
    for (const [name, chart] of this.charts) {
      if (!names.includes(name)) {
        chart.figure.remove();
        this.charts.delete(name);
      }
    }
    for (const name of names) {
      if (!this.charts.has(name)) this.charts.set(name, this.chart(name));
      this.fill(this.charts.get(name), metrics.get(name));
    }
  }

  drawControls() {
    const labels = [...this.colours].filter(([label]) => label);
    const phases = [...new Set([...this.curves.values()].map((curve) => curve.phase).filter(Boolean))].sort();
    const signature = JSON.stringify([labels, phases, this.axis, this.log, [...this.hidden], this.phase, this.curves.size > 0]);
    if (signature === this.signature) return;
    this.signature = signature;
    const had = document.activeElement && this.controls.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    const parts = [];
    const toggle = (key, text, pressed, act, ...before) => {
      const button = element("button", { type: "button", "aria-pressed": String(pressed), "data-key": key }, ...before, text);
      button.addEventListener("click", () => { act(); this.draw(); });
      parts.push(button);
    };
    if (this.curves.size) {
      if (!this.clock) {
        toggle("step", "by step", this.axis === "x", () => { this.axis = "x"; });
        toggle("second", "by second", this.axis === "t", () => { this.axis = "t"; });
      }
      toggle("log", "logarithmic", this.log, () => { this.log = !this.log; });
      if (phases.length > 1) {
        parts.push(element("span", { class: "gap" }));
        for (const phase of ["", ...phases]) toggle(`phase ${phase}`, phase || "all phases", this.phase === phase, () => { this.phase = phase; });
      }
      if (labels.length > 1) {
        parts.push(element("span", { class: "gap" }));
        for (const [label, colour] of labels) {
          toggle(`label ${label}`, ` ${label.slice(0, 60)}`, !this.hidden.has(label),
            () => { if (!this.hidden.delete(label)) this.hidden.add(label); },
            element("span", { class: `swatch c${colour}`, "aria-hidden": "true" }));
        }
      }
    }
    this.controls.replaceChildren(...parts);
    if (had) parts.find((part) => part.dataset.key === had)?.focus();
  }

  chart(name) {
    const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const body = element("tbody");
    const head = element("tr", {}, ...["curve", "first", "last", "lowest", "highest", "points"].map((word) => element("th", { scope: "col" }, word)));
    const readout = element("p", { class: "readout" });
    const figure = element("figure", { class: "chart" }, element("figcaption", {}, name), image, readout,
      element("details", {}, element("summary", {}, "As a table"), element("div", { class: "scroll" }, element("table", { class: "numbers" }, element("thead", {}, head), body))));
    const chart = { name, figure, image, body, readout, curves: [] };
    image.addEventListener("pointermove", (event) => this.point(chart, event));
    image.addEventListener("pointerleave", () => { readout.textContent = ""; chart.cursor?.remove(); });
    this.place.append(figure);
    return chart;
  }

  fill(chart, curves) {
    chart.curves = curves;
    const xs = (curve) => (this.axis === "t" ? curve.t : curve.x);
    const usable = (value) => Number.isFinite(value) && (!this.log || value > 0);
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const curve of curves) {
      const at = xs(curve);
      for (let i = 0; i < at.length; i++) {
        if (!Number.isFinite(at[i])) continue;
        if (at[i] < x0) x0 = at[i];
        if (at[i] > x1) x1 = at[i];
        if (!usable(curve.y[i])) continue;
        if (curve.y[i] < y0) y0 = curve.y[i];
        if (curve.y[i] > y1) y1 = curve.y[i];
      }
    }
    if (this.clock && !this.log) y0 = Math.min(y0, 0);
    if (!(x0 <= x1)) [x0, x1] = [0, 1];
    if (!(y0 <= y1)) [y0, y1] = this.log ? [1, 10] : [0, 1];
    const scaleX = scale(x0, x1, LEFT, WIDTH - RIGHT, false);
    const scaleY = scale(y0, y1, HEIGHT - BOTTOM, TOP, this.log);
    chart.scaleX = scaleX;
    const parts = [];
    for (const tick of scaleY.ticks) {
      const y = scaleY(tick);
      parts.push(svg("path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` }));
      parts.push(svg("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, shown(tick)));
    }
    for (const tick of scaleX.ticks) {
      parts.push(svg("text", { class: "tick", x: scaleX(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, shown(tick)));
    }
    parts.push(svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }));
    parts.push(svg("text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, this.axis === "t" ? "seconds" : "step"));
    for (const curve of curves) {
      const colour = this.colours.get(this.label(curve));
      const [d, dots, odd] = path(xs(curve), curve.y, scaleX, scaleY, usable);
      const kind = `${curves.length > 2 ? " thin" : ""}${curve.phase === "tune" ? " tune" : ""}`;
      if (d) parts.push(svg("path", { class: `curve s${colour}${kind}`, d }, svg("title", {}, named(curve))));
      if (dots) parts.push(svg("path", { class: `dots s${colour}`, d: dots }, svg("title", {}, named(curve))));
      if (odd) parts.push(svg("path", { class: `odd s${colour}`, d: odd }, svg("title", {}, `${named(curve)}: not finite`)));
    }
    chart.image.replaceChildren(...parts);
    chart.image.setAttribute("aria-label", `${chart.name}: ${curves.length} curve${curves.length === 1 ? "" : "s"}, from ${shown(y0)} to ${shown(y1)}; the table below has the numbers`);
    this.tabulate(chart);
  }

  tabulate(chart) {
    chart.body.replaceChildren(...chart.curves.slice(0, MOST_ROWS).map((curve) => {
      const finite = curve.y.filter(Number.isFinite);
      const low = finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
      const last = curve.y.length - 1;
      const cells = [shown(curve.y[0]), shown(curve.y[last]), finite.length ? shown(low) : "–", finite.length ? shown(high) : "–", curve.seen];
      return element("tr", {}, element("th", { scope: "row" }, named(curve)), ...cells.map((cell) => element("td", {}, cell)));
    }));
  }

  point(chart, event) {
    const box = chart.image.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const at = chart.scaleX.back(x);
    const near = [];
    for (const curve of chart.curves) {
      const all = this.axis === "t" ? curve.t : curve.x;
      let best = -1;
      for (let i = 0; i < all.length; i++) if (best < 0 || Math.abs(all[i] - at) < Math.abs(all[best] - at)) best = i;
      if (best >= 0) near.push([Math.abs(all[best] - at), `${named(curve)} ${shown(curve.y[best])}`, all[best]]);
    }
    chart.cursor?.remove();
    if (x < LEFT || x > WIDTH - RIGHT || !near.length) return;
    chart.cursor = svg("path", { class: "cursor", d: `M${x} ${TOP}V${HEIGHT - BOTTOM}` });
    chart.image.append(chart.cursor);
    near.sort((a, b) => a[0] - b[0]);
    const more = near.length > 4 ? `, and ${near.length - 4} more` : "";
    chart.readout.textContent = `${this.axis === "t" ? "second" : "step"} ${shown(near[0][2])}: ${near.slice(0, 4).map((one) => one[1]).join(", ")}${more}`;
  }
}

function named(curve) {
  const parts = [curve.sprint, curve.arm, curve.seed && `seed ${curve.seed}`, curve.phase, curve.origin && curve.origin !== "lab.log" && curve.origin];
  return parts.filter(Boolean).join(", ").slice(0, 200) || curve.name;
}

// From values to places, with ticks at round numbers.
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v, g = log ? (v) => 10 ** v : (v) => v;
  let [a, b] = [f(low), f(high)];
  if (a === b) [a, b] = [a - (Math.abs(a) * 0.05 || 0.5), b + (Math.abs(b) * 0.05 || 0.5)];
  const span = b / 2 - a / 2;  // halves: the difference of two huge numbers may not be a number
  const place = (value) => Math.round((from + ((f(value) / 2 - a / 2) / span) * (to - from)) * 10) / 10;
  place.back = (at) => g(a + ((at - from) / (to - from)) * span * 2);
  place.ticks = [];
  if (Number.isFinite(span) && span > 0) {
    const raw = (span * 2) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = log && span * 2 >= 3 ? Math.max(1, Math.ceil(raw)) : [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    for (let tick = Math.ceil(a / step) * step, n = 0; tick <= b + step * 1e-9 && n < 12; tick += step, n++) {
      place.ticks.push(g(Math.abs(tick) < step * 1e-9 ? 0 : tick));
    }
  }
  return place;
}

// A path through the finite points with gaps elsewhere, and marks for the others: a cross at the foot for NaN, arrows
// at the rim for infinities. A point without neighbours is a dot.
function path(xs, ys, scaleX, scaleY, usable) {
  let d = "", dots = "", odd = "", down = false, marks = 0, before = -Infinity;
  for (const i of important(ys, MOST_DRAWN)) {
    if (!Number.isFinite(xs[i])) continue;
    const x = scaleX(xs[i]);
    if (xs[i] < before) down = false;  // a step that goes back begins another line
    before = xs[i];
    if (usable(ys[i])) {
      const alone = !down && (i + 1 >= ys.length || !usable(ys[i + 1]) || xs[i + 1] < xs[i]);
      if (alone) dots += `M${x} ${scaleY(ys[i])}h.01`;
      else d += `${down ? "L" : "M"}${x} ${scaleY(ys[i])}`;
      down = !alone;
      continue;
    }
    down = false;
    if (Number.isFinite(ys[i]) || marks++ > 200) continue;
    const foot = HEIGHT - BOTTOM;
    if (Number.isNaN(ys[i])) odd += `M${x - 3} ${foot - 7}l6 6m0 -6l-6 6`;
    else odd += ys[i] > 0 ? `M${x - 4} ${TOP + 6}l4 -6l4 6` : `M${x - 4} ${foot - 6}l4 6l4 -6`;
  }
  return [d, dots, odd];
}

// The numbers of at most about `most` points that keep a curve's shape: of each stretch its lowest, its highest, and
// the first that is not finite.
function important(ys, most) {
  if (ys.length <= most) return ys.keys();
  const kept = [0], width = Math.ceil((ys.length - 2) / (most / 3));
  for (let from = 1; from < ys.length - 1; from += width) {
    let low = -1, high = -1, odd = -1;
    for (let i = from; i < Math.min(from + width, ys.length - 1); i++) {
      if (!Number.isFinite(ys[i])) { if (odd < 0) odd = i; continue; }
      if (low < 0 || ys[i] < ys[low]) low = i;
      if (high < 0 || ys[i] > ys[high]) high = i;
    }
    kept.push(...[...new Set([low, high, odd])].filter((i) => i >= 0).sort((a, b) => a - b));
  }
  kept.push(ys.length - 1);
  return kept;
}

function pick(curve, indices) {
  const kept = [...indices];
  return { x: kept.map((i) => curve.x[i]), y: kept.map((i) => curve.y[i]), t: kept.map((i) => curve.t[i]) };
}
