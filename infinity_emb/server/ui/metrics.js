// Read Prometheus' text format, and derive rates and percentiles from two readings of it.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** Parse the exposition; returns a list of `{name, labels, value}`. */
export function parseMetrics(text) {
  return text.split("\n").flatMap((line) => {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line.trim());
    if (!match) return [];
    const labels = Object.fromEntries(
      [...(match[2] ?? "").matchAll(LABEL)].map(([, key, value]) => [key, value.replace(/\\[n"\\]/g, (each) => ESCAPES[each])]),
    );
    return [{ name: match[1], labels, value: parseNumber(match[3]) }];
  });
}

function parseNumber(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}

/** Sum the samples of a name that pass the filter; null if there are none. */
export function sum(samples, name, filter = () => true) {
  const found = samples.filter((sample) => sample.name === name && filter(sample.labels));
  return found.length ? found.reduce((total, sample) => total + sample.value, 0) : null;
}

/** Return how much a counter has grown; null if it is missing. A counter that fell was started again. */
export function growth(before, after, name, filter) {
  const now = sum(after, name, filter);
  if (now === null) return null;
  const then = sum(before, name, filter) ?? 0;
  return now >= then ? now - then : now;
}

/** Return the growth of a histogram between two readings, as ascending `[upper bound, cumulative count]`. */
export function histogramGrowth(before, after, name, filter = () => true) {
  const bounds = [...new Set(after.filter((each) => each.name === `${name}_bucket`).map((each) => each.labels.le))];
  return bounds
    .map((le) => {
      const isBucket = (labels) => labels.le === le && filter(labels);
      return [parseNumber(le), growth(before, after, `${name}_bucket`, isBucket) ?? 0];
    })
    .sort((one, other) => one[0] - other[0]);
}

/** Estimate a quantile as Prometheus' histogram_quantile does; null without observations. */
export function quantile(buckets, fraction) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = fraction * total;
  const i = buckets.findIndex(([, count]) => count >= rank);
  const [lower, below] = i > 0 ? buckets[i - 1] : [0, 0];
  const [upper, count] = buckets[i];
  if (upper === Infinity) return lower;
  return lower + (upper - lower) * (count > below ? (rank - below) / (count - below) : 1);
}
