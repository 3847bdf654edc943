// SPDX-License-Identifier: Apache-2.0
// Runs of benches: started, followed, cancelled; their reports and logs.

import { call, events, text } from "./api.js";
import { element, put, span } from "./draw.js";

const BENCHES = ["exit", "store", "channel", "swap", "density", "all"];
const OVER = new Set(["done", "failed", "cancelled", "interrupted"]);
const find = (id) => document.getElementById(id);
const cards = new Map();
let again = async () => {};
let say = () => {};

const form = find("run-form");
form.bench.append(...BENCHES.map((name) => element("option", {}, name)));
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await call("POST", "/v1/runs", { body: { bench: form.bench.value, quick: true } });
    await again();
  } catch (error) {
    say(error);
  }
});

class RunCard {
  constructor(run) {
    this.title = element("b", {}, `${run.id} ${run.options.bench}${run.options.quick ? ", quick" : ""}`);
    this.pill = element("span", { class: "pill" });
    this.cancel = element("button", { class: "small danger", onclick: () => this.end() }, "cancel");
    this.log = element("button", { class: "small", onclick: () => showLog(this.run) }, "log");
    // Opened by this page, so that the token of this tab goes with it.
    this.report = element("button", { class: "small", onclick: () => window.open(`report.html?run=${this.run.id}`) }, "report");
    this.bar = element("i", { class: "done" });
    this.meter = element("div", { class: "meter thin", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar);
    this.words = element("p");
    const menu = element("menu", {}, this.report, this.log, this.cancel);
    this.made = element("article", { class: "run", "data-run": run.id }, element("div", { class: "top" }, this.title, this.pill, menu), this.words, this.meter);
    this.following = null;
  }

  async end() {
    this.cancel.disabled = true;
    try {
      await call("DELETE", `/v1/runs/${this.run.id}`);
      await again();
    } catch (error) {
      this.cancel.disabled = false;
      say(error);
    }
  }

  show(run) {
    this.run = run;
    const over = OVER.has(run.state);
    put(this.pill, run.state);
    this.pill.className = `pill ${{ done: "good", failed: "bad", interrupted: "bad", running: "warn" }[run.state] || ""}`;
    this.cancel.hidden = over;
    this.report.hidden = !run.report;
    this.log.hidden = run.state === "queued";
    this.meter.hidden = over;
    if (over) put(this.words, run.reason || ended(run));
    else if (!this.following) this.progress(run.progress);
    if (run.state === "running" && !this.following) this.follow();
  }

  progress(at) {
    const share = at.steps ? Math.min(1, at.done / at.steps) : 0;
    this.bar.style.width = `${(100 * share).toFixed(1)}%`;
    this.meter.setAttribute("aria-valuenow", Math.round(100 * share));
    const left = at.left_seconds ? `, about ${span(at.left_seconds)} left` : "";
    put(this.words, [at.step, at.detail].filter(Boolean).join(": ") + left || "waiting for its turn");
  }

  /** Its events as they come; when the stream breaks off, the list of runs says how it stands and begins again. */
  async follow() {
    this.following = new AbortController();
    try {
      for await (const event of events(`/v1/runs/${this.run.id}/events`, this.following.signal)) {
        if (event.event === "progress") this.progress(JSON.parse(event.data));
        if (event.event === "state" && OVER.has(JSON.parse(event.data).state)) break;
      }
      await again();
    } catch (error) {
      if (error.name !== "AbortError") say(error);
    } finally {
      this.following = null;
    }
  }

  gone() {
    this.following?.abort();
    this.made.remove();
  }
}

function ended(run) {
  const took = run.started ? (Date.parse(run.ended) - Date.parse(run.started)) / 1000 : 0;
  return `asked for by ${run.who}, took ${span(took)}, ended ${new Date(run.ended).toLocaleString()}`;
}

async function showLog(run) {
  const dialog = find("log");
  put(dialog.querySelector("h2"), `Log of run ${run.id}`);
  try {
    put(dialog.querySelector("pre"), (await text(`/v1/runs/${run.id}/log`)) || "It has said nothing yet.");
    dialog.showModal();
  } catch (error) {
    say(error);
  }
}

/** Shows runs, the latest first. */
export function runCards(runs, look, tell) {
  again = look;
  say = tell;
  const known = new Set(runs.map((run) => run.id));
  for (const [id, card] of cards)
    if (!known.has(id)) {
      card.gone();
      cards.delete(id);
    }
  runs.forEach((run, at) => {
    if (!cards.has(run.id)) cards.set(run.id, new RunCard(run));
    const card = cards.get(run.id);
    card.show(run);
    const here = find("runs").children[at];
    if (here !== card.made) find("runs").insertBefore(card.made, here || null);
  });
  find("runs-empty").hidden = runs.length > 0;
}
