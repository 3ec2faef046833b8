// The pairs of a run from round to round: a slider above the viewer, which keeps pair, window and
// level while the round changes. It goes along with the newest round until somebody looks back.

import { Pairs } from "./pairs.js";
import { Viewer } from "./viewer.js";

const KEPT_ROUNDS = 12;

export class Evolution {
  constructor(root) {
    this.root = root;
    this.kept = new Map();
    this.snapshots = [];
    this.place = this.shown = -1;
    this.told = () => {};
    this.viewer = null;
    const pick = () => this.go(Number(this.at("round").value));
    this.at("round").addEventListener("input", pick);
    this.at("round-before").addEventListener("click", () => this.go(this.place - 1));
    this.at("round-after").addEventListener("click", () => this.go(this.place + 1));
  }

  at(id) {
    return document.getElementById(id + (this.root.dataset.suffix ?? ""));
  }

  /** Takes over the run's list of what there is, [{round, url}]. */
  async update(snapshots) {
    const followed = this.place === this.snapshots.length - 1;
    this.snapshots = snapshots;
    if (!snapshots.length) return;
    await this.go(followed ? snapshots.length - 1 : this.place);
  }

  /** Shows the round at a place of the list; of those wanted meanwhile, the last alone. */
  async go(place) {
    const last = this.snapshots.length - 1;
    this.place = Math.min(Math.max(place, 0), last);
    const slider = this.at("round");
    [slider.max, slider.value] = [last, this.place];
    const { round } = this.snapshots[this.place];
    const name = round ? `after round ${round}` : "before the first round";
    slider.setAttribute("aria-valuetext", name);
    this.at("round-name").textContent = name;
    this.at("round-before").disabled = this.place === 0;
    this.at("round-after").disabled = this.place === last;
    this.told(this);
    if (this.turning) return;
    this.turning = true;
    try {
      while (this.shown !== this.place) {
        const wanted = this.place;
        await this.show(this.snapshots[wanted]);
        this.shown = wanted;
      }
    } catch (error) {
      this.at("viewer-status").textContent = `Not loaded: ${error.message}`;
    } finally {
      this.turning = false;
    }
  }

  async show({ round, url }) {
    if (!this.kept.has(url)) this.kept.set(url, await Pairs.open(url));
    if (this.kept.size > KEPT_ROUNDS) this.kept.delete(this.kept.keys().next().value);
    const pairs = this.kept.get(url);
    this.viewer ??= new Viewer(pairs, this.root);
    await this.viewer.turn(pairs, round ? `, after round ${round}` : ", before the first round");
    this.root.hidden = !this.viewer.images;
  }
}
