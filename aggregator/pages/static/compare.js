// Two runs: their curves over one another, and their pairs side by side. What is set in one viewer is
// set in the other, where both have the same task and window; rounds go together as far as both go.

import { Curves } from "./curves.js";
import { Evolution } from "./evolution.js";

const { curves, snapshots } = JSON.parse(document.getElementById("figures").textContent);
new Curves(document.getElementById("curves")).update(curves);

const both = ["viewer", "viewer-b"].map((id) => new Evolution(document.getElementById(id)));
await Promise.all(both.map((one, place) => one.update(snapshots[place]).catch(() => {})));
for (const one of both) {
  if (one.viewer?.images) one.root.parentElement.querySelector(".sheet").hidden = true;
}

const [a, b] = both.map((one) => one.viewer);
if (a && b) {
  let telling = false;
  const alike = a.low === b.low && a.high === b.high && a.unit === b.unit;
  /** Has the other do the same, which tells nobody. */
  const together = (act) => {
    if (telling) return;
    telling = true;
    act();
    telling = false;
  };
  for (const [from, to] of [[a, b], [b, a]]) {
    from.told = () => together(() => {
      if (alike && (to.window !== from.window || to.level !== from.level)) to.set(from);
      if (to.pairs.tasks.has(from.task) && (to.task !== from.task || to.index !== from.index)) {
        to.choose(from.task, from.index);
      }
    });
  }
  for (const [from, to] of [both, [...both].reverse()]) {
    from.told = () => together(() => {
      const { round } = from.snapshots[from.place];
      const place = to.snapshots.findLastIndex((kept) => kept.round <= round);
      if (place >= 0 && place !== to.place) to.go(place);
    });
  }
}
