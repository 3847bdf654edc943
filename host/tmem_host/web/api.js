// SPDX-License-Identifier: Apache-2.0
// Requests to the agent's API, with the token of this tab if there is one.

const KEY = "tmem-token";

/** An error as the agent says it (problem+json), or the network. `status` is 0 without an answer. */
export class Problem extends Error {
  constructor(status, detail, hint = "") {
    super(hint ? `${detail} (${hint})` : detail);
    this.status = status;
  }
}

/** Takes a token out of the address (#token=...), so that it is in no history. */
export function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    setToken(found);
    history.replaceState(null, "", location.pathname);
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token.trim());
}

function headers(more) {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

async function send(method, path, { body, headers: more = {}, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      signal,
      cache: "no-store",
      headers: headers(body === undefined ? more : { "Content-Type": "application/json", ...more }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "the agent does not answer");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Problem(answer.status, said.detail || answer.statusText, said.hint);
  }
  return answer;
}

/** The body of the answer: JSON, or undefined where there is none. */
export async function call(method, path, options) {
  const answer = await send(method, path, options);
  return answer.status === 204 ? undefined : answer.json();
}

/** The body of the answer as text. */
export async function text(path) {
  return (await send("GET", path)).text();
}

/** All entries of a list that comes in pages; `name` is the field that has them. */
export async function list(path, name) {
  const found = [];
  for (let cursor = null; ; ) {
    const query = cursor === null ? "" : `?cursor=${encodeURIComponent(cursor)}`;
    const page = await call("GET", path + query);
    found.push(...page[name]);
    if (!page.next) return found;
    cursor = page.next;
  }
}

/** Server-sent events: {event, id, data}. EventSource cannot send a token, so the stream is read here. */
export async function* events(path, signal) {
  const answer = await send("GET", path, { signal, headers: { Accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const found = { event: "message", id: "", data: "" };
      for (const line of part.split(/\r?\n/)) {
        const [, name, rest] = /^([a-z]*):? ?(.*)$/.exec(line) || [];
        if (name === "data") found.data += (found.data ? "\n" : "") + rest;
        else if (name === "event" || name === "id") found[name] = rest;
      }
      if (found.data) yield found;
    }
  }
}
