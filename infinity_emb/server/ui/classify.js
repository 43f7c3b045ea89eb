// Classify texts, and show the labels of each as bars.

import { ApiError, call } from "./api.js";
import { drawBar } from "./charts.js";
import { count, element, readLines } from "./dom.js";
import { startTask } from "./task.js";

// Some classifiers have hundreds of labels; the first ones are the most likely.
const MAX_LABELS = 8;

/** Start the view. */
export function startClassify() {
  const form = document.querySelector("#view-classify form");
  const makeBody = (model) => ({ model: model.id, input: readLines(form.texts.value) });

  startTask("classify", {
    verb: "classifies",
    capabilities: ["classify"],
    listRequests: (model) => [{ path: "/classify", body: makeBody(model) }],
    async compute(model, showResults, signal) {
      const body = makeBody(model);
      if (!body.input.length) throw new ApiError("Enter at least one text.");
      const response = await call("/classify", { method: "POST", body, signal });
      showResults(...body.input.map((text, i) => drawLabels(text, response.data[i])));
      return `${count(body.input.length, "text")}, ${count(response.usage.total_tokens, "token")}`;
    },
  });
}

function drawLabels(text, labels) {
  // Not every activation gives probabilities.
  const highest = Math.max(1, ...labels.map(({ score }) => score));
  const numHidden = labels.length - MAX_LABELS;
  return element(
    "div",
    { class: "panel" },
    element("h2", { class: "quote" }, text),
    ...labels.slice(0, MAX_LABELS).map(({ label, score }) => drawBar(label, score.toFixed(3), score / highest)),
    numHidden > 0 && element("p", { class: "hint" }, `and ${count(numHidden, "less likely label")}`),
  );
}
