// Draw results. Everything that a colour or a position says stands there as text, too.

import { element, formatNumber, shorten, svg } from "./dom.js";

/** Draw pairwise similarities as a table whose cells are coloured. */
export function drawHeatMap(names, values, caption) {
  // Many models give 0.3 and more to any two texts: colours start at the lowest value, unless all are close.
  const lowest = Math.min(0.9, ...values.flat());
  const scale = (value) => Math.min(1, (value - lowest) / (1 - lowest));
  const numbers = names.map((name, i) => element("th", { scope: "col", title: name }, String(i + 1)));
  const rows = values.map((row, i) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: names[i] }, element("b", {}, String(i + 1)), ` ${shorten(names[i], 40)}`),
      ...row.map((value, j) =>
        element("td", { style: { "--share": Math.max(0, scale(value)).toFixed(3) }, title: `${i + 1} and ${j + 1}` }, value.toFixed(2)),
      ),
    ),
  );
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element(
      "table",
      { class: "heat" },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, element("td", {}), ...numbers)),
      element("tbody", {}, ...rows),
    ),
  );
}

const WIDTH = 480;
const HEIGHT = 320;
const MARGIN = 34;

/** Draw points with their numbers. */
export function drawProjection(names, { points, explained }) {
  // One scale for both axes, so that distances stay true.
  const bounds = [0, 1].map((axis) => points.map((point) => point[axis]));
  const middle = bounds.map((each) => (Math.min(...each) + Math.max(...each)) / 2);
  const spans = bounds.map((each) => Math.max(...each) - Math.min(...each));
  const scale = Math.min((WIDTH - 2 * MARGIN) / (spans[0] || 1e-9), (HEIGHT - 2 * MARGIN) / (spans[1] || 1e-9));
  const place = ([x, y]) => [WIDTH / 2 + (x - middle[0]) * scale, HEIGHT / 2 - (y - middle[1]) * scale];
  const places = points.map(place);
  const labels = spreadLabels(places);
  const dots = places.map(([x, y], i) =>
    svg(
      "g",
      {},
      svg("title", {}, names[i]),
      svg("line", { x1: x, y1: y, x2: labels[i][0], y2: labels[i][1] }),
      svg("circle", { cx: x, cy: y, r: 6 }),
      svg("text", { x: labels[i][0], y: labels[i][1], "text-anchor": "middle", dy: "0.36em" }, String(i + 1)),
    ),
  );
  const shares = explained.map((share) => `${Math.round(100 * share)} %`).join(" and ");
  const caption = `Projection on two principal components, which hold ${shares} of the variance`;
  return element(
    "figure",
    { class: "projection" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": caption }, ...dots),
    element("figcaption", {}, caption),
    element("ol", { class: "legend" }, ...names.map((name) => element("li", { title: name }, shorten(name, 60)))),
  );
}

const LABEL_DISTANCE = 18;

/** Place the numbers above their points, and push apart those that would cover each other or a point. */
function spreadLabels(places) {
  const labels = places.map(([x, y], i) => [x + (i % 2 ? 1 : -1), y - LABEL_DISTANCE]);
  for (let round = 0; round < 60; round++) {
    labels.forEach((label, i) => {
      const others = [...labels.filter((_, j) => j !== i), ...places];
      for (const [x, y] of others) {
        const distance = Math.hypot(label[0] - x, label[1] - y) || 1e-6;
        const push = Math.max(0, LABEL_DISTANCE - distance) / (2 * distance);
        label[0] += (label[0] - x) * push;
        label[1] += (label[1] - y) * push;
      }
    });
  }
  const clamp = (value, size) => Math.max(10, Math.min(size - 10, value));
  return labels.map(([x, y]) => [clamp(x, WIDTH), clamp(y, HEIGHT)]);
}

/** Draw a name, a bar and a number; `fraction` is the length of the bar. */
export function drawBar(name, value, fraction) {
  const length = Math.max(0, Math.min(1, fraction));
  return element(
    "div",
    { class: "bar", style: { "--length": length.toFixed(4) } },
    element("span", { class: "bar-name", title: name }, name),
    element("span", { class: "bar-line", "aria-hidden": "true" }),
    element("span", { class: "bar-value" }, value),
  );
}

/** Make a figure that changes: a name, its value, and a line of its last values. */
export function makeFigure(name, hint) {
  const value = element("span", { class: "figure-value" }, "–");
  const line = svg("polyline", { fill: "none", "stroke-width": "1.5", "vector-effect": "non-scaling-stroke" });
  const chart = svg("svg", { viewBox: "0 0 60 20", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const node = element("div", { class: "figure" }, element("span", { class: "figure-name" }, name), value, chart, element("span", { class: "hint" }, hint));
  const history = [];
  function update(number, text) {
    value.textContent = text ?? (number === null ? "–" : formatNumber(number));
    history.push(number ?? 0);
    if (history.length > 60) history.shift();
    const highest = Math.max(...history) || 1;
    line.setAttribute("points", history.map((each, i) => `${60 - history.length + i},${(19 - (18 * each) / highest).toFixed(2)}`).join(" "));
  }
  return { node, update };
}
