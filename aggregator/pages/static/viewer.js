// The pair viewer: HQ, LQ and their difference from the release's own floats, on canvases that have
// one pixel for one of the image. What is grey is decided here alone:
//   grey = 255 (value - (level - window / 2)) / window, rounded and cut to 0..255;
//   difference: grey = 255 (difference / (2 span) + 1/2).

import { Pairs } from "./pairs.js";

const CT_WINDOWS = [
  ["lung", 1500, -600],
  ["soft tissue", 400, 40],
  ["bone", 1800, 400],
];
const limited = (value, low, high) => Math.min(Math.max(value, low), high);

/** 1, 2 or 5 times a power of ten, not below value: as the contact sheet has it. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** One viewer: `root` is its template's element, which names the suffix of the ids below it. */
export class Viewer {
  constructor(pairs, root) {
    this.root = root;
    this.pairs = pairs;
    this.when = "";
    this.told = () => {}; // what is set here is told there: two viewers go together
    const { window_low: low = 0, window_high: high = 1, window_unit: unit } = pairs.about;
    // CT is shown in Hounsfield units, MR, which has no unit that a person reads, in window units.
    [this.low, this.high, this.unit] = unit === "HU" ? [low, high, "HU"] : [0, 1, ""];
    this.scale = this.high - this.low;
    this.digits = this.unit ? 1 : 4;
    this.task = pairs.tasks.keys().next().value;
    this.index = 0;
    this.pointer = null;
    this.images = null;
    this.build();
    this.resetWindow();
  }

  at(id) {
    return document.getElementById(id + (this.root.dataset.suffix ?? ""));
  }

  /** Goes on with other pairs of the same task and size, those of `when`. */
  turn(pairs, when) {
    [this.pairs, this.when] = [pairs, when];
    return this.choose(this.task, this.index);
  }

  build() {
    for (const unit of this.root.querySelectorAll(".unit")) {
      unit.textContent = this.unit ? ` (${this.unit})` : "";
    }
    for (const id of ["hq", "lq", "both", "difference"]) this.prepare(this.at(id));
    const names = [...this.pairs.tasks.keys()];
    this.at("tasks").hidden = names.length < 2;
    this.at("task").replaceChildren(...names.map((name) => new Option(name, name)));
    this.at("task").addEventListener("change", () => this.choose(this.at("task").value, this.index));
    const pick = (input) => () => {
      if (input.value !== "") this.choose(this.task, Number(input.value));
    };
    for (const id of ["pair", "pair-number"]) this.at(id).addEventListener("input", pick(this.at(id)));
    this.at("before").addEventListener("click", () => this.choose(this.task, this.index - 1));
    this.at("after").addEventListener("click", () => this.choose(this.task, this.index + 1));
    for (const radio of this.root.querySelectorAll("[type=radio]")) {
      radio.addEventListener("change", () => this.layout(radio.value));
    }
    this.at("divider").addEventListener("input", () => this.draw());
    const range = { level: [this.low - this.scale / 2, this.high + this.scale / 2] };
    range.window = [this.scale / 200, 2 * this.scale];
    for (const [id, [low, high]] of Object.entries(range)) {
      const slider = this.at(`${id}-slider`);
      Object.assign(slider, { min: low, max: high, step: this.scale / 1000 });
      for (const input of [slider, this.at(id)]) {
        input.addEventListener("input", () => {
          const value = Number(input.value);
          if (input.value === "" || !Number.isFinite(value) || (id === "window" && value <= 0)) return;
          this.set({ level: this.level, window: this.window, [id]: value }, input);
        });
      }
    }
    this.at("span").addEventListener("input", () => {
      const value = Number(this.at("span").value);
      if (value > 0) {
        this.chosenSpan = this.span = value;
        this.draw();
      }
    });
    const windows = [["whole window", this.scale, this.low + this.scale / 2]];
    if (this.unit === "HU") {
      windows.push(...CT_WINDOWS.filter(([, , level]) => level > this.low && level < this.high));
    }
    this.at("presets").replaceChildren(
      ...windows.map(([name, window, level]) => {
        const button = document.createElement("button");
        Object.assign(button, { type: "button", textContent: name });
        button.addEventListener("click", () => this.set({ window, level }));
        return button;
      }),
    );
  }

  prepare(canvas) {
    canvas.width = canvas.height = this.pairs.size;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, y: event.clientY, window: this.window, level: this.level };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      this.point(
        Math.floor(((event.clientX - box.left) / box.width) * this.pairs.size),
        Math.floor(((event.clientY - box.top) / box.height) * this.pairs.size),
      );
      if (!from) return;
      const step = this.scale / 400;
      this.set({
        window: Math.max(from.window + (event.clientX - from.x) * step, this.scale / 200),
        level: from.level - (event.clientY - from.y) * step,
      });
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => (from = null));
    }
    canvas.addEventListener("dblclick", () => this.resetWindow());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [x, y] =
      { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (x !== undefined && event.shiftKey) {
      const middle = this.pairs.size >> 1;
      const [column, row] = this.pointer ?? [middle, middle];
      this.point(column + x, row + y);
    } else if (x !== undefined) {
      const step = this.scale / 100;
      const window = Math.max(this.window + x * step, this.scale / 200);
      this.set({ window, level: this.level - y * step });
    } else if (event.key === "[" || event.key === "]") {
      this.choose(this.task, this.index + (event.key === "]" ? 1 : -1));
    } else if (event.key === "0") {
      this.resetWindow();
    } else {
      return;
    }
    event.preventDefault();
  }

  resetWindow() {
    this.set({ window: this.scale, level: this.low + this.scale / 2 });
  }

  /** Sets window and level; the input they were typed into keeps what was typed. */
  set({ window, level }, typed = null) {
    [this.window, this.level] = [window, level];
    for (const [id, value] of [["window", window], ["level", level]]) {
      const text = String(Number(value.toFixed(this.digits)));
      for (const input of [this.at(id), this.at(`${id}-slider`)]) if (input !== typed) input.value = text;
      this.at(`${id}-slider`).setAttribute("aria-valuetext", `${text} ${this.unit}`.trim());
    }
    this.draw();
    this.told(this);
  }

  layout(name) {
    const slider = name === "slider";
    this.at("at-both").hidden = !slider;
    this.at("at-hq").hidden = this.at("at-lq").hidden = slider;
    this.draw();
  }

  /** Shows a pair; of those chosen while one is being read, the last alone is read. */
  async choose(task, index) {
    const last = this.pairs.tasks.get(task).length - 1;
    [this.task, this.index] = [task, limited(Math.round(index) || 0, 0, last)];
    for (const id of ["pair", "pair-number"]) {
      this.at(id).max = last;
      this.at(id).value = this.index;
    }
    this.at("before").disabled = this.index === 0;
    this.at("after").disabled = this.index === last;
    this.wanted = `Pair ${this.index} of 0 to ${last}, ${this.task}${this.when}`;
    this.told(this);
    if (this.reading) return;
    this.reading = true;
    for (let read = null; read !== this.wanted; ) {
      read = this.wanted;
      const said = await this.show(read);
      if (read === this.wanted) this.at("viewer-status").textContent = said;
    }
    this.reading = false;
  }

  /** Draws the pair that is chosen, unless another is by then; answers what there is to say. */
  async show(wanted) {
    try {
      const images = await this.pairs.pair(this.task, this.index);
      if (this.wanted === wanted) {
        this.images = images;
        this.measure();
        this.draw();
      }
      return wanted;
    } catch (error) {
      return `Not loaded: ${error.message}`;
    }
  }

  /** The span of the difference, unless somebody typed one: what 99% of pixels lie within. */
  measure() {
    const { hq, lq } = this.images;
    const sizes = lq.map((value, place) => Math.abs(value - hq[place])).sort();
    const most = sizes[Math.floor(0.99 * (sizes.length - 1))] * this.scale;
    this.span = this.chosenSpan ?? roundUp(Math.max(most, this.scale / 2000));
    if (document.activeElement !== this.at("span")) this.at("span").value = String(this.span);
  }

  draw() {
    if (!this.images) return;
    const { hq, lq } = this.images;
    const [window, start] = [this.window, this.level - this.window / 2];
    const grey = (value) => (255 * (this.low + value * this.scale - start)) / window;
    const size = this.pairs.size;
    const cut = Math.round((Number(this.at("divider").value) / 100) * size);
    this.paint("hq", (place) => grey(hq[place]));
    this.paint("lq", (place) => grey(lq[place]));
    this.paint("both", (place) => grey((place % size < cut ? lq : hq)[place]));
    const factor = this.scale / (2 * this.span);
    this.paint("difference", (place) => 255 * ((lq[place] - hq[place]) * factor + 0.5));
    this.at("difference-scale").textContent = `±${this.span} ${this.unit}`.trim();
    this.read();
  }

  paint(id, grey) {
    if (this.at(`at-${id}`).hidden) return;
    const context = this.at(id).getContext("2d");
    const picture = context.createImageData(this.pairs.size, this.pairs.size);
    const { data } = picture; // rounds and cuts by itself
    for (let place = 0; place < data.length / 4; place++) {
      data[4 * place] = data[4 * place + 1] = data[4 * place + 2] = grey(place);
      data[4 * place + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }

  point(column, row) {
    const last = this.pairs.size - 1;
    this.pointer = [limited(column, 0, last), limited(row, 0, last)];
    this.read();
  }

  read() {
    if (!this.pointer || !this.images) return;
    const [column, row] = this.pointer;
    const place = row * this.pairs.size + column;
    const [hq, lq] = [this.images.hq[place], this.images.lq[place]];
    const shown = (value) => `${value.toFixed(this.digits)} ${this.unit}`.trim();
    const value = (units) => shown(this.low + units * this.scale);
    this.at("readout").textContent =
      `x ${column}, y ${row}: HQ ${value(hq)}, LQ ${value(lq)}, LQ − HQ ${shown((lq - hq) * this.scale)}`;
  }
}

const root = document.querySelector("#viewer[data-file]");
if (root) {
  try {
    const viewer = new Viewer(await Pairs.open(root.dataset.file), root);
    await viewer.choose(viewer.task, 0);
    if (!viewer.images) throw new Error("the first pair could not be read");
    root.hidden = false;
    const sheet = document.getElementById("sheet");
    if (sheet) {
      const folded = document.createElement("details");
      const summary = Object.assign(document.createElement("summary"), { textContent: "Contact sheet" });
      folded.append(summary);
      sheet.replaceWith(folded);
      folded.append(sheet);
    }
  } catch (error) {
    const note = Object.assign(document.createElement("p"), {
      className: "faint",
      textContent: `The viewer cannot show the pairs: ${error.message}.`,
    });
    root.after(note);
  }
}
