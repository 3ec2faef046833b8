// A run's page follows the run: whenever the server says that something happened, the page is asked
// for again, and those parts of it that have changed are put in the place of the old ones. What is
// open, focused or selected in the others stays as it is.

import { Curves } from "./curves.js";
import { Evolution } from "./evolution.js";

const LEAST_MS = 500;
const LOST_AFTER_MS = 3000;
const TRY_AGAIN_MS = 5000;

const root = document.getElementById("run");
const note = document.getElementById("live");
const parts = new Map();
for (const part of document.querySelectorAll("[data-live]")) parts.set(part.id, part.innerHTML);

const curves = document.getElementById("curves") && new Curves(document.getElementById("curves"));
const pairs = document.getElementById("viewer") && new Evolution(document.getElementById("viewer"));

function say(text, kind = "") {
  if (note.textContent !== text) note.textContent = text;
  note.className = `live ${kind}`;
}

/** What the page carries for scripts: curves and snapshots. */
function figures(page) {
  return JSON.parse(page.getElementById("figures").textContent);
}

async function show(told) {
  curves?.update(told.curves);
  document.getElementById("no-curves").hidden = told.curves.length > 0;
  if (!pairs || !told.snapshots.length) return;
  await pairs.update(told.snapshots);
  const sheet = document.getElementById("sheet");
  if (sheet && pairs.viewer?.images) sheet.hidden = true;
}

let asking = false;
let askAgain = false;
let asked = 0;

/** Asks for the page as it is now; of those asked for meanwhile, one alone. */
async function refresh() {
  if (asking) {
    askAgain = true;
    return;
  }
  asking = true;
  try {
    do {
      askAgain = false;
      await new Promise((done) => setTimeout(done, Math.max(0, asked + LEAST_MS - Date.now())));
      asked = Date.now();
      const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
      if (answer.redirected || answer.status === 401) {
        source?.close();
        say("You are signed out: load the page again to sign in. Below is what was known until then.", "warn");
        return;
      }
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const fresh of page.querySelectorAll("[data-live]")) {
        if (parts.get(fresh.id) === fresh.innerHTML) continue;
        parts.set(fresh.id, fresh.innerHTML);
        document.getElementById(fresh.id)?.replaceChildren(...fresh.cloneNode(true).childNodes);
      }
      since();
      await show(figures(page));
    } while (askAgain);
  } finally {
    asking = false;
  }
}

const soon = () => refresh().catch((error) => say(`Not up to date: ${error.message}.`, "warn"));

let source = null;
let over = root.dataset.over === "true";
let at = root.dataset.after;
let lost = null;

function follow() {
  if (over || source) return;
  source = new EventSource(`${root.dataset.events}?after=${at}`);
  source.addEventListener("open", () => {
    clearTimeout(lost);
    lost = null;
    say("Live: this page follows the run.");
  });
  source.addEventListener("journal", (event) => {
    at = event.lastEventId;
    soon();
  });
  source.addEventListener("run", soon);
  source.addEventListener("end", () => {
    over = true;
    leave();
    say("The run has ended; nothing more will come.");
    soon();
  });
  source.addEventListener("error", broken);
}

/** The browser tries again by itself, but where the server refused: then we do. */
function broken() {
  if (over) return;
  const when = new Date().toLocaleTimeString();
  lost ??= setTimeout(() => {
    say(`The connection is lost since ${when}; trying again. Below is what was known until then.`, "warn");
  }, LOST_AFTER_MS);
  if (source?.readyState !== EventSource.CLOSED) return;
  leave();
  setTimeout(async () => {
    try {
      await refused();
      await refresh();
    } catch {
      // The server is away: what was said stands.
    }
    if (!document.hidden) follow();
  }, TRY_AGAIN_MS);
}

/** Says why the server has no stream for us, where it says so. */
async function refused() {
  const ended = new AbortController();
  const answer = await fetch(`${root.dataset.events}?after=${at}`, { signal: ended.signal });
  if (answer.ok) ended.abort();
  else {
    clearTimeout(lost);
    say(`Not live: ${(await answer.json()).error}. The page looks every few seconds.`, "warn");
  }
}

function leave() {
  source?.close();
  source = null;
}

// A page that nobody looks at holds no connection: a browser has six to a server.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return leave();
  soon();
  follow();
});
addEventListener("pagehide", leave);

/** Says beside a moment how long ago it was. */
function since() {
  for (const time of document.querySelectorAll("time[data-since]")) {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - Number(time.dataset.since)));
    const [amount, unit] =
      seconds < 90 ? [seconds, "s"] : seconds < 5400 ? [Math.round(seconds / 60), "min"]
      : seconds < 172800 ? [Math.round(seconds / 3600), "h"] : [Math.round(seconds / 86400), "days"];
    const words = time.dataset.words === "for" ? `for ${amount} ${unit}` : `${amount} ${unit} ago`;
    if (time.textContent !== words) time.textContent = words;
  }
}

since();
setInterval(since, 1000);
await show(figures(document)).catch(() => {});
if (over) say("The run has ended; nothing more will come.");
follow();
