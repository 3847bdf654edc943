// SPDX-License-Identifier: Apache-2.0
// What a reader would stumble over on the page, found in the page: returns a list of complaints, empty when all is well.
const complaints = [];
const say = (where, what) => complaints.push(`${where}: ${what}`);
const shown = (e) => e.getClientRects().length > 0 && e.getBoundingClientRect().width > 0;

// Drawings: one per figure, drawn, whole, and with labels that can be read.
for (const figure of document.querySelectorAll("figure")) {
  const drawings = [...figure.querySelectorAll(".wide > svg, .narrow > svg")].filter(shown);
  if (drawings.length !== 1) {
    say(figure.id, `${drawings.length} drawings to be seen`);
    continue;
  }
  const [svg] = drawings;
  const box = svg.viewBox.baseVal;
  const scale = svg.getBoundingClientRect().width / box.width;
  if (svg.getBoundingClientRect().height < 40) say(figure.id, "is flat");
  const marks = [...svg.querySelectorAll("rect, circle, path, polygon, line")];
  if (marks.length < 3) say(figure.id, `only ${marks.length} marks`);
  const texts = [...svg.querySelectorAll("text")];
  for (const part of [...texts, ...marks]) {
    const b = part.getBBox();
    const inside = b.x >= -1 && b.y >= -1 && b.x + b.width <= box.width + 1 && b.y + b.height <= box.height + 1;
    if (!inside) say(figure.id, `'${part.textContent || part.outerHTML.slice(0, 80)}' is not within the drawing`);
  }
  for (const [i, one] of texts.entries()) {
    const size = parseFloat(getComputedStyle(one).fontSize) * scale;
    if (size < 11) say(figure.id, `'${one.textContent}' is ${size.toFixed(1)} pixels`);
    const a = one.getBBox();
    for (const other of texts.slice(i + 1)) {
      const b = other.getBBox();
      const over = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
      const deep = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
      // Boxes of lines of text are taller than what is written: a few pixels are air.
      if (over > 1 && deep > 5) say(figure.id, `'${one.textContent}' lies on '${other.textContent}'`);
    }
  }
  if (!figure.querySelector("h3").textContent.trim()) say(figure.id, "no title");
  if (figure.querySelector(".caption").textContent.trim().length < 20) say(figure.id, "no caption");
}

// Nothing is wider than the page, folded parts unfolded; what scrolls does so in a box of its own.
for (const part of document.querySelectorAll("details")) part.open = true;
const root = document.documentElement;
if (root.scrollWidth > innerWidth) say("page", `is ${root.scrollWidth} pixels wide, of ${innerWidth}`);
for (const part of document.querySelectorAll("main *")) {
  if (part.closest(".scroll") || !shown(part)) continue;
  const b = part.getBoundingClientRect();
  if (b.right > innerWidth + 1 || b.left < -1) say(part.tagName, `'${part.textContent.slice(0, 40)}' leaves the page`);
}

// Text can be told from what is behind it: WCAG 2.1, level AA.
const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
const luminance = (colour) => {
  const [r, g, b] = channels(colour).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const asked = new Set();
const check = (element, colour, least) => {
  const ground = behind(element);
  if (asked.has(`${colour} ${ground} ${least}`)) return;
  asked.add(`${colour} ${ground} ${least}`);
  const found = contrast(colour, ground);
  if (found < least) say(element.tagName, `${colour} on ${ground} has a contrast of ${found.toFixed(2)}, not ${least}`);
};
for (const element of document.querySelectorAll("body *")) {
  if (!shown(element)) continue;
  const style = getComputedStyle(element);
  if (element instanceof SVGElement) {
    if (element.tagName === "text") check(element, style.fill, 4.5);
    else if (element.matches(".fill:not(.band, .area, .poll)")) check(element, style.fill, 3);
    else if (element.matches(".stroke")) check(element, style.stroke, 3);
  } else if ([...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim())) {
    check(element, style.color, 4.5);
    if (parseFloat(style.fontSize) < 12) say(element.tagName, `text of ${style.fontSize}`);
  }
}
return complaints;
