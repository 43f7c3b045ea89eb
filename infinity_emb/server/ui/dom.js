// Build elements. Text always goes in as text nodes: nothing here, or on the page, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an HTML element; attributes that are false, null or undefined are left out. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    // The policy of the page forbids style attributes, but not styles set by its scripts.
    if (name === "style") Object.entries(value).forEach(([key, each]) => node.style.setProperty(key, each));
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return the lines that hold something. */
export function readLines(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

/** Shorten a text to `length` characters, never within one. */
export function shorten(text, length) {
  const characters = [...text];
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : text;
}

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** Write a number with three digits; large ones as 12.3K. */
export function formatNumber(value) {
  return (Math.abs(value) >= 10_000 ? compact : number).format(value);
}

/** Write a duration in milliseconds or seconds. */
export function formatSeconds(seconds) {
  return seconds < 1 ? `${formatNumber(seconds * 1000)} ms` : `${formatNumber(seconds)} s`;
}

/** Write "1 token", "2 tokens". */
export function count(value, noun) {
  return `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
}
