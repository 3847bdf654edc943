// SPDX-License-Identifier: Apache-2.0
// What the page shows, once a second: the host's memory, VMs, runs.

import { call, list, Problem, setToken, takeToken } from "./api.js";
import { bytes, count, draw, element, plot, put, span } from "./draw.js";
import { runCards } from "./runs.js";
import { ask } from "./settings.js";

const PERIOD = 1000;
const KEPT = 120;
const find = (id) => document.getElementById(id);

/** Series of the host and of each VM: what is held (bytes), and pages put and got a second. */
class Series {
  constructor() {
    this.held = [];
    this.out = [];
    this.back = [];
    this.last = null;
  }

  add(now, held, puts, gets) {
    if (this.last) {
      const seconds = (now - this.last.now) / 1000;
      // A VM that was made again counts from 0.
      this.push("out", Math.max(0, puts - this.last.puts) / seconds);
      this.push("back", Math.max(0, gets - this.last.gets) / seconds);
    }
    this.push("held", held);
    this.last = { now, puts, gets };
  }

  push(name, value) {
    this[name].push(value);
    if (this[name].length > KEPT) this[name].shift();
  }

  get now() {
    return { out: this.out.at(-1) || 0, back: this.back.at(-1) || 0 };
  }
}

const host = new Series();
const cards = new Map();

function tile(title, kind) {
  const value = element("b", { class: "num" });
  const svg = plot(kind, title);
  const made = element("div", { class: "tile" }, element("h3", {}, title, value), svg);
  return { made, value, svg };
}

const tiles = {
  held: tile("held, last two minutes", "held"),
  out: tile("pages put a second", "out"),
  back: tile("pages got a second", "back"),
};
find("tiles").append(...Object.values(tiles).map((one) => one.made));

function meter(target, parts, label) {
  if (target.children.length !== parts.length) target.replaceChildren(...parts.map(() => element("i")));
  parts.forEach(([kind, share], at) => {
    target.children[at].className = kind;
    target.children[at].style.width = `${Math.min(100, Math.max(0, 100 * share)).toFixed(2)}%`;
  });
  target.setAttribute("aria-label", label);
}

function key(colour, name, value) {
  const mark = element("i");
  mark.style.background = `var(--${colour})`;
  return element("li", {}, mark, `${name} `, element("b", { class: "num" }, value));
}

function showStore(store, tiers) {
  const limit = store.limit_bytes;
  const said = `${bytes(store.held_bytes)} held of ${bytes(limit)}, ${bytes(store.reserved_bytes)} promised`;
  meter(find("meter"), [["promised", store.reserved_bytes / limit], ["held", store.held_bytes / limit]], said);
  const ratio = store.held_bytes && store.pages ? ((store.pages * 4096) / store.held_bytes).toFixed(2) : "–";
  find("keys").replaceChildren(
    key("held", "held", bytes(store.held_bytes)),
    key("promised", "promised", bytes(store.reserved_bytes)),
    key("free", "limit", bytes(limit)),
    element("li", {}, "pages ", element("b", { class: "num" }, count(store.pages))),
    element("li", {}, "guest bytes for a held one ", element("b", { class: "num" }, ratio)),
    element("li", {}, "freeable ", element("b", { class: "num" }, bytes(store.freeable_bytes))),
  );
  find("tiers").replaceChildren(
    ...tiers.map((tier) =>
      element("li", {}, `tier ${tier.kind} `, element("b", { class: "num" }, `${bytes(tier.held_bytes)} of ${bytes(tier.limit_bytes)}`)),
    ),
  );
  put(tiles.held.value, bytes(store.held_bytes));
  put(tiles.out.value, count(host.now.out));
  put(tiles.back.value, count(host.now.back));
  for (const name of ["held", "out", "back"]) draw(tiles[name].svg, host[name], KEPT);
}

const STATES = { connected: "good", "in-step": "good", running: "good", broken: "bad", failed: "bad" };

/** The state that says most of several channels: one that broke, else one with a guest. */
function reached(channels) {
  const states = channels.map((channel) => channel.state);
  return ["broken", "in-step", "connected"].find((state) => states.includes(state)) || states[0];
}

function channelRow(channel) {
  const asked = Object.values(channel.requests).reduce((sum, one) => sum + one, 0);
  // A miss is an answer, not a refusal.
  const refused = Object.entries(channel.refused).reduce((sum, [name, one]) => sum + (name === "miss" ? 0 : one), 0);
  const bad = Object.values(channel.malformed).reduce((sum, one) => sum + one, 0);
  const words = [`${count(asked)} requests`, ...(refused ? [`${count(refused)} refused`] : []), ...(bad ? [`${count(bad)} malformed`] : [])];
  return element(
    "li",
    { title: channel.socket },
    element("span", {}, element("i", { class: `dot ${STATES[channel.state] || ""}` }), element("b", {}, channel.kind), ` ${channel.state}`),
    element("span", { class: "num" }, words.join(", ")),
  );
}

function poolRows(pools) {
  return pools.map((pool) =>
    element(
      "tr",
      {},
      element("td", {}, `${pool.id} ${pool.persistent ? "persistent" : "ephemeral"}${pool.shared ? ", shared" : ""}${pool.damaged ? ", damaged" : ""}`),
      element("td", { class: "num" }, bytes(pool.page_size)),
      element("td", {}, pool.codec),
      element("td", { class: "num" }, count(pool.pages)),
      element("td", { class: "num" }, bytes(pool.held_bytes)),
    ),
  );
}

class Card {
  constructor(name) {
    this.series = new Series();
    this.title = element("h3", {}, name);
    this.pill = element("span", { class: "pill" });
    this.freeze = element("button", { class: "small", onclick: () => this.act() });
    this.change = element("button", { class: "small", "aria-label": `settings of ${name}`, onclick: () => ask(this.vm, again) }, "settings");
    this.meter = element("div", { class: "meter thin", role: "img" });
    this.facts = {};
    const facts = element("dl");
    for (const label of ["held", "pages", "ratio", "cap", "promised", "weight", "codec", "device"]) {
      this.facts[label] = element("dd", { class: "num" });
      facts.append(element("div", {}, element("dt", {}, label), this.facts[label]));
    }
    this.out = tile("put/s", "out");
    this.back = tile("got/s", "back");
    this.channels = element("ul", { class: "channels", "aria-label": "channels" });
    this.pools = element("tbody");
    this.summary = element("summary");
    const head = element("tr", {}, ...["pool", "page", "codec", "pages", "held"].map((word) => element("th", {}, word)));
    this.made = element(
      "article",
      { class: "card", "data-vm": name },
      element("div", { class: "top" }, this.title, this.pill, element("menu", {}, this.freeze, this.change)),
      facts,
      this.meter,
      element("div", { class: "two" }, this.out.made, this.back.made),
      this.channels,
      element("details", {}, this.summary, element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), this.pools))),
    );
  }

  async act() {
    this.freeze.disabled = true;
    try {
      await call("POST", `/v1/vms/${encodeURIComponent(this.vm.name)}/${this.vm.frozen ? "thaw" : "freeze"}`);
      await again();
    } catch (error) {
      say(error);
    }
    this.freeze.disabled = false;
  }

  show(vm, now) {
    this.vm = vm;
    this.series.add(now, vm.held_bytes, vm.counters.puts || 0, vm.counters.hits || 0);
    const state = vm.frozen ? "frozen" : vm.machine ? vm.machine.state : reached(vm.channels);
    put(this.pill, state);
    this.pill.className = `pill ${vm.frozen ? "warn" : STATES[state] || ""}`;
    put(this.freeze, vm.frozen ? "thaw" : "freeze");
    const said = {
      held: bytes(vm.held_bytes),
      pages: count(vm.pages),
      ratio: vm.held_bytes ? ((vm.pages * 4096) / vm.held_bytes).toFixed(2) : "–",
      cap: vm.cap === null ? "none" : bytes(vm.cap),
      promised: bytes(vm.reservation),
      weight: `${vm.weight}`,
      codec: vm.codec,
      device: vm.size_bytes ? bytes(vm.size_bytes) : "none",
    };
    for (const [label, value] of Object.entries(said)) put(this.facts[label], value);
    const most = Math.max(vm.cap || 0, vm.reservation, vm.held_bytes, 1);
    const parts = [["promised", vm.reservation / most], ["held", vm.held_bytes / most]];
    if (vm.cap !== null) parts.push(["cap", vm.cap / most]);
    meter(this.meter, parts, `${said.held} held, ${said.promised} promised, cap ${said.cap}`);
    put(this.out.value, count(this.series.now.out));
    put(this.back.value, count(this.series.now.back));
    draw(this.out.svg, this.series.out, KEPT);
    draw(this.back.svg, this.series.back, KEPT);
    this.channels.replaceChildren(...vm.channels.map(channelRow));
    put(this.summary, vm.pools.length === 1 ? "1 pool" : `${vm.pools.length} pools`);
    this.pools.replaceChildren(...poolRows(vm.pools));
  }
}

function showVms(vms, now) {
  const names = new Set(vms.map((vm) => vm.name));
  for (const [name, card] of cards)
    if (!names.has(name)) {
      card.made.remove();
      cards.delete(name);
    }
  const wanted = find("filter").value.trim().toLowerCase();
  let before = null;
  for (const vm of vms) {
    if (!cards.has(vm.name)) cards.set(vm.name, new Card(vm.name));
    const card = cards.get(vm.name);
    card.show(vm, now);
    card.made.hidden = Boolean(wanted) && !vm.name.toLowerCase().includes(wanted);
    // In the order of names, without taking one away that stays: what has the focus would lose it.
    const next = before ? before.nextElementSibling : find("vms").firstElementChild;
    if (next !== card.made) find("vms").insertBefore(card.made, next);
    before = card.made;
  }
  const frozen = vms.filter((vm) => vm.frozen).length;
  put(find("vms-count"), vms.length ? `${vms.length}${frozen ? `, ${frozen} frozen` : ""}` : "");
  find("vms-empty").hidden = vms.length > 0;
}

function say(error) {
  const link = find("link");
  put(link, error ? error.message : "live");
  link.className = `pill ${error ? "bad" : "good"}`;
}

const dialog = find("token");
dialog.addEventListener("cancel", (event) => event.preventDefault());
dialog.addEventListener("close", () => {
  setToken(dialog.querySelector("[name=token]").value);
  dialog.querySelector("form").reset();
  again();
});

function askToken(reason) {
  put(dialog.querySelector(".problem"), reason);
  if (!dialog.open) dialog.showModal();
}

async function look() {
  const [health, store, tiers, vms, runs] = await Promise.all([
    call("GET", "/v1/health"),
    call("GET", "/v1/store"),
    call("GET", "/v1/tiers"),
    list("/v1/vms", "vms"),
    call("GET", "/v1/runs?limit=20"),
  ]);
  const now = performance.now();
  const sum = (name) => vms.reduce((total, vm) => total + (vm.counters[name] || 0), 0);
  host.add(now, store.held_bytes, sum("puts"), sum("hits"));
  put(find("host"), `${location.hostname}, version ${health.version}, up ${span(health.uptime_seconds)}`);
  showVms(vms, now);
  showStore(store, tiers.tiers);
  runCards(runs.runs, again, say);
}

let timer = 0;
let looking = null;

/** Looks now; one look at a time, and the next one a period after it. */
async function again() {
  clearTimeout(timer);
  if (looking) return looking;
  looking = (async () => {
    try {
      await look();
      say(null);
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      if (error.status === 401) askToken(error.message);
      say(error);
    }
    looking = null;
    // Nobody looks at a hidden page.
    if (!document.hidden && !dialog.open) timer = setTimeout(again, PERIOD);
  })();
  return looking;
}

document.addEventListener("visibilitychange", () => document.hidden || again());
find("filter").addEventListener("input", again);
takeToken();
again();
