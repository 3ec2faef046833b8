// Draws a run's curves with uPlot, from the numbers that the page carries. The table of rounds has
// the same numbers for who cannot see them.

const { uPlot } = window;
const COLOURS = 8;
const DASH = [6, 4];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Whole rounds alone stand on the axis. */
function wholeSteps(plot, axis, low, high, step) {
  const by = Math.max(1, Math.ceil(step));
  const found = [];
  for (let at = Math.ceil(low / by) * by; at <= high; at += by) found.push(at);
  return found;
}

function readable(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function options(curve, width) {
  const [ink, line] = [colour("--ink"), colour("--line")];
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const solid = curve.lines.filter((one) => !one.dashed).length || curve.lines.length;
  return {
    width,
    height: 200,
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    legend: { live: true },
    scales: {
      x: { time: false, range: (plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
    },
    axes: [
      { ...axis, splits: wholeSteps, size: 34 },
      { ...axis, size: 64, values: (plot, splits) => splits.map(readable) },
    ],
    series: [
      { label: "round" },
      ...curve.lines.map((one, place) => ({
        label: one.label,
        stroke: colour(`--curve-${(place % solid % COLOURS) + 1}`),
        width: 2,
        dash: one.dashed ? DASH : undefined,
        spanGaps: true,
        points: { show: true, size: one.dashed ? 5 : 7 },
        value: (plot, value) => readable(value),
      })),
    ],
  };
}

/** Draws all curves into an element, in place of those that were there. */
export class Curves {
  constructor(root) {
    this.root = root;
    this.drawn = "";
    this.plots = [];
    this.curves = [];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    new ResizeObserver(() => this.fit()).observe(root);
  }

  update(curves) {
    const text = JSON.stringify(curves);
    if (text === this.drawn) return;
    const shape = (all) => JSON.stringify(all.map(({ title, lines }) => [title, lines.map((one) => one.label)]));
    const same = shape(curves) === shape(this.curves);
    [this.drawn, this.curves] = [text, curves];
    if (!same) return this.redraw();
    this.plots.forEach((plot, place) => plot.setData(columns(curves[place])));
  }

  redraw() {
    for (const plot of this.plots) plot.destroy();
    this.root.replaceChildren();
    this.plots = this.curves.map((curve) => {
      const figure = document.createElement("figure");
      figure.className = "curve";
      const unit = curve.unit ? `, ${curve.unit}` : "";
      const title = Object.assign(document.createElement("figcaption"), {
        textContent: `${curve.title}${unit}`,
      });
      figure.append(title);
      this.root.append(figure);
      const plot = new uPlot(options(curve, figure.clientWidth), columns(curve), figure);
      plot.ctx.canvas.setAttribute("role", "img");
      plot.ctx.canvas.setAttribute("aria-label", `${curve.title}${unit}; the table below has the numbers`);
      if (curve.absent && curve.lines.some((one) => one.values.includes(null))) {
        const note = Object.assign(document.createElement("p"), {
          className: "faint",
          textContent: curve.absent,
        });
        figure.append(note);
      }
      return plot;
    });
  }

  fit() {
    for (const plot of this.plots) {
      const width = plot.root.parentElement.clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: plot.height });
    }
  }
}

const columns = (curve) => [curve.rounds, ...curve.lines.map((one) => one.values)];
