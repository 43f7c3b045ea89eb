// Show what the server is doing, while somebody looks.

import { call, explain, server } from "./api.js";
import { makeFigure } from "./charts.js";
import { element, formatNumber, formatSeconds } from "./dom.js";
import { growth, histogramGrowth, parseMetrics, quantile, sum } from "./metrics.js";
import { refreshModels } from "./catalog.js";

const PERIOD_MS = 2000;
// Readings that percentiles and hits are taken over: half a minute.
const WINDOW = 15;
const HISTOGRAM = "http_request_duration_seconds";
// Models are asked with POST; probes, this page and everything else that looks at the server use GET.
const isWork = ({ method, handler }) => method === "POST" && !/^none$|\/admin\//.test(handler);

const view = document.getElementById("view-live");
let isShown = false;
let timer = null;
let readings = []; // {at, samples}, oldest first

const figures = {
  requests: makeFigure("Requests/s", "to models"),
  errors: makeFigure("Errors/s", "status 400 and above"),
  inputs: makeFigure("Inputs/s", "computed"),
  tokens: makeFigure("Tokens/s", "computed"),
  queue: makeFigure("Queue", "inputs waiting"),
  batch: makeFigure("Inputs/batch", "last 30 seconds"),
  fill: makeFigure("Batch fill", "of the token budget"),
  busy: makeFigure("Computing", "100 % per busy replica"),
  p50: makeFigure("Latency p50", "last 30 seconds"),
  p99: makeFigure("Latency p99", "last 30 seconds"),
  hits: makeFigure("Cache hits", "last 30 seconds"),
  memory: makeFigure("Memory", "of the process"),
};

/** Start the view. */
export function startLive() {
  view.querySelector(".figures").append(...Object.values(figures).map((figure) => figure.node));
  document.addEventListener("visibilitychange", schedule);
}

/** Tell the view whether it is the one on the screen. */
export function showLive(isNow) {
  isShown = isNow;
  schedule();
}

function schedule() {
  clearTimeout(timer);
  timer = null;
  if (isShown && document.visibilityState === "visible") update();
}

async function update() {
  const mine = (timer = setTimeout(() => {}, 0)); // marks this turn: a later one replaces it
  const error = view.querySelector(".error");
  try {
    const [models, text] = await Promise.all([
      refreshModels({ timeoutS: 5, isQuiet: true }),
      server.hasMetrics ? call("/metrics", { timeoutS: 5, isQuiet: true }) : "",
    ]);
    if (timer !== mine) return;
    readings.push({ at: performance.now(), samples: parseMetrics(text) });
    readings = readings.slice(-WINDOW - 1);
    show(models);
    error.textContent = server.hasMetrics ? "" : "This server was started with --metrics off: only its queues are shown.";
  } catch (failure) {
    if (timer !== mine) return;
    error.textContent = `${explain(failure)} Trying again…`;
  }
  // After the response, so that a slow server is not asked faster than it answers.
  timer = setTimeout(update, PERIOD_MS);
}

function show(models) {
  const [first, last] = [readings[0], readings.at(-1)];
  const previous = readings.at(-2) ?? last;
  const seconds = (last.at - previous.at) / 1000;
  const rate = (name, filter) => divide(growth(previous.samples, last.samples, name, filter), seconds);
  figures.requests.update(rate("http_requests_total", isWork));
  figures.errors.update(rate("http_requests_total", (labels) => isWork(labels) && /^[45]/.test(labels.status)) ?? (seconds ? 0 : null));
  figures.inputs.update(rate("infinity_items_total"));
  figures.tokens.update(rate("infinity_tokens_total"));
  figures.queue.update(models.reduce((total, model) => total + model.stats.queue_absolute, 0));
  const grown = (name, filter) => growth(first.samples, last.samples, name, filter) ?? 0;
  figures.batch.update(divide(grown("infinity_items_total"), grown("infinity_batches_total")));
  const fill = divide(grown("infinity_tokens_total"), countRoom(models, grown));
  figures.fill.update(fill, percent(fill));
  // Counted when a batch ends, which may have begun before the reading before.
  const busy = divide(grown("infinity_compute_seconds_total"), (last.at - first.at) / 1000);
  figures.busy.update(busy, percent(busy));
  const buckets = histogramGrowth(first.samples, last.samples, HISTOGRAM, isWork);
  for (const [name, fraction] of [["p50", 0.5], ["p99", 0.99]]) {
    const value = quantile(buckets, fraction);
    figures[name].update(value, value === null ? "–" : formatSeconds(value));
  }
  const hits = hitRate(grown);
  figures.hits.update(hits, percent(hits));
  const bytes = sum(last.samples, "process_resident_memory_bytes");
  figures.memory.update(bytes, bytes === null ? "–" : `${formatNumber(bytes / 2 ** 20)} MiB`);
  showModels(models, rate, first.samples, last.samples);
}

/** Return how many tokens the batches could have had. */
function countRoom(models, grown) {
  const countBatches = ({ id }) => grown("infinity_batches_total", (labels) => labels.model === id);
  return models.reduce((total, model) => total + model.max_batch_tokens * countBatches(model), 0);
}

function showModels(models, rate, before, after) {
  const rows = models.map((model) => {
    const isMine = (labels) => labels.model === model.id;
    const cells = [rate("infinity_items_total", isMine), rate("infinity_tokens_total", isMine), model.stats.queue_absolute, model.stats.results_pending];
    const hits = hitRate((name) => growth(before, after, name, isMine) ?? 0);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, model.id),
      ...cells.map((value) => element("td", {}, value === null ? "–" : formatNumber(value))),
      element("td", {}, percent(hits)),
    );
  });
  view.querySelector("tbody").replaceChildren(...rows);
}

function hitRate(grown) {
  const hits = grown("infinity_cache_memory_hits_total") + grown("infinity_cache_disk_hits_total") + grown("infinity_cache_shared_total");
  return divide(hits, hits + grown("infinity_cache_misses_total"));
}

const divide = (value, by) => (value === null || !by ? null : value / by);
const percent = (fraction) => (fraction === null ? "–" : `${Math.round(100 * fraction)} %`);
