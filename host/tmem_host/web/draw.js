// SPDX-License-Identifier: Apache-2.0
// How numbers and series look. Nothing here asks the agent.

const SVG = "http://www.w3.org/2000/svg";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes for people. */
export function bytes(value) {
  let at = 0;
  for (; value >= 1024 && at < UNITS.length - 1; at++) value /= 1024;
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[at]}`;
}

/** Bytes as the API takes them, whole: 512M, or a number. */
export function size(value) {
  for (const [unit, factor] of [["G", 2 ** 30], ["M", 2 ** 20], ["K", 2 ** 10]])
    if (value && value % factor === 0) return `${value / factor}${unit}`;
  return `${value}`;
}

/** A rate or a count, three digits. */
export function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${Math.round(value / 1e3)} k`;
  return `${Math.round(value)}`;
}

export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

/** An element: `attributes` as they are, `on...` as listeners; children are elements or text, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A part of `text` set only when it changes: what is selected, or read out, stays. */
export function put(target, value) {
  if (target.textContent !== value) target.textContent = value;
}

/** A line over the last `length` values of a series, from 0 up. The class gives its colour. */
export function plot(kind, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `plot c-${kind}`);
  svg.setAttribute("viewBox", "0 0 120 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  for (const name of ["base", "area", "line"]) {
    const path = document.createElementNS(SVG, name === "base" ? "line" : "path");
    path.setAttribute("class", name);
    if (name === "base") for (const [key, value] of [["x1", 0], ["x2", 120], ["y1", 39], ["y2", 39]]) path.setAttribute(key, value);
    svg.append(path);
  }
  return svg;
}

/** Draws `values` into what plot() made: the newest at the right edge. */
export function draw(svg, values, length) {
  const most = Math.max(1e-9, ...values);
  const x = (at) => (120 * (at + length - values.length)) / (length - 1);
  const points = values.map((value, at) => `${x(at).toFixed(1)} ${(39 - (36 * value) / most).toFixed(1)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  svg.querySelector(".line").setAttribute("d", line);
  svg.querySelector(".area").setAttribute("d", line && `${line}L120 39L${x(0).toFixed(1)} 39Z`);
}
